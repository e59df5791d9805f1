// What the programs of these tests share: calls whose code and error are compared.
#ifndef CHECK_H
#define CHECK_H

#include <nos_relay.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int calls, wrong;

static void expect(int line, const char *call, int code, const char *said, int got) {
  const char *error = nos_relay_last_error();
  calls++;
  if (got == code && (!said || strstr(error, said))) return;
  wrong++;
  fprintf(stderr, "%d: %s: %d, not %d: \"%s\" should contain \"%s\"\n", line, call, got, code, error, said ? said : "");
}

// Makes a call that returns `code`, and leaves an error that contains `said`.
#define EXPECT(code, said, call) expect(__LINE__, #call, (code), (said), (call))
// Makes a call that succeeds.
#define DO(call) EXPECT(NOS_RELAY_OK, NULL, call)
// Something that has to hold.
#define HOLDS(what) ((what) ? (void)calls++ : (void)(wrong++, fprintf(stderr, "%d: not so: %s\n", __LINE__, #what)))

// A pointer that is aligned for nothing.
static inline void *odd(void *pointer) { return (char *)pointer + 1; }

static inline void on_another_thread(void *(*work)(void *), void *argument) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, work, argument)) abort();
  pthread_join(thread, NULL);
}

static inline int summary(int least) {
  printf("%d calls, %d wrong\n", calls, wrong);
  return wrong != 0 || calls < least;
}

#endif
