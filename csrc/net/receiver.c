/* receiver: reads a connection's socket, takes the frames apart and hands payload to the user.
 * Decides how much is read at a time, when reading stops for a user that pauses, and what a peer
 * may not do; says how it ended, and conn.c acts on that. Calls socket.c, sender.c (pongs and close
 * frames), ask.c and the user's callbacks, which are made without any lock.
 *
 * Service thread only. conn->io is taken for the socket and for sending. */
#include <string.h>

#include "net/internal.h"

/* Reads of one readiness, before other connections get their turn. */
#define READ_ROUNDS  8
#define CLOSE_POLICY 1008

/* ---- frames ---- */

static void close_frame(encl_conn *conn, uint16_t code) {
    encl_lock(&conn->io);
    net_sender_close(conn, code, "");
    (void)net_sender_flush(conn);
    encl_unlock(&conn->io);
}

static net_outcome peer_closed(encl_conn *conn, const encl_ws_event *event, encl_error *why) {
    bool ours = conn->close_asked;

    close_frame(conn, event->code == 1005 ? 1000 : event->code);
    if (ours) {
        net_closed_here(why);
    } else {
        encl_fail(why, ENCL_E_CLOSED, "the peer closed the connection (WebSocket code %u%s%.*s)",
                  event->code, event->len == 0 ? "" : ": ", (int)event->len,
                  event->len == 0 ? "" : (const char *)event->payload);
    }
    return NET_OVER;
}

/* What carries nothing costs the service thread as much as what does, and all its other connections
 * wait meanwhile. */
static encl_result charge_idle(net_receiver *r, encl_error *err) {
    if (encl_charge_for(&r->idle, r->decoder.idle, 0, encl_now_ns)) {
        return ENCL_OK;
    }
    r->decoder.fail_code = CLOSE_POLICY;
    return encl_fail(err, ENCL_E_PROTOCOL,
                     "WebSocket: expected at most %d frames a second that carry nothing "
                     "(pings, pongs, text, empty ones), got more",
                     ENCL_IDLE_PER_SECOND);
}

static void hand_over(encl_conn *conn, uint8_t *block, size_t len) {
    if (conn->state == NET_OPEN && conn->events.received != NULL) {
        conn->events.received(conn->user, conn, block, len);
    }
}

static void pong(encl_conn *conn, const encl_ws_event *event) {
    encl_lock(&conn->io);
    net_sender_control(conn, ENCL_WS_PONG, ENCL_SLICE(event->payload, event->len));
    encl_unlock(&conn->io);
}

static net_outcome unframe(encl_conn *conn, uint8_t *block, size_t len, encl_error *why) {
    net_receiver *r = &conn->receiver;
    encl_ws_event event;

    while (len != 0 && conn->state != NET_FINISHED) {
        size_t taken;

        if (encl_ws_decode(&r->decoder, block, len, &taken, &event, why) != ENCL_OK ||
            charge_idle(r, why) != ENCL_OK) {
            close_frame(conn, r->decoder.fail_code);
            return NET_OVER;
        }
        block += taken;
        len -= taken;
        switch (event.type) {
        case ENCL_WS_EV_DATA:
            hand_over(conn, event.payload, event.len);
            break;
        case ENCL_WS_EV_PING:
            pong(conn, &event);
            break;
        case ENCL_WS_EV_CLOSE:
            return peer_closed(conn, &event, why);
        case ENCL_WS_EV_PONG:
        case ENCL_WS_EV_NONE:
            break;
        }
    }
    return NET_GO_ON;
}

static net_outcome deliver(encl_conn *conn, uint8_t *block, size_t len, encl_error *why) {
    conn->receiver.heard_at = encl_now_ns();
    atomic_fetch_add_explicit(&conn->bytes_in, len, memory_order_relaxed);
    if (conn->framed) {
        return unframe(conn, block, len, why);
    }
    hand_over(conn, block, len);
    return NET_GO_ON;
}

/* ---- stopping and going on ---- */

static void stop_looking(encl_conn *conn, bool stop) {
    if (conn->raw_wsi != NULL && stop != conn->receiver.stopped) {
        conn->receiver.stopped = stop;
        (void)lws_rx_flow_control(conn->raw_wsi, stop ? 0 : 1);
    }
}

/* An input that has ended would be readable for ever. */
void net_receiver_apply_pause(encl_conn *conn) {
    stop_looking(conn, atomic_load(&conn->paused) || conn->receiver.eof);
}

void encl_conn_pause(encl_conn *conn, bool paused) {
    bool ask;

    if (atomic_exchange(&conn->paused, paused) == paused) {
        return;
    }
    encl_lock(&conn->io);
    /* The loop that reads looks at `paused` itself. */
    ask = conn->state != NET_FINISHED &&
          !(encl_loop_is_current(conn->loop) && conn->receiver.reading);
    encl_unlock(&conn->io);
    if (ask) {
        net_conn_ask(conn, NET_ASK_PAUSE);
    }
}

static bool may_read(const encl_conn *conn) {
    return (conn->state == NET_OPEN || conn->state == NET_CLOSING) &&
           !(atomic_load(&conn->paused) && conn->state == NET_OPEN) && !conn->receiver.eof;
}

