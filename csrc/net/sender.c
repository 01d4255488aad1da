/* sender: a connection's queue of bytes to send: framing, masking, and writing what the socket
 * takes at once, in whichever thread sends. Decides when the service thread has to go on with it,
 * and says how that ended; conn.c acts on it. Calls socket.c, ask.c and handle.c.
 *
 * conn->io guards all of it. */
#include <string.h>

#include "net/internal.h"

/* A data frame of 126..65535 bytes: 4 bytes of head and, from a client, 4 of mask. */
#define FRAME_ROOM 8

/* ---- the queue ---- */

bool net_sender_flush(encl_conn *conn) {
    encl_buf *queue = &conn->sender.queue;

    while (encl_buf_readable(queue) != 0) {
        size_t put;
        net_io rc = net_socket_write(&conn->socket, encl_buf_peek(queue), &put);

        if (rc == NET_IO_WAIT) {
            return true;
        }
        if (rc != NET_IO_DONE) {
            net_conn_note_break(conn, "sending");
            return false;
        }
        queue->r += put;
        atomic_fetch_add_explicit(&conn->bytes_out, put, memory_order_relaxed);
    }
    encl_buf_clear(queue);
    return true;
}

/* libwebsockets forgets a request to write that is made inside its writable callback, so it is
 * always made by a job. */
static void want_write(encl_conn *conn) ENCL_REQUIRES(conn->io) {
    if (!conn->sender.armed) {
        conn->sender.armed = true;
        net_conn_ask(conn, NET_ASK_REARM);
    }
}

/* Flushes and asks for more time where that is needed. */
static void push(encl_conn *conn) ENCL_REQUIRES(conn->io) {
    net_sender *s = &conn->sender;

    /* Armed: the service thread is at it already, and the queue keeps the order. */
    if (!s->armed && !net_conn_has_failed(conn)) {
        if (!net_sender_flush(conn)) {
            net_conn_ask(conn, NET_ASK_FAIL);
        } else if (encl_buf_readable(&s->queue) != 0) {
            want_write(conn);
        }
    }
    if (encl_buf_readable(&s->queue) > ENCL_CONN_LOW_WATER) {
        s->above_low_water = true;
    }
}

/* What is sealed already cannot be left out: a gap in its order could never be mended. */
static void give_up(encl_conn *conn, const encl_error *why) ENCL_REQUIRES(conn->io) {
    conn->failure = *why;
    net_conn_ask(conn, NET_ASK_FAIL);
}

/* ---- frames ---- */

/* A message above 65535 bytes has a longer head than there is room for; only one-shot requests next
 * to the Noise limit are that long. */
static encl_result widen(encl_buf *queue, size_t len, size_t more, encl_error *err) {
    uint8_t *end;

    ENCL_TRY(encl_buf_reserve(queue, more, &end, err));
    memmove(end - len + more, end - len, len);
    return encl_buf_commit(queue, more, err);
}

/* Nobody can foretell a mask (RFC 6455 section 5.3): it comes from the system. A forked child,
 * which has a copy of the pool, sends nothing here. */
static encl_result take_mask(net_sender *s, uint8_t mask[4], encl_error *err) {
    if (s->masks_left == 0) {
        ENCL_TRY(encl_random(s->masks, sizeof s->masks, err));
        s->masks_left = sizeof s->masks;
    }
    memcpy(mask, s->masks + sizeof s->masks - s->masks_left, 4);
    s->masks_left -= 4;
    return ENCL_OK;
}

static encl_result frame_in_place(encl_conn *conn, encl_ws_opcode opcode, size_t len,
                                  encl_error *err) ENCL_REQUIRES(conn->io) {
    encl_buf *queue = &conn->sender.queue;
    uint8_t head[ENCL_WS_MAX_HEADER], mask[4], *payload;
    bool masked = conn->side == ENCL_WS_CLIENT;
    size_t head_len;

    if (masked) {
        ENCL_TRY(take_mask(&conn->sender, mask, err));
        encl_ws_mask(queue->data + queue->w - len, len, mask, 0);
    }
    head_len = encl_ws_header(head, opcode, len, masked ? mask : NULL);
    if (head_len > FRAME_ROOM) {
        ENCL_TRY(widen(queue, len, head_len - FRAME_ROOM, err));
    }
    payload = queue->data + queue->w - len;
    if (head_len < FRAME_ROOM) {
        payload -= FRAME_ROOM - head_len;
        memmove(payload, payload + (FRAME_ROOM - head_len), len);
        queue->w -= FRAME_ROOM - head_len;
    }
    memcpy(payload - head_len, head, head_len);
    return ENCL_OK;
}

/* Turns the bytes appended since tx_begin into one frame. */
static void frame(encl_conn *conn, encl_ws_opcode opcode) ENCL_REQUIRES(conn->io) {
    net_sender *s = &conn->sender;
    size_t len = encl_buf_readable(&s->queue) - s->frame_start;
    encl_error err;

    if (len == 0) {
        s->queue.w -= FRAME_ROOM;
    } else if (frame_in_place(conn, opcode, len, &err) != ENCL_OK) {
        give_up(conn, &err);
    }
}

static encl_result append_control(encl_conn *conn, encl_ws_opcode opcode, encl_slice payload,
                                  encl_error *err) ENCL_REQUIRES(conn->io) {
    bool masked = conn->side == ENCL_WS_CLIENT;
    uint8_t mask[4];

    if (masked) {
        ENCL_TRY(take_mask(&conn->sender, mask, err));
    }
    return encl_ws_control(opcode, payload, masked ? mask : NULL, &conn->sender.queue, err);
}

