/* conn: a connection's life: it begins, opens, is asked for things, and ends. The only file that
 * finishes one: what reads, writes and watches returns how that went, and it is acted on here.
 * Calls receiver.c, sender.c, liveness.c, and the user's callbacks, which are made without any
 * lock.
 *
 * conn->io guards the state; all else here is the service thread's. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/ssl.h>
#include <string.h>

#include "net/internal.h"

/* ---- the end ---- */

static void kill_wsi(struct lws *wsi) {
    if (wsi != NULL) {
        lws_set_timeout(wsi, PENDING_TIMEOUT_KILLED_BY_PARENT, LWS_TO_KILL_ASYNC);
    }
}

/* The peer learns at once, whatever libwebsockets' own closing would wait for. False where it was
 * done before. */
static bool enter_finished(encl_conn *conn) {
    bool first;

    encl_lock(&conn->io);
    first = conn->state != NET_FINISHED;
    if (first) {
        conn->state = NET_FINISHED;
        if (conn->borrowed) {
            net_duplicate_close(conn);
        } else {
            net_socket_shut(&conn->socket, net_conn_has_failed(conn));
        }
    }
    encl_unlock(&conn->io);
    return first;
}

void net_conn_finish(encl_conn *conn, const encl_error *why) {
    encl_conn_events events = conn->events;

    if (!enter_finished(conn)) {
        return;
    }
    encl_link_remove(&conn->link);
    encl_timer_stop(&conn->close_timer);
    encl_timer_stop(&conn->keep_timer);
    kill_wsi(conn->raw_wsi);
    kill_wsi(conn->ws_wsi);
    if (events.closed != NULL) {
        events.closed(conn->user, conn, why);
    }
    encl_conn_release(conn); /* the loop's own reference */
}

static void finish_here(encl_conn *conn) {
    encl_error why;

    net_closed_here(&why);
    net_conn_finish(conn, &why);
}

void net_conn_finish_all(encl_loop *loop) {
    encl_link *link;

    while ((link = encl_list_first(&loop->conns)) != NULL) {
        finish_here(ENCL_OWNER(link, encl_conn, link));
    }
}

/* ---- reading and writing ---- */

void net_conn_readable(encl_conn *conn) {
    encl_error why;

    encl_conn_retain(conn); /* the user may let go in a callback */
    if (net_receive(conn, &why) == NET_OVER) {
        net_conn_finish(conn, &why);
    }
    encl_conn_release(conn);
}

/* TCP: how connecting ended. */
static void connected(encl_conn *conn) {
    int code = net_socket_error(&conn->socket);
    encl_error why;

    if (code != 0) {
        encl_fail(&why, ENCL_E_CONNECT, "TCP connect failed: %s", strerror(code));
        net_conn_finish(conn, &why);
        return;
    }
    net_conn_opened(conn);
}

static void write_more(encl_conn *conn) {
    encl_error why;

    encl_conn_retain(conn);
    switch (net_sender_writable(conn, &why)) {
    case NET_OVER:
        net_conn_finish(conn, &why);
        break;
    case NET_DRAINED:
        if (conn->events.drained != NULL && conn->state == NET_OPEN) {
            conn->events.drained(conn->user, conn);
        }
        break;
    case NET_GO_ON:
        break;
    }
    encl_conn_release(conn);
}

void net_conn_writable(encl_conn *conn) {
    if (conn->state == NET_CONNECTING) {
        connected(conn);
    } else if (conn->state != NET_FINISHED) {
        write_more(conn);
    }
}

static void forget_socket(encl_conn *conn) {
    encl_lock(&conn->io);
    conn->socket = (net_socket){.fd = -1};
    encl_unlock(&conn->io);
}

static void explain_raw_close(encl_conn *conn, encl_error *why) {
    if (conn->state == NET_CONNECTING) {
        encl_fail(why, ENCL_E_CONNECT, "the connection was refused: %s",
                  strerror(net_socket_error(&conn->socket)));
    } else {
        encl_fail(why, ENCL_E_CLOSED, "the peer reset the connection");
    }
}

/* Both directions are shut, or the peer reset the connection, and libwebsockets gives the
 * descriptor up. What was sent before that is kept for a reader that pauses, but for the owner of
 * a borrowed socket, who is told at once. */
void net_conn_raw_closed(encl_conn *conn) {
    encl_error why;

    lws_set_opaque_user_data(conn->raw_wsi, NULL);
    conn->raw_wsi = NULL;
    net_disown(&conn->raw_owned);
    if (conn->state == NET_OPEN && !conn->framed && !conn->borrowed && !conn->receiver.eof) {
        net_receive_rest(conn);
        net_conn_ask(conn, NET_ASK_READ);
    } else {
        if (!atomic_load(&conn->paused)) {
            net_conn_readable(conn);
        }
        explain_raw_close(conn, &why);
        net_conn_finish(conn, &why);
        forget_socket(conn);
    }
    encl_conn_release(conn); /* raw_wsi's */
}

