// A relay, its port and its packets, called rightly and wrongly: out of order, by other threads, after they
// were freed. It needs a namespace for a container: relay NETNS.
#define _GNU_SOURCE // pthread_tryjoin_np
#include "check.h"

#include <poll.h>
#include <unistd.h>

static nos_relay *relay;
static nos_relay_port *port;
static nos_relay_table *table;
static nos_relay_container container = {.size = sizeof container, .name = "web", .tcp = "80-90", .ephemeral = "40000-40099"};

// Blocks until there is a request of this kind, whose answer is still due. Others are answered by the table.
static nos_relay_message next_request(uint32_t kind) {
  nos_relay_message request = {.kind = NOS_RELAY_NOTHING};
  for (int tries = 0; tries < 3000 && request.kind != kind; tries++) {
    bool ended;
    if (request.kind != NOS_RELAY_NOTHING) DO(nos_relay_port_answer(port, table, NULL));
    else DO(nos_relay_port_wait(port, NULL, 0, 10, &ended));
    DO(nos_relay_port_request(port, &request));
  }
  HOLDS(request.kind == kind);
  return request;
}

// Waits for a thread, which may ask for more.
static void finish(pthread_t thread) {
  bool ended;
  while (pthread_tryjoin_np(thread, NULL)) {
    DO(nos_relay_port_answer_all(port, table));
    DO(nos_relay_port_wait(port, NULL, 0, 10, &ended));
  }
}

static void *attach(void *code) {
  *(int *)code = nos_relay_attach(relay, &container, 20000);
  if (*(int *)code != NOS_RELAY_OK && !strstr(nos_relay_last_error(), "belongs to 'somebody'"))
    *(int *)code = 1, fprintf(stderr, "attach: %s\n", nos_relay_last_error());
  return NULL;
}

static void *detach(void *code) {
  *(int *)code = nos_relay_detach(relay, "web", 20000);
  return NULL;
}

static void *show(void *unused) {
  char *answer = NULL;
  DO(nos_relay_request(relay, "{\"type\":\"show\",\"table\":\"counters\"}", 20000, &answer));
  HOLDS(answer && strstr(answer, "\"no-route\""));
  DO(nos_relay_string_free(answer));
  return unused;
}

static void *use_elsewhere(void *unused) {
  nos_relay_packet *packet;
  size_t count;
  int fd;
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_port_fd(port, &fd));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_port_rx_burst(port, &packet, 1, &count));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_port_alloc(port, &packet));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_port_free(port));
  return unused;
}

