/* peer: whether the other end of a TCP connection still takes what is sent, as the kernel saw it.
 */
#ifndef ENCL_NET_PEER_H
#define ENCL_NET_PEER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct net_peer_view {
    uint64_t acknowledged;
    bool backlog; /* something had been sent and was not acknowledged */
} net_peer_view;

/* Whether the other end of a TCP connection has taken some of a backlog since it was looked at
 * last, or shows that it is there but reads nothing at present. What was sent with no backlog, as a
 * ping is, tells nothing by being acknowledged: any machine in between does that. False for what is
 * no TCP connection. */
bool net_peer_takes(int fd, net_peer_view *seen);

#endif
