/* Inside net only. */
#ifndef ENCL_NET_INTERNAL_H
#define ENCL_NET_INTERNAL_H

#include <libwebsockets.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/rate.h"
#include "base/secmem.h"
#include "net/keepalive.h"
#include "net/net.h"
#include "net/peer.h"
#include "ws/ws.h"

#define NET_PROTOCOL      "enclavia"
#define NET_RX_BLOCK      ((size_t)256 * 1024)
#define NET_TX_LIMIT      ((size_t)8 * 1024 * 1024)
#define NET_MAX_FRAME     ((uint64_t)16 * 1024 * 1024)
#define NET_ADDRESSES_MAX 8
#define NET_ADDRESS_TEXT  64
#define NET_EARLY_MAX     ((size_t)64 * 1024)
#define NET_REST_MAX      ((size_t)64 * 1024 * 1024) /* far above any receive buffer */
#define NET_CLOSE_WAIT_MS 1000
#define NET_MASK_POOL                                                                              \
    256 /* random bytes asked for at once: a system call for each mask costs more */

/* Tells whether a CA file is still the one that was read. */
typedef struct net_file_id {
    uintmax_t inode;
    intmax_t size, seconds, nanoseconds;
} net_file_id;

/* A vhost holds what libwebsockets keeps per TLS and proxy setting; connections share it. */
typedef struct net_vhost {
    char *key;
    struct lws_vhost *vhost;
    SSL_CTX *ctx; /* libwebsockets', which shares it among vhosts of one CA file; NULL: no TLS */
    net_file_id ca;
    struct net_vhost *next;
} net_vhost;

struct encl_timer {
    encl_loop *loop;
    encl_task task;
    void *arg;
    int64_t at;               /* of CLOCK_MONOTONIC; guarded by the timers' lock, like the rest */
    encl_timer *next, **link; /* link NULL: not set */
};

typedef struct net_timers {
    pthread_mutex_t lock; /* guards everything below, and the timers' places in the list */
    encl_timer *first;    /* the next one due */
    int fd;               /* a timerfd that libwebsockets owns and closes; -1 where there is none */
    int64_t aimed_at;     /* the time that it is set for; 0: it is not set */
    struct lws *wsi;      /* written by the service thread only */
} net_timers;

struct encl_loop {
    atomic_uint refs; /* its owner's, and those of threads that look names up */
    struct lws_context *context;
    struct lws_vhost *raw_vhost; /* adopted descriptors */
    pthread_t thread;
    uint64_t generation;
    pthread_mutex_t lock; /* guards jobs_head, jobs_tail, stopping, stopped, ready */
    pthread_cond_t changed;
    encl_job *jobs_head, *jobs_tail;
    bool stopping, stopped, ready;
    net_timers timers;
    atomic_uint_fast64_t turns; /* how often the service thread woke up */
    /* service thread only */
    net_vhost *vhosts;
    encl_conn *conns;         /* all that are not finished; changed under registry_lock (loop.c) */
    encl_conn *rearm_conns;   /* those that asked to write from inside their writable callback */
    encl_listener *listeners; /* changed under registry_lock (loop.c) */
    uint8_t *rx;
    encl_loop *registry_next; /* guarded by registry_lock in loop.c */
};

typedef enum net_state {
    NET_CONNECTING,
    NET_OPEN,
    NET_CLOSING, /* orderly: queue, close frame, then the peer's */
    NET_FINISHED,
} net_state;

struct encl_conn {
    atomic_uint refs;
    encl_loop *loop;
    bool framed;
    encl_ws_side side;

    pthread_mutex_t
        io; /* guards state, fd, ssl, txq, frame_start, masks, write_armed, close_*, eof_* */
    _Atomic(net_state) state; /* changed under io */
    int fd;          /* what we read and write; libwebsockets owns and closes it through raw_wsi */
    int lws_fd;      /* the descriptor of ws_wsi, -1 where there is none */
    uintmax_t inode; /* of the socket behind both, 0 where there is none */
    SSL *ssl;        /* libwebsockets'; NULL for plain connections and once its wsi is gone */
    encl_buf txq;
    size_t frame_start;
    uint8_t masks[NET_MASK_POOL];
    size_t masks_left; /* of masks, at its end: each is used once */
    bool write_armed, above_low_water;
    bool close_sent, eof_asked, eof_sent;
    atomic_bool close_asked;
    encl_error failure; /* set by a sender that found the socket broken */
    bool failed;