static void requests(void) {
  pthread_t thread;
  nos_relay_message request;
  int code;
  bool granted;
  nos_relay_refusal refusal = {.size = sizeof refusal, .reason = NOS_RELAY_REFUSED_PORTS, .owner = "somebody",
                               .claim = {NOS_RELAY_TCP, NOS_RELAY_LISTEN, {80, 90}}, .taken = {80, 80}};
  nos_relay_refusal r = refusal;

  EXPECT(NOS_RELAY_E_NULL, "request is NULL", nos_relay_port_request(port, NULL));
  EXPECT(NOS_RELAY_E_ORDER, "there is no request to answer", nos_relay_port_accept(port));
  EXPECT(NOS_RELAY_E_ORDER, "there is no request to answer", nos_relay_port_unsupported(port));
  EXPECT(NOS_RELAY_E_ORDER, "there is no request to answer", nos_relay_port_refuse(port, &refusal));
  EXPECT(NOS_RELAY_E_ORDER, "there is no request to answer", nos_relay_port_answer(port, table, NULL));

  // Refused, with what an exchange has.
  pthread_create(&thread, NULL, attach, &code);
  request = next_request(NOS_RELAY_EXCHANGE);
  HOLDS(request.registration_count == 1 && request.withdraw_count == 0);
  const nos_relay_registration *web = request.registrations;
  HOLDS(!strcmp(web->name, "web") && web->vrf == 0 && web->mtu == 1500 && web->link == NOS_RELAY_NO_LINK);
  HOLDS(web->address_count == 1 && web->addresses[0].family == 4 && !memcmp(web->addresses[0].octets, "\xcb\0\x71\1", 4));
  HOLDS(web->claim_count == 3 && web->claims[0].ports.first == 80 && web->claims[0].ports.last == 90);
  HOLDS(!web->to_limited && !web->from_count && !web->established_count && web->outside == NOS_RELAY_OUTSIDE_DROP);
  EXPECT(NOS_RELAY_E_ORDER, "has not been answered", nos_relay_port_request(port, &request));
  EXPECT(NOS_RELAY_E_ORDER, "has not been answered", nos_relay_port_answer_all(port, table));
  EXPECT(NOS_RELAY_E_ORDER, "is not a query", nos_relay_port_unsupported(port));
  r.size = 1;
  EXPECT(NOS_RELAY_E_SIZE, "refusal->size", nos_relay_port_refuse(port, &r));
  r = refusal, r.reason = 0;
  EXPECT(NOS_RELAY_E_VALUE, "refusal->reason: 0", nos_relay_port_refuse(port, &r));
  r = refusal, r.owner = NULL;
  EXPECT(NOS_RELAY_E_NULL, "refusal->owner is NULL", nos_relay_port_refuse(port, &r));
  r = refusal, r.taken.first = 0;
  EXPECT(NOS_RELAY_E_VALUE, "refusal->taken", nos_relay_port_refuse(port, &r));
  refusal.attachment = web->attachment;
  DO(nos_relay_port_refuse(port, &refusal));
  finish(thread);
  HOLDS(code == NOS_RELAY_E_REFUSED);

  // Granted, by the table.
  pthread_create(&thread, NULL, attach, &code);
  next_request(NOS_RELAY_EXCHANGE);
  EXPECT(NOS_RELAY_E_NULL, "table is NULL", nos_relay_port_answer(port, NULL, NULL));
  DO(nos_relay_port_answer(port, table, &granted));
  HOLDS(granted);
  finish(thread);
  HOLDS(code == NOS_RELAY_OK);

  // Counters.
  nos_relay_drops drops[] = {{"no-route", 1}, {"no-such", 2}};
  nos_relay_counters counters = {.size = sizeof counters, .received = 1, .drops = drops, .drop_count = 2};
  pthread_create(&thread, NULL, show, NULL);
  next_request(NOS_RELAY_QUERY_COUNTERS);
  EXPECT(NOS_RELAY_E_ORDER, "is not an exchange", nos_relay_port_accept(port));
  EXPECT(NOS_RELAY_E_NULL, "counters is NULL", nos_relay_port_counters(port, NULL));
  EXPECT(NOS_RELAY_E_VALUE, "counters->drops[1]: 'no-such'", nos_relay_port_counters(port, &counters));
  drops[1].reason = "no-route";
  EXPECT(NOS_RELAY_E_VALUE, "counters->drops[1]: 'no-route' is there twice", nos_relay_port_counters(port, &counters));
  counters.drop_count = 1;
  DO(nos_relay_port_counters(port, &counters));
  finish(thread);

  // Taken away again.
  pthread_create(&thread, NULL, detach, &code);
  request = next_request(NOS_RELAY_EXCHANGE);
  HOLDS(request.withdraw_count == 1 && request.registration_count == 0);
  DO(nos_relay_port_accept(port));
  finish(thread);
  HOLDS(code == NOS_RELAY_OK);
}

static void events(void) {
  nos_relay_address address = {.family = 4, .octets = {203, 0, 113, 1}};
  uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
  nos_relay_policy_refusal refusal = {.size = sizeof refusal, .remote = {.family = 4}, .reason = "policy-from", .dropped = 1};
  DO(nos_relay_port_address_conflict(port, 0, &address, mac));
  EXPECT(NOS_RELAY_E_NULL, "mac is NULL", nos_relay_port_address_conflict(port, 0, &address, NULL));
  DO(nos_relay_port_policy_refused(port, &refusal));
  nos_relay_interface interfaces[2] = {{.size = sizeof *interfaces, .name = "up0", .addresses = "203.0.113.1/24", .mtu = 1400}};
  DO(nos_relay_port_interfaces(port, interfaces, 1));
  EXPECT(NOS_RELAY_E_VALUE, "count: ", nos_relay_port_interfaces(port, interfaces, 0));
  EXPECT(NOS_RELAY_E_NULL, "interfaces is NULL", nos_relay_port_interfaces(port, NULL, 1));
  EXPECT(NOS_RELAY_E_SIZE, "interface->size is 0", nos_relay_port_interfaces(port, interfaces, 2));
  refusal.reason = "because";
  EXPECT(NOS_RELAY_E_VALUE, "refusal->reason: 'because'", nos_relay_port_policy_refused(port, &refusal));
}

