// The relay inside of a NOS in C: docs/embedding.md. Made of capi/src by cbindgen; not to be edited.
//
// Every function returns a code, NOS_RELAY_OK or what is wrong; nos_relay_last_error() says more. Then nothing
// has changed but what the function says, and results are not written. Pointers must not be NULL unless it is
// said that they may be. Text is UTF-8 and ends with NUL; what is passed is copied.
//
// Found out, each time: NULL; handles of another kind, and all but packets that were freed; use by another
// thread than a port's or a table's; misaligned pointers; sizes of structs; numbers that mean nothing. Found
// out until its buffer is used again: a packet that was sent or freed. Not found out: pointers that lead
// nowhere, lengths that are more than there is, and packets that two threads use at once.

#ifndef NOS_RELAY_H
#define NOS_RELAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Of the interface that this header describes. Programs that were made for another major number do not work with
// this library.
#define NOS_RELAY_ABI_MAJOR 0

// Of the interface that this header describes. It grows where functions or constants are added.
#define NOS_RELAY_ABI_MINOR 4

// A TAP inside of the container's namespace.
#define NOS_RELAY_TAP 0

// A veth pair, with a packet socket on the host's end.
#define NOS_RELAY_VETH 1

// Checksum and segmentation offload may be used.
#define NOS_RELAY_OFFLOAD 0

// Containers send and get packets as they are on a wire.
#define NOS_RELAY_NO_OFFLOAD 1

// There is no request.
#define NOS_RELAY_NOTHING 0

// A change of who owns which addresses and ports, to be granted as a whole or not at all.
#define NOS_RELAY_EXCHANGE 1

// Something that a NOS with a configuration of its own answers by nos_relay_port_unsupported().
#define NOS_RELAY_CONFIGURE 2

// What became of all packets: nos_relay_port_counters().
#define NOS_RELAY_QUERY_COUNTERS 3

// Who owns which ports: nos_relay_port_answer().
#define NOS_RELAY_QUERY_PORTS 4

// Another table, which cannot be told from C.
#define NOS_RELAY_QUERY_OTHER 5

// Ports clash with another owner's.
#define NOS_RELAY_REFUSED_PORTS 1

// The NOS has no such address in this VRF.
#define NOS_RELAY_REFUSED_ADDRESS 2

// The NOS has no such link, or none whose link-local address can be shared.
#define NOS_RELAY_REFUSED_LINK 3

// A packet that is of no attachment.
#define NOS_RELAY_NO_ATTACHMENT UINT32_MAX

// It is IPv6.
#define NOS_RELAY_IPV6 1

// A fragment with the transport header; more follow.
#define NOS_RELAY_FIRST_FRAGMENT 2

// A fragment without a transport header.
#define NOS_RELAY_LATER_FRAGMENT 4

// Routers must not fragment it: IPv4 with DF, and every IPv6 packet.
#define NOS_RELAY_DONT_FRAGMENT 8

// There are IPv4 options, or IPv6 hop-by-hop options.
#define NOS_RELAY_OPTIONS 16

// It is TCP or UDP, and its ports are known.
#define NOS_RELAY_PORTS 32

// An IPv6 routing header still names stations.
#define NOS_RELAY_ROUTED 64

// The transport checksum is in the frame; nobody has verified it.
#define NOS_RELAY_CHECKSUM_COMPLETE 0

// The transport checksum is right, or was never on a wire.
#define NOS_RELAY_CHECKSUM_VERIFIED 1

// The checksum field holds the pseudo-header's sum; the octets from checksum_start on are to be summed up, and
// the result goes to checksum_start + checksum_offset.
#define NOS_RELAY_CHECKSUM_PARTIAL 2

// It is an ordinary packet.
#define NOS_RELAY_SEGMENTATION_NONE 0

// It is a TCP super-frame over IPv4.
#define NOS_RELAY_SEGMENTATION_TCP4 1

// It is a TCP super-frame over IPv6.
#define NOS_RELAY_SEGMENTATION_TCP6 2

// It is a UDP super-frame over either, with a datagram in each segment.
#define NOS_RELAY_SEGMENTATION_UDP 3

// No segment has the TCP flag CWR.
#define NOS_RELAY_ECN_UNMARKED 0

// The first segment has the TCP flag CWR (RFC 3168).
#define NOS_RELAY_ECN_CLASSIC 1

// All segments have the TCP flag CWR (RFC 9768).
#define NOS_RELAY_ECN_ACCURATE 2

// What is cut is no packet in a tunnel.
#define NOS_RELAY_ENCAPSULATION_NONE 0

// What is cut is in UDP: VXLAN, Geneve.
#define NOS_RELAY_ENCAPSULATION_UDP 1

// What is cut is in GRE.
#define NOS_RELAY_ENCAPSULATION_GRE 2

// What is cut is in IP.
#define NOS_RELAY_ENCAPSULATION_IP 3

// The device takes partial checksums.
#define NOS_RELAY_TAKES_CHECKSUM 1

// The device takes TCP super-frames over IPv4.
#define NOS_RELAY_TAKES_TSO4 2

// The device takes TCP super-frames over IPv6.
#define NOS_RELAY_TAKES_TSO6 4

// The device takes UDP super-frames.
#define NOS_RELAY_TAKES_USO 8

// The device takes super-frames of UDP tunnels.
#define NOS_RELAY_TAKES_TUNNEL 16

// The device takes super-frames of GRE and IP in IP.
#define NOS_RELAY_TAKES_IP_TUNNEL 32

// The device takes TCP super-frames all of whose segments have the flag CWR.
#define NOS_RELAY_TAKES_ACCURATE_ECN 64

// Octets of the virtio-net header of nos_relay_port_read() and nos_relay_port_write(), in the byte order of the
// processor (struct virtio_net_hdr).
#define NOS_RELAY_VIRTIO_HEADER 10

// Packets of a burst, at most.
#define NOS_RELAY_BURST 64

// The IP protocol number of TCP.
#define NOS_RELAY_TCP 6

// The IP protocol number of UDP.
#define NOS_RELAY_UDP 17

// Outsiders may open flows to these ports.
#define NOS_RELAY_LISTEN 1

// The owner opens its own flows from these ports; outsiders may only answer.
#define NOS_RELAY_EPHEMERAL 2

// Packets from ports that are not the container's are refused.
#define NOS_RELAY_OUTSIDE_DROP 0

// Packets from ports that are nobody's open flows, and their answers reach the container.
#define NOS_RELAY_OUTSIDE_LEARN 1

// The addresses are the NOS's, which shares them: the container owns ports on them.
#define NOS_RELAY_ADDRESSES_SHARED 0

// The addresses are the container's own, and the NOS routes packets to them. Then it has no claims, no link
// and no policy.
#define NOS_RELAY_ADDRESSES_ROUTED 1

// No link-local address is shared.
#define NOS_RELAY_NO_LINK UINT32_MAX

// No one has claimed the port: a host answers with a reset or an ICMP error.
#define NOS_RELAY_NOBODY 0

// It is the NOS's own.
#define NOS_RELAY_NOS 1

// It is a container's.
#define NOS_RELAY_ATTACHMENT 2

// Its destination is no address of the NOS in its VRF: it is to be routed.
#define NOS_RELAY_ELSEWHERE 3

// It is a later fragment: it goes where the first fragment of its datagram went.
#define NOS_RELAY_FRAGMENT 4

// It is a request or a reply of ICMP, which no port decides.
#define NOS_RELAY_ICMP 5

// It is of a protocol without ports.
#define NOS_RELAY_OTHER_PROTOCOL 6

// It is an ICMP error about nothing that a container has sent: to be dropped.
#define NOS_RELAY_UNMATCHED 7