    encl_job connect;  /* posted once, before anything else */
    encl_job job;      /* queued while asked is not 0 */
    atomic_uint asked; /* of net_ask (conn.c): what the service thread is to do */

    atomic_bool paused;
    atomic_uint_fast64_t bytes_in, bytes_out;

    /* service thread only */
    encl_conn_events events;
    void *user;
    struct lws *ws_wsi, *raw_wsi;
    encl_ws_decoder decoder;
    encl_rate idle; /* frames that carried nothing */
    uint64_t idle_counted;
    bool eof_received, rx_stopped, in_writable, in_read;
    encl_timer close_timer;
    encl_timer keep_timer; /* runs while it is open, where it has a keep-alive */
    encl_keepalive keep;
    int64_t heard_at;             /* when the last byte came */
    net_peer_view peer;           /* when it was looked at last; guarded by io */
    encl_conn *next, **prev_next; /* loop->conns */
    encl_conn *rearm_next;
    bool in_rearm;

    /* while connecting; service thread only, but for what the resolver fills in */
    struct net_target *target;
    encl_buf early;    /* what came together with the 101 */
    unsigned wsi_refs; /* references held for libwebsockets' client wsi's */
    int status;        /* of a refused upgrade */
    encl_error rejected;
};

/* An owned copy of an encl_ws_target, and the addresses found for it. */
typedef struct net_target {
    char *host, *path, *authority, *ca_file, *proxy_host, *proxy_auth;
    encl_header *headers;
    size_t header_count;
    uint16_t port, proxy_port;
    bool tls, verify;
    uint64_t keepalive_ms;
    char addresses[NET_ADDRESSES_MAX][NET_ADDRESS_TEXT];
    size_t address_count, next_address;
    char last_failure[384];
} net_target;

/* loop.c */
int net_callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                 size_t len);
encl_result net_vhost_for(encl_loop *loop, const net_target *target, struct lws_vhost **out,
                          encl_error *err);
void net_loop_retain(encl_loop *loop);
void net_loop_release(encl_loop *loop);
void net_lock_registry(void);
void net_unlock_registry(void);
/* What a forked child has a copy of is closed only where it is still the same socket: the number
 * may have been given to another file by then. */
uintmax_t net_inode(int fd);
void net_close_in_child(int fd, uintmax_t inode);
void net_link_conn(encl_conn *conn);
void net_unlink_conn(encl_conn *conn);

int64_t net_now_ns(void);

/* timer.c */
void net_timer_init(encl_timer *timer, encl_loop *loop, encl_task task, void *arg);
encl_result net_timers_open(encl_loop *loop, encl_error *err); /* service thread */
void net_timers_fire(encl_loop *loop);                         /* service thread */
void net_timers_closed(encl_loop *loop);

/* tls.c: from now on ssl writes to fd without raising SIGPIPE. fd stays its owner's. */
encl_result net_tls_write_quietly(SSL *ssl, int fd, encl_error *err);

/* conn.c: service thread only unless said otherwise */
encl_result net_conn_new(encl_loop *loop, bool framed, encl_ws_side side,
                         const encl_conn_events *events, void *user, encl_conn **out,
                         encl_error *err);
encl_result net_conn_take_over(encl_conn *conn, struct lws *ws_wsi, encl_error *err);
encl_result net_conn_adopt_fd(encl_conn *conn, int fd, encl_error *err);
void net_conn_note_socket(encl_conn *conn, int lws_fd);
void net_conn_opened(encl_conn *conn);
void net_conn_readable(encl_conn *conn);
void net_conn_writable(encl_conn *conn);
void net_conn_raw_closed(encl_conn *conn);
void net_conn_finish(encl_conn *conn, const encl_error *why);
void net_conn_rearm(encl_conn *conn);
void net_conn_close_descriptors_in_child(encl_conn *conn);

/* connect.c */
int net_client_event(encl_conn *conn, struct lws *wsi, enum lws_callback_reasons reason, void *in,
                     size_t len);
void net_target_free(net_target *target);
void net_connect_next(encl_conn *conn);

/* listen.c */
int net_server_established(struct lws *wsi);
void net_listeners_close_in_child(encl_loop *loop);

#endif
