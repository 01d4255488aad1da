/* sender: a connection's queue of messages, each of which the owner of the WebSocket takes and
 * sends when it has room for it. What waits here is counted, so that those who send wait where the
 * network is slow. Calls loop.c. conn->io guards all of it; it is held between begin and end. */
#include <string.h>

#include "web/internal.h"

/* In front of each message: its length. */
typedef uint32_t head;

/* Holds io until end, which the analysis cannot see: net.h does not show what a connection is. */
ENCL_LOCK_UNCHECKED
encl_result encl_conn_tx_begin(encl_conn *conn, encl_buf **out, encl_error *err) {
    uint8_t *room;
    encl_code rc;

    encl_lock(&conn->io);
    ENCL_ENSURE_GOTO(conn->state == WEB_OPEN, fail, err, ENCL_E_CLOSED, "the connection is %s",
                     conn->state == WEB_CONNECTING ? "not open yet" : "closed");
    ENCL_TRY_GOTO(encl_buf_reserve(&conn->queue, sizeof(head), &room, err), fail);
    ENCL_TRY_GOTO(encl_buf_commit(&conn->queue, sizeof(head), err), fail);
    conn->message_start = encl_buf_readable(&conn->queue);
    *out = &conn->queue;
    return ENCL_OK;
fail:
    encl_unlock(&conn->io);
    return rc;
}

/* Nothing appended: no message. */
static void end_message(encl_conn *conn) ENCL_REQUIRES(conn->io) {
    encl_buf *queue = &conn->queue;
    head len = (head)(encl_buf_readable(queue) - conn->message_start); /* WEB_TX_LIMIT at most */

    if (len == 0) {
        queue->w -= sizeof len;
        return;
    }
    memcpy(queue->data + queue->w - len - sizeof len, &len, sizeof len);
    if (encl_buf_readable(queue) > ENCL_CONN_LOW_WATER) {
        conn->above_low_water = true;
    }
    web_note(conn);
}

ENCL_LOCK_UNCHECKED
void encl_conn_tx_end(encl_conn *conn) {
    end_message(conn);
    encl_unlock(&conn->io);
}

size_t encl_conn_tx_pending(encl_conn *conn) {
    size_t n;

    encl_lock(&conn->io);
    n = encl_buf_readable(&conn->queue);
    encl_unlock(&conn->io);
    return n;
}

static head next_len(const encl_conn *conn) ENCL_REQUIRES(conn->io) {
    encl_slice queued = encl_buf_peek(&conn->queue);
    head len = 0;

    if (queued.len != 0) {
        memcpy(&len, queued.data, sizeof len);
    }
    return len;
}

size_t encl_web_next(encl_conn *conn) {
    size_t len;

    encl_lock(&conn->io);
    len = next_len(conn);
    encl_unlock(&conn->io);
    return len;
}

/* Whether those who send are to be told that there is room. */
static bool has_drained(encl_conn *conn) ENCL_REQUIRES(conn->io) {
    bool drained = conn->above_low_water && encl_buf_readable(&conn->queue) <= ENCL_CONN_LOW_WATER;

    if (drained) {
        conn->above_low_water = false;
    }
    return drained && conn->state == WEB_OPEN;
}

bool encl_web_take(encl_conn *conn, uint8_t *out, size_t len) {
    bool drained;

    encl_lock(&conn->io);
    if (len == 0 || next_len(conn) != len) {
        encl_unlock(&conn->io);
        return false;
    }
    memcpy(out, conn->queue.data + conn->queue.r + sizeof(head), len);
    conn->queue.r += sizeof(head) + len;
    if (encl_buf_readable(&conn->queue) == 0) {
        encl_buf_clear(&conn->queue);
    }
    atomic_fetch_add_explicit(&conn->bytes_out, len, memory_order_relaxed);
    drained = has_drained(conn);
    encl_unlock(&conn->io);
    if (drained) {
        conn->events.drained(conn->user, conn);
    }
    return true;
}