// What every call returns.
typedef enum nos_relay_code {
  // It is done.
  NOS_RELAY_OK = 0,
  // A pointer is NULL that must not be.
  NOS_RELAY_E_NULL = -1,
  // A handle was freed, is of another kind, or never was one.
  NOS_RELAY_E_HANDLE = -2,
  // A pointer is not aligned for what it points to.
  NOS_RELAY_E_ALIGNMENT = -3,
  // A count, a length, or the size of a struct is out of bounds.
  NOS_RELAY_E_SIZE = -4,
  // Text is not UTF-8.
  NOS_RELAY_E_TEXT = -5,
  // A number or a text means nothing here.
  NOS_RELAY_E_VALUE = -6,
  // The handle belongs to another thread.
  NOS_RELAY_E_THREAD = -7,
  // Something else has to be done before.
  NOS_RELAY_E_ORDER = -8,
  // There is none of that name.
  NOS_RELAY_E_NOT_FOUND = -9,
  // The configuration is wrong.
  NOS_RELAY_E_CONFIG = -10,
  // The relay, the NOS's port table or the kernel does not grant it; nothing has changed.
  NOS_RELAY_E_REFUSED = -11,
  // It took longer than it was given.
  NOS_RELAY_E_TIMEOUT = -12,
  // The relay has ended.
  NOS_RELAY_E_ENDED = -13,
  // There is no room: no buffer is free, the other side does not read, or there are too many handles.
  NOS_RELAY_E_FULL = -14,
  // Octets are no packet.
  NOS_RELAY_E_MALFORMED = -15,
  // The system refuses something.
  NOS_RELAY_E_SYSTEM = -16,
  // A fault of the library: something panicked. Handles that were used may only be freed.
  NOS_RELAY_E_INTERNAL = -17,
} nos_relay_code;

// A relay that runs in this process. All its functions may be called by several threads at once.
typedef struct nos_relay nos_relay;

// What a relay is started with. It may be used for several, one after the other.
typedef struct nos_relay_builder nos_relay_builder;

// Packets that travel together, NOS_RELAY_BURST at most, in order. A burst is of the port that its functions are
// given with it, and freed with that. There are at most 256 of a port at a time. Who needs its packets for no more
// than to send them on spends less by bursts than by packets.
typedef struct nos_relay_burst nos_relay_burst;

// A packet in a buffer of a relay's pool. Its address tells which; who has it owns the buffer, and uses it on
// one thread at a time. One that was given away or freed is told by its address until the buffer is used
// again, and for as long as the port or another packet of the pool is there.
typedef struct nos_relay_packet nos_relay_packet;

// The NOS's side of a relay. It belongs to the first thread that uses it, until nos_relay_port_unbind(); to
// others its functions say NOS_RELAY_E_THREAD. None of them blocks but nos_relay_port_wait(). There are at most 1024
// at a time.
//
// A round of a NOS: nos_relay_port_request(), and an answer to each; nos_relay_port_rx_burst(), and forward what
// containers send; nos_relay_port_tx_burst() of packets for containers; nos_relay_port_wait(). Who has a loop of
// events already calls nos_relay_port_ring() in place of that, and if nos_relay_port_may_block(), waits for
// nos_relay_port_fd() among others, and then calls nos_relay_port_awake().
typedef struct nos_relay_port nos_relay_port;

// The work of the control thread, for a thread of the caller's.
typedef struct nos_relay_runner nos_relay_runner;

// Who owns which port of which address of the NOS: the table by which the shim finds whose a packet is. A
// table belongs to the first thread that uses it, until nos_relay_table_unbind(); to others its functions say
// NOS_RELAY_E_THREAD. There are at most 1024 at a time.
typedef struct nos_relay_table nos_relay_table;

// An interface of the NOS, whose addresses containers may use. Bounds are those of `[[uplink]]` in
// docs/configuration.md.
typedef struct nos_relay_interface {
  // sizeof(nos_relay_interface).
  size_t size;
  // What operators call it, unique.
  const char *name;
  // Its addresses with their networks' prefix lengths, separated by blanks:
  // "203.0.113.1/24 2001:db8:1::1/64".
  const char *addresses;
  // Octets of the longest IP packet; 0 is 1500.
  uint16_t mtu;
  // Its VRF; NULL is "default".
  const char *vrf;
} nos_relay_interface;

// A container to attach. Names, ports and bounds are those of `[[container]]` in docs/configuration.md.
typedef struct nos_relay_container {
  // sizeof(nos_relay_container).
  size_t size;
  // What operators call it, unique.
  const char *name;
  // A file that stands for its network namespace, absolute; or NULL, and `pid` says a process in it.
  const char *netns;
  // A process in its network namespace; 0 if `netns` is not NULL.
  uint32_t pid;
  // NOS_RELAY_TAP or NOS_RELAY_VETH.
  uint32_t device;
  // The name of its interface; NULL is "eth0".
  const char *interface;
  // The addresses of the NOS that it shares, separated by blanks; NULL is all of its VRF.
  const char *addresses;
  // TCP ports on which it can be reached, as "179,20000-20999"; NULL is none.
  const char *tcp;
  // UDP ports on which it can be reached; NULL is none.
  const char *udp;
  // Ports from which it opens flows of its own; NULL is none.
  const char *ephemeral;
  // Its VRF; NULL is "default".
  const char *vrf;
  // NOS_RELAY_OFFLOAD or NOS_RELAY_NO_OFFLOAD.
  uint32_t offload;
} nos_relay_container;

// Whose a port is, or a packet.
typedef struct nos_relay_owner {
  // The container; NOS_RELAY_NO_ATTACHMENT if there is none.
  uint32_t attachment;
  // NOS_RELAY_NOBODY, NOS_RELAY_NOS, NOS_RELAY_ATTACHMENT or, of a packet, what else.
  uint8_t kind;
  // What the container may do with the port: NOS_RELAY_LISTEN or NOS_RELAY_EPHEMERAL; else 0.
  uint8_t claim;
  // Not 0 if a policy has something to say: the registration's lists tell what.
  uint8_t watched;
} nos_relay_owner;

// What remains to be done with a packet before it is on a wire. Offsets count octets from the start of the
// frame.
typedef struct nos_relay_offload {
  // NOS_RELAY_CHECKSUM_*.
  uint8_t checksum;
  // NOS_RELAY_SEGMENTATION_*.
  uint8_t segmentation;
  // NOS_RELAY_ECN_*, of a TCP super-frame.
  uint8_t ecn;
  // NOS_RELAY_ENCAPSULATION_*. The parser finds it out: it is not read.
  uint8_t encapsulation;
  // Where the sum begins, of a partial checksum.
  uint16_t checksum_start;
  // Octets from there to the checksum field.
  uint16_t checksum_offset;
  // Octets of transport payload in each segment but the last, of a super-frame.
  uint16_t segment_size;
  // Where the IP header is of the packet in a tunnel that is cut. Not read.
  uint16_t tunnel_network;
  // Where the transport header is of the packet in a tunnel that is cut. Not read.
  uint16_t tunnel_transport;
} nos_relay_offload;

// What there is to know of a packet. Offsets count octets from the start of the frame.
typedef struct nos_relay_view {
  // The frame, from its Ethernet header on: to be read only.
  const uint8_t *data;
  // Octets of the frame, without what follows the IP packet.
  size_t length;
  // The attachment on which it came in, or NOS_RELAY_NO_ATTACHMENT.
  uint32_t attachment;
  // The VRF in which it is looked up.
  uint16_t vrf;
  // Where the IP header is.
  uint16_t network;
  // Where the transport header is, or the payload of a later fragment.
  uint16_t transport;
  // Where the payload of TCP or UDP is; else the same as `transport`.
  uint16_t payload;
  // The sender's port, in the byte order of the processor; 0 without NOS_RELAY_PORTS.
  uint16_t source_port;
  // The receiver's port.
  uint16_t destination_port;
  // The protocol of the transport header, behind IPv6 extension headers.
  uint8_t protocol;
  // NOS_RELAY_IPV6 and others.
  uint8_t flags;
  // What remains to be done with it.
  struct nos_relay_offload offload;
} nos_relay_view;

// An IP address.
typedef struct nos_relay_address {
  // 4 or 6.
  uint8_t family;
  // In network order; of IPv4 the first four.
  uint8_t octets[16];
} nos_relay_address;

// Ports, the first to the last, 1 to 65535.
typedef struct nos_relay_ports {
  // The lowest.
  uint16_t first;
  // The highest.
  uint16_t last;
} nos_relay_ports;

// Ports that a container would own, on each of its addresses.
typedef struct nos_relay_claim {
  // NOS_RELAY_TCP or NOS_RELAY_UDP.
  uint8_t transport;
  // NOS_RELAY_LISTEN or NOS_RELAY_EPHEMERAL.
  uint8_t kind;
  // Which.
  struct nos_relay_ports ports;
} nos_relay_claim;

// Addresses that begin with the same bits.
typedef struct nos_relay_prefix {
  // One of them.
  struct nos_relay_address address;
  // Bits that they have in common: up to 32 or 128.
  uint8_t length;
} nos_relay_prefix;

