// Calls of the C interface with wrong values: each returns the code that the header says, and an error that
// names what was wrong. It needs no privileges: what a relay needs besides is in relay.c.
#include "check.h"

static const char bad_text[] = "a\xff";

static void builders(void) {
  nos_relay_builder *builder, *freed, *other;
  nos_relay *relay;
  nos_relay_port *port;
  nos_relay_runner *runner;
  union { nos_relay_builder *aligned[2]; } place;

  EXPECT(NOS_RELAY_E_NULL, "builder is NULL", nos_relay_builder_new(NULL));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "is not a multiple of 8", nos_relay_builder_new(odd(&place)));
  DO(nos_relay_builder_new(&builder));
  DO(nos_relay_builder_new(&freed));
  DO(nos_relay_builder_free(freed));
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_builder_free(freed));
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_builder_strict(freed));
  DO(nos_relay_builder_new(&other)); // it does not have the place of the one that was freed
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_builder_ring(freed, 8));
  DO(nos_relay_builder_free(other));
  EXPECT(NOS_RELAY_E_NULL, "builder is NULL", nos_relay_builder_free(NULL));
  EXPECT(NOS_RELAY_E_HANDLE, "is no nos_relay_builder", nos_relay_builder_strict((void *)&place));
  EXPECT(NOS_RELAY_E_HANDLE, "is a nos_relay_builder, not a nos_relay", nos_relay_free((void *)builder));

  EXPECT(NOS_RELAY_E_NULL, "toml is NULL", nos_relay_builder_config(builder, NULL));
  EXPECT(NOS_RELAY_E_TEXT, "toml is not UTF-8 behind octet 1", nos_relay_builder_config(builder, bad_text));
  EXPECT(NOS_RELAY_E_NULL, "path is NULL", nos_relay_builder_control(builder, NULL));
  EXPECT(NOS_RELAY_E_TEXT, "path is not UTF-8", nos_relay_builder_control(builder, bad_text));
  EXPECT(NOS_RELAY_E_NULL, "directory is NULL", nos_relay_builder_state(builder, NULL));

  nos_relay_interface interface = {.size = sizeof interface, .name = "up0", .addresses = "203.0.113.1/24"};
  nos_relay_interface i = interface;
  EXPECT(NOS_RELAY_E_NULL, "interface is NULL", nos_relay_builder_interface(builder, NULL));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "interface: ", nos_relay_builder_interface(builder, odd(&i)));
  i.size = 3;
  EXPECT(NOS_RELAY_E_SIZE, "interface->size is 3", nos_relay_builder_interface(builder, &i));
  i = interface, i.size++;
  EXPECT(NOS_RELAY_E_SIZE, "interface->size", nos_relay_builder_interface(builder, &i));
  i = interface, i.name = NULL;
  EXPECT(NOS_RELAY_E_NULL, "interface->name is NULL", nos_relay_builder_interface(builder, &i));
  i = interface, i.addresses = NULL;
  EXPECT(NOS_RELAY_E_NULL, "interface->addresses is NULL", nos_relay_builder_interface(builder, &i));
  i = interface, i.addresses = "203.0.113.1/24 x";
  EXPECT(NOS_RELAY_E_VALUE, "interface->addresses: 'x' is not", nos_relay_builder_interface(builder, &i));
  i = interface, i.addresses = "203.0.113.1/33";
  EXPECT(NOS_RELAY_E_VALUE, "'203.0.113.1/33'", nos_relay_builder_interface(builder, &i));
  i = interface, i.vrf = bad_text;
  EXPECT(NOS_RELAY_E_TEXT, "interface->vrf", nos_relay_builder_interface(builder, &i));

  nos_relay_container container = {.size = sizeof container, .name = "web", .netns = "/run/netns/none"};
  nos_relay_container c = container;
  EXPECT(NOS_RELAY_E_NULL, "container is NULL", nos_relay_builder_container(builder, NULL));
  c.size = 0;
  EXPECT(NOS_RELAY_E_SIZE, "container->size is 0", nos_relay_builder_container(builder, &c));
  c = container, c.name = NULL;
  EXPECT(NOS_RELAY_E_NULL, "container->name is NULL", nos_relay_builder_container(builder, &c));
  c = container, c.netns = NULL;
  EXPECT(NOS_RELAY_E_NULL, "container->netns", nos_relay_builder_container(builder, &c));
  c = container, c.pid = 1;
  EXPECT(NOS_RELAY_E_VALUE, "container->pid: there is a netns", nos_relay_builder_container(builder, &c));
  c = container, c.device = 2;
  EXPECT(NOS_RELAY_E_VALUE, "container->device: 2 is neither", nos_relay_builder_container(builder, &c));
  c = container, c.offload = 7;
  EXPECT(NOS_RELAY_E_VALUE, "container->offload: 7", nos_relay_builder_container(builder, &c));
  c = container, c.tcp = bad_text;
  EXPECT(NOS_RELAY_E_TEXT, "container->tcp", nos_relay_builder_container(builder, &c));
  c = container, c.addresses = "203.0.113.1/24";
  EXPECT(NOS_RELAY_E_VALUE, "container->addresses: '203.0.113.1/24'", nos_relay_builder_container(builder, &c));

  EXPECT(NOS_RELAY_E_NULL, "relay is NULL", nos_relay_builder_start(builder, NULL, &port));
  EXPECT(NOS_RELAY_E_NULL, "port is NULL", nos_relay_builder_start(builder, &relay, NULL));
  EXPECT(NOS_RELAY_E_NULL, "runner is NULL", nos_relay_builder_prepare(builder, NULL, &relay, &port));
  EXPECT(NOS_RELAY_E_CONFIG, "[[uplink]]", nos_relay_builder_start(builder, &relay, &port));
  EXPECT(NOS_RELAY_E_CONFIG, "[[uplink]]", nos_relay_builder_prepare(builder, &runner, &relay, &port));
  DO(nos_relay_builder_interface(builder, &interface));
  DO(nos_relay_builder_ring(builder, 1));
  EXPECT(NOS_RELAY_E_CONFIG, "ring", nos_relay_builder_start(builder, &relay, &port));
  DO(nos_relay_builder_ring(builder, 8));
  DO(nos_relay_builder_buffers(builder, 0));
  EXPECT(NOS_RELAY_E_CONFIG, "buffers", nos_relay_builder_start(builder, &relay, &port));
  DO(nos_relay_builder_buffers(builder, 256));
  DO(nos_relay_builder_config(builder, "[[container]]\nname = 7\n"));
  EXPECT(NOS_RELAY_E_CONFIG, "2", nos_relay_builder_start(builder, &relay, &port)); // the line
  DO(nos_relay_builder_free(builder));

  EXPECT(NOS_RELAY_E_NULL, "toml is NULL", nos_relay_start(NULL, &relay, &port));
  EXPECT(NOS_RELAY_E_CONFIG, "embedded:1", nos_relay_start("x", &relay, &port));

  EXPECT(NOS_RELAY_E_NULL, "relay is NULL", nos_relay_free(NULL));
  EXPECT(NOS_RELAY_E_NULL, "relay is NULL", nos_relay_stop(NULL));
  EXPECT(NOS_RELAY_E_HANDLE, "relay: ", nos_relay_await_ready((void *)8, 0));
  EXPECT(NOS_RELAY_E_NULL, "runner is NULL", nos_relay_runner_run(NULL));
  EXPECT(NOS_RELAY_E_NULL, "runner is NULL", nos_relay_runner_free(NULL));
  EXPECT(NOS_RELAY_E_NULL, "string is NULL", nos_relay_string_free(NULL));
}

