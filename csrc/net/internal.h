/* Inside net only: what its files share, the lowest first. A file calls those above it here and
 * none below it; test_circles.py fails where that leads back.
 *
 * Three locks: conn->io, loop->lock, timers->lock, taken in this order, no two of the last
 * together. registry.c has one of its own, inside all others. What no lock guards belongs to the
 * service thread. */
#ifndef ENCL_NET_INTERNAL_H
#define ENCL_NET_INTERNAL_H

#include <libwebsockets.h>
#include <stdatomic.h>

#include "base/list.h"
#include "base/rate.h"
#include "base/secmem.h"
#include "net/keepalive.h"
#include "net/net.h"
#include "net/peer.h"
#include "platform/platform.h"
#include "sync/fork.h"
#include "sync/lock.h"
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
/* Random bytes asked for at once: a system call for each mask would cost more. */
#define NET_MASK_POOL 256

/* ---- registry.c: the descriptors that a forked child has to close ---- */

typedef struct net_owned {
    int fd;
    uintmax_t inode; /* of the socket behind it, 0 where there is none */
    encl_link link;  /* all three are changed by their owner, with the registry's lock held */
} net_owned;

void net_registry_init(void);           /* has a forked child close its copies; any thread */
void net_own(net_owned *owned, int fd); /* in place of what it was before; -1: nothing */
void net_disown(net_owned *owned);

/* ---- target.c: where a connection leads ---- */

typedef struct net_addresses {
    char text[NET_ADDRESSES_MAX][NET_ADDRESS_TEXT];
    size_t count;
} net_addresses;

/* An owned copy of an encl_ws_target, and the addresses found for it. */
typedef struct net_target {
    char *host, *path, *authority, *ca_file, *proxy_host, *proxy_auth;
    encl_header *headers;
    size_t header_count;
    uint16_t port, proxy_port;
    bool tls, verify;
    uint64_t keepalive_ms;
    net_addresses addresses;
    size_t next_address;
    bool no_tls; /* an address that was to speak TLS spoke something else */
    bool trying; /* within the call that asks libwebsockets to connect; see try_address */
    /* Why the address tried last was of no use, or the one that has set no_tls; empty at first. */
    char last_failure[384];
} net_target;

/* Checks and copies. */
encl_result net_target_new(const encl_ws_target *t, net_target **out, encl_error *err);
/* An address and a port alone. */
encl_result net_target_new_tcp(const char *address, uint16_t port, net_target **out,
                               encl_error *err);
void net_target_free(net_target *target);

/* ---- timer.c ---- */

typedef struct net_timers {
    encl_mutex lock;  /* guards everything below, and the timers' places in the list */
    encl_list due;    /* in the order of their times */
    int fd;           /* the alarm, which libwebsockets owns and closes; -1 where there is none */
    int64_t aimed_at; /* the time that it is set for; 0: it is not set */
} net_timers;

struct encl_timer {
    net_timers *timers;
    encl_task task;
    void *arg;
    int64_t at; /* of encl_now_ns */
    encl_link link;
};

void net_timers_init(net_timers *timers);
void net_timers_destroy(net_timers *timers);
void net_timers_set_alarm(net_timers *timers, int fd); /* -1: it is closed */
void net_timers_fire(net_timers *timers);              /* service thread: the alarm is readable */
void net_timer_init(encl_timer *timer, net_timers *timers, encl_task task, void *arg);

/* ---- loop.c: jobs for the service thread ---- */

typedef enum net_phase {
    NET_STARTING,
    NET_RUNNING,
    NET_STOPPING, /* the thread has been asked to end */
    NET_STOPPED,  /* no job will run any more, and none is taken */
} net_phase;

typedef struct net_vhost net_vhost;

struct encl_loop {
    atomic_uint refs; /* its owner's, and those of threads that look names up */
    uint64_t generation;
    pthread_t thread;
    struct lws_context *context; /* made and ended by the service thread, between two phases */
    encl_mutex lock;             /* guards phase and jobs */
    pthread_cond_t changed;      /* phase */
    net_phase phase;
    encl_job *jobs_head, *jobs_tail;
    net_timers timers;
    atomic_uint_fast64_t turns; /* how often the service thread woke up */
    encl_fork_worker worker;    /* the service thread's */