// Ports to which not everybody may open flows.
typedef struct nos_relay_restriction {
  // NOS_RELAY_TCP or NOS_RELAY_UDP.
  uint8_t transport;
  // Which.
  struct nos_relay_ports ports;
  // Who may.
  const struct nos_relay_prefix *prefixes;
  // How many prefixes.
  size_t prefix_count;
} nos_relay_restriction;

// What a container needs of the NOS: addresses to use as its own, and ports on them. All of it is granted,
// or nothing.
typedef struct nos_relay_registration {
  // Who asks.
  uint32_t attachment;
  // Where its packets are looked up: a VRF below 32768.
  uint16_t vrf;
  // Octets of the longest IP packet that its link takes.
  uint16_t mtu;
  // What operators call it; UTF-8.
  const char *name;
  // The network that it is in: attachments of different networks are kept apart on addresses that both
  // share. 0 where nothing else is said.
  uint32_t network;
  // Addresses of the NOS that it shares, or its own: `mode` says which.
  const struct nos_relay_address *addresses;
  // How many addresses.
  size_t address_count;
  // Ports that it owns on them.
  const struct nos_relay_claim *claims;
  // How many claims.
  size_t claim_count;
  // The link whose link-local address it shares besides, or NOS_RELAY_NO_LINK.
  uint32_t link;
  // The IPv6 link-local address by which it knows its router.
  uint8_t router[16];
  // Its policy: listen ports to which not everybody may open flows. They do not overlap.
  const struct nos_relay_restriction *from;
  // How many restrictions.
  size_t from_count;
  // Its policy: ephemeral ports that get only packets of flows that it has opened. They do not overlap.
  const struct nos_relay_ports *established;
  // How many ranges.
  size_t established_count;
  // Its policy: where it may open flows to, if to_limited is not 0; else everywhere.
  const struct nos_relay_prefix *to;
  // How many prefixes.
  size_t to_count;
  // Whether `to` says anything.
  uint8_t to_limited;
  // Its policy: NOS_RELAY_OUTSIDE_DROP or NOS_RELAY_OUTSIDE_LEARN.
  uint8_t outside;
  // Whose its addresses are: NOS_RELAY_ADDRESSES_SHARED or NOS_RELAY_ADDRESSES_ROUTED.
  uint8_t mode;
} nos_relay_registration;

// A request of the relay, to be answered once, before the next one is taken.
typedef struct nos_relay_message {
  // NOS_RELAY_NOTHING, NOS_RELAY_EXCHANGE or another.
  uint32_t kind;
  // Its number, for logs.
  uint64_t id;
  // Attachments that go, with their ports, of an exchange. Valid until it is answered.
  const uint32_t *withdraw;
  // How many go.
  size_t withdraw_count;
  // What attachments have from then on, in place of what each had before. Valid until it is answered, with
  // all that it points to.
  const struct nos_relay_registration *registrations;
  // How many registrations.
  size_t registration_count;
} nos_relay_message;

// Why an exchange is refused: the first registration that cannot be granted.
typedef struct nos_relay_refusal {
  // sizeof(nos_relay_refusal).
  size_t size;
  // Whose registration it is.
  uint32_t attachment;
  // NOS_RELAY_REFUSED_*; what is not of the reason is not read.
  uint32_t reason;
  // Ports: what was asked for.
  struct nos_relay_claim claim;
  // Ports: those of them that are taken.
  struct nos_relay_ports taken;
  // Ports: a range of the same length that is free; zeros if there is none.
  struct nos_relay_ports suggestion;
  // Ports: what operators call their owner.
  const char *owner;
  // Address: which.
  struct nos_relay_address address;
  // Address: the VRF of the registration.
  uint16_t vrf;
  // Link: which.
  uint32_t link;
} nos_relay_refusal;

// Packets that were dropped for a reason.
typedef struct nos_relay_drops {
  // Its name, as nos_relay_parse() tells it: "no-route".
  const char *reason;
  // How many.
  uint64_t packets;
} nos_relay_drops;

// What a NOS did with all packets. What it received and originated is what it sent, consumed, dropped and holds.
typedef struct nos_relay_counters {
  // sizeof(nos_relay_counters).
  size_t size;
  // Packets taken in from devices and from the relay.
  uint64_t received;
  // Packets made by the NOS itself.
  uint64_t originated;
  // Packets handed on to a device or to the relay.
  uint64_t sent;
  // Packets that ended by design: answered, or delivered to a stack.
  uint64_t consumed;
  // Packets that it keeps for later.
  size_t held;
  // Packets that it dropped, each reason once.
  const struct nos_relay_drops *drops;
  // How many reasons.
  size_t drop_count;
} nos_relay_counters;

// Packets that a container's policy refuses.
typedef struct nos_relay_policy_refusal {
  // sizeof(nos_relay_policy_refusal).
  size_t size;
  // Whose policy it is.
  uint32_t attachment;
  // Not 0 if the container has sent the packet; else somebody has who would talk to it.
  uint8_t by_owner;
  // Its IP protocol.
  uint8_t protocol;
  // The port on the container's side; 0 if it is not known.
  uint16_t port;
  // The port on the other side; 0 if it is not known.
  uint16_t remote_port;
  // The address on the other side.
  struct nos_relay_address remote;
  // For what it was dropped: "policy-from" or others.
  const char *reason;
  // Packets that were dropped since the last event of this kind, this one included.
  uint64_t dropped;
} nos_relay_policy_refusal;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the interface in the library: NOS_RELAY_ABI_MAJOR << 16 | NOS_RELAY_ABI_MINOR. A program
// works if the upper half is its own header's, and the lower one not less.
//
// Threads: any, at any time.
uint32_t nos_relay_abi_version(void);

// The version of the library as text, for instance "0.1.0". Valid for ever.
//
// Threads: any, at any time.
const char *nos_relay_version(void);

// Makes a builder, which nos_relay_builder_free() frees.
//
// Threads: any. A builder may be used by several threads.
int nos_relay_builder_new(struct nos_relay_builder **builder);

// Frees a builder. Relays that were started with it do not mind. NULL is NOS_RELAY_E_NULL, here and in all
// functions that free.
//
// Threads: any.
int nos_relay_builder_free(struct nos_relay_builder *builder);

// Sets what a configuration file has (docs/configuration.md), besides what the other calls say; another
// text replaces it. An interface of the NOS is an `[[uplink]]` with device = "nos". It is checked when
// the relay starts.
//
// Threads: any.
int nos_relay_builder_config(struct nos_relay_builder *builder, const char *toml);

// Adds an interface of the NOS; at least one is needed.
//
// Threads: any.
int nos_relay_builder_interface(struct nos_relay_builder *builder,
                                const struct nos_relay_interface *interface);

// Adds a container.
//
// Threads: any.
int nos_relay_builder_container(struct nos_relay_builder *builder,
                                const struct nos_relay_container *container);

// Sets how many frame buffers there are, instead of 2048: 256 to 65536.
//
// Threads: any.
int nos_relay_builder_buffers(struct nos_relay_builder *builder, uint32_t count);

// Sets how many bursts each ring holds, instead of 8: 8 to 4096.
//
// Threads: any.
int nos_relay_builder_ring(struct nos_relay_builder *builder, uint32_t bursts);

// Has the relay listen on a control socket (docs/control.md).
//
// Threads: any.
int nos_relay_builder_control(struct nos_relay_builder *builder, const char *path);

// Sets a directory in which what is registered at run time outlives the relay.
//
// Threads: any.
int nos_relay_builder_state(struct nos_relay_builder *builder, const char *directory);

// Has the relay end at once where a container cannot be attached at the start, instead of waiting for
// what is missing.
//
// Threads: any.
int nos_relay_builder_strict(struct nos_relay_builder *builder);

// Starts a relay, with a control thread of its own. Containers are attached behind this, for which the NOS
// has to answer: see nos_relay_await_ready(). It works in the network namespace of the thread that calls
// this. If it fails, nothing is in place.
//
// Threads: any. The port belongs to the first thread that uses it.
int nos_relay_builder_start(struct nos_relay_builder *builder,
                            struct nos_relay **relay,
                            struct nos_relay_port **port);

// Starts a relay with what a configuration file has (docs/configuration.md) and nothing else: as
// nos_relay_builder_config() and nos_relay_builder_start().
//
// Threads: any. The port belongs to the first thread that uses it.
int nos_relay_start(const char *toml, struct nos_relay **relay, struct nos_relay_port **port);