static uint8_t frame[43] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 29, 0, 0, 0x40, 0, 64, 17, 0, 0,
    192, 0, 2, 1, 203, 0, 113, 1, 0, 7, 0, 80, 0, 9, 0, 0, 'x'};

static void sum_up(void) {
  unsigned sum = 0;
  frame[24] = frame[25] = 0;
  for (int n = 14; n < 34; n += 2) sum += (unsigned)frame[n] << 8 | frame[n + 1];
  sum = ~((sum & 0xffff) + (sum >> 16));
  frame[24] = (uint8_t)(sum >> 8), frame[25] = (uint8_t)sum;
}

static void packets(void) {
  nos_relay_packet *packet, *raw, *both[2];
  nos_relay_view view;
  nos_relay_owner owner;
  const char *reason;
  uint8_t *data;
  size_t room, count, taken;
  uint64_t dropped;
  bool may;
  int fd;

  DO(nos_relay_port_fd(port, &fd));
  EXPECT(NOS_RELAY_E_NULL, "descriptor is NULL", nos_relay_port_fd(port, NULL));
  on_another_thread(use_elsewhere, NULL);
  EXPECT(NOS_RELAY_E_SIZE, "packets: there is no room", nos_relay_port_rx_burst(port, &packet, 0, &count));
  EXPECT(NOS_RELAY_E_NULL, "packets is NULL", nos_relay_port_rx_burst(port, NULL, 1, &count));
  EXPECT(NOS_RELAY_E_NULL, "count is NULL", nos_relay_port_rx_burst(port, &packet, 1, NULL));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "packets: ", nos_relay_port_rx_burst(port, odd(both), 1, &count));
  EXPECT(NOS_RELAY_E_NULL, "may is NULL", nos_relay_port_may_block(port, NULL));
  EXPECT(NOS_RELAY_E_NULL, "packets is NULL", nos_relay_port_lost(port, NULL));
  EXPECT(NOS_RELAY_E_SIZE, "16 descriptors", nos_relay_port_wait(port, (int[16]){0}, 16, 0, &may));
  DO(nos_relay_port_lost(port, &count));
  HOLDS(count == 0);
  DO(nos_relay_port_has_room(port, &may));
  HOLDS(may);
  DO(nos_relay_port_may_await_room(port, &may));
  HOLDS(!may);

  EXPECT(NOS_RELAY_E_MALFORMED, "ipv4-checksum", nos_relay_port_copy(port, frame, sizeof frame, NULL, &packet));
  sum_up();
  EXPECT(NOS_RELAY_E_SIZE, "length", nos_relay_port_copy(port, frame, 1 << 20, NULL, &packet));
  DO(nos_relay_port_copy(port, frame, sizeof frame, NULL, &packet));
  DO(nos_relay_packet_views(&packet, 1, &view));
  HOLDS(view.length == sizeof frame && !memcmp(view.data, frame, sizeof frame));
  HOLDS(view.attachment == NOS_RELAY_NO_ATTACHMENT && view.destination_port == 80);
  DO(nos_relay_table_recipients(table, &packet, 1, &owner));
  HOLDS(owner.kind == NOS_RELAY_NOBODY); // its container was detached
  DO(nos_relay_packet_set_vrf(packet, 7));
  EXPECT(NOS_RELAY_E_VALUE, "number: 32768", nos_relay_packet_set_vrf(packet, 32768));
  DO(nos_relay_table_recipients(table, &packet, 1, &owner));
  HOLDS(owner.kind == NOS_RELAY_ELSEWHERE); // in that VRF
  DO(nos_relay_packet_decrement_ttl(packet, &may));
  DO(nos_relay_packet_set_link(packet, frame, frame + 6));
  DO(nos_relay_packet_views(&packet, 1, &view));
  HOLDS(may && view.data[22] == 63);

  // One that may have been written to is no packet until it is looked at again.
  DO(nos_relay_packet_edit(packet, &data, &room));
  HOLDS(data == view.data && room > 1500);
  EXPECT(NOS_RELAY_E_ORDER, "nos_relay_packet_commit() comes first", nos_relay_packet_views(&packet, 1, &view));
  EXPECT(NOS_RELAY_E_ORDER, "packets[0] may have been written to", nos_relay_port_tx_burst(port, &packet, 1, &taken));
  HOLDS(taken == 0);
  EXPECT(NOS_RELAY_E_ORDER, "packet may have been written to", nos_relay_port_adapt(port, packet, 0, NULL));
  EXPECT(NOS_RELAY_E_SIZE, "length: ", nos_relay_packet_commit(packet, room + 1, NULL, NULL));
  memset(data, 0, room);
  EXPECT(NOS_RELAY_E_MALFORMED, "ethertype", nos_relay_packet_commit(packet, 60, NULL, &reason));
  HOLDS(!strcmp(reason, "ethertype"));
  memcpy(data, frame, sizeof frame);
  DO(nos_relay_packet_commit(packet, sizeof frame, NULL, &reason));
  HOLDS(!reason);

  // For devices.
  EXPECT(NOS_RELAY_E_VALUE, "takes: ", nos_relay_port_adapt(port, packet, 1u << 20, NULL));
  EXPECT(NOS_RELAY_E_VALUE, "takes: ", nos_relay_port_write(port, -1, packet, 128, NULL));
  DO(nos_relay_port_adapt(port, packet, 0, &dropped));
  DO(nos_relay_port_adapted(port, both, 2, &count));
  HOLDS(dropped == 0 && count == 1 && both[0] == packet);
  EXPECT(NOS_RELAY_E_SYSTEM, "descriptor: write", nos_relay_port_write(port, -1, packet, 0, &dropped));
  HOLDS(dropped == 1);
  EXPECT(NOS_RELAY_E_HANDLE, "packet was freed or sent", nos_relay_port_write(port, -1, packet, 0, &dropped));
  EXPECT(NOS_RELAY_E_SYSTEM, "descriptor: read", nos_relay_port_read(port, -1, both, 2, &count, NULL));
  HOLDS(count == 0);

  // Freed, sent, and not any more.
  DO(nos_relay_port_alloc(port, &raw));
  EXPECT(NOS_RELAY_E_ORDER, "packet may have been written to", nos_relay_packet_set_attachment(raw, 1));
  DO(nos_relay_packet_free(raw));
  EXPECT(NOS_RELAY_E_HANDLE, "packet was freed or sent", nos_relay_packet_free(raw));
  EXPECT(NOS_RELAY_E_HANDLE, "packet was freed or sent", nos_relay_packet_edit(raw, &data, &room));
  for (int n = 0; n < 2; n++) DO(nos_relay_port_copy(port, frame, sizeof frame, NULL, &both[n]));
  packet = both[1], both[1] = both[0];
  EXPECT(NOS_RELAY_E_HANDLE, "packets[1] was freed or sent", nos_relay_port_free_burst(port, both, 2));
  both[0] = packet;
  DO(nos_relay_packet_set_attachment(packet, 12345));
  EXPECT(NOS_RELAY_E_HANDLE, "packets[1] was freed or sent", nos_relay_port_tx_burst(port, both, 2, &taken));
  HOLDS(taken == 1); // to nobody, which the relay counts
  EXPECT(NOS_RELAY_E_HANDLE, "packets[0] was freed or sent", nos_relay_packet_views(&packet, 1, &view));
  DO(nos_relay_port_ring(port));

  // All buffers there are.
  static nos_relay_packet *all[4096];
  for (count = 0; count < 4096 && nos_relay_port_alloc(port, &all[count]) == NOS_RELAY_OK;) count++;
  HOLDS(count > 100 && count <= 256);
  EXPECT(NOS_RELAY_E_FULL, "no buffer", nos_relay_port_alloc(port, &packet));
  EXPECT(NOS_RELAY_E_FULL, "no buffer", nos_relay_port_copy(port, frame, sizeof frame, NULL, &packet));
  DO(nos_relay_port_free_burst(port, all, count));
}