    /* service thread only */
    bool awake; /* it looks at the jobs before it sleeps: those that it posts need no wake-up */
    struct lws_protocols protocols[2];
    struct lws_vhost *raw_vhost; /* of adopted descriptors */
    struct lws *alarm;           /* the timers' descriptor */
    bool adopting;               /* within the call that adopts a descriptor */
    struct lws *made;            /* by that call */
    net_vhost *vhosts;
    encl_list conns; /* all that are not finished */
    encl_list listeners;
    encl_list owed; /* connections that a wsi may still lead to, or not; see try_address */
    uint8_t *rx;    /* one block that every connection reads into */
    int hung_up;    /* what stands in for a borrowed socket that was given back; -1: not made yet */
};

encl_result net_loop_new(encl_loop **out, encl_error *err); /* NET_STARTING, without a thread */
void net_loop_retain(encl_loop *loop);
void net_loop_release(encl_loop *loop);
void net_loop_enter(encl_loop *loop, net_phase phase);
net_phase net_loop_wait_started(encl_loop *loop);
/* Asks the service thread to end; it may destroy the context as soon as this returns. */
void net_loop_stop(encl_loop *loop);
/* What the service thread is to do next. */
typedef enum net_turn {
    NET_TURN_SLEEP, /* wait for something to happen */
    NET_TURN_LOOK,  /* the same without sleeping: there are jobs, which have not woken it */
    NET_TURN_END,
} net_turn;
net_turn net_loop_next_turn(encl_loop *loop);
/* What is posted meanwhile stays for the next turn. */
void net_loop_run_jobs(encl_loop *loop);

/* ---- adopt.c: descriptors that libwebsockets watches ---- */

/* libwebsockets closes fd, at once where this is NULL: it has no room. */
struct lws *net_adopt(encl_loop *loop, int fd);
void net_adopt_note_wsi(encl_loop *loop, struct lws *wsi); /* libwebsockets made it */

/* ---- vhost.c: TLS and proxy settings ---- */

/* What every vhost here has in common. */
void net_vhost_info(encl_loop *loop, const char *name, struct lws_context_creation_info *info);
extern const lws_retry_bo_t net_no_idle_policy;
encl_result net_vhost_for(encl_loop *loop, const net_target *target, struct lws_vhost **out,
                          encl_error *err);
/* The next connection of this vhost goes through target's proxy, at this address. False: there is
 * no way through it, and nothing may be connected. */
bool net_vhost_use_proxy(struct lws_vhost *vhost, const net_target *target, const char *address);
/* Called by libwebsockets while it makes a vhost; nothing else says where its TLS settings are. */
void net_vhost_note_ctx(struct lws_vhost *vhost, SSL_CTX *ctx);
void net_vhosts_free(encl_loop *loop);

/* ---- resolve.c: names to addresses ---- */

typedef struct net_asker {
    /* In the service thread, once at most: found, or why nothing was. */
    void (*told)(void *arg, const net_addresses *found, const encl_error *why);
    /* Once, after that, in any thread: arg is not used any more. */
    void (*let_go)(void *arg);
    void *arg;
} net_asker;

/* Service thread. A failure has let go of asker's arg, too. */
encl_result net_resolve(encl_loop *loop, const char *name, net_asker asker, encl_error *err);

/* ---- tls.c ---- */

/* From now on ssl writes to fd without raising SIGPIPE. fd stays its owner's. */
encl_result net_tls_write_quietly(SSL *ssl, int fd, encl_error *err);

/* ---- socket.c: bytes in and out, plain or TLS ---- */

typedef struct net_socket {
    int fd;   /* a duplicate that libwebsockets owns and closes; -1 where there is none */
    SSL *ssl; /* libwebsockets'; NULL for plain connections and once its wsi is gone */
} net_socket;

typedef enum net_io { NET_IO_DONE, NET_IO_WAIT, NET_IO_EOF, NET_IO_BROKEN } net_io;

net_io net_socket_read(const net_socket *s, uint8_t *block, size_t cap, size_t *got);
net_io net_socket_write(const net_socket *s, encl_slice bytes, size_t *put);
void net_socket_shut_writing(const net_socket *s);
/* Both ways; in good order as far as TLS goes where it did not break. */
void net_socket_shut(const net_socket *s, bool broken);
/* What the kernel says of the last operation, as errno does; 0 where all is well. */
int net_socket_error(const net_socket *s);

/* ---- handle.c: a connection's memory and references ---- */

