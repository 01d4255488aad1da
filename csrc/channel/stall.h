/* How long a connection may be held up by readers that do not read, while others wait for what
 * comes behind. Pure: the time is a parameter.
 *
 * It is looked at every ENCL_STALL_LOOK_NS. Whoever waits does so in slices (a thread looks for
 * signals in between), so a look that happens to find nobody does not begin the count anew. */
#ifndef ENCL_CHANNEL_STALL_H
#define ENCL_CHANNEL_STALL_H

#include <stdbool.h>
#include <stdint.h>

/* A third of the default read timeout: who waits behind it still gets an answer in time. */
#define ENCL_STALL_NS       ((int64_t)10 * 1000000000)
#define ENCL_STALL_LOOK_NS  ((int64_t)250 * 1000000)
#define ENCL_STALL_LAPSE_NS ((int64_t)1000 * 1000000)

typedef struct encl_stall {
    int64_t since, seen; /* seen 0: not held up */
} encl_stall;

/* Whether it was long enough; then the next look begins anew. */
bool encl_stall_look(encl_stall *stall, bool stalled, int64_t now);

#endif