/* ---- becoming open ---- */

encl_result net_conn_adopt_fd(encl_conn *conn, int fd, encl_error *err) {
    encl_socket_prepare(fd);
    net_own(&conn->raw_owned, fd);
    encl_conn_retain(conn); /* raw_wsi's, given back in net_conn_raw_closed */
    conn->raw_wsi = net_adopt(conn->loop, fd);
    if (conn->raw_wsi == NULL) {
        forget_socket(conn);
        net_disown(&conn->raw_owned);
        encl_conn_release(conn);
        /* libwebsockets does not say why. Where memory is short, more than this fails. */
        return encl_fail(err, ENCL_E_CONNECT,
                         "no room for another connection: this process watches as many "
                         "descriptors as its limit on open files (RLIMIT_NOFILE, ulimit -n) "
                         "allowed when it first connected: close what is not used any more, or "
                         "start it with a higher limit");
    }
    /* Only now: one that cannot be adopted is destroyed without being anybody's. */
    lws_set_opaque_user_data(conn->raw_wsi, conn);
    encl_lock(&conn->io);
    conn->socket.fd = fd;
    encl_unlock(&conn->io);
    return ENCL_OK;
}

static encl_result take_tls(encl_conn *conn, SSL *ssl, int fd, encl_error *err) {
    if (ssl == NULL) {
        return ENCL_OK;
    }
    /* The queue may move and grow between two tries of one write. */
    SSL_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    ENCL_TRY(net_tls_write_quietly(ssl, fd, err));
    encl_lock(&conn->io);
    conn->socket.ssl = ssl;
    encl_unlock(&conn->io);
    return ENCL_OK;
}

encl_result net_conn_take_over(encl_conn *conn, struct lws *ws_wsi, encl_error *err) {
    int theirs = lws_get_socket_fd(ws_wsi), ours;

    if (lws_rx_flow_control(ws_wsi, 0) != 0) {
        return encl_fail(err, ENCL_E_INTERNAL, "libwebsockets would not stop reading");
    }
    net_own(&conn->ws_owned, theirs);
    encl_socket_prepare(theirs);
    ENCL_TRY(take_tls(conn, lws_get_ssl(ws_wsi), theirs, err));
    ours = fcntl(theirs, F_DUPFD_CLOEXEC, 0);
    ENCL_ENSURE(ours >= 0, err, ENCL_E_CONNECT, "the socket could not be duplicated: %s",
                strerror(errno));
    return net_conn_adopt_fd(conn, ours, err);
}

void net_conn_forget_ws(encl_conn *conn) {
    conn->ws_wsi = NULL;
    net_disown(&conn->ws_owned);
    encl_lock(&conn->io);
    conn->socket.ssl = NULL;
    encl_unlock(&conn->io);
}

void net_conn_opened(encl_conn *conn) {
    bool unwanted;

    encl_lock(&conn->io);
    unwanted = conn->close_asked;
    if (!unwanted) {
        conn->state = NET_OPEN;
    }
    encl_unlock(&conn->io);
    if (unwanted) {
        /* The job that is to end it runs next, and would find it open. */
        finish_here(conn);
        return;
    }
    net_liveness_start(conn);
    if (conn->events.opened != NULL) {
        conn->events.opened(conn->user, conn);
    }
    /* TLS may have read ahead, and early bytes wait. */
    net_conn_ask(conn, NET_ASK_READ);
}

/* ---- what was asked for from any thread ---- */

/* TCP: an orderly end waits for the queue alone. */
static bool has_sent_all(encl_conn *conn) {
    return !conn->framed && conn->state == NET_CLOSING && encl_conn_tx_pending(conn) == 0;
}

static void go_on_closing(encl_conn *conn) {
    if (conn->state == NET_CONNECTING || has_sent_all(conn)) {
        finish_here(conn);
    } else if (conn->state == NET_CLOSING) {
        encl_timer_set(&conn->close_timer, NET_CLOSE_WAIT_MS);
        net_conn_readable(conn);
    }
}

static void change_pause(encl_conn *conn) {
    if (conn->state != NET_FINISHED) {
        net_receiver_apply_pause(conn);
        net_conn_readable(conn);
    }
}

static void finish_as_failed(encl_conn *conn) {
    encl_error why;

    encl_lock(&conn->io);
    why = conn->failure;
    encl_unlock(&conn->io);
    net_conn_finish(conn, &why);
}

