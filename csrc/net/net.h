/* net: libwebsockets. One loop is one lws context with one service thread; every callback below is
 * made in that thread, and none of them may block. Knows frames (ws), not records; knows nothing of
 * Noise, attestation or Python. After an upgrade the bytes go through our own codec on the socket
 * that libwebsockets connected: docs/architecture.md says why. */
#ifndef ENCL_NET_NET_H
#define ENCL_NET_NET_H

#include "base/buf.h"

typedef struct encl_loop encl_loop;
typedef struct encl_conn encl_conn;
typedef struct encl_timer encl_timer;
typedef struct encl_listener encl_listener;

/* Sets up what fork() needs (sync/fork.h); encl_loop_new does so too. */
encl_result encl_net_init(encl_error *err);

/* Starts the service thread. Free closes every connection (their closed callbacks run), ends the
 * thread and joins it; not to be called from the service thread. In a forked child the thread does
 * not exist: free then only closes the child's copies of the descriptors. */
encl_result encl_loop_new(encl_loop **out, encl_error *err);
void encl_loop_free(encl_loop *loop);
bool encl_loop_is_current(const encl_loop *loop);

/* How often the service thread has woken up. It sleeps until there is something to do, so this
 * tells how well it does. Any thread. */
uint64_t encl_loop_turns(const encl_loop *loop);

typedef void (*encl_task)(void *arg);
/* A place in the loop's queue, part of what it is about: asking needs no memory and cannot fail for
 * want of it. Not to be posted again before it runs, nor freed. */
typedef struct encl_job {
    encl_task run;
    void *arg;
    struct encl_job *next; /* guarded by the loop's lock */
} encl_job;
/* Runs job->run(job->arg) in the service thread, in the order posted. Any thread. False where the
 * loop has ended, or is the parent's: it will never run. */
bool encl_loop_post(encl_loop *loop, encl_job *job);
/* Runs task(arg) in the service thread and returns when it is done; in that thread, at once. False
 * where the loop has ended, or is the parent's: it was not run. Not with a lock held that a
 * callback of this loop takes. */
bool encl_loop_run(encl_loop *loop, encl_task task, void *arg);

/* Timers. Setting again moves it; firing, in the service thread, disarms it. Setting is for any
 * thread, as long as nobody frees it meanwhile; stopping and freeing are for the service thread. */
encl_result encl_timer_new(encl_loop *loop, encl_task task, void *arg, encl_timer **out,
                           encl_error *err);
void encl_timer_set(encl_timer *timer, uint64_t after_ms);
void encl_timer_stop(encl_timer *timer);
void encl_timer_free(encl_timer *timer);

/* How far a WebSocket client has come on its way to being open. */
typedef enum encl_conn_stage {
    ENCL_CONN_RESOLVED,  /* the host's name, or the proxy's */
    ENCL_CONN_CONNECTED, /* TCP, by way of the proxy where there is one */
    ENCL_CONN_SECURED,   /* TLS; not told where there is none */
} encl_conn_stage;

/* reached may be called again with the same stage, of another address of the same name.
 *
 * closed is called exactly once, last, unless connecting failed at once (then the connect call
 * said so). why->code is ENCL_E_CLOSED for an orderly end, else what went wrong. */
typedef struct encl_conn_events {
    void (*reached)(void *user, encl_conn *conn, encl_conn_stage stage); /* may be NULL */
    void (*opened)(void *user, encl_conn *conn);
    void (*received)(void *user, encl_conn *conn, uint8_t *block, size_t len); /* may overwrite */
    void (*received_eof)(void *user, encl_conn *conn); /* TCP only: the peer shut down writing */
    void (*drained)(void *user, encl_conn *conn);      /* pending fell below ENCL_CONN_LOW_WATER */
    void (*closed)(void *user, encl_conn *conn, const encl_error *why);
} encl_conn_events;

#define ENCL_CONN_HIGH_WATER ((size_t)256 * 1024) /* senders should wait above this */
#define ENCL_CONN_LOW_WATER  ((size_t)128 * 1024)

typedef struct encl_header {
    const char *name, *value;
} encl_header;

