// A NOS in C with the relay inside: one uplink, IPv4, the uplink's /24 and nothing beyond.
//   cc nos.c -o nos $(pkg-config --cflags --libs nos_relay) -pthread
//   nos UPLINK ADDRESS CONFIGURATION     says "ready" when containers are attached; ends when its stdin does
#include <arpa/inet.h>
#include <err.h>
#include <net/if.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <nos_relay.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#define DO(call) ((call) ? errx(1, "%s: %s", #call, nos_relay_last_error()) : (void)0)
#define SYSTEM(call) ((call) < 0 ? err(1, "%s", #call) : (void)0)
static nos_relay_port *port; // it and the table are used by the thread of forward() alone
static nos_relay_table *table;
static int uplink, arps; // packet sockets
static struct sockaddr_ll own_link = {.sll_family = AF_PACKET, .sll_halen = 6};
static nos_relay_address own = {.family = 4};
static struct { uint8_t mac[6]; bool known; } neighbors[256]; // by the last octet of their addresses

static void send_arp(uint16_t operation, const uint8_t *mac, const uint8_t *address) {
  struct ether_arp arp = {.ea_hdr = {htons(1), htons(ETHERTYPE_IP), 6, 4, htons(operation)}};
  struct sockaddr_ll to = own_link;
  memcpy(to.sll_addr, mac, 6), memcpy(arp.arp_tha, mac, 6), memcpy(arp.arp_tpa, address, 4);
  memcpy(arp.arp_sha, own_link.sll_addr, 6), memcpy(arp.arp_spa, own.octets, 4);
  if (sendto(arps, &arp, sizeof arp, 0, (void *)&to, sizeof to) < 0) warn("ARP");
}

static void take_arps(void) {
  for (struct ether_arp a; recv(arps, &a, sizeof a, 0) == sizeof a;) {
    if (memcmp(a.arp_spa, own.octets, 3)) continue;
    memcpy(neighbors[a.arp_spa[3]].mac, a.arp_sha, 6), neighbors[a.arp_spa[3]].known = true;
    bool asked = a.ea_hdr.ar_op == htons(ARPOP_REQUEST) && !memcmp(a.arp_tpa, own.octets, 4);
    if (asked) send_arp(ARPOP_REPLY, a.arp_sha, a.arp_spa);
  }
}

static bool resolve(nos_relay_packet *packet) { // who sends again finds the neighbor known
  nos_relay_view view;
  DO(nos_relay_packet_views(&packet, 1, &view));
  const uint8_t *to = view.data + view.network + 16; // of IPv4, the destination
  if (view.flags & NOS_RELAY_IPV6 || memcmp(to, own.octets, 3)) return false;
  if (neighbors[to[3]].known) DO(nos_relay_packet_set_link(packet, neighbors[to[3]].mac, own_link.sll_addr));
  else send_arp(ARPOP_REQUEST, (const uint8_t *)"\xff\xff\xff\xff\xff\xff", to);
  return neighbors[to[3]].known;
}

static void route(nos_relay_burst *burst, bool from_containers) {
  nos_relay_owner owners[NOS_RELAY_BURST];
  nos_relay_packet *packets[NOS_RELAY_BURST];
  size_t left;
  if (nos_relay_port_deliver(port, table, burst, owners, &left)) // the ring is full, or the relay has ended
    return DO(nos_relay_burst_free(port, burst));
  if (left) DO(nos_relay_burst_unpack(port, burst, packets, NOS_RELAY_BURST, &left));
  for (size_t n = 0; n < left; n++)
    if (owners[n].kind == NOS_RELAY_ELSEWHERE && from_containers && resolve(packets[n]))
      nos_relay_port_write(port, uplink, packets[n], NOS_RELAY_TAKES_CHECKSUM | NOS_RELAY_TAKES_TSO4, NULL);
    else DO(nos_relay_packet_free(packets[n]));
}

static void *forward(void *unused) {
  DO(nos_relay_table_new(&table) || nos_relay_table_add_address(table, 0, &own, NULL));
  for (bool ended = false; !ended;) {
    nos_relay_packet *packets[NOS_RELAY_BURST];
    nos_relay_burst *burst;
    size_t count;
    DO(nos_relay_port_answer_all(port, table)); // registrations are granted by the port table
    DO(nos_relay_port_receive(port, &burst, &count));
    if (count) route(burst, true);
    DO(nos_relay_port_read(port, uplink, packets, NOS_RELAY_BURST, &count, NULL));
    if (count) DO(nos_relay_burst_pack(port, packets, count, &burst)), route(burst, false);
    take_arps();
    DO(nos_relay_port_wait(port, (int[]){uplink, arps}, 2, -1, &ended));
  }
  DO(nos_relay_port_free(port) || nos_relay_table_free(table));
  return unused;
}

int main(int count, char **arguments) {
  if (count != 4 || inet_pton(AF_INET, arguments[2], own.octets) != 1) errx(2, "usage: nos UPLINK ADDRESS CONFIGURATION");
  own_link.sll_ifindex = (int)if_nametoindex(arguments[1]);
  SYSTEM(uplink = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETHERTYPE_IP)));
  SYSTEM(arps = socket(AF_PACKET, SOCK_DGRAM | SOCK_NONBLOCK, htons(ETHERTYPE_ARP)));
  SYSTEM(bind(uplink, (void *)&own_link, sizeof own_link) | bind(arps, (void *)&own_link, sizeof own_link));
  SYSTEM(setsockopt(uplink, SOL_PACKET, PACKET_VNET_HDR, &(int){1}, sizeof(int)));
  SYSTEM(getsockname(arps, (void *)&own_link, &(socklen_t){sizeof own_link})); // with MAC address and protocol
  nos_relay *relay;
  pthread_t thread;
  DO(nos_relay_start(arguments[3], &relay, &port)); // see docs/configuration.md
  pthread_create(&thread, NULL, forward, NULL);
  DO(nos_relay_await_ready(relay, 60000));
  SYSTEM(write(1, "ready\n", 6));
  for (char octet; read(0, &octet, 1) > 0;);
  DO(nos_relay_stop(relay));
  pthread_join(thread, NULL);
  return nos_relay_free(relay);
}
