/* Both ends of a connection over loopback, and how to wait for what happens to them. net_sides.c
 * has the functions. */
#ifndef ENCL_TESTS_NET_SIDES_H
#define ENCL_TESTS_NET_SIDES_H

#include <pthread.h>
#include <time.h>

#include "net/internal.h"

typedef struct peer {
    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t changed;
    encl_conn *conn;
    bool open, closed, eof;
    int drained;
    uint64_t received, sum;
    encl_error why;
    bool echo;
} peer;

void peer_init(peer *p);
void send_bytes(encl_conn *conn, const uint8_t *bytes, size_t len);
extern const encl_conn_events events;

#define WAIT_FOR(p, cond)                                                                          \
    do {                                                                                           \
        struct timespec until_;                                                                    \
        clock_gettime(CLOCK_REALTIME, &until_);                                                    \
        until_.tv_sec += 20;                                                                       \
        pthread_mutex_lock(&(p)->lock);                                                            \
        while (!(cond)) {                                                                          \
            if (pthread_cond_timedwait(&(p)->changed, &(p)->lock, &until_) != 0) {                 \
                pthread_mutex_unlock(&(p)->lock);                                                  \
                fail_msg("waited in vain for %s", #cond);                                          \
            }                                                                                      \
        }                                                                                          \
        pthread_mutex_unlock(&(p)->lock);                                                          \
    } while (0)

typedef struct server {
    encl_loop *loop;
    encl_listener *listener;
    peer side;
} server;

void server_start(server *s, bool echo);
void server_stop(server *s);
encl_ws_target target_of(uint16_t port);

#endif