// Starts a relay as nos_relay_builder_start() does, with the control thread's work left to a thread of the caller's: nos_relay_runner_run().
//
// Threads: any.
int nos_relay_builder_prepare(struct nos_relay_builder *builder,
                              struct nos_relay_runner **runner,
                              struct nos_relay **relay,
                              struct nos_relay_port **port);

// Takes the next burst that containers have sent, and says how many packets it has: 0 if there is none, and
// `burst` is NULL then. It is the caller's from then on, who sends, unpacks or frees it.
//
// Threads: the port's.
int nos_relay_port_receive(struct nos_relay_port *port, struct nos_relay_burst **burst, size_t *count);

// Sends a burst for containers, each packet to the attachment that it is set to. The burst is not the caller's
// any more. NOS_RELAY_E_FULL if the ring has no room, NOS_RELAY_E_ENDED if the relay has ended: it still is. The
// relay is woken by nos_relay_port_ring().
//
// Threads: the port's.
int nos_relay_port_send(struct nos_relay_port *port,
                        struct nos_relay_burst *burst);

// Looks up whose the packets of a burst are, as nos_relay_table_recipients() does, sets those of attachments to
// them, and sends them. The others stay in the burst, in order, and `left` says how many; `owners`, with room for
// NOS_RELAY_BURST, says whose they are. So do those about which a policy has something to say. If none is left,
// the burst is not the caller's any more.
// NOS_RELAY_E_FULL if the ring has no room, NOS_RELAY_E_ENDED if the relay has ended: all are left then.
//
// Threads: the port's, which is the table's.
int nos_relay_port_deliver(struct nos_relay_port *port,
                           struct nos_relay_table *table,
                           struct nos_relay_burst *burst,
                           struct nos_relay_owner *owners,
                           size_t *left);

// Tells what there is to know of each packet of a burst, as nos_relay_packet_views(), and how many there are:
// `capacity` at most. The views are valid until the packets are not the caller's any more.
//
// Threads: the port's.
int nos_relay_burst_views(struct nos_relay_port *port,
                          struct nos_relay_burst *burst,
                          struct nos_relay_view *views,
                          size_t capacity,
                          size_t *count);

// Takes the first `capacity` packets out of a burst, and says how many: they are the caller's from then on, each by
// itself. If none is left, the burst is not the caller's any more; a capacity of NOS_RELAY_BURST has room for all.
//
// Threads: the port's.
int nos_relay_burst_unpack(struct nos_relay_port *port,
                           struct nos_relay_burst *burst,
                           struct nos_relay_packet **packets,
                           size_t capacity,
                           size_t *count);

// Makes a burst of `count` packets, 1 to NOS_RELAY_BURST, which are not the caller's any more. If one of them is
// wrong, there is no burst, and the others still are.
//
// Threads: the port's, which has the packets.
int nos_relay_burst_pack(struct nos_relay_port *port,
                         struct nos_relay_packet *const *packets,
                         size_t count,
                         struct nos_relay_burst **burst);

// Frees a burst and its packets.
//
// Threads: the port's.
int nos_relay_burst_free(struct nos_relay_port *port, struct nos_relay_burst *burst);

// What was wrong with the last call of this thread that failed, and with which argument: text in English,
// never NULL, empty if none failed. Valid until the next call that fails on this thread.
//
// Threads: any, at any time; each has its own.
const char *nos_relay_last_error(void);

// Takes the oldest request of the relay; its kind is NOS_RELAY_NOTHING if there is none. NOS_RELAY_E_ORDER if
// the one before was not answered.
//
// Threads: the port's.
int nos_relay_port_request(struct nos_relay_port *port, struct nos_relay_message *request);

// Answers an exchange: it holds from the next packet on.
//
// Threads: the port's.
int nos_relay_port_accept(struct nos_relay_port *port);

// Answers an exchange: nothing of it is granted.
//
// Threads: the port's.
int nos_relay_port_refuse(struct nos_relay_port *port, const struct nos_relay_refusal *refusal);

// Answers a request that is no exchange: this NOS has a configuration of its own, or no such table.
//
// Threads: the port's.
int nos_relay_port_unsupported(struct nos_relay_port *port);

// Answers a request by a port table: an exchange is made there, or refused as it is there; the owners of ports
// are told; anything else is unsupported. `granted`, which may be NULL, is false only of an exchange that was
// refused, and nos_relay_last_error() says why.
//
// Threads: the port's, which is the table's.
int nos_relay_port_answer(struct nos_relay_port *port,
                          struct nos_relay_table *table,
                          bool *granted);

// Takes all requests that wait, and answers them by a port table, as nos_relay_port_answer() does.
//
// Threads: the port's, which is the table's.
int nos_relay_port_answer_all(struct nos_relay_port *port, struct nos_relay_table *table);

// Answers NOS_RELAY_QUERY_COUNTERS.
//
// Threads: the port's.
int nos_relay_port_counters(struct nos_relay_port *port, const struct nos_relay_counters *counters);

// Tells the operator that somebody else uses an address of the NOS: a host with this MAC address, six octets, on
// a link.
//
// Threads: the port's.
int nos_relay_port_address_conflict(struct nos_relay_port *port,
                                    uint32_t link,
                                    const struct nos_relay_address *address,
                                    const uint8_t *mac);

// Tells the relay all interfaces of the NOS from now on, at least one, and with the same names as before where they
// are the same. Containers follow: their addresses, routes and MTU, by exchanges that the relay asks for. The
// NOS has a new address before it says so, and an old one until the relay has asked for its withdrawal. What
// the relay cannot follow changes nothing; its log says why.
//
// Threads: the port's.
int nos_relay_port_interfaces(struct nos_relay_port *port,
                              const struct nos_relay_interface *interfaces,
                              size_t count);

// Tells the operator what a policy refuses; of one container and one reason now and then, not for every packet.
//
// Threads: the port's.
int nos_relay_port_policy_refused(struct nos_relay_port *port,
                                  const struct nos_relay_policy_refusal *refusal);

// Parses a frame of the caller's, from its Ethernet header on, with nothing else of this library. `offload` may
// be NULL: nothing remains to be done. The view's data is `frame`. Of what is no packet, `reason`, if it is
// not NULL, is the name of why, which is valid for ever: "ip-length", "ethertype" and others of
// docs/control.md.
//
// Threads: any.
int nos_relay_parse(const uint8_t *frame,
                    size_t length,
                    const struct nos_relay_offload *offload,
                    struct nos_relay_view *view,
                    const char **reason);

// Tells what there is to know of `count` packets. If one of them is wrong, those in front of it are told.
//
// Threads: that which has the packets.
int nos_relay_packet_views(struct nos_relay_packet *const *packets,
                           size_t count,
                           struct nos_relay_view *views);

// Sets the attachment on which a packet leaves.
//
// Threads: that which has the packet.
int nos_relay_packet_set_attachment(struct nos_relay_packet *packet, uint32_t attachment);

// Sets the VRF in which a packet is looked up, below 32768.
//
// Threads: that which has the packet.
int nos_relay_packet_set_vrf(struct nos_relay_packet *packet, uint16_t number);

// Writes the Ethernet addresses of a packet, six octets each.
//
// Threads: that which has the packet.
int nos_relay_packet_set_link(struct nos_relay_packet *packet,
                              const uint8_t *destination,
                              const uint8_t *source);

// Decrements TTL or hop limit, as a router does. Whether the packet may still be forwarded is told; if not, it
// is left as it was.
//
// Threads: that which has the packet.
int nos_relay_packet_decrement_ttl(struct nos_relay_packet *packet,
                                   bool *may_be_forwarded);

// Lends the octets of a packet for writing: `data` is where its frame begins, and there is room for `room`
// octets. It is no packet any more until nos_relay_packet_commit() has found that it is one.
//
// Threads: that which has the packet.
int nos_relay_packet_edit(struct nos_relay_packet *packet, uint8_t **data, size_t *room);

// Parses the first `length` octets of what nos_relay_packet_edit() or nos_relay_port_alloc() lent. Offload and
// reason are as for nos_relay_parse(). What is no packet stays as it is.
//
// Threads: that which has the packet.
int nos_relay_packet_commit(struct nos_relay_packet *packet,
                            size_t length,
                            const struct nos_relay_offload *offload,
                            const char **reason);

// Gives a packet's buffer back, whatever is in it. Many at once: nos_relay_port_free_burst().
//
// Threads: that which has the packet.
int nos_relay_packet_free(struct nos_relay_packet *packet);