static void *use_bursts_elsewhere(void *burst) {
  nos_relay_burst *other;
  nos_relay_packet *packet;
  nos_relay_owner owners[NOS_RELAY_BURST];
  size_t count;
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_port_receive(port, &other, &count));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_port_send(port, burst));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_port_deliver(port, table, burst, owners, &count));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_burst_unpack(port, burst, &packet, 1, &count));
  EXPECT(NOS_RELAY_E_THREAD, "belongs to another thread", nos_relay_burst_free(port, burst));
  return NULL;
}

// A burst of packets for nobody.
static nos_relay_burst *burst_of(size_t count) {
  nos_relay_packet *packets[NOS_RELAY_BURST];
  nos_relay_burst *burst = NULL;
  for (size_t n = 0; n < count; n++) DO(nos_relay_port_copy(port, frame, sizeof frame, NULL, &packets[n]));
  DO(nos_relay_burst_pack(port, packets, count, &burst));
  EXPECT(NOS_RELAY_E_HANDLE, "packet was freed or sent", nos_relay_packet_free(packets[0]));
  return burst;
}

static void bursts(void) {
  nos_relay_burst *burst, *sent, *all[256];
  nos_relay_packet *packet, *packets[NOS_RELAY_BURST + 1];
  nos_relay_owner owners[NOS_RELAY_BURST];
  nos_relay_view views[NOS_RELAY_BURST];
  size_t count, left;

  burst = (void *)7;
  DO(nos_relay_port_receive(port, &burst, &count)); // nobody has sent anything
  HOLDS(burst == NULL && count == 0);
  EXPECT(NOS_RELAY_E_NULL, "burst is NULL", nos_relay_port_receive(port, NULL, &count));
  EXPECT(NOS_RELAY_E_NULL, "count is NULL", nos_relay_port_receive(port, &burst, NULL));
  EXPECT(NOS_RELAY_E_ALIGNMENT, "burst: ", nos_relay_port_receive(port, odd(packets), &count));

  EXPECT(NOS_RELAY_E_SIZE, "count: a burst has 1 to 64 packets, not 0", nos_relay_burst_pack(port, packets, 0, &burst));
  EXPECT(NOS_RELAY_E_SIZE, "not 65", nos_relay_burst_pack(port, packets, NOS_RELAY_BURST + 1, &burst));
  EXPECT(NOS_RELAY_E_NULL, "packets is NULL", nos_relay_burst_pack(port, NULL, 1, &burst));
  EXPECT(NOS_RELAY_E_NULL, "burst is NULL", nos_relay_burst_pack(port, packets, 1, NULL));
  DO(nos_relay_port_copy(port, frame, sizeof frame, NULL, &packet));
  packets[0] = packet, packets[1] = NULL;
  EXPECT(NOS_RELAY_E_NULL, "packets[1] is NULL", nos_relay_burst_pack(port, packets, 2, &burst));
  packets[1] = packet; // twice, of which one is too much
  EXPECT(NOS_RELAY_E_HANDLE, "packets[1] was freed or sent", nos_relay_burst_pack(port, packets, 2, &burst));
  DO(nos_relay_packet_set_vrf(packet, 7)); // it still is the caller's
  DO(nos_relay_burst_pack(port, &packet, 1, &burst));
  EXPECT(NOS_RELAY_E_HANDLE, "packet was freed or sent", nos_relay_packet_set_vrf(packet, 7));

  on_another_thread(use_bursts_elsewhere, burst);
  DO(nos_relay_port_deliver(port, table, burst, owners, &left)); // of a VRF without addresses
  HOLDS(left == 1 && owners[0].kind == NOS_RELAY_ELSEWHERE);
  EXPECT(NOS_RELAY_E_NULL, "owners is NULL", nos_relay_port_deliver(port, table, burst, NULL, &left));
  EXPECT(NOS_RELAY_E_NULL, "left is NULL", nos_relay_port_deliver(port, table, burst, owners, NULL));
  EXPECT(NOS_RELAY_E_NULL, "table is NULL", nos_relay_port_deliver(port, NULL, burst, owners, &left));
  EXPECT(NOS_RELAY_E_HANDLE, "table is a nos_relay_burst, not a nos_relay_table", nos_relay_port_deliver(port, (void *)burst, burst, owners, &left));
  EXPECT(NOS_RELAY_E_NULL, "burst is NULL", nos_relay_port_deliver(port, table, NULL, owners, &left));
  EXPECT(NOS_RELAY_E_NULL, "views is NULL", nos_relay_burst_views(port, burst, NULL, 1, &count));
  EXPECT(NOS_RELAY_E_SIZE, "views: there is no room", nos_relay_burst_views(port, burst, views, 0, &count));
  EXPECT(NOS_RELAY_E_NULL, "count is NULL", nos_relay_burst_views(port, burst, views, 1, NULL));
  DO(nos_relay_burst_views(port, burst, views, NOS_RELAY_BURST, &count));
  HOLDS(count == 1 && views[0].vrf == 7 && !memcmp(views[0].data, frame, sizeof frame));
  EXPECT(NOS_RELAY_E_SIZE, "packets: there is no room", nos_relay_burst_unpack(port, burst, packets, 0, &count));
  EXPECT(NOS_RELAY_E_NULL, "packets is NULL", nos_relay_burst_unpack(port, burst, NULL, 1, &count));
  EXPECT(NOS_RELAY_E_HANDLE, "burst is a nos_relay_port, not a nos_relay_burst", nos_relay_port_send(port, (void *)port));
  EXPECT(NOS_RELAY_E_HANDLE, "burst: 0x1000 is no nos_relay_burst", nos_relay_port_send(port, (void *)0x1000));
  EXPECT(NOS_RELAY_E_HANDLE, "port is a nos_relay_burst, not a nos_relay_port", nos_relay_port_send((void *)burst, burst));
  DO(nos_relay_burst_unpack(port, burst, packets, 1, &count));
  HOLDS(count == 1 && packets[0] == packet);
  EXPECT(NOS_RELAY_E_HANDLE, "burst was sent, emptied or freed", nos_relay_burst_views(port, burst, views, 1, &count));
  DO(nos_relay_packet_free(packet));

  // In parts.
  burst = burst_of(3);
  DO(nos_relay_burst_unpack(port, burst, packets, 2, &count));
  HOLDS(count == 2);
  DO(nos_relay_burst_views(port, burst, views, NOS_RELAY_BURST, &count));
  HOLDS(count == 1);
  DO(nos_relay_burst_unpack(port, burst, packets + 2, 2, &count));
  HOLDS(count == 1);
  DO(nos_relay_port_free_burst(port, packets, 3));

  // Sent, to nobody, which the relay counts; its place is another's, not its handle.
  sent = burst_of(1);
  DO(nos_relay_port_send(port, sent));
  burst = burst_of(1);
  HOLDS(burst != sent);
  EXPECT(NOS_RELAY_E_HANDLE, "burst was sent, emptied or freed", nos_relay_port_send(port, sent));
  EXPECT(NOS_RELAY_E_HANDLE, "burst was sent, emptied or freed", nos_relay_burst_free(port, sent));
  DO(nos_relay_burst_free(port, burst));
  EXPECT(NOS_RELAY_E_HANDLE, "burst was sent, emptied or freed", nos_relay_burst_free(port, burst));
  DO(nos_relay_port_ring(port));

  // As many as there may be. Where there are buffers for all, one more is refused, and its packet stays.
  for (count = 0; count < 256 && nos_relay_port_copy(port, frame, sizeof frame, NULL, &packet) == NOS_RELAY_OK; count++)
    DO(nos_relay_burst_pack(port, &packet, 1, &all[count]));
  HOLDS(count > 100);
  while (count-- > 0) DO(nos_relay_burst_free(port, all[count]));
  burst_of(2); // freed with its port
}