static void run_asked(void *arg) {
    static const struct {
        net_ask what;
        void (*run)(encl_conn *conn);
    } steps[] = {
        {NET_ASK_ABORT, finish_here},     {NET_ASK_REARM, net_sender_rearm},
        {NET_ASK_PAUSE, change_pause},    {NET_ASK_READ, net_conn_readable},
        {NET_ASK_FAIL, finish_as_failed}, {NET_ASK_EOF, net_sender_eof},
        {NET_ASK_CLOSE, go_on_closing},
    };
    encl_conn *conn = arg;
    /* What is asked for from here on is a job anew. */
    unsigned asked = atomic_exchange(&conn->asked, 0);

    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        if ((asked & steps[i].what) != 0) {
            steps[i].run(conn);
        }
    }
    encl_conn_release(conn);
}

void encl_conn_close(encl_conn *conn, uint16_t code, const char *reason) {
    encl_lock(&conn->io);
    if (conn->state != NET_FINISHED && !conn->close_asked) {
        conn->close_asked = true;
        if (conn->state == NET_OPEN) {
            net_sender_close(conn, code == 0 ? 1000 : code, reason == NULL ? "" : reason);
            conn->state = NET_CLOSING;
        }
        net_conn_ask(conn, NET_ASK_CLOSE);
    }
    encl_unlock(&conn->io);
}

void encl_conn_abort(encl_conn *conn, bool reset) {
    encl_lock(&conn->io);
    if (conn->state != NET_FINISHED) {
        if (reset && conn->socket.fd >= 0) {
            encl_socket_reset(conn->socket.fd);
        }
        conn->close_asked = true;
        net_conn_ask(conn, NET_ASK_ABORT);
    }
    encl_unlock(&conn->io);
}

/* ---- borrowed sockets ---- */

void encl_conn_give_back(encl_conn *conn, encl_buf *unsent) {
    encl_lock(&conn->io);
    *unsent = conn->sender.queue;
    encl_buf_init(&conn->sender.queue, NET_TX_LIMIT);
    encl_unlock(&conn->io);
    finish_here(conn);
}

/* ---- timers ---- */

static void close_timer_fired(void *arg) {
    finish_here(arg);
}

static void keep_timer_fired(void *arg) {
    encl_conn *conn = arg;
    encl_error why;

    encl_conn_retain(conn);
    net_conn_readable(conn); /* where this thread was held up, the sign may wait in the socket */
    if (conn->state == NET_OPEN && net_liveness_look(conn, &why) == NET_OVER) {
        net_conn_finish(conn, &why);
    }
    encl_conn_release(conn);
}

/* ---- birth ---- */

encl_result net_conn_new(encl_loop *loop, bool framed, encl_ws_side side,
                         const encl_conn_events *events, void *user, encl_conn **out,
                         encl_error *err) {
    encl_conn *conn;

    *out = NULL;
    ENCL_TRY(net_conn_alloc(loop, framed, side, &conn, err));
    conn->job = (encl_job){.run = run_asked, .arg = conn};
    net_timer_init(&conn->close_timer, &loop->timers, close_timer_fired, conn);
    net_timer_init(&conn->keep_timer, &loop->timers, keep_timer_fired, conn);
    if (events != NULL) {
        conn->events = *events;
        conn->user = user;
    }
    *out = conn;
    return ENCL_OK;
}

void encl_conn_accept(encl_conn *conn, const encl_conn_events *events, void *user) {
    conn->events = *events;
    conn->user = user;
    encl_conn_retain(conn);
}

void net_conn_link(encl_conn *conn) {
    encl_list_prepend(&conn->loop->conns, &conn->link);
}

static void run_connect(void *arg) {
    encl_conn *conn = arg;
    encl_error why;

    net_conn_link(conn);
    if (conn->close_asked) {
        finish_here(conn);
    } else if (conn->begin(conn, &why) != ENCL_OK) {
        net_conn_finish(conn, &why);
    }
}

/* Gives the caller a reference beside the loop's. */
encl_result net_conn_start(encl_conn *conn, encl_result (*begin)(encl_conn *, encl_error *),
                           encl_error *err) {
    ENCL_ENSURE(conn->loop->generation == encl_fork_generation(), err, ENCL_E_FORKED,
                "this connection's loop belongs to the parent process");
    conn->begin = begin;
    conn->connect = (encl_job){.run = run_connect, .arg = conn};
    encl_conn_retain(conn);
    if (!encl_loop_post(conn->loop, &conn->connect)) {
        encl_conn_release(conn);
        return encl_fail(err, ENCL_E_CLOSED, "the service thread has ended");
    }
    return ENCL_OK;
}
