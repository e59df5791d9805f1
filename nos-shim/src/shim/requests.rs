//! What the relay asks of the NOS by control messages.

use crate::channel::{
    Answer, Configuration, ConfigurationRefused, NosCounters, Query, RequestId, ToNos, ToRelay,
};
use crate::time::Instant;

use super::Shim;

impl Shim {
    /// Carries out what the relay asks for. Returns whether there was anything.
    pub(super) fn poll_control(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(message) = self.output.channel.recv_control() {
            any = true;
            let answer = self.carry_out(message, now);
            // A relay that does not listen has gone, and its attachments with it.
            let _ = self.output.channel.send_control(answer);
        }
        any
    }

    #[cold]
    fn carry_out(&mut self, message: ToNos, now: Instant) -> ToRelay {
        match message {
            ToNos::Exchange(request, exchange) => match self.exchange(&exchange, now) {
                Ok(()) => ToRelay::Accepted(request),
                Err(refused) => ToRelay::Refused(request, refused),
            },
            ToNos::Configure(request, wanted) => {
                ToRelay::Configured(request, self.configure(wanted, now))
            }
            ToNos::Query(request, query) => self.answer(request, query, now),
        }
    }

    fn configure(
        &mut self,
        wanted: Configuration,
        now: Instant,
    ) -> Result<(), ConfigurationRefused> {
        match wanted {
            Configuration::Uplinks { uplinks, groups } => {
                self.set_uplinks(uplinks, now)?;
                for (id, groups) in groups {
                    self.set_groups(id, groups, now)?;
                }
            }
            Configuration::Link(id, state) => self.set_link(id, state, now)?,
            Configuration::LeaveLink(id) => self.leave_link(id, now),
            Configuration::Routes(changes) => self.change_routes(changes)?,
            Configuration::Services(vrf, config) => self.set_services(vrf, &config)?,
            Configuration::Neighbors(id, known) => self.remember_neighbors(id, &known, now),
            Configuration::Flows(flows) => self.remember_flows(&flows, now),
            Configuration::EchoFlows(flows) => self.remember_echo_flows(&flows, now),
        }
        Ok(())
    }

    fn answer(&self, request: RequestId, query: Query, now: Instant) -> ToRelay {
        let answer = match query {
            Query::Counters => Answer::Counters(Box::new(self.counters())),
            Query::Ports(after) => Answer::Ports(self.ports().page(after.as_ref())),
            Query::Routes(cursor) => Answer::Routes(self.fib().page(cursor)),
            Query::Uplinks(first) => Answer::Uplinks(self.uplinks(first)),
            Query::Neighbors(cursor) => Answer::Neighbors(self.neighbors(cursor, now)),
            Query::Flows(first) => Answer::Flows(self.flows(first, now)),
            Query::EchoFlows(first) => Answer::EchoFlows(self.echo_flows(first, now)),
        };
        ToRelay::Answer(request, answer)
    }

    fn counters(&self) -> NosCounters {
        NosCounters {
            ledger: *self.ledger(),
            held: self.held(),
            depth: self.output.channel.depth(),
            capacity: self.output.channel.capacity(),
        }
    }
}