/* ---- reading ---- */

static net_outcome end_of_frames(const encl_conn *conn, encl_error *why) {
    if (conn->close_asked) {
        net_closed_here(why);
    } else {
        encl_fail(why, ENCL_E_CLOSED,
                  "the peer ended the connection without a WebSocket close frame");
    }
    return NET_OVER;
}

/* TCP: only one direction has ended. */
static net_outcome end_of_bytes(encl_conn *conn, encl_error *why) {
    conn->receiver.eof = true;
    net_receiver_apply_pause(conn);
    if (conn->state == NET_CLOSING) {
        net_closed_here(why);
        return NET_OVER;
    }
    if (conn->events.received_eof != NULL) {
        conn->events.received_eof(conn->user, conn);
    }
    return NET_GO_ON;
}

/* Once libwebsockets has given the descriptor up, an end is only one if nothing broke
 * before. */
static net_io read_socket(encl_conn *conn, uint8_t *block, size_t cap, size_t *got)
    ENCL_REQUIRES(conn->io) {
    net_io rc = net_socket_read(&conn->socket, block, cap, got);

    if (conn->socket.fd < 0 && net_conn_has_failed(conn)) {
        return NET_IO_BROKEN;
    }
    if (rc == NET_IO_BROKEN) {
        net_conn_note_break(conn, "receiving");
    }
    return rc;
}

/* In blocks, so that the user can pause in between. */
static net_outcome deliver_early(encl_conn *conn, size_t *used, encl_error *why) {
    encl_buf *early = &conn->receiver.early;
    net_outcome outcome = NET_GO_ON;

    while (outcome == NET_GO_ON && encl_buf_readable(early) != 0 && may_read(conn)) {
        encl_slice waiting = encl_buf_peek(early);
        size_t n = waiting.len < NET_RX_BLOCK ? waiting.len : NET_RX_BLOCK;

        memcpy(conn->loop->rx, waiting.data, n);
        *used = n > *used ? n : *used;
        early->r += n;
        outcome = deliver(conn, conn->loop->rx, n, why);
    }
    if (encl_buf_readable(early) == 0) {
        encl_buf_free(early);
    }
    return outcome;
}

/* *more: the socket may have more at once. *used: how much of the loop's block was. */
static net_outcome read_once(encl_conn *conn, size_t *used, bool *more, encl_error *why) {
    uint8_t *block = conn->loop->rx;
    bool plain;
    size_t got;
    net_io rc;

    encl_lock(&conn->io);
    rc = read_socket(conn, block, NET_RX_BLOCK, &got);
    plain = conn->socket.ssl == NULL;
    if (rc == NET_IO_BROKEN) {
        *why = conn->failure;
    }
    encl_unlock(&conn->io);
    *used = got > *used ? got : *used;
    /* A plain socket that did not fill the block was emptied; asking again would cost a call. */
    *more = rc == NET_IO_DONE && (!plain || got == NET_RX_BLOCK);
    switch (rc) {
    case NET_IO_DONE:
        return deliver(conn, block, got, why);
    case NET_IO_EOF:
        return conn->framed ? end_of_frames(conn, why) : end_of_bytes(conn, why);
    case NET_IO_BROKEN:
        return NET_OVER;
    case NET_IO_WAIT:
        break;
    }
    return NET_GO_ON;
}

static net_outcome read_in_turn(encl_conn *conn, size_t *used, encl_error *why) {
    net_outcome outcome = NET_GO_ON;
    bool more = true;

    if (may_read(conn)) {
        outcome = deliver_early(conn, used, why);
    }
    for (int round = 0; outcome == NET_GO_ON && more && may_read(conn); round++) {
        if (round == READ_ROUNDS) {
            net_conn_ask(conn, NET_ASK_READ);
            break;
        }
        outcome = read_once(conn, used, &more, why);
    }
    return outcome;
}

net_outcome net_receive(encl_conn *conn, encl_error *why) {
    net_receiver *r = &conn->receiver;
    net_outcome outcome;
    size_t used = 0;

    if (conn->state == NET_CONNECTING || r->reading) {
        return NET_GO_ON;
    }
    r->reading = true;
    outcome = read_in_turn(conn, &used, why);
    r->reading = false;
    /* Records are decrypted where they were read: what was delivered is not left lying there. */
    encl_wipe(conn->loop->rx, used);
    if (outcome == NET_GO_ON && conn->state != NET_FINISHED) {
        net_receiver_apply_pause(conn);
    }
    return outcome;
}

/* The kernel's receive buffer bounds what there is. */
void net_receive_rest(encl_conn *conn) {
    encl_buf *early = &conn->receiver.early;
    net_io rc = NET_IO_DONE;
    encl_error err;

    early->limit = NET_REST_MAX;
    encl_lock(&conn->io);
    while (rc == NET_IO_DONE) {
        uint8_t *room;
        size_t got = 0;

        if (encl_buf_reserve(early, NET_RX_BLOCK, &room, &err) != ENCL_OK) {
            conn->failure = err;
            break;
        }
        rc = read_socket(conn, room, NET_RX_BLOCK, &got);
        early->w += got;
    }
    conn->socket.fd = -1;
    encl_unlock(&conn->io);
}