// Gives a port up, so that another thread may use it.
//
// Threads: the port's.
int nos_relay_port_unbind(struct nos_relay_port *port);

// Frees a port: the NOS ends. The relay drops what containers send until another has taken its place. Packets
// that the caller has stay the caller's.
//
// Threads: the port's, or any if it was given up.
int nos_relay_port_free(struct nos_relay_port *port);

// Tells the descriptor (eventfd(2)) that is readable when the relay has something for a NOS that has announced
// to wait. It is the port's: it is neither read nor closed by the caller.
//
// Threads: the port's.
int nos_relay_port_fd(struct nos_relay_port *port,
                      int *descriptor);

// Takes up to `capacity` packets that containers have sent, and says how many: 0 if there are none. They are
// the caller's from then on, who sends or frees each. A call takes one burst at most; a capacity of
// NOS_RELAY_BURST has room for any.
//
// Threads: the port's.
int nos_relay_port_rx_burst(struct nos_relay_port *port,
                            struct nos_relay_packet **packets,
                            size_t capacity,
                            size_t *count);

// Sends `count` packets for containers, each to the attachment that it is set to, and says how many were taken:
// less than `count` if the ring is full, or if one of them is wrong or the relay has ended, which the code tells.
// Those are not the caller's any more; the others still are. The relay is woken by nos_relay_port_ring().
//
// Threads: the port's, which has the packets.
int nos_relay_port_tx_burst(struct nos_relay_port *port,
                            struct nos_relay_packet *const *packets,
                            size_t count,
                            size_t *taken);

// Frees `count` packets: the same as nos_relay_packet_free() of each, but without atomic operations, if they are
// of this port's relay. If one of them is wrong, those in front of it are freed.
//
// Threads: the port's, which has the packets.
int nos_relay_port_free_burst(struct nos_relay_port *port,
                              struct nos_relay_packet *const *packets,
                              size_t count);

// Takes an empty buffer from the relay's pool, as one that nos_relay_packet_edit() has lent already. Packets for
// containers had better come from there, as its buffers have room for a super-frame.
//
// Threads: the port's.
int nos_relay_port_alloc(struct nos_relay_port *port,
                         struct nos_relay_packet **packet);

// Copies a frame into a buffer of the relay's pool, and parses it. Offload may be NULL: nothing remains to be
// done. NOS_RELAY_E_MALFORMED if it is no packet, and there is none then.
//
// Threads: the port's.
int nos_relay_port_copy(struct nos_relay_port *port,
                        const uint8_t *frame,
                        size_t length,
                        const struct nos_relay_offload *offload,
                        struct nos_relay_packet **packet);

// Makes of a packet what a device can send that takes NOS_RELAY_TAKES_*: the packet untouched if possible, else
// with its checksum completed, else in segments. It is not the caller's any more; nos_relay_port_adapted() has
// what became of it. Segments for which there was no buffer are missing, and `dropped` counts them, which may
// be NULL.
//
// Threads: the port's, which has the packet.
int nos_relay_port_adapt(struct nos_relay_port *port,
                         struct nos_relay_packet *packet,
                         uint32_t takes,
                         uint64_t *dropped);

// Takes up to `capacity` packets of what nos_relay_port_adapt() has made, in order, and says how many: 0 if
// there are none left.
//
// Threads: the port's.
int nos_relay_port_adapted(struct nos_relay_port *port,
                           struct nos_relay_packet **packets,
                           size_t capacity,
                           size_t *count);

// Reads up to `capacity` packets from a descriptor whose frames have a virtio-net header of NOS_RELAY_VIRTIO_HEADER
// octets in front: a packet socket with PACKET_VNET_HDR, a TAP with IFF_VNET_HDR. `count` says how many there
// were: less than `capacity` if there are no more now, or no buffers. `malformed`, which may be NULL, counts
// frames that were no packets, as ARP is none; they are dropped. NOS_RELAY_E_SYSTEM if the descriptor fails,
// after `count` packets.
//
// Threads: the port's. The descriptor had better not block.
int nos_relay_port_read(struct nos_relay_port *port,
                        int descriptor,
                        struct nos_relay_packet **packets,
                        size_t capacity,
                        size_t *count,
                        uint64_t *malformed);

// Writes a packet to such a descriptor that takes NOS_RELAY_TAKES_*, as nos_relay_port_adapt() makes it. The
// packet is not the caller's any more. `dropped`, which may be NULL, counts what the descriptor did not take, and
// segments for which there was no buffer; NOS_RELAY_E_SYSTEM says why it did not.
//
// Threads: the port's, which has the packet. The descriptor had better not block.
int nos_relay_port_write(struct nos_relay_port *port,
                         int descriptor,
                         struct nos_relay_packet *packet,
                         uint32_t takes,
                         uint64_t *dropped);

// Wakes the relay if it waits for something that was sent since the last call, or for room and there is some.
// Call it once after a round of sending or taking.
//
// Threads: the port's.
int nos_relay_port_ring(struct nos_relay_port *port);

// Announces that the caller is about to wait until nos_relay_port_fd() is readable. Tells false if it must
// not, because there is something to do.
//
// Threads: the port's.
int nos_relay_port_may_block(struct nos_relay_port *port, bool *may);

// Announces that the caller is about to wait until the ring towards the relay is half empty. Tells false if it
// must not, because it is. Who wants to be woken for what comes, too, calls nos_relay_port_may_block() besides.
//
// Threads: the port's.
int nos_relay_port_may_await_room(struct nos_relay_port *port,
                                  bool *may);

// Takes both announcements back, and the ring too. To be called after every wait.
//
// Threads: the port's.
int nos_relay_port_awake(struct nos_relay_port *port);

// Waits at the end of a round: rings, and blocks for up to `milliseconds`, -1 for ever, until the relay has something
// or one of `count` descriptors can be read from, 15 at most. It returns at once if there is something already,
// and when a signal comes. `is_deserted` as of nos_relay_port_is_deserted().
//
// Threads: the port's.
int nos_relay_port_wait(struct nos_relay_port *port,
                        const int *descriptors,
                        size_t count,
                        int milliseconds,
                        bool *is_deserted);

// Tells whether the ring towards the relay takes another burst. Only the caller fills it, so it stays true until
// then.
//
// Threads: the port's.
int nos_relay_port_has_room(struct nos_relay_port *port,
                            bool *has_room);

// Tells whether the relay has ended, or another NOS has taken this one's place. What it sent before can still be
// taken.
//
// Threads: the port's.
int nos_relay_port_is_deserted(struct nos_relay_port *port,
                               bool *is_deserted);

// Tells how many packets were sent that the relay never took before it ended.
//
// Threads: the port's.
int nos_relay_port_lost(struct nos_relay_port *port, size_t *packets);

// Waits until all containers are attached whose namespaces are there, up to `milliseconds`; the others are
// attached when they come. The NOS has to answer meanwhile, on another thread or between calls of this
// with a limit of 0.
//
// Threads: any.
int nos_relay_await_ready(struct nos_relay *relay, uint32_t milliseconds);

// Asks for a change, or what there is, as over the control socket. `request` is the value of "request" in
// docs/control.md: {"type":"show","table":"attachments"}. What is answered, a refusal too, is the value of
// "response", as text that nos_relay_string_free() frees; in the case of an error without an answer it is
// NULL. `answer` may be NULL, and nothing is told.
//
// Threads: any, but not the NOS's alone, which has to answer the relay meanwhile.
int nos_relay_request(struct nos_relay *relay, const char *request, uint32_t milliseconds, char **answer);

// Frees what nos_relay_request() answered, once.
//
// Threads: any.
int nos_relay_string_free(char *string);

// Opens a connection to the relay's control socket, which need not have a path: a stream of lines as
// docs/control.md says, for instance to watch. The caller closes it.
//
// Threads: any.
int nos_relay_control_socket(struct nos_relay *relay, int *descriptor);

// Attaches a container, besides those of the configuration, within `milliseconds`. One that is attached
// already, by the same keys, stays as it is.
//
// Threads: as nos_relay_request().
int nos_relay_attach(struct nos_relay *relay,
                     const struct nos_relay_container *container,
                     uint32_t milliseconds);

// Takes a container away that was attached at run time.
//
// Threads: as nos_relay_request().
int nos_relay_detach(struct nos_relay *relay, const char *name, uint32_t milliseconds);