typedef enum net_state {
    NET_CONNECTING,
    NET_OPEN,
    NET_CLOSING, /* orderly: queue, close frame, then the peer's */
    NET_FINISHED,
} net_state;

typedef enum net_eof { NET_EOF_NOT_ASKED, NET_EOF_ASKED, NET_EOF_SENT } net_eof;

/* What a step of reading or writing leads to. conn.c alone acts on it. */
typedef enum net_outcome {
    NET_GO_ON,
    NET_DRAINED, /* writing: the queue fell below low water */
    NET_OVER,    /* in good order or not: the error says */
} net_outcome;

/* sender.c's part of a connection. Guarded by io. */
typedef struct net_sender {
    encl_buf queue;
    size_t frame_start; /* between tx_begin and tx_end, counted from the unread end */
    uint8_t masks[NET_MASK_POOL];
    size_t masks_left;    /* of masks, at its end: each is used once */
    bool armed;           /* libwebsockets is asked to say when the socket takes more */
    bool above_low_water; /* drained will be called */
    bool close_sent;      /* WebSocket: nothing may follow */
    net_eof eof;          /* TCP */
} net_sender;

/* receiver.c's part. Service thread only. */
typedef struct net_receiver {
    encl_ws_decoder decoder;
    encl_charge idle; /* frames that carried nothing */
    encl_buf early;   /* read before it was open, or after libwebsockets gave the descriptor up */
    int64_t heard_at; /* when the last byte was read */
    bool reading;     /* its loop runs, and looks at `paused` itself */
    bool stopped;     /* libwebsockets does not look for bytes */
    bool eof;         /* TCP: the peer shut down writing */
} net_receiver;

struct encl_conn {
    /* Set before anybody else has it. */
    encl_loop *loop;
    bool framed;   /* WebSocket frames; otherwise TCP */
    bool borrowed; /* the socket is somebody else's: it is never shut */
    encl_ws_side side;

    /* Any thread. */
    atomic_uint refs;
    atomic_uint asked; /* of net_ask: what the service thread is to do */
    encl_job job;      /* queued while asked is not 0 */
    atomic_bool paused, close_asked;
    atomic_uint_fast64_t bytes_in, bytes_out;

    encl_mutex io;            /* guards down to `peer` */
    _Atomic(net_state) state; /* changed under io by the service thread and encl_conn_close */
    net_socket socket;
    net_sender sender;
    encl_error
        failure; /* why nothing can be sent or received any more; its code is ENCL_OK before */
    net_peer_view peer; /* when it was looked at last */

    /* service thread only */
    net_receiver receiver;
    encl_conn_events events;
    void *user;
    encl_link link; /* loop->conns */
    struct lws *ws_wsi, *raw_wsi;
    net_owned ws_owned, raw_owned; /* the descriptors of both */
    encl_timer close_timer, keep_timer;
    encl_keepalive keep;

    /* while connecting */
    encl_job connect; /* posted once, before anything else */
    encl_result (*begin)(encl_conn *conn, encl_error *err);
    int duplicate; /* of a borrowed socket, until the service thread takes it; -1: none */
    net_target *target;
    unsigned wsi_refs;   /* references held for wsi that libwebsockets has not destroyed */
    encl_link owed;      /* loop->owed */
    encl_error rejected; /* what was wrong with the answer; its code is ENCL_OK where nothing was */
};

encl_result net_conn_alloc(encl_loop *loop, bool framed, encl_ws_side side, encl_conn **out,
                           encl_error *err);
bool net_conn_has_failed(const encl_conn *conn) ENCL_REQUIRES(conn->io);
/* The first break counts. */
void net_conn_note_break(encl_conn *conn, const char *while_doing) ENCL_REQUIRES(conn->io);
/* Why a connection ends that was closed, or whose loop ended, on this side. */
void net_closed_here(encl_error *why);

/* ---- ask.c ---- */

/* What the service thread can be asked for, in the order in which it is done. */
typedef enum net_ask {
    NET_ASK_ABORT = 1u << 0,
    NET_ASK_REARM = 1u << 1,
    NET_ASK_PAUSE = 1u << 2,
    NET_ASK_READ = 1u << 3,
    NET_ASK_FAIL = 1u << 4,
    NET_ASK_EOF = 1u << 5,
    NET_ASK_CLOSE = 1u << 6,
} net_ask;

void net_conn_ask(encl_conn *conn, net_ask what); /* any thread */