typedef struct encl_ws_target {
    const char *host; /* name or address; IPv6 without brackets */
    uint16_t port;
    bool tls;
    const char *path;      /* with query, begins with '/' */
    const char *authority; /* the Host header */
    const encl_header *headers;
    size_t header_count;
    bool verify;            /* the certificate and its name; false only where the caller asks */
    const char *ca_file;    /* PEM; NULL: the system's */
    const char *proxy_host; /* HTTP CONNECT; NULL: none */
    uint16_t proxy_port;
    const char *proxy_auth; /* "user:password" or NULL */
    uint64_t keepalive_ms;  /* net/keepalive.h; 0: none */
} encl_ws_target;

/* Both copy what they are given, return at once, and give the caller one reference. */
encl_result encl_conn_connect_ws(encl_loop *loop, const encl_ws_target *target,
                                 const encl_conn_events *events, void *user, encl_conn **out,
                                 encl_error *err);
encl_result encl_conn_connect_tcp(encl_loop *loop, const char *address, uint16_t port,
                                  const encl_conn_events *events, void *user, encl_conn **out,
                                  encl_error *err);
/* A connected stream socket (TCP or Unix) that is and stays the caller's: a duplicate of fd is read
 * and written, as for TCP, and only ever closed, never shut. Its end in both directions is told by
 * closed at once, also while reading is paused; what was not read by then is dropped. closed before
 * opened: there was no room, and nothing was read. *out is set before any callback. */
encl_result encl_conn_borrow(encl_loop *loop, int fd, const encl_conn_events *events, void *user,
                             encl_conn **out, encl_error *err);
/* Service thread, of a borrowed socket: ends, so that its owner can go on with it. What is queued
 * and was not written goes to unsent, which is initialised by this. closed has been called when
 * this returns. */
void encl_conn_give_back(encl_conn *conn, encl_buf *unsent);
void encl_conn_retain(encl_conn *conn);
void encl_conn_release(encl_conn *conn);

/* Sending, from any thread. begin locks the connection and gives the buffer to append to; end
 * frames what was appended as one binary message (nothing appended: no message), writes what the
 * socket takes at once, leaves the rest to the service thread and unlocks. begin fails with
 * ENCL_E_CLOSED when the connection is closing; nothing is locked then.
 */
encl_result encl_conn_tx_begin(encl_conn *conn, encl_buf **out, encl_error *err);
void encl_conn_tx_end(encl_conn *conn);
/* The same as a text message, which carries nothing: for local enclaves that misbehave. What was
 * appended must be UTF-8. */
void encl_conn_tx_end_text(encl_conn *conn);
size_t encl_conn_tx_pending(encl_conn *conn);

/* Stops or resumes reading; what the peer sends then stays in the kernel. Any thread. */
void encl_conn_pause(encl_conn *conn, bool paused);
/* TCP only: shuts down writing once the queue is empty. Any thread. */
void encl_conn_write_eof(encl_conn *conn);
/* Orderly end: writes the queue and (WebSocket) a close frame, waits a moment for the peer's, then
 * closes. code 0: 1000. Any thread; later calls do nothing. */
void encl_conn_close(encl_conn *conn, uint16_t code, const char *reason);
/* Ends at once. reset: TCP RST instead of FIN. Any thread. */
void encl_conn_abort(encl_conn *conn, bool reset);
uint64_t encl_conn_bytes_in(encl_conn *conn);
uint64_t encl_conn_bytes_out(encl_conn *conn);

/* The server side: WebSockets on 127.0.0.1. accepted runs in the service thread with a connection
 * that is open already; it takes a reference by encl_conn_accept, or the connection is dropped. */
typedef void (*encl_accepted)(void *user, encl_conn *conn);
encl_result encl_listen(encl_loop *loop, uint16_t port, const char *tls_cert_file,
                        const char *tls_key_file, encl_accepted accepted, void *user,
                        encl_listener **out, encl_error *err);
/* From now on every upgrade is answered with this HTTP status and the connection ends; 0: none is,
 * as at the beginning. Any thread. */
void encl_listener_refuse(encl_listener *listener, int status);
uint16_t encl_listener_port(const encl_listener *listener);
/* Stops accepting; connections made through it end within a second or so. Any thread but the
 * service thread. */
void encl_listener_free(encl_listener *listener);
void encl_conn_accept(encl_conn *conn, const encl_conn_events *events, void *user);

#endif