static void parser(void) {
  // An UDP datagram from 192.0.2.1:7 to 203.0.113.1:80, of one octet, with padding behind.
  static const uint8_t good[60] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 29, 0, 0, 0x40, 0, 64, 17, 0x7b, 0x60,
      192, 0, 2, 1, 203, 0, 113, 1, 0, 7, 0, 80, 0, 9, 0, 0, 'x'};
  uint8_t frame[sizeof good];
  nos_relay_view view;
  const char *reason;
  nos_relay_offload offload = {0};
  size_t align[4];

  memcpy(frame, good, sizeof frame);
  frame[24] = frame[25] = 0; // the header's checksum
  unsigned sum = 0;
  for (int n = 14; n < 34; n += 2) sum += (unsigned)frame[n] << 8 | frame[n + 1];
  sum = ~((sum & 0xffff) + (sum >> 16));
  frame[24] = (uint8_t)(sum >> 8), frame[25] = (uint8_t)sum;
  DO(nos_relay_parse(frame, sizeof frame, NULL, &view, &reason));
  HOLDS(!reason && view.data == frame && view.length == 43);
  HOLDS(view.network == 14 && view.transport == 34 && view.payload == 42 && view.protocol == NOS_RELAY_UDP);
  HOLDS(view.source_port == 7 && view.destination_port == 80 && view.attachment == NOS_RELAY_NO_ATTACHMENT);
  HOLDS(view.flags == (NOS_RELAY_PORTS | NOS_RELAY_DONT_FRAGMENT));

  EXPECT(NOS_RELAY_E_NULL, "frame is NULL", nos_relay_parse(NULL, 1, NULL, &view, &reason));
  EXPECT(NOS_RELAY_E_NULL, "view is NULL", nos_relay_parse(frame, sizeof frame, NULL, NULL, &reason));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "view: ", nos_relay_parse(frame, sizeof frame, NULL, odd(align), &reason));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "offload: ", nos_relay_parse(frame, sizeof frame, odd(align), &view, &reason));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "reason: ", nos_relay_parse(frame, sizeof frame, NULL, &view, odd(align)));
  EXPECT(NOS_RELAY_E_SIZE, "frame: ", nos_relay_parse(frame, SIZE_MAX, NULL, &view, &reason));
  offload.checksum = 3;
  EXPECT(NOS_RELAY_E_VALUE, "offload->checksum: 3", nos_relay_parse(frame, sizeof frame, &offload, &view, &reason));
  offload.checksum = 0, offload.segmentation = 9;
  EXPECT(NOS_RELAY_E_VALUE, "offload->segmentation: 9", nos_relay_parse(frame, sizeof frame, &offload, &view, NULL));
  offload.segmentation = NOS_RELAY_SEGMENTATION_UDP;
  EXPECT(NOS_RELAY_E_VALUE, "offload->segment_size", nos_relay_parse(frame, sizeof frame, &offload, &view, NULL));
  offload.segment_size = 1, offload.ecn = 4;
  EXPECT(NOS_RELAY_E_VALUE, "offload->ecn: 4", nos_relay_parse(frame, sizeof frame, &offload, &view, NULL));

  struct { const char *reason; size_t length; int at; uint8_t octet; } frames[] = {
      {"frame-length", 13, 0, 0}, {"ethertype", 60, 13, 6}, {"ip-length", 42, 0, 0}, {"ipv4-header", 60, 14, 0x41},
      {"ipv4-checksum", 60, 24, 0}, {"transport-header", 60, 39, 200}, {"frame-length", 0, 0, 0}};
  for (size_t n = 0; n < sizeof frames / sizeof *frames; n++) {
    uint8_t before = frame[frames[n].at];
    frame[frames[n].at] = frames[n].octet;
    EXPECT(NOS_RELAY_E_MALFORMED, frames[n].reason, nos_relay_parse(frame, frames[n].length, NULL, &view, &reason));
    HOLDS(reason && !strcmp(reason, frames[n].reason));
    frame[frames[n].at] = before;
  }
}