/* ---- sender.c ---- */

void net_sender_control(encl_conn *conn, encl_ws_opcode opcode, encl_slice payload)
    ENCL_REQUIRES(conn->io);
void net_sender_close(encl_conn *conn, uint16_t code, const char *reason) ENCL_REQUIRES(conn->io);
/* Writes what the socket takes; false when that broke. */
bool net_sender_flush(encl_conn *conn) ENCL_REQUIRES(conn->io);
/* The others in the service thread. */
net_outcome net_sender_writable(encl_conn *conn, encl_error *why);
void net_sender_rearm(encl_conn *conn);
void net_sender_eof(encl_conn *conn);

/* ---- receiver.c: service thread ---- */
net_outcome net_receive(encl_conn *conn, encl_error *why);
void net_receiver_apply_pause(encl_conn *conn);
/* Reads all there is, for a reader that pauses: libwebsockets gives the descriptor up. */
void net_receive_rest(encl_conn *conn);

/* ---- liveness.c: service thread ---- */
void net_liveness_start(encl_conn *conn);
net_outcome net_liveness_look(encl_conn *conn, encl_error *why);

/* ---- duplicate.c: of sockets that are somebody else's; service thread ---- */
/* Before the first one is watched. False: there is no descriptor for it. */
bool net_duplicate_prepare(encl_loop *loop);
/* Closes it. Where libwebsockets watches it, that has its number, of something else from now on,
 * and closes that later. */
void net_duplicate_close(encl_conn *conn) ENCL_REQUIRES(conn->io);

/* ---- conn.c: service thread ---- */
encl_result net_conn_new(encl_loop *loop, bool framed, encl_ws_side side,
                         const encl_conn_events *events, void *user, encl_conn **out,
                         encl_error *err);
/* Any thread. begin runs in the service thread, once. */
encl_result net_conn_start(encl_conn *conn, encl_result (*begin)(encl_conn *, encl_error *),
                           encl_error *err);
void net_conn_link(encl_conn *conn);
encl_result net_conn_adopt_fd(encl_conn *conn, int fd, encl_error *err);
encl_result net_conn_take_over(encl_conn *conn, struct lws *ws_wsi, encl_error *err);
void net_conn_forget_ws(encl_conn *conn); /* libwebsockets' wsi, and TLS with it, is gone */
void net_conn_opened(encl_conn *conn);
void net_conn_readable(encl_conn *conn);
void net_conn_writable(encl_conn *conn);
void net_conn_raw_closed(encl_conn *conn);
void net_conn_finish(encl_conn *conn, const encl_error *why);
void net_conn_finish_all(encl_loop *loop);

/* ---- upgrade.c: the answer to a client's upgrade; service thread ---- */
int net_upgrade_append_headers(const net_target *target, unsigned char **at, size_t room);
encl_result net_upgrade_check_reply(struct lws *wsi, encl_error *err);
encl_result net_upgrade_check_certificate(const net_target *target, SSL *ssl, encl_error *err);
/* text: libwebsockets' reason. True where another address of the same name would not help. */
bool net_upgrade_explain(const net_target *target, SSL *ssl, encl_slice text, encl_error *why);
/* What came first was no record of TLS. OpenSSL says so by one error alone: servers of other
 * versions of TLS, or that refuse the handshake, lead to others, which may pass. */
bool net_upgrade_is_no_tls(unsigned long openssl_error);
/* For the error of the last address: what was wrong with this one. */
void net_upgrade_note_failure(net_target *target, encl_slice text);

/* ---- ws_connect.c, listen.c: libwebsockets' events; service thread ---- */
int net_client_event(encl_conn *conn, struct lws *wsi, enum lws_callback_reasons reason, void *in,
                     size_t len);
int net_server_established(struct lws *wsi);
int net_server_confirm_upgrade(struct lws *wsi); /* 0: it may go on */
int net_server_plain_request(struct lws *wsi);   /* -1: the connection is to end */
int net_server_raw_bytes(struct lws *wsi);       /* -1, as above */
/* ctx is one with which connections of this loop are made. */
void net_client_watch_tls(encl_loop *loop, SSL_CTX *ctx);
/* Once libwebsockets' context, and every wsi with it, is gone: gives back the references that were
 * kept because nothing showed whether a wsi had been made. */
void net_client_settle_owed(encl_loop *loop);

#endif