// Has the relay follow another configuration: what does not differ is not touched. It follows later.
// Settings of threads and buffers stay as they are.
//
// Threads: any.
int nos_relay_reconfigure(struct nos_relay *relay, struct nos_relay_builder *builder);

// Makes the port of another NOS, which takes the place of the one before: that has ended, or is cut off by
// this. The new one is told every registration.
//
// Threads: any.
int nos_relay_join_nos(struct nos_relay *relay, struct nos_relay_port **port);

// Ends the relay, and waits until everything that it had put in place is taken away. It can still be asked,
// and says that it has ended, until it is freed. NOS_RELAY_E_* says why it ended before.
//
// Threads: any; the NOS has better answer meanwhile on another.
int nos_relay_stop(struct nos_relay *relay);

// Frees a relay. One that was not stopped ends by itself, and nobody waits for it.
//
// Threads: any; calls of others with this relay that are under way are finished.
int nos_relay_free(struct nos_relay *relay);

// Attaches containers and looks after them until the relay is told to stop. The thread blocks meanwhile.
// The runner is freed, whatever this returns: NOS_RELAY_E_* says why it ended.
//
// Threads: any, once.
int nos_relay_runner_run(struct nos_relay_runner *runner);

// Frees a runner that is not to run; its relay ends.
//
// Threads: any.
int nos_relay_runner_free(struct nos_relay_runner *runner);

// Makes a table without addresses, which nos_relay_table_free() frees.
//
// Threads: any. The table belongs to the first thread that uses it.
int nos_relay_table_new(struct nos_relay_table **table);

// Gives a table up, so that another thread may use it.
//
// Threads: the table's.
int nos_relay_table_unbind(struct nos_relay_table *table);

// Frees a table.
//
// Threads: the table's, or any if it was given up.
int nos_relay_table_free(struct nos_relay_table *table);

// Makes an address one of the NOS's. What is registered on it holds from now on. `index`, which may be NULL, is
// where nos_relay_table_owner() finds it. Adding it again changes nothing.
//
// Threads: the table's.
int nos_relay_table_add_address(struct nos_relay_table *table,
                                uint16_t number,
                                const struct nos_relay_address *address,
                                uint32_t *index);

// Makes an address none of the NOS's. Its ports are nobody's until it is added again, and its index may then
// be another's.
//
// Threads: the table's.
int nos_relay_table_remove_address(struct nos_relay_table *table,
                                   uint16_t number,
                                   const struct nos_relay_address *address);

// Tells the index of an address of the NOS.
//
// Threads: the table's.
int nos_relay_table_address(struct nos_relay_table *table,
                            uint16_t number,
                            const struct nos_relay_address *address,
                            uint32_t *index);

// Makes the link-local address of a link one of the NOS's: of the link that registrations name. `index` may be
// NULL.
//
// Threads: the table's.
int nos_relay_table_add_link(struct nos_relay_table *table,
                             uint32_t link,
                             uint32_t *index);

// Takes the link-local address of a link away.
//
// Threads: the table's.
int nos_relay_table_remove_link(struct nos_relay_table *table, uint32_t link);

// Takes their ports from attachments, and grants those that register what they ask for, in place of what they
// had before; all of it at once, or nothing: NOS_RELAY_E_REFUSED says whose ports are in the way. Attachments
// to withdraw that are unknown do no harm. It is what nos_relay_port_answer() does with a request.
//
// Threads: the table's.
int nos_relay_table_exchange(struct nos_relay_table *table,
                             const uint32_t *withdraw,
                             size_t withdraw_count,
                             const struct nos_relay_registration *registrations,
                             size_t registration_count);

// Tells whose a port of an address is.
//
// Threads: the table's.
int nos_relay_table_owner(struct nos_relay_table *table,
                          uint32_t index,
                          uint8_t protocol,
                          uint16_t port,
                          struct nos_relay_owner *owner);

// Tells whose `count` packets are, as the shim decides it of what ports decide: TCP and UDP by their destination
// port, but a segment that opens a flow to an ephemeral port is nobody's; ICMP errors by the port from which
// the quoted packet came. If one of the packets is wrong, those in front of it are told.
//
// Threads: the table's, which has the packets.
int nos_relay_table_recipients(struct nos_relay_table *table,
                               struct nos_relay_packet *const *packets,
                               size_t count,
                               struct nos_relay_owner *owners);

// What was wrong with the last call of this thread that failed, and with which argument: text in English,
// never NULL, empty if none failed. Valid until the next call that fails on this thread.
//
// Threads: any, at any time; each has its own.
const char *nos_relay_last_error(void);

// Makes a builder, which nos_relay_builder_free() frees.
//
// Threads: any. A builder may be used by several threads.
int nos_relay_builder_new(struct nos_relay_builder **builder);

// Frees a builder. Relays that were started with it do not mind. NULL is NOS_RELAY_E_NULL, here and in all
// functions that free.
//
// Threads: any.
int nos_relay_builder_free(struct nos_relay_builder *builder);

// Sets what a configuration file has (docs/configuration.md), besides what the other calls say; another
// text replaces it. An interface of the NOS is an `[[uplink]]` with device = "nos". It is checked when
// the relay starts.
//
// Threads: any.
int nos_relay_builder_config(struct nos_relay_builder *builder, const char *toml);

// Adds an interface of the NOS; at least one is needed.
//
// Threads: any.
int nos_relay_builder_interface(struct nos_relay_builder *builder,
                                const struct nos_relay_interface *interface);

// Adds a container.
//
// Threads: any.
int nos_relay_builder_container(struct nos_relay_builder *builder,
                                const struct nos_relay_container *container);

// Sets how many frame buffers there are, instead of 2048: 256 to 65536.
//
// Threads: any.
int nos_relay_builder_buffers(struct nos_relay_builder *builder, uint32_t count);

// Sets how many bursts each ring holds, instead of 8: 8 to 4096.
//
// Threads: any.
int nos_relay_builder_ring(struct nos_relay_builder *builder, uint32_t bursts);

// Has the relay listen on a control socket (docs/control.md).
//
// Threads: any.
int nos_relay_builder_control(struct nos_relay_builder *builder, const char *path);

// Sets a directory in which what is registered at run time outlives the relay.
//
// Threads: any.
int nos_relay_builder_state(struct nos_relay_builder *builder, const char *directory);

// Has the relay end at once where a container cannot be attached at the start, instead of waiting for
// what is missing.
//
// Threads: any.
int nos_relay_builder_strict(struct nos_relay_builder *builder);

// Starts a relay, with a control thread of its own. Containers are attached behind this, for which the NOS
// has to answer: see nos_relay_await_ready(). It works in the network namespace of the thread that calls
// this. If it fails, nothing is in place.
//
// Threads: any. The port belongs to the first thread that uses it.
int nos_relay_builder_start(struct nos_relay_builder *builder,
                            struct nos_relay **relay,
                            struct nos_relay_port **port);

// Starts a relay with what a configuration file has (docs/configuration.md) and nothing else: as
// nos_relay_builder_config() and nos_relay_builder_start().
//
// Threads: any. The port belongs to the first thread that uses it.
int nos_relay_start(const char *toml, struct nos_relay **relay, struct nos_relay_port **port);

// Starts a relay as nos_relay_builder_start() does, with the control thread's work left to a thread of the caller's: nos_relay_runner_run().
//
// Threads: any.
int nos_relay_builder_prepare(struct nos_relay_builder *builder,
                              struct nos_relay_runner **runner,
                              struct nos_relay **relay,
                              struct nos_relay_port **port);

// Waits until all containers are attached whose namespaces are there, up to `milliseconds`; the others are
// attached when they come. The NOS has to answer meanwhile, on another thread or between calls of this
// with a limit of 0.
//
// Threads: any.
int nos_relay_await_ready(struct nos_relay *relay, uint32_t milliseconds);

// Asks for a change, or what there is, as over the control socket. `request` is the value of "request" in
// docs/control.md: {"type":"show","table":"attachments"}. What is answered, a refusal too, is the value of
// "response", as text that nos_relay_string_free() frees; in the case of an error without an answer it is
// NULL. `answer` may be NULL, and nothing is told.
//
// Threads: any, but not the NOS's alone, which has to answer the relay meanwhile.
int nos_relay_request(struct nos_relay *relay, const char *request, uint32_t milliseconds, char **answer);

// Frees what nos_relay_request() answered, once.
//
// Threads: any.
int nos_relay_string_free(char *string);