static void *use_table(void *table) {
  uint32_t index;
  nos_relay_address address = {.family = 4, .octets = {203, 0, 113, 1}};
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_table_address(table, 0, &address, &index));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_table_free(table));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_table_unbind(table));
  return NULL;
}

static void *free_table(void *table) {
  DO(nos_relay_table_free(table));
  return NULL;
}

static void tables(void) {
  nos_relay_table *table, *freed;
  nos_relay_owner owner;
  uint32_t index, other;
  nos_relay_address address = {.family = 4, .octets = {203, 0, 113, 1}}, bad = {.family = 5};
  nos_relay_address unknown = {.family = 6, .octets = {0x20, 1}};
  size_t align[16];

  EXPECT(NOS_RELAY_E_NULL, "table is NULL", nos_relay_table_new(NULL));
  DO(nos_relay_table_new(&freed));
  DO(nos_relay_table_free(freed));
  DO(nos_relay_table_new(&table)); // in the same place
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_table_free(freed));
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_table_add_address(freed, 0, &address, NULL));
  EXPECT(NOS_RELAY_E_NULL, "table is NULL", nos_relay_table_free(NULL));
  EXPECT(NOS_RELAY_E_HANDLE, "is a nos_relay_table, not a nos_relay_port", nos_relay_port_ring((void *)table));

  EXPECT(NOS_RELAY_E_NULL, "address is NULL", nos_relay_table_add_address(table, 0, NULL, NULL));
  EXPECT(NOS_RELAY_E_VALUE, "address: family 5", nos_relay_table_add_address(table, 0, &bad, NULL));
  EXPECT(NOS_RELAY_E_VALUE, "32768 is no VRF", nos_relay_table_add_address(table, 32768, &address, NULL));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "index: ", nos_relay_table_add_address(table, 0, &address, odd(align)));
  DO(nos_relay_table_add_address(table, 0, &address, &index));
  DO(nos_relay_table_add_address(table, 0, &address, &other));
  EXPECT(NOS_RELAY_E_NULL, "index is NULL", nos_relay_table_address(table, 0, &address, NULL));
  EXPECT(NOS_RELAY_E_NOT_FOUND, "2001::", nos_relay_table_address(table, 0, &unknown, &other));
  EXPECT(NOS_RELAY_E_NOT_FOUND, "VRF 1", nos_relay_table_remove_address(table, 1, &address));
  EXPECT(NOS_RELAY_E_NOT_FOUND, "no link 7", nos_relay_table_remove_link(table, 7));

  nos_relay_claim claims[] = {{NOS_RELAY_TCP, NOS_RELAY_LISTEN, {80, 90}}, {NOS_RELAY_UDP, NOS_RELAY_EPHEMERAL, {40000, 65535}}};
  nos_relay_registration web = {.attachment = 1, .mtu = 1500, .name = "web", .addresses = &address, .address_count = 1,
                                .claims = claims, .claim_count = 2, .link = NOS_RELAY_NO_LINK};
  nos_relay_registration r = web;
  DO(nos_relay_table_exchange(table, NULL, 0, NULL, 0));
  DO(nos_relay_table_exchange(table, NULL, 0, &web, 1));
  DO(nos_relay_table_owner(table, index, NOS_RELAY_TCP, 85, &owner));
  HOLDS(owner.attachment == 1 && owner.kind == NOS_RELAY_ATTACHMENT && owner.claim == NOS_RELAY_LISTEN && !owner.watched);
  r.attachment = 2, r.name = "db";
  EXPECT(NOS_RELAY_E_REFUSED, "belongs to 'web'", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  r.addresses = &unknown;
  EXPECT(NOS_RELAY_E_REFUSED, "not an address of the NOS", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  r.addresses = &bad;
  EXPECT(NOS_RELAY_E_VALUE, "addresses[0]: family 5", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  r.addresses = NULL;
  EXPECT(NOS_RELAY_E_NULL, "addresses is NULL", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  r = web, r.name = NULL;
  EXPECT(NOS_RELAY_E_NULL, "name is NULL", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  r = web, r.vrf = 40000;
  EXPECT(NOS_RELAY_E_VALUE, "vrf: 40000", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  r = web, r.outside = 2;
  EXPECT(NOS_RELAY_E_VALUE, "outside: 2", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  r = web, r.to_limited = 1, r.to_count = 1;
  EXPECT(NOS_RELAY_E_NULL, "to is NULL", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  r = web, r.claim_count = SIZE_MAX;
  EXPECT(NOS_RELAY_E_SIZE, "claims: ", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  nos_relay_prefix prefix = {.address = {.family = 4}, .length = 33};
  nos_relay_restriction from = {NOS_RELAY_TCP, {80, 80}, &prefix, 1};
  r = web, r.from = &from, r.from_count = 1;
  EXPECT(NOS_RELAY_E_VALUE, "from->prefixes[0]: a length of 33", nos_relay_table_exchange(table, NULL, 0, &r, 1));
  nos_relay_claim wrong_claims[] = {{1, 1, {1, 1}}, {NOS_RELAY_TCP, 0, {1, 1}}, {NOS_RELAY_TCP, 1, {0, 1}}, {NOS_RELAY_TCP, 1, {9, 8}}};
  const char *said[] = {"claims[0]: transport 1", "claims[0]: kind 0", "claims[0]: port 0", "claims[0]: 9-8"};
  for (int n = 0; n < 4; n++) {
    r = web, r.claims = &wrong_claims[n], r.claim_count = 1;
    EXPECT(NOS_RELAY_E_VALUE, said[n], nos_relay_table_exchange(table, NULL, 0, &r, 1));
  }
  EXPECT(NOS_RELAY_E_NULL, "withdraw is NULL", nos_relay_table_exchange(table, NULL, 1, NULL, 0));
  EXPECT(NOS_RELAY_E_NULL, "registrations is NULL", nos_relay_table_exchange(table, NULL, 0, NULL, 1));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "registrations: ", nos_relay_table_exchange(table, NULL, 0, odd(align), 1));

  EXPECT(NOS_RELAY_E_VALUE, "protocol: transport 1", nos_relay_table_owner(table, index, 1, 80, &owner));
  EXPECT(NOS_RELAY_E_VALUE, "port: 0", nos_relay_table_owner(table, index, NOS_RELAY_TCP, 0, &owner));
  EXPECT(NOS_RELAY_E_NULL, "owner is NULL", nos_relay_table_owner(table, index, NOS_RELAY_TCP, 80, NULL));
  DO(nos_relay_table_owner(table, 4000000000, NOS_RELAY_TCP, 80, &owner)); // of no address, a port is nobody's
  HOLDS(owner.kind == NOS_RELAY_NOBODY && owner.attachment == NOS_RELAY_NO_ATTACHMENT);

  nos_relay_packet *packets[2] = {NULL, NULL};
  DO(nos_relay_table_recipients(table, NULL, 0, NULL)); // nothing to tell
  EXPECT(NOS_RELAY_E_NULL, "packets is NULL", nos_relay_table_recipients(table, NULL, 1, &owner));
  EXPECT(NOS_RELAY_E_NULL, "packets[0] is NULL", nos_relay_table_recipients(table, packets, 1, &owner));
  packets[0] = (void *)12;
  EXPECT(NOS_RELAY_E_ALIGNMENT, "packets[0]: 0xc", nos_relay_table_recipients(table, packets, 1, &owner));
  on_another_thread(use_table, table);
  DO(nos_relay_table_unbind(table));
  on_another_thread(free_table, table);
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_table_address(table, 0, &address, &index));
}

static void packets(void) {
  nos_relay_view view;
  uint8_t octets[6], *data;
  size_t room;
  bool may;
  EXPECT(NOS_RELAY_E_NULL, "packet is NULL", nos_relay_packet_free(NULL));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "packet: 0x21", nos_relay_packet_free((void *)0x21));
  DO(nos_relay_packet_views(NULL, 0, NULL));
  EXPECT(NOS_RELAY_E_NULL, "packets is NULL", nos_relay_packet_views(NULL, 1, &view));
  EXPECT(NOS_RELAY_E_NULL, "packet is NULL", nos_relay_packet_set_attachment(NULL, 1));
  EXPECT(NOS_RELAY_E_NULL, "packet is NULL", nos_relay_packet_set_vrf(NULL, 1));
  EXPECT(NOS_RELAY_E_NULL, "destination is NULL", nos_relay_packet_set_link(NULL, NULL, octets));
  EXPECT(NOS_RELAY_E_NULL, "may_be_forwarded is NULL", nos_relay_packet_decrement_ttl(NULL, NULL));
  EXPECT(NOS_RELAY_E_NULL, "packet is NULL", nos_relay_packet_decrement_ttl(NULL, &may));
  EXPECT(NOS_RELAY_E_NULL, "data is NULL", nos_relay_packet_edit(NULL, NULL, &room));
  EXPECT(NOS_RELAY_E_NULL, "packet is NULL", nos_relay_packet_edit(NULL, &data, &room));
  EXPECT(NOS_RELAY_E_NULL, "packet is NULL", nos_relay_packet_commit(NULL, 14, NULL, NULL));
}

int main(void) {
  if (nos_relay_abi_version() >> 16 != NOS_RELAY_ABI_MAJOR || (nos_relay_abi_version() & 0xffff) < NOS_RELAY_ABI_MINOR)
    return fprintf(stderr, "the library has another interface than the header\n"), 1;
  HOLDS(!*nos_relay_last_error());
  builders();
  parser();
  tables();
  packets();
  return summary(100);
}
