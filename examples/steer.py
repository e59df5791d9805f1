#!/usr/bin/env python3
"""Has a Linux kernel, as a NOS in another process, steer the ports of containers to nos-relay.

It watches the control socket of nos-relay for what containers register, and keeps a policy rule (see
ip-rule(8)) for each address and range of ports, which leads to a routing table. What is in that table,
and that the rules come before the table `local`, is yours to set up: docs/memif.md has the commands.

When nos-relay ends, the rules stay, and are compared with what it says when it is there again. When
this ends by SIGTERM or SIGINT, it takes them away.
"""

import argparse
import ipaddress
import json
import signal
import socket
import subprocess
import sys
import time

# Marks the rules that are ours, as `ip rule` shows it.
PROTOCOL = 208


def command(family, *words):
    """The output of ip(8); what it says on stderr goes to ours."""
    words = ["ip", f"-{family}", *words]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def batch(family, lines):
    """Carries out several lines of ip(8) at once."""
    if lines:
        words = ["ip", f"-{family}", "-batch", "-"]
        subprocess.run(words, check=True, input="".join(f"{line}\n" for line in lines), text=True)


class Rules:
    """The rules that are there, by family: (address, protocol, ports)."""

    def __init__(self, table, priority):
        self.table = table
        self.priority = priority
        self.there = {4: set(), 6: set()}
        for family in self.there:
            for rule in json.loads(command(family, "-j", "rule", "show") or "[]"):
                if rule.get("protocol") == str(PROTOCOL):
                    # From an earlier run, whatever it was asked for.
                    command(family, "rule", "del", "pref", str(rule["priority"]),
                            "protocol", str(PROTOCOL))

    def line(self, action, rule):
        address, protocol, ports = rule
        which = f" ipproto {protocol} dport {ports}" if protocol else ""
        return (f"rule {action} pref {self.priority} protocol {PROTOCOL} to {address}"
                f"{which} lookup {self.table}")

    def follow(self, wanted):
        """Makes `wanted` all rules there are: those that come first, so that no port is missed."""
        for family, there in self.there.items():
            want = {rule for rule in wanted if ipaddress.ip_address(rule[0]).version == family}
            batch(family, [self.line("add", rule) for rule in sorted(want - there)])
            batch(family, [self.line("del", rule) for rule in sorted(there - want)])
            self.there[family] = want


def rules_of(event):
    """What a registration is steered by: of addresses that are its own, all that comes to them."""
    if event["mode"] == "routed":
        return {(address, "", "") for address in event["addresses"]}
    return {
        (address, ports["protocol"], ports["range"])
        for address in event["addresses"]
        for ports in event["ports"]
    }


def watch(path, rules):
    """Follows one nos-relay until it ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        request = {"type": "watch", "registrations": True}
        connection.sendall(json.dumps({"version": 1, "request": request}).encode() + b"\n")
        lines = connection.makefile()
        answer = json.loads(next(lines))["response"]
        if answer["type"] != "watching":
            raise ConnectionError(answer["data"]["message"])
        # The first events say all that is registered; each later one is a change.
        missing = answer["data"]["registrations"]
        containers = {}
        if missing == 0:
            rules.follow(set())
        for line in lines:
            told = json.loads(line)
            if "lost" in told:
                # What was lost may be a registration: ask for all of them again.
                return
            event = told["event"]
            if event["type"] != "registration":
                continue
            containers[event["name"]] = rules_of(event)
            missing -= 1
            if missing <= 0:
                rules.follow(set().union(*containers.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--control", default="/run/nos-relay.sock",
                        help="the control socket of nos-relay")
    parser.add_argument("--table", default="7100", help="where the rules lead")
    parser.add_argument("--priority", default="10", help="of the rules")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    rules = Rules(arguments.table, arguments.priority)
    try:
        while True:
            try:
                watch(arguments.control, rules)
            except (OSError, StopIteration) as error:
                print(f"steer: {error}; trying again", file=sys.stderr)
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    finally:
        rules.follow(set())


if __name__ == "__main__":
    main()
