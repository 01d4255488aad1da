#include "net/net_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/peer.h"

/* Reads of one readiness, before other connections get their turn. */
#define READ_ROUNDS 8
/* A data frame of 126..65535 bytes: 4 bytes of head and, from a client, 4 of mask. */
#define FRAME_ROOM   8
#define CLOSE_POLICY 1008

/* What the service thread can be asked for, in the order in which it is done. */
enum net_ask {
    ASK_ABORT = 1u << 0,
    ASK_REARM = 1u << 1,
    ASK_PAUSE = 1u << 2,
    ASK_READ = 1u << 3,
    ASK_FAIL = 1u << 4,
    ASK_EOF = 1u << 5,
    ASK_CLOSE = 1u << 6,
};

static void run_asked(void *arg);
static void close_timer_fired(void *arg);
static void keep_timer_fired(void *arg);

encl_result net_conn_new(encl_loop *loop, bool framed, encl_ws_side side,
                         const encl_conn_events *events, void *user, encl_conn **out,
                         encl_error *err) {
    encl_conn *conn = calloc(1, sizeof *conn);

    *out = conn;
    ENCL_ENSURE(conn != NULL, err, ENCL_E_NOMEM, "out of memory");
    atomic_init(&conn->refs, 1);
    conn->loop = loop;
    conn->framed = framed;
    conn->side = side;
    conn->fd = conn->lws_fd = -1;
    conn->job = (encl_job){.run = run_asked, .arg = conn};
    net_timer_init(&conn->close_timer, loop, close_timer_fired, conn);
    net_timer_init(&conn->keep_timer, loop, keep_timer_fired, conn);
    pthread_mutex_init(&conn->io, NULL);
    encl_buf_init(&conn->txq, NET_TX_LIMIT);
    encl_buf_init(&conn->early, NET_EARLY_MAX);
    encl_ws_decoder_init(&conn->decoder, side, NET_MAX_FRAME);
    if (events != NULL) {
        conn->events = *events;
        conn->user = user;
    }
    return ENCL_OK;
}

void encl_conn_retain(encl_conn *conn) {
    atomic_fetch_add_explicit(&conn->refs, 1, memory_order_relaxed);
}