// Opens a connection to the relay's control socket, which need not have a path: a stream of lines as
// docs/control.md says, for instance to watch. The caller closes it.
//
// Threads: any.
int nos_relay_control_socket(struct nos_relay *relay, int *descriptor);

// Attaches a container, besides those of the configuration, within `milliseconds`. One that is attached
// already, by the same keys, stays as it is.
//
// Threads: as nos_relay_request().
int nos_relay_attach(struct nos_relay *relay,
                     const struct nos_relay_container *container,
                     uint32_t milliseconds);

// Takes a container away that was attached at run time.
//
// Threads: as nos_relay_request().
int nos_relay_detach(struct nos_relay *relay, const char *name, uint32_t milliseconds);

// Has the relay follow another configuration: what does not differ is not touched. It follows later.
// Settings of threads and buffers stay as they are.
//
// Threads: any.
int nos_relay_reconfigure(struct nos_relay *relay, struct nos_relay_builder *builder);

// Makes the port of another NOS, which takes the place of the one before: that has ended, or is cut off by
// this. The new one is told every registration.
//
// Threads: any.
int nos_relay_join_nos(struct nos_relay *relay, struct nos_relay_port **port);

// Ends the relay, and waits until everything that it had put in place is taken away. It can still be asked,
// and says that it has ended, until it is freed. NOS_RELAY_E_* says why it ended before.
//
// Threads: any; the NOS has better answer meanwhile on another.
int nos_relay_stop(struct nos_relay *relay);

// Frees a relay. One that was not stopped ends by itself, and nobody waits for it.
//
// Threads: any; calls of others with this relay that are under way are finished.
int nos_relay_free(struct nos_relay *relay);

// Attaches containers and looks after them until the relay is told to stop. The thread blocks meanwhile.
// The runner is freed, whatever this returns: NOS_RELAY_E_* says why it ended.
//
// Threads: any, once.
int nos_relay_runner_run(struct nos_relay_runner *runner);

// Frees a runner that is not to run; its relay ends.
//
// Threads: any.
int nos_relay_runner_free(struct nos_relay_runner *runner);

// Parses a frame of the caller's, from its Ethernet header on, with nothing else of this library. `offload` may
// be NULL: nothing remains to be done. The view's data is `frame`. Of what is no packet, `reason`, if it is
// not NULL, is the name of why, which is valid for ever: "ip-length", "ethertype" and others of
// docs/control.md.
//
// Threads: any.
int nos_relay_parse(const uint8_t *frame,
                    size_t length,
                    const struct nos_relay_offload *offload,
                    struct nos_relay_view *view,
                    const char **reason);

// Tells what there is to know of `count` packets. If one of them is wrong, those in front of it are told.
//
// Threads: that which has the packets.
int nos_relay_packet_views(struct nos_relay_packet *const *packets,
                           size_t count,
                           struct nos_relay_view *views);

// Sets the attachment on which a packet leaves.
//
// Threads: that which has the packet.
int nos_relay_packet_set_attachment(struct nos_relay_packet *packet, uint32_t attachment);

// Sets the VRF in which a packet is looked up, below 32768.
//
// Threads: that which has the packet.
int nos_relay_packet_set_vrf(struct nos_relay_packet *packet, uint16_t number);

// Writes the Ethernet addresses of a packet, six octets each.
//
// Threads: that which has the packet.
int nos_relay_packet_set_link(struct nos_relay_packet *packet,
                              const uint8_t *destination,
                              const uint8_t *source);

// Decrements TTL or hop limit, as a router does. Whether the packet may still be forwarded is told; if not, it
// is left as it was.
//
// Threads: that which has the packet.
int nos_relay_packet_decrement_ttl(struct nos_relay_packet *packet,
                                   bool *may_be_forwarded);

// Lends the octets of a packet for writing: `data` is where its frame begins, and there is room for `room`
// octets. It is no packet any more until nos_relay_packet_commit() has found that it is one.
//
// Threads: that which has the packet.
int nos_relay_packet_edit(struct nos_relay_packet *packet, uint8_t **data, size_t *room);

// Parses the first `length` octets of what nos_relay_packet_edit() or nos_relay_port_alloc() lent. Offload and
// reason are as for nos_relay_parse(). What is no packet stays as it is.
//
// Threads: that which has the packet.
int nos_relay_packet_commit(struct nos_relay_packet *packet,
                            size_t length,
                            const struct nos_relay_offload *offload,
                            const char **reason);

// Gives a packet's buffer back, whatever is in it. Many at once: nos_relay_port_free_burst().
//
// Threads: that which has the packet.
int nos_relay_packet_free(struct nos_relay_packet *packet);

// Makes a table without addresses, which nos_relay_table_free() frees.
//
// Threads: any. The table belongs to the first thread that uses it.
int nos_relay_table_new(struct nos_relay_table **table);

// Gives a table up, so that another thread may use it.
//
// Threads: the table's.
int nos_relay_table_unbind(struct nos_relay_table *table);

// Frees a table.
//
// Threads: the table's, or any if it was given up.
int nos_relay_table_free(struct nos_relay_table *table);

// Makes an address one of the NOS's. What is registered on it holds from now on. `index`, which may be NULL, is
// where nos_relay_table_owner() finds it. Adding it again changes nothing.
//
// Threads: the table's.
int nos_relay_table_add_address(struct nos_relay_table *table,
                                uint16_t number,
                                const struct nos_relay_address *address,
                                uint32_t *index);

// Makes an address none of the NOS's. Its ports are nobody's until it is added again, and its index may then
// be another's.
//
// Threads: the table's.
int nos_relay_table_remove_address(struct nos_relay_table *table,
                                   uint16_t number,
                                   const struct nos_relay_address *address);

// Tells the index of an address of the NOS.
//
// Threads: the table's.
int nos_relay_table_address(struct nos_relay_table *table,
                            uint16_t number,
                            const struct nos_relay_address *address,
                            uint32_t *index);

// Makes the link-local address of a link one of the NOS's: of the link that registrations name. `index` may be
// NULL.
//
// Threads: the table's.
int nos_relay_table_add_link(struct nos_relay_table *table,
                             uint32_t link,
                             uint32_t *index);

// Takes the link-local address of a link away.
//
// Threads: the table's.
int nos_relay_table_remove_link(struct nos_relay_table *table, uint32_t link);

// Takes their ports from attachments, and grants those that register what they ask for, in place of what they
// had before; all of it at once, or nothing: NOS_RELAY_E_REFUSED says whose ports are in the way. Attachments
// to withdraw that are unknown do no harm. It is what nos_relay_port_answer() does with a request.
//
// Threads: the table's.
int nos_relay_table_exchange(struct nos_relay_table *table,
                             const uint32_t *withdraw,
                             size_t withdraw_count,
                             const struct nos_relay_registration *registrations,
                             size_t registration_count);

// Tells whose a port of an address is.
//
// Threads: the table's.
int nos_relay_table_owner(struct nos_relay_table *table,
                          uint32_t index,
                          uint8_t protocol,
                          uint16_t port,
                          struct nos_relay_owner *owner);

// Tells whose `count` packets are, as the shim decides it of what ports decide: TCP and UDP by their destination
// port, but a segment that opens a flow to an ephemeral port is nobody's; ICMP errors by the port from which
// the quoted packet came. If one of the packets is wrong, those in front of it are told.
//
// Threads: the table's, which has the packets.
int nos_relay_table_recipients(struct nos_relay_table *table,
                               struct nos_relay_packet *const *packets,
                               size_t count,
                               struct nos_relay_owner *owners);

// Gives a port up, so that another thread may use it.
//
// Threads: the port's.
int nos_relay_port_unbind(struct nos_relay_port *port);

// Frees a port: the NOS ends. The relay drops what containers send until another has taken its place. Packets
// that the caller has stay the caller's.
//
// Threads: the port's, or any if it was given up.
int nos_relay_port_free(struct nos_relay_port *port);

// Tells the descriptor (eventfd(2)) that is readable when the relay has something for a NOS that has announced
// to wait. It is the port's: it is neither read nor closed by the caller.
//
// Threads: the port's.
int nos_relay_port_fd(struct nos_relay_port *port,
                      int *descriptor);

// Takes up to `capacity` packets that containers have sent, and says how many: 0 if there are none. They are
// the caller's from then on, who sends or frees each. A call takes one burst at most; a capacity of
// NOS_RELAY_BURST has room for any.
//
// Threads: the port's.
int nos_relay_port_rx_burst(struct nos_relay_port *port,
                            struct nos_relay_packet **packets,
                            size_t capacity,
                            size_t *count);

