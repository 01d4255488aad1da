/* When to ask a peer for a sign of life, and when to give it up. Pure: the time is a parameter.
 *
 * Nobody is told of a connection that leads nowhere any more: a router that forgot it, a machine
 * that went away without a word. After an interval without a byte a ping is sent; after another one
 * without a byte the connection counts as dead. Any byte is a sign of life. So is what excuses the
 * peer: that we do not read, or that it takes what we send (net/peer.c). */
#ifndef ENCL_NET_KEEPALIVE_H
#define ENCL_NET_KEEPALIVE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct encl_keepalive {
    int64_t interval;    /* nanoseconds; above 0 */
    int64_t quiet_since; /* the last sign of life */
    int64_t asked_at;    /* when a ping was sent that nothing has come after; 0: none */
} encl_keepalive;

typedef enum encl_keepalive_step {
    ENCL_KEEPALIVE_WAIT,
    ENCL_KEEPALIVE_PING,
    ENCL_KEEPALIVE_DEAD,
} encl_keepalive_step;

void encl_keepalive_start(encl_keepalive *k, int64_t interval, int64_t now);
/* What to do now. heard_at: when the last byte was read. */
encl_keepalive_step encl_keepalive_look(encl_keepalive *k, int64_t heard_at, bool excused,
                                        int64_t now);
/* When to look again. */
int64_t encl_keepalive_next(const encl_keepalive *k);

#endif