static void send_control(encl_conn *conn, encl_ws_opcode opcode, encl_slice payload)
    ENCL_REQUIRES(conn->io) {
    encl_error err;

    if (net_conn_has_failed(conn)) {
        return;
    }
    if (append_control(conn, opcode, payload, &err) == ENCL_OK) {
        push(conn);
        return;
    }
    if (err.code == ENCL_E_INVALID) {
        (void)encl_fail(&err, ENCL_E_PROTOCOL,
                        "expected a peer that reads what it is sent, got pings while %zu "
                        "bytes wait for it",
                        encl_buf_readable(&conn->sender.queue));
    }
    give_up(conn, &err);
}

void net_sender_control(encl_conn *conn, encl_ws_opcode opcode, encl_slice payload) {
    if (!conn->sender.close_sent) {
        send_control(conn, opcode, payload);
    }
}

void net_sender_close(encl_conn *conn, uint16_t code, const char *reason) {
    uint8_t payload[ENCL_WS_MAX_CONTROL];

    if (!conn->framed || conn->sender.close_sent) {
        return;
    }
    conn->sender.close_sent = true;
    send_control(conn, ENCL_WS_CLOSE,
                 ENCL_SLICE(payload, encl_ws_close_payload(payload, code, reason)));
}

/* ---- messages, from any thread ---- */

/* Holds io until tx_end, which the analysis cannot see: net.h does not show what a connection is.
 */
ENCL_LOCK_UNCHECKED
encl_result encl_conn_tx_begin(encl_conn *conn, encl_buf **out, encl_error *err) {
    net_sender *s = &conn->sender;
    uint8_t *room;
    encl_code rc;

    encl_lock(&conn->io);
    ENCL_ENSURE_GOTO(conn->state == NET_OPEN && !net_conn_has_failed(conn), fail, err,
                     ENCL_E_CLOSED, "the connection is %s",
                     conn->state == NET_CONNECTING ? "not open yet" : "closed");
    if (conn->framed) {
        ENCL_TRY_GOTO(encl_buf_reserve(&s->queue, FRAME_ROOM, &room, err), fail);
        ENCL_TRY_GOTO(encl_buf_commit(&s->queue, FRAME_ROOM, err), fail);
        /* Counted from the unread end: the block may move while the caller appends. */
        s->frame_start = encl_buf_readable(&s->queue);
    }
    *out = &s->queue;
    return ENCL_OK;
fail:
    encl_unlock(&conn->io);
    return rc;
}

static void end_message(encl_conn *conn, encl_ws_opcode opcode) ENCL_RELEASES(conn->io) {
    if (conn->framed) {
        frame(conn, opcode);
    }
    push(conn);
    encl_unlock(&conn->io);
}

ENCL_LOCK_UNCHECKED
void encl_conn_tx_end(encl_conn *conn) {
    end_message(conn, ENCL_WS_BINARY);
}

ENCL_LOCK_UNCHECKED
void encl_conn_tx_end_text(encl_conn *conn) {
    end_message(conn, ENCL_WS_TEXT);
}

size_t encl_conn_tx_pending(encl_conn *conn) {
    size_t n;

    encl_lock(&conn->io);
    n = encl_buf_readable(&conn->sender.queue);
    encl_unlock(&conn->io);
    return n;
}

/* ---- the end of writing (TCP) ---- */

static void shut_if_written(encl_conn *conn) ENCL_REQUIRES(conn->io) {
    net_sender *s = &conn->sender;

    if (s->eof == NET_EOF_ASKED && encl_buf_readable(&s->queue) == 0 && conn->socket.fd >= 0) {
        s->eof = NET_EOF_SENT;
        net_socket_shut_writing(&conn->socket);
    }
}

void encl_conn_write_eof(encl_conn *conn) {
    encl_lock(&conn->io);
    if (conn->state == NET_OPEN && !conn->framed && conn->sender.eof == NET_EOF_NOT_ASKED) {
        conn->sender.eof = NET_EOF_ASKED;
        net_conn_ask(conn, NET_ASK_EOF);
    }
    encl_unlock(&conn->io);
}

void net_sender_eof(encl_conn *conn) {
    encl_lock(&conn->io);
    if (conn->state == NET_OPEN) {
        shut_if_written(conn);
    }
    encl_unlock(&conn->io);
}

/* ---- going on, in the service thread ---- */

void net_sender_rearm(encl_conn *conn) {
    bool armed;

    encl_lock(&conn->io);
    armed = conn->sender.armed && conn->state != NET_FINISHED;
    encl_unlock(&conn->io);
    if (armed && conn->raw_wsi != NULL) {
        lws_callback_on_writable(conn->raw_wsi);
    }
}

static net_outcome go_on(encl_conn *conn, encl_error *why) ENCL_REQUIRES(conn->io) {
    net_sender *s = &conn->sender;

    if (!net_sender_flush(conn)) {
        *why = conn->failure;
        return NET_OVER;
    }
    if (encl_buf_readable(&s->queue) != 0) {
        want_write(conn);
    } else {
        shut_if_written(conn);
        if (conn->state == NET_CLOSING && !conn->framed) {
            net_closed_here(why);
            return NET_OVER;
        }
    }
    if (s->above_low_water && encl_buf_readable(&s->queue) <= ENCL_CONN_LOW_WATER) {
        s->above_low_water = false;
        return NET_DRAINED;
    }
    return NET_GO_ON;
}

net_outcome net_sender_writable(encl_conn *conn, encl_error *why) {
    net_outcome outcome;

    encl_lock(&conn->io);
    conn->sender.armed = false;
    outcome = go_on(conn, why);
    encl_unlock(&conn->io);
    return outcome;
}