// Sends `count` packets for containers, each to the attachment that it is set to, and says how many were taken:
// less than `count` if the ring is full, or if one of them is wrong or the relay has ended, which the code tells.
// Those are not the caller's any more; the others still are. The relay is woken by nos_relay_port_ring().
//
// Threads: the port's, which has the packets.
int nos_relay_port_tx_burst(struct nos_relay_port *port,
                            struct nos_relay_packet *const *packets,
                            size_t count,
                            size_t *taken);

// Frees `count` packets: the same as nos_relay_packet_free() of each, but without atomic operations, if they are
// of this port's relay. If one of them is wrong, those in front of it are freed.
//
// Threads: the port's, which has the packets.
int nos_relay_port_free_burst(struct nos_relay_port *port,
                              struct nos_relay_packet *const *packets,
                              size_t count);

// Takes an empty buffer from the relay's pool, as one that nos_relay_packet_edit() has lent already. Packets for
// containers had better come from there, as its buffers have room for a super-frame.
//
// Threads: the port's.
int nos_relay_port_alloc(struct nos_relay_port *port,
                         struct nos_relay_packet **packet);

// Copies a frame into a buffer of the relay's pool, and parses it. Offload may be NULL: nothing remains to be
// done. NOS_RELAY_E_MALFORMED if it is no packet, and there is none then.
//
// Threads: the port's.
int nos_relay_port_copy(struct nos_relay_port *port,
                        const uint8_t *frame,
                        size_t length,
                        const struct nos_relay_offload *offload,
                        struct nos_relay_packet **packet);

// Makes of a packet what a device can send that takes NOS_RELAY_TAKES_*: the packet untouched if possible, else
// with its checksum completed, else in segments. It is not the caller's any more; nos_relay_port_adapted() has
// what became of it. Segments for which there was no buffer are missing, and `dropped` counts them, which may
// be NULL.
//
// Threads: the port's, which has the packet.
int nos_relay_port_adapt(struct nos_relay_port *port,
                         struct nos_relay_packet *packet,
                         uint32_t takes,
                         uint64_t *dropped);

// Takes up to `capacity` packets of what nos_relay_port_adapt() has made, in order, and says how many: 0 if
// there are none left.
//
// Threads: the port's.
int nos_relay_port_adapted(struct nos_relay_port *port,
                           struct nos_relay_packet **packets,
                           size_t capacity,
                           size_t *count);

// Reads up to `capacity` packets from a descriptor whose frames have a virtio-net header of NOS_RELAY_VIRTIO_HEADER
// octets in front: a packet socket with PACKET_VNET_HDR, a TAP with IFF_VNET_HDR. `count` says how many there
// were: less than `capacity` if there are no more now, or no buffers. `malformed`, which may be NULL, counts
// frames that were no packets, as ARP is none; they are dropped. NOS_RELAY_E_SYSTEM if the descriptor fails,
// after `count` packets.
//
// Threads: the port's. The descriptor had better not block.
int nos_relay_port_read(struct nos_relay_port *port,
                        int descriptor,
                        struct nos_relay_packet **packets,
                        size_t capacity,
                        size_t *count,
                        uint64_t *malformed);

// Writes a packet to such a descriptor that takes NOS_RELAY_TAKES_*, as nos_relay_port_adapt() makes it. The
// packet is not the caller's any more. `dropped`, which may be NULL, counts what the descriptor did not take, and
// segments for which there was no buffer; NOS_RELAY_E_SYSTEM says why it did not.
//
// Threads: the port's, which has the packet. The descriptor had better not block.
int nos_relay_port_write(struct nos_relay_port *port,
                         int descriptor,
                         struct nos_relay_packet *packet,
                         uint32_t takes,
                         uint64_t *dropped);

// Wakes the relay if it waits for something that was sent since the last call, or for room and there is some.
// Call it once after a round of sending or taking.
//
// Threads: the port's.
int nos_relay_port_ring(struct nos_relay_port *port);

// Announces that the caller is about to wait until nos_relay_port_fd() is readable. Tells false if it must
// not, because there is something to do.
//
// Threads: the port's.
int nos_relay_port_may_block(struct nos_relay_port *port, bool *may);

// Announces that the caller is about to wait until the ring towards the relay is half empty. Tells false if it
// must not, because it is. Who wants to be woken for what comes, too, calls nos_relay_port_may_block() besides.
//
// Threads: the port's.
int nos_relay_port_may_await_room(struct nos_relay_port *port,
                                  bool *may);

// Takes both announcements back, and the ring too. To be called after every wait.
//
// Threads: the port's.
int nos_relay_port_awake(struct nos_relay_port *port);

// Waits at the end of a round: rings, and blocks for up to `milliseconds`, -1 for ever, until the relay has something
// or one of `count` descriptors can be read from, 15 at most. It returns at once if there is something already,
// and when a signal comes. `is_deserted` as of nos_relay_port_is_deserted().
//
// Threads: the port's.
int nos_relay_port_wait(struct nos_relay_port *port,
                        const int *descriptors,
                        size_t count,
                        int milliseconds,
                        bool *is_deserted);

// Tells whether the ring towards the relay takes another burst. Only the caller fills it, so it stays true until
// then.
//
// Threads: the port's.
int nos_relay_port_has_room(struct nos_relay_port *port,
                            bool *has_room);

// Tells whether the relay has ended, or another NOS has taken this one's place. What it sent before can still be
// taken.
//
// Threads: the port's.
int nos_relay_port_is_deserted(struct nos_relay_port *port,
                               bool *is_deserted);

// Tells how many packets were sent that the relay never took before it ended.
//
// Threads: the port's.
int nos_relay_port_lost(struct nos_relay_port *port, size_t *packets);

// Takes the oldest request of the relay; its kind is NOS_RELAY_NOTHING if there is none. NOS_RELAY_E_ORDER if
// the one before was not answered.
//
// Threads: the port's.
int nos_relay_port_request(struct nos_relay_port *port, struct nos_relay_message *request);

// Answers an exchange: it holds from the next packet on.
//
// Threads: the port's.
int nos_relay_port_accept(struct nos_relay_port *port);

// Answers an exchange: nothing of it is granted.
//
// Threads: the port's.
int nos_relay_port_refuse(struct nos_relay_port *port, const struct nos_relay_refusal *refusal);

// Answers a request that is no exchange: this NOS has a configuration of its own, or no such table.
//
// Threads: the port's.
int nos_relay_port_unsupported(struct nos_relay_port *port);

// Answers a request by a port table: an exchange is made there, or refused as it is there; the owners of ports
// are told; anything else is unsupported. `granted`, which may be NULL, is false only of an exchange that was
// refused, and nos_relay_last_error() says why.
//
// Threads: the port's, which is the table's.
int nos_relay_port_answer(struct nos_relay_port *port,
                          struct nos_relay_table *table,
                          bool *granted);

// Takes all requests that wait, and answers them by a port table, as nos_relay_port_answer() does.
//
// Threads: the port's, which is the table's.
int nos_relay_port_answer_all(struct nos_relay_port *port, struct nos_relay_table *table);

// Answers NOS_RELAY_QUERY_COUNTERS.
//
// Threads: the port's.
int nos_relay_port_counters(struct nos_relay_port *port, const struct nos_relay_counters *counters);

// Tells the operator that somebody else uses an address of the NOS: a host with this MAC address, six octets, on
// a link.
//
// Threads: the port's.
int nos_relay_port_address_conflict(struct nos_relay_port *port,
                                    uint32_t link,
                                    const struct nos_relay_address *address,
                                    const uint8_t *mac);

// Tells the relay all interfaces of the NOS from now on, at least one, and with the same names as before where they
// are the same. Containers follow: their addresses, routes and MTU, by exchanges that the relay asks for. The
// NOS has a new address before it says so, and an old one until the relay has asked for its withdrawal. What
// the relay cannot follow changes nothing; its log says why.
//
// Threads: the port's.
int nos_relay_port_interfaces(struct nos_relay_port *port,
                              const struct nos_relay_interface *interfaces,
                              size_t count);

// Tells the operator what a policy refuses; of one container and one reason now and then, not for every packet.
//
// Threads: the port's.
int nos_relay_port_policy_refused(struct nos_relay_port *port,
                                  const struct nos_relay_policy_refusal *refusal);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* NOS_RELAY_H */