void encl_conn_release(encl_conn *conn) {
    if (conn == NULL || atomic_fetch_sub_explicit(&conn->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    encl_buf_free(&conn->txq);
    encl_buf_free(&conn->early);
    net_target_free(conn->target);
    pthread_mutex_destroy(&conn->io);
    free(conn);
}

void net_conn_close_descriptors_in_child(encl_conn *conn) {
    net_close_in_child(conn->fd, conn->inode);
    net_close_in_child(conn->lws_fd, conn->inode);
}

/* libwebsockets' own, from the moment that it connects. */
void net_conn_note_socket(encl_conn *conn, int lws_fd) {
    pthread_mutex_lock(&conn->io);
    conn->lws_fd = lws_fd;
    conn->inode = net_inode(lws_fd);
    pthread_mutex_unlock(&conn->io);
}

/* ---- the socket, plain or TLS: io is held ---- */

typedef enum io_result { IO_DONE, IO_WAIT, IO_EOF, IO_BROKEN } io_result;

static io_result tls_result(SSL *ssl, int n) {
    switch (SSL_get_error(ssl, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return IO_WAIT;
    case SSL_ERROR_ZERO_RETURN:
        return IO_EOF;
    default:
        return IO_BROKEN;
    }
}

static io_result socket_read(encl_conn *conn, uint8_t *block, size_t cap, size_t *got) {
    ssize_t n;

    *got = 0;
    if (conn->fd < 0) {
        return conn->failed ? IO_BROKEN : IO_EOF;
    }
    if (conn->ssl != NULL) {
        int m;

        ERR_clear_error();
        m = SSL_read(conn->ssl, block, (int)cap);
        if (m <= 0) {
            return tls_result(conn->ssl, m);
        }
        *got = (size_t)m;
        return IO_DONE;
    }
    do {
        n = recv(conn->fd, block, cap, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return errno == EAGAIN || errno == EWOULDBLOCK ? IO_WAIT : IO_BROKEN;
    }
    *got = (size_t)n;
    return n == 0 ? IO_EOF : IO_DONE;
}

static io_result socket_write(encl_conn *conn, encl_slice bytes, size_t *put) {
    ssize_t n;

    *put = 0;
    if (conn->fd < 0) {
        return IO_BROKEN;
    }
    if (conn->ssl != NULL) {
        int m;

        ERR_clear_error();
        m = SSL_write(conn->ssl, bytes.data, (int)bytes.len);
        if (m <= 0) {
            return tls_result(conn->ssl, m);
        }
        *put = (size_t)m;
        return IO_DONE;
    }
    do {
        n = send(conn->fd, bytes.data, bytes.len, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return errno == EAGAIN || errno == EWOULDBLOCK ? IO_WAIT : IO_BROKEN;
    }
    *put = (size_t)n;
    return IO_DONE;
}

static void note_failure(encl_conn *conn, const char *what) {
    if (!conn->failed) {
        conn->failed = true;
        encl_fail(&conn->failure, ENCL_E_CLOSED, "the connection broke while %s: %s", what,
                  conn->ssl != NULL ? "TLS error" : strerror(errno));
    }
}

/* Writes what the socket takes. False when it broke. */
static bool flush(encl_conn *conn) {
    while (encl_buf_readable(&conn->txq) != 0) {
        encl_slice pending = encl_buf_peek(&conn->txq);
        size_t put;
        io_result rc = socket_write(conn, pending, &put);

        if (rc == IO_WAIT) {
            return true;
        }
        if (rc != IO_DONE) {
            note_failure(conn, "sending");
            return false;
        }
        conn->txq.r += put;
        atomic_fetch_add_explicit(&conn->bytes_out, put, memory_order_relaxed);
    }
    encl_buf_clear(&conn->txq);
    return true;
}

/* ---- asking the service thread ---- */

/* The job owns a reference. */
static void post(encl_conn *conn, enum net_ask what) {
    if (atomic_fetch_or(&conn->asked, what) != 0) {
        return; /* in the queue already */
    }
    encl_conn_retain(conn);
    if (!encl_loop_post(conn->loop, &conn->job)) {
        encl_conn_release(conn);
    }
}

static void fail_as_noted(encl_conn *conn) {
    encl_error why;

    pthread_mutex_lock(&conn->io);
    why = conn->failure;
    pthread_mutex_unlock(&conn->io);
    net_conn_finish(conn, &why);
}

/* io is held. */
static void want_write(encl_conn *conn) {
    if (conn->write_armed) {
        return;
    }
    conn->write_armed = true;
    if (!encl_loop_is_current(conn->loop)) {
        post(conn, ASK_REARM);
        return;
    }
    if (!conn->in_rearm) {
        /* A request made inside the writable callback would be forgotten; the loop makes it right
         * after its turn. */
        conn->in_rearm = true;
        encl_conn_retain(conn);
        conn->rearm_next = conn->loop->rearm_conns;
        conn->loop->rearm_conns = conn;
    }
}

void net_conn_rearm(encl_conn *conn) {
    bool armed;

    pthread_mutex_lock(&conn->io);
    armed = conn->write_armed && conn->state != NET_FINISHED;
    pthread_mutex_unlock(&conn->io);
    if (armed && conn->raw_wsi != NULL) {
        lws_callback_on_writable(conn->raw_wsi);
    }
}

/* io is held. Flushes and asks for more time where that is needed. */
static void push(encl_conn *conn) {
    /* Armed: the service thread is at it already, and the queue keeps the order. */
    if (!conn->write_armed && !conn->failed) {
        if (!flush(conn)) {
            post(conn, ASK_FAIL);
        } else if (encl_buf_readable(&conn->txq) != 0) {
            want_write(conn);
        }
    }
    if (encl_buf_readable(&conn->txq) > ENCL_CONN_LOW_WATER) {
        conn->above_low_water = true;
    }
}

/* ---- sending ---- */

encl_result encl_conn_tx_begin(encl_conn *conn, encl_buf **out, encl_error *err) {
    uint8_t *room;
    encl_code rc;

    pthread_mutex_lock(&conn->io);
    ENCL_ENSURE_GOTO(conn->state == NET_OPEN && !conn->failed, fail, err, ENCL_E_CLOSED,
                     "the connection is %s",
                     conn->state == NET_CONNECTING ? "not open yet" : "closed");
    if (conn->framed) {
        ENCL_TRY_GOTO(encl_buf_reserve(&conn->txq, FRAME_ROOM, &room, err), fail);
        ENCL_TRY_GOTO(encl_buf_commit(&conn->txq, FRAME_ROOM, err), fail);
        /* Counted from the unread end: the block may move while the caller appends. */
        conn->frame_start = encl_buf_readable(&conn->txq);
    }
    *out = &conn->txq;
    return ENCL_OK;
fail:
    pthread_mutex_unlock(&conn->io);
    return rc;
}

/* A message above 65535 bytes has a longer head than there is room for; only one-shot requests next
 * to the Noise limit come that far. */
static encl_result widen(encl_conn *conn, size_t len, size_t more, encl_error *err) {
    uint8_t *end;

    ENCL_TRY(encl_buf_reserve(&conn->txq, more, &end, err));
    memmove(end - len + more, end - len, len);
    return encl_buf_commit(&conn->txq, more, err);
}

/* io is held. Nobody can foretell a mask (RFC 6455 section 5.3): it comes from the system. A forked
 * child, which has a copy of the pool, sends nothing here. */
static encl_result take_mask(encl_conn *conn, uint8_t mask[4], encl_error *err) {
    if (conn->masks_left == 0) {
        ENCL_TRY(encl_random(conn->masks, sizeof conn->masks, err));
        conn->masks_left = sizeof conn->masks;
    }
    memcpy(mask, conn->masks + sizeof conn->masks - conn->masks_left, 4);
    conn->masks_left -= 4;
    return ENCL_OK;
}

static encl_result frame_in_place(encl_conn *conn, encl_ws_opcode opcode, size_t len,
                                  encl_error *err) {
    uint8_t head[ENCL_WS_MAX_HEADER], mask[4], *payload;
    bool masked = conn->side == ENCL_WS_CLIENT;
    size_t head_len;

    if (masked) {
        ENCL_TRY(take_mask(conn, mask, err));
        encl_ws_mask(conn->txq.data + conn->txq.w - len, len, mask, 0);
    }
    head_len = encl_ws_header(head, opcode, len, masked ? mask : NULL);
    if (head_len > FRAME_ROOM) {
        ENCL_TRY(widen(conn, len, head_len - FRAME_ROOM, err));
    }
    payload = conn->txq.data + conn->txq.w - len;
    if (head_len < FRAME_ROOM) {
        payload -= FRAME_ROOM - head_len;
        memmove(payload, payload + (FRAME_ROOM - head_len), len);
        conn->txq.w -= FRAME_ROOM - head_len;
    }
    memcpy(payload - head_len, head, head_len);
    return ENCL_OK;
}

/* Turns the bytes appended since begin into one frame. */
static void frame(encl_conn *conn, encl_ws_opcode opcode) {
    size_t len = encl_buf_readable(&conn->txq) - conn->frame_start;
    encl_error err;

    if (len == 0) {
        conn->txq.w -= FRAME_ROOM;
    } else if (frame_in_place(conn, opcode, len, &err) != ENCL_OK) {
        /* The bytes are sealed already: a gap in their order could never be mended. */
        conn->failed = true;
        conn->failure = err;
        post(conn, ASK_FAIL);
    }
}

static void end_message(encl_conn *conn, encl_ws_opcode opcode) {
    if (conn->framed) {
        frame(conn, opcode);
    }
    push(conn);
    pthread_mutex_unlock(&conn->io);
}

void encl_conn_tx_end(encl_conn *conn) {
    end_message(conn, ENCL_WS_BINARY);
}

void encl_conn_tx_end_text(encl_conn *conn) {
    end_message(conn, ENCL_WS_TEXT);
}

size_t encl_conn_tx_pending(encl_conn *conn) {
    size_t n;

    pthread_mutex_lock(&conn->io);
    n = encl_buf_readable(&conn->txq);
    pthread_mutex_unlock(&conn->io);
    return n;
}

/* io is held. */
static void queue_control(encl_conn *conn, encl_ws_opcode opcode, encl_slice payload) {
    uint8_t mask[4];
    encl_error err;
    bool masked = conn->side == ENCL_WS_CLIENT;

    if (conn->failed) {
        return;
    }
    if ((masked && take_mask(conn, mask, &err) != ENCL_OK) ||
        encl_ws_control(opcode, payload, masked ? mask : NULL, &conn->txq, &err) != ENCL_OK) {
        if (err.code == ENCL_E_INVALID) {
            (void)encl_fail(&err, ENCL_E_PROTOCOL,
                            "expected a peer that reads what it is sent, got pings while %zu "
                            "bytes wait for it",
                            encl_buf_readable(&conn->txq));
        }
        conn->failed = true;
        conn->failure = err;
        post(conn, ASK_FAIL);
        return;
    }
    push(conn);
}

/* io is held. */
static void queue_close(encl_conn *conn, uint16_t code, const char *reason) {
    uint8_t payload[ENCL_WS_MAX_CONTROL];

    if (!conn->framed || conn->close_sent) {
        return;
    }
    conn->close_sent = true;
    queue_control(conn, ENCL_WS_CLOSE,
                  ENCL_SLICE(payload, encl_ws_close_payload(payload, code, reason)));
}

/* ---- becoming open ---- */

encl_result net_conn_adopt_fd(encl_conn *conn, int fd, encl_error *err) {
    lws_adopt_desc_t info;

    memset(&info, 0, sizeof info);
    info.vh = conn->loop->raw_vhost;
    info.type = LWS_ADOPT_RAW_FILE_DESC;
    info.fd.filefd = fd;
    info.vh_prot_name = NET_PROTOCOL;
    info.opaque = conn;
    pthread_mutex_lock(&conn->io);
    conn->fd = fd;
    conn->inode = net_inode(fd);
    pthread_mutex_unlock(&conn->io);
    encl_conn_retain(conn); /* raw_wsi's, given back in net_conn_raw_closed */
    conn->raw_wsi = lws_adopt_descriptor_vhost_via_info(&info);
    if (conn->raw_wsi == NULL) {
        pthread_mutex_lock(&conn->io);
        conn->fd = -1;
        pthread_mutex_unlock(&conn->io);
        (void)close(fd);
        encl_conn_release(conn);
        return encl_fail(err, ENCL_E_NOMEM, "no room for another connection");
    }
    return ENCL_OK;
}

encl_result net_conn_take_over(encl_conn *conn, struct lws *ws_wsi, encl_error *err) {
    int fd;

    if (lws_rx_flow_control(ws_wsi, 0) != 0) {
        return encl_fail(err, ENCL_E_INTERNAL, "libwebsockets would not stop reading");
    }
    fd = fcntl(lws_get_socket_fd(ws_wsi), F_DUPFD_CLOEXEC, 0);
    ENCL_ENSURE(fd >= 0, err, ENCL_E_CONNECT, "the socket could not be duplicated: %s",
                strerror(errno));
    net_conn_note_socket(conn, lws_get_socket_fd(ws_wsi));
    conn->ssl = lws_get_ssl(ws_wsi);
    if (conn->ssl != NULL) {
        /* The queue may move and grow between two tries of one write. */
        SSL_set_mode(conn->ssl,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        if (net_tls_write_quietly(conn->ssl, lws_get_socket_fd(ws_wsi), err) != ENCL_OK) {
            (void)close(fd);
            return err->code;
        }
    }
    return net_conn_adopt_fd(conn, fd, err);
}

static void set_keep_timer(encl_conn *conn, int64_t now) {
    int64_t wait = encl_keepalive_next(&conn->keep) - now;

    encl_timer_set(&conn->keep_timer, wait <= 0 ? 1 : (uint64_t)(wait / 1000000 + 1));
}

static void start_keepalive(encl_conn *conn) {
    int64_t now = net_now_ns();

    if (conn->framed && conn->target != NULL && conn->target->keepalive_ms != 0) {
        encl_keepalive_start(&conn->keep, (int64_t)conn->target->keepalive_ms * 1000000, now);
        set_keep_timer(conn, now);
    }
}

void net_conn_opened(encl_conn *conn) {
    bool unwanted;

    pthread_mutex_lock(&conn->io);
    unwanted = conn->close_asked;
    if (!unwanted) {
        conn->state = NET_OPEN;
    }
    pthread_mutex_unlock(&conn->io);
    if (unwanted) {
        encl_error why;

        /* The task that is to end it comes next, and would find it open. */
        encl_fail(&why, ENCL_E_CLOSED, "the connection was closed on this side");
        net_conn_finish(conn, &why);
        return;
    }
    start_keepalive(conn);
    if (conn->events.opened != NULL) {
        conn->events.opened(conn->user, conn);
    }
    /* TLS may have read ahead, and early bytes wait. */
    post(conn, ASK_READ);
}

/* ---- the end ---- */

static void close_timer_fired(void *arg) {
    encl_conn *conn = arg;
    encl_error why;

    encl_fail(&why, ENCL_E_CLOSED, "the connection was closed on this side");
    net_conn_finish(conn, &why);
}

static void kill_wsi(struct lws *wsi) {
    if (wsi != NULL) {
        lws_set_timeout(wsi, PENDING_TIMEOUT_KILLED_BY_PARENT, LWS_TO_KILL_ASYNC);
    }
}

/* io is held. The peer learns at once, whatever libwebsockets' own closing would wait for. */
static void shut_socket(encl_conn *conn) {
    if (conn->fd < 0) {
        return;
    }
    if (conn->ssl != NULL && !conn->failed) {
        ERR_clear_error();
        (void)SSL_shutdown(conn->ssl);
    }
    (void)shutdown(conn->fd, SHUT_RDWR);
}

void net_conn_finish(encl_conn *conn, const encl_error *why) {
    encl_conn_events events = conn->events;

    pthread_mutex_lock(&conn->io);
    if (conn->state == NET_FINISHED) {
        pthread_mutex_unlock(&conn->io);
        return;
    }
    conn->state = NET_FINISHED;
    shut_socket(conn);
    pthread_mutex_unlock(&conn->io);
    if (conn->prev_next != NULL) {
        net_unlink_conn(conn);
    }
    encl_timer_stop(&conn->close_timer);
    encl_timer_stop(&conn->keep_timer);
    kill_wsi(conn->raw_wsi);
    kill_wsi(conn->ws_wsi);
    if (events.closed != NULL) {
        events.closed(conn->user, conn, why);
    }
    encl_conn_release(conn); /* the loop's own reference */
}

/* Both directions are shut, or the peer reset the connection, and libwebsockets gives the
 * descriptor up: what came before that is kept for a reader that pauses. The kernel's receive
 * buffer bounds it. */
static void keep_rest(encl_conn *conn) {
    io_result rc = IO_DONE;
    encl_error err;

    conn->early.limit = NET_REST_MAX;
    pthread_mutex_lock(&conn->io);
    while (rc == IO_DONE) {
        uint8_t *room;
        size_t got = 0;

        if (encl_buf_reserve(&conn->early, NET_RX_BLOCK, &room, &err) != ENCL_OK) {
            conn->failed = true;
            conn->failure = err;
            break;
        }
        rc = socket_read(conn, room, NET_RX_BLOCK, &got);
        conn->early.w += got;
    }
    if (rc == IO_BROKEN) {
        note_failure(conn, "receiving");
    }
    conn->fd = -1;
    pthread_mutex_unlock(&conn->io);
}

void net_conn_raw_closed(encl_conn *conn) {
    encl_error why;

    lws_set_opaque_user_data(conn->raw_wsi, NULL);
    conn->raw_wsi = NULL;
    if (conn->state == NET_OPEN && !conn->framed && !conn->eof_received) {
        keep_rest(conn);
        post(conn, ASK_READ);
        encl_conn_release(conn);
        return;
    }
    if (!atomic_load(&conn->paused)) {
        net_conn_readable(conn);
    }
    if (conn->state == NET_CONNECTING) {
        int code = 0;
        socklen_t size = sizeof code;

        (void)getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &code, &size);
        encl_fail(&why, ENCL_E_CONNECT, "the connection was refused: %s", strerror(code));
    } else {
        encl_fail(&why, ENCL_E_CLOSED, "the peer reset the connection");
    }
    net_conn_finish(conn, &why);
    pthread_mutex_lock(&conn->io);
    conn->fd = -1;
    conn->ssl = NULL;
    pthread_mutex_unlock(&conn->io);
    encl_conn_release(conn);
}

static void give_up(encl_conn *conn, int64_t now) {
    double interval = (double)conn->keep.interval / 1e9;
    encl_error why;

    encl_fail(&why, ENCL_E_CLOSED,
              "the connection leads nowhere any more: expected a sign of life within %g s of a "
              "WebSocket ping (keepalive), got not one byte for %.3g s; connect again",
              interval, (double)(now - conn->keep.quiet_since) / 1e9);
    net_conn_finish(conn, &why);
}

static void ping(encl_conn *conn) {
    pthread_mutex_lock(&conn->io);
    if (!conn->close_sent) {
        queue_control(conn, ENCL_WS_PING, ENCL_SLICE_NONE);
    }
    pthread_mutex_unlock(&conn->io);
}

/* What we do not read cannot be asked for, and what the peer takes of ours shows that it is there:
 * a ping waits behind all that was sent before it. */
static bool is_excused(encl_conn *conn) {
    bool takes;

    pthread_mutex_lock(&conn->io);
    takes = net_peer_takes(conn->fd, &conn->peer);
    pthread_mutex_unlock(&conn->io);
    return takes || atomic_load(&conn->paused);
}

static void keep_timer_fired(void *arg) {
    encl_conn *conn = arg;
    int64_t now;

    encl_conn_retain(conn);
    net_conn_readable(conn); /* where this thread was held up, the sign may wait in the socket */
    if (conn->state == NET_OPEN) {
        now = net_now_ns();
        switch (encl_keepalive_look(&conn->keep, conn->heard_at, is_excused(conn), now)) {
        case ENCL_KEEPALIVE_DEAD:
            give_up(conn, now);
            break;
        case ENCL_KEEPALIVE_PING:
            ping(conn);
            set_keep_timer(conn, now);
            break;
        case ENCL_KEEPALIVE_WAIT:
            set_keep_timer(conn, now);
            break;
        }
    }
    encl_conn_release(conn);
}

static void finish_closed(encl_conn *conn, const char *how) {
    encl_error why;

    encl_fail(&why, ENCL_E_CLOSED, "%s", how);
    net_conn_finish(conn, &why);
}

/* ---- receiving: service thread ---- */

static void peer_closed(encl_conn *conn, const encl_ws_event *event) {
    encl_error why;
    bool ours;

    pthread_mutex_lock(&conn->io);
    ours = conn->close_asked;
    queue_close(conn, event->code == 1005 ? 1000 : event->code, "");
    (void)flush(conn);
    pthread_mutex_unlock(&conn->io);
    if (ours) {
        encl_fail(&why, ENCL_E_CLOSED, "the connection was closed on this side");
    } else {
        encl_fail(&why, ENCL_E_CLOSED, "the peer closed the connection (WebSocket code %u%s%.*s)",
                  event->code, event->len == 0 ? "" : ": ", (int)event->len,
                  event->len == 0 ? "" : (const char *)event->payload);
    }
    net_conn_finish(conn, &why);
}

static void broke_framing(encl_conn *conn, const encl_error *err) {
    pthread_mutex_lock(&conn->io);
    queue_close(conn, conn->decoder.fail_code, "");
    (void)flush(conn);
    pthread_mutex_unlock(&conn->io);
    net_conn_finish(conn, err);
}

/* What carries nothing costs the service thread as much as what does, and all its other connections
 * wait meanwhile. */
static encl_result charge_idle(encl_conn *conn, encl_error *err) {
    uint64_t n = conn->decoder.idle - conn->idle_counted;

    if (n == 0) {
        return ENCL_OK;
    }
    conn->idle_counted = conn->decoder.idle;
    if (!encl_rate_take(&conn->idle, n, net_now_ns())) {
        conn->decoder.fail_code = CLOSE_POLICY;
        return encl_fail(err, ENCL_E_PROTOCOL,
                         "WebSocket: expected at most %d frames a second that carry nothing "
                         "(pings, pongs, text, empty ones), got more",
                         ENCL_IDLE_PER_SECOND);
    }
    return ENCL_OK;
}

static void unframe(encl_conn *conn, uint8_t *block, size_t len) {
    encl_ws_event event;
    encl_error err;

    while (len != 0 && conn->state != NET_FINISHED) {
        size_t taken;

        if (encl_ws_decode(&conn->decoder, block, len, &taken, &event, &err) != ENCL_OK ||
            charge_idle(conn, &err) != ENCL_OK) {
            broke_framing(conn, &err);
            return;
        }
        block += taken;
        len -= taken;
        switch (event.type) {
        case ENCL_WS_EV_DATA:
            if (conn->state == NET_OPEN && conn->events.received != NULL) {
                conn->events.received(conn->user, conn, event.payload, event.len);
            }
            break;
        case ENCL_WS_EV_PING:
            pthread_mutex_lock(&conn->io);
            if (!conn->close_sent) {
                queue_control(conn, ENCL_WS_PONG, ENCL_SLICE(event.payload, event.len));
            }
            pthread_mutex_unlock(&conn->io);
            break;
        case ENCL_WS_EV_CLOSE:
            peer_closed(conn, &event);
            return;
        case ENCL_WS_EV_PONG:
        case ENCL_WS_EV_NONE:
            break;
        }
    }
}

static void deliver(encl_conn *conn, uint8_t *block, size_t len) {
    conn->heard_at = net_now_ns();
    atomic_fetch_add_explicit(&conn->bytes_in, len, memory_order_relaxed);
    if (conn->framed) {
        unframe(conn, block, len);
    } else if (conn->state == NET_OPEN && conn->events.received != NULL) {
        conn->events.received(conn->user, conn, block, len);
    }
}

static void end_of_input(encl_conn *conn) {
    if (conn->framed) {
        finish_closed(conn, conn->close_asked
                                ? "the connection was closed on this side"
                                : "the peer ended the connection without a WebSocket close frame");
        return;
    }
    if (conn->eof_received) {
        return;
    }
    conn->eof_received = true;
    /* An ended input is readable for ever. */
    if (conn->raw_wsi != NULL && !conn->rx_stopped) {
        conn->rx_stopped = true;
        (void)lws_rx_flow_control(conn->raw_wsi, 0);
    }
    if (conn->state == NET_CLOSING) {
        finish_closed(conn, "the connection was closed on this side");
    } else if (conn->events.received_eof != NULL) {
        conn->events.received_eof(conn->user, conn);
    }
}

static void apply_pause(encl_conn *conn) {
    bool stop = atomic_load(&conn->paused) || conn->eof_received;

    if (conn->raw_wsi != NULL && stop != conn->rx_stopped) {
        conn->rx_stopped = stop;
        (void)lws_rx_flow_control(conn->raw_wsi, stop ? 0 : 1);
    }
}

static bool may_read(encl_conn *conn) {
    return (conn->state == NET_OPEN || conn->state == NET_CLOSING) &&
           !(atomic_load(&conn->paused) && conn->state == NET_OPEN) && !conn->eof_received;
}

/* In blocks, so that whoever takes them can pause in between. Returns how much of the loop's block
 * was used. */
static size_t deliver_early(encl_conn *conn) {
    size_t used = 0;

    while (encl_buf_readable(&conn->early) != 0 && may_read(conn)) {
        encl_slice waiting = encl_buf_peek(&conn->early);
        size_t n = waiting.len < NET_RX_BLOCK ? waiting.len : NET_RX_BLOCK;

        memcpy(conn->loop->rx, waiting.data, n);
        used = n > used ? n : used;
        conn->early.r += n;
        deliver(conn, conn->loop->rx, n);
    }
    if (encl_buf_readable(&conn->early) == 0) {
        encl_buf_free(&conn->early);
    }
    return used;
}

void net_conn_readable(encl_conn *conn) {
    size_t used = 0;

    if (conn->state == NET_CONNECTING || conn->in_read) {
        return;
    }
    encl_conn_retain(conn); /* the user may let go in a callback */
    conn->in_read = true;
    if (may_read(conn)) {
        used = deliver_early(conn);
    }
    for (int round = 0; may_read(conn); round++) {
        size_t got;
        io_result rc;

        if (round == READ_ROUNDS) {
            post(conn, ASK_READ);
            break;
        }
        pthread_mutex_lock(&conn->io);
        rc = socket_read(conn, conn->loop->rx, NET_RX_BLOCK, &got);
        used = got > used ? got : used;
        if (rc == IO_BROKEN) {
            note_failure(conn, "receiving");
        }
        pthread_mutex_unlock(&conn->io);
        if (rc == IO_WAIT) {
            break;
        }
        if (rc == IO_EOF) {
            end_of_input(conn);
            break;
        }
        if (rc == IO_BROKEN) {
            net_conn_finish(conn, &conn->failure);
            break;
        }
        deliver(conn, conn->loop->rx, got);
        if (conn->ssl == NULL && got < NET_RX_BLOCK) {
            break; /* the socket was empty; asking again would cost a call */
        }
    }
    conn->in_read = false;
    /* Records are decrypted where they were read: what was delivered is not left lying there. */
    encl_wipe(conn->loop->rx, used);
    if (conn->state != NET_FINISHED) {
        apply_pause(conn);
    }
    encl_conn_release(conn);
}

/* ---- writable: service thread ---- */

/* TCP: how connecting ended. */
static void connected(encl_conn *conn) {
    int code = 0;
    socklen_t size = sizeof code;
    encl_error why;

    if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &code, &size) != 0) {
        code = errno;
    }
    if (code != 0) {
        encl_fail(&why, ENCL_E_CONNECT, "TCP connect failed: %s", strerror(code));
        net_conn_finish(conn, &why);
        return;
    }
    net_conn_opened(conn);
}

void net_conn_writable(encl_conn *conn) {
    bool drained = false, broken, end = false;

    if (conn->state == NET_FINISHED) {
        return;
    }
    if (conn->state == NET_CONNECTING) {
        connected(conn);
        return;
    }
    encl_conn_retain(conn);
    conn->in_writable = true;
    pthread_mutex_lock(&conn->io);
    conn->write_armed = false;
    broken = !flush(conn);
    if (!broken && encl_buf_readable(&conn->txq) != 0) {
        want_write(conn);
    }
    if (conn->above_low_water && encl_buf_readable(&conn->txq) <= ENCL_CONN_LOW_WATER) {
        conn->above_low_water = false;
        drained = true;
    }
    if (encl_buf_readable(&conn->txq) == 0 && !broken) {
        if (conn->eof_asked && !conn->eof_sent && conn->fd >= 0) {
            conn->eof_sent = true;
            (void)shutdown(conn->fd, SHUT_WR);
        }
        end = conn->state == NET_CLOSING && !conn->framed;
    }
    pthread_mutex_unlock(&conn->io);
    if (broken) {
        net_conn_finish(conn, &conn->failure);
    } else if (end) {
        finish_closed(conn, "the connection was closed on this side");
    } else if (drained && conn->events.drained != NULL && conn->state == NET_OPEN) {
        conn->events.drained(conn->user, conn);
    }
    conn->in_writable = false;
    encl_conn_release(conn);
}

/* ---- commands from any thread ---- */

static void apply_pause_and_read(encl_conn *conn) {
    if (conn->state != NET_FINISHED) {
        apply_pause(conn);
        net_conn_readable(conn);
    }
}

void encl_conn_pause(encl_conn *conn, bool paused) {
    bool finished;

    if (atomic_exchange(&conn->paused, paused) == paused) {
        return;
    }
    pthread_mutex_lock(&conn->io);
    finished = conn->state == NET_FINISHED;
    if (!finished) {
        if (encl_loop_is_current(conn->loop) && conn->in_read) {
            finished = true; /* the reading loop looks at the flag itself */
        }
    }
    pthread_mutex_unlock(&conn->io);
    if (!finished) {
        post(conn, ASK_PAUSE);
    }
}

static void end_writing(encl_conn *conn) {
    pthread_mutex_lock(&conn->io);
    if (conn->state == NET_OPEN && encl_buf_readable(&conn->txq) == 0 && !conn->eof_sent &&
        conn->fd >= 0) {
        conn->eof_sent = true;
        (void)shutdown(conn->fd, SHUT_WR);
    }
    pthread_mutex_unlock(&conn->io);
}

void encl_conn_write_eof(encl_conn *conn) {
    bool ask;

    pthread_mutex_lock(&conn->io);
    ask = conn->state == NET_OPEN && !conn->framed && !conn->eof_asked;
    conn->eof_asked = conn->eof_asked || ask;
    if (ask) {
        post(conn, ASK_EOF);
    }
    pthread_mutex_unlock(&conn->io);
}

static void go_on_closing(encl_conn *conn) {
    bool now;

    pthread_mutex_lock(&conn->io);
    now = conn->state == NET_CLOSING && !conn->framed && encl_buf_readable(&conn->txq) == 0;
    pthread_mutex_unlock(&conn->io);
    if (now || conn->state == NET_CONNECTING) {
        finish_closed(conn, "the connection was closed on this side");
    } else if (conn->state == NET_CLOSING) {
        encl_timer_set(&conn->close_timer, NET_CLOSE_WAIT_MS);
        net_conn_readable(conn);
    }
}

void encl_conn_close(encl_conn *conn, uint16_t code, const char *reason) {
    pthread_mutex_lock(&conn->io);
    if (conn->state == NET_FINISHED || conn->close_asked) {
        pthread_mutex_unlock(&conn->io);
        return;
    }
    conn->close_asked = true;
    if (conn->state == NET_OPEN) {
        queue_close(conn, code == 0 ? 1000 : code, reason == NULL ? "" : reason);
        conn->state = NET_CLOSING;
    }
    post(conn, ASK_CLOSE);
    pthread_mutex_unlock(&conn->io);
}

void encl_conn_abort(encl_conn *conn, bool reset) {
    pthread_mutex_lock(&conn->io);
    if (conn->state != NET_FINISHED) {
        if (reset && conn->fd >= 0) {
            struct sockaddr nowhere;

            /* Dissolves the association: Linux answers the peer with RST. */
            memset(&nowhere, 0, sizeof nowhere);
            nowhere.sa_family = AF_UNSPEC;
            (void)connect(conn->fd, &nowhere, sizeof nowhere);
        }
        conn->close_asked = true;
        post(conn, ASK_ABORT);
    }
    pthread_mutex_unlock(&conn->io);
}

static void run_asked(void *arg) {
    encl_conn *conn = arg;
    /* What is asked for from here on is a job anew. */
    unsigned asked = atomic_exchange(&conn->asked, 0);

    if ((asked & ASK_ABORT) != 0) {
        finish_closed(conn, "the connection was closed on this side");
    }
    if ((asked & ASK_REARM) != 0) {
        net_conn_rearm(conn);
    }
    if ((asked & ASK_PAUSE) != 0) {
        apply_pause_and_read(conn);
    }
    if ((asked & ASK_READ) != 0) {
        net_conn_readable(conn);
    }
    if ((asked & ASK_FAIL) != 0) {
        fail_as_noted(conn);
    }
    if ((asked & ASK_EOF) != 0) {
        end_writing(conn);
    }
    if ((asked & ASK_CLOSE) != 0) {
        go_on_closing(conn);
    }
    encl_conn_release(conn);
}

uint64_t encl_conn_bytes_in(encl_conn *conn) {
    return atomic_load_explicit(&conn->bytes_in, memory_order_relaxed);
}

uint64_t encl_conn_bytes_out(encl_conn *conn) {
    return atomic_load_explicit(&conn->bytes_out, memory_order_relaxed);
}