static void *answer_until_it_ends(void *unused) {
  for (bool ended = false; !ended;) {
    DO(nos_relay_port_answer_all(port, table));
    DO(nos_relay_port_wait(port, NULL, 0, -1, &ended));
  }
  DO(nos_relay_port_unbind(port));
  DO(nos_relay_table_unbind(table));
  return unused;
}

int main(int count, char **arguments) {
  if (count != 2) return fprintf(stderr, "usage: relay NETNS\n"), 2;
  container.netns = arguments[1];
  nos_relay_interface interface = {.size = sizeof interface, .name = "up0", .addresses = "203.0.113.1/24"};
  nos_relay_address address = {.family = 4, .octets = {203, 0, 113, 1}};
  nos_relay_builder *builder;
  nos_relay_port *freed;
  nos_relay_message request;
  nos_relay_runner *runner;
  nos_relay *other;
  pthread_t thread;
  bool ended;
  char *answer;
  int fd;

  DO(nos_relay_table_new(&table));
  DO(nos_relay_table_add_address(table, 0, &address, NULL));
  DO(nos_relay_builder_new(&builder));
  DO(nos_relay_builder_interface(builder, &interface));
  DO(nos_relay_builder_config(builder, "[relay]\nbuffers = 256\n"));
  DO(nos_relay_builder_start(builder, &relay, &port));
  if (wrong) return summary(0);
  DO(nos_relay_await_ready(relay, 20000)); // there are no containers to wait for
  requests();
  events();
  packets();
  bursts();

  EXPECT(NOS_RELAY_E_NULL, "request is NULL", nos_relay_request(relay, NULL, 1000, NULL));
  EXPECT(NOS_RELAY_E_VALUE, "request: ", nos_relay_request(relay, "{\"type\":\"what\"}", 1000, &answer));
  HOLDS(!answer);
  EXPECT(NOS_RELAY_E_VALUE, "nos_relay_control_socket()", nos_relay_request(relay, "{\"type\":\"watch\"}", 1000, NULL));
  EXPECT(NOS_RELAY_E_REFUSED, "refuses", nos_relay_request(relay, "{\"type\":\"ports-add\",\"container\":\"none\",\"tcp\":\"80\"}", 20000, &answer));
  HOLDS(answer && strstr(answer, "\"refused\""));
  DO(nos_relay_string_free(answer));
  EXPECT(NOS_RELAY_E_NULL, "container is NULL", nos_relay_attach(relay, NULL, 1000));
  EXPECT(NOS_RELAY_E_NULL, "name is NULL", nos_relay_detach(relay, NULL, 1000));
  EXPECT(NOS_RELAY_E_NULL, "descriptor is NULL", nos_relay_control_socket(relay, NULL));
  DO(nos_relay_control_socket(relay, &fd));
  close(fd);
  DO(nos_relay_reconfigure(relay, builder));
  EXPECT(NOS_RELAY_E_HANDLE, "builder: ", nos_relay_reconfigure(relay, (void *)12));

  // Another NOS takes the place of this one, which hears nothing more.
  freed = port;
  EXPECT(NOS_RELAY_E_NULL, "port is NULL", nos_relay_join_nos(relay, NULL));
  DO(nos_relay_join_nos(relay, &port));
  for (ended = false; !ended;) DO(nos_relay_port_wait(freed, NULL, 0, 20000, &ended));
  EXPECT(NOS_RELAY_E_ENDED, "has ended, or another NOS", nos_relay_port_address_conflict(freed, 0, &address, address.octets));
  DO(nos_relay_port_free(freed));
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_port_free(freed));
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_port_request(freed, &request));

  // Ended, while another thread has port and table.
  DO(nos_relay_table_unbind(table));
  pthread_create(&thread, NULL, answer_until_it_ends, NULL);
  DO(nos_relay_stop(relay));
  pthread_join(thread, NULL);
  DO(nos_relay_stop(relay));
  EXPECT(NOS_RELAY_E_ENDED, NULL, nos_relay_request(relay, "{\"type\":\"show\",\"table\":\"ports\"}", 1000, NULL));
  EXPECT(NOS_RELAY_E_ENDED, "has ended", nos_relay_join_nos(relay, &freed));
  DO(nos_relay_free(relay));
  EXPECT(NOS_RELAY_E_HANDLE, "relay is a nos_relay that was freed", nos_relay_stop(relay));
  DO(nos_relay_port_free(port));

  // On a thread of the caller's; or never, and then it has ended.
  DO(nos_relay_builder_prepare(builder, &runner, &other, &port));
  DO(nos_relay_runner_free(runner));
  EXPECT(NOS_RELAY_E_HANDLE, "was freed", nos_relay_runner_run(runner));
  EXPECT(NOS_RELAY_E_ENDED, NULL, nos_relay_await_ready(other, 20000));
  DO(nos_relay_free(other));
  DO(nos_relay_port_free(port));
  DO(nos_relay_builder_prepare(builder, &runner, &other, &port));
  DO(nos_relay_free(other)); // it is told to end before it begins
  DO(nos_relay_runner_run(runner));
  DO(nos_relay_port_free(port));
  DO(nos_relay_table_free(table));
  DO(nos_relay_builder_free(builder));
  return summary(150);
}
