/* Records to the connection, and when another one may go: pace.c's rules with the facts of this
 * channel. Decides that only; who is told when there is room is settle.c's matter. Calls pace and
 * the layers below; the channel's lock is held. */
#include "channel/sending.h"

/* Nobody else's answer can become ready while a record of t is on its way. */
static bool is_alone(const encl_channel *ch, const transfer *t, int64_t now)
    ENCL_REQUIRES(ch->lock) {
    return ch->expecting == (t != NULL && t->expecting) &&
           ch->writers_waiting == (t != NULL && t->turn != 0) && counted(&ch->waiting) == 0 &&
           ch->promised == 0 && encl_pace_is_quiet(&ch->pace, t == NULL ? 0 : t->id, now);
}

encl_result sending_begin(encl_channel *ch, encl_buf **out, encl_error *err) {
    ENCL_TRY(encl_conn_tx_begin(ch->conn, out, err));
    ch->tx = *out;
    ch->tx_mark = encl_buf_readable(*out);
    return ENCL_OK;
}

void sending_end(encl_channel *ch, uint64_t id, const transfer *t) {
    size_t bytes = encl_buf_readable(ch->tx) - ch->tx_mark;

    if (bytes != 0) {
        int64_t now = encl_now_ns();

        count_up(&ch->records_out);
        encl_pace_sent(&ch->pace, id, bytes, is_alone(ch, t, now), now);
    }
    ch->tx = NULL;
    encl_conn_tx_end(ch->conn);
}

encl_result sending_own(encl_channel *ch, const encl_buf *bytes, encl_error *err) {
    encl_buf *out;
    encl_code rc;

    if (encl_buf_readable(bytes) == 0) {
        return ENCL_OK;
    }
    ENCL_TRY(encl_conn_tx_begin(ch->conn, &out, err));
    rc = encl_buf_write(out, encl_buf_peek(bytes), err);
    encl_conn_tx_end(ch->conn);
    return rc;
}

static bool is_queue_full(const encl_channel *ch) {
    return encl_conn_tx_pending(ch->conn) >= ENCL_CONN_HIGH_WATER;
}

bool sending_has_room(encl_channel *ch, const transfer *t, size_t more) {
    int64_t now;

    if (is_queue_full(ch)) {
        return false;
    }
    now = encl_now_ns();
    return is_alone(ch, t, now) ||
           encl_pace_may_send(&ch->pace, t == NULL ? 0 : t->id, ch->promised + more, now);
}

void sending_heard(encl_channel *ch, uint64_t id) {
    if (encl_pace_heard(&ch->pace, id, encl_now_ns()) && ch->pace_armed) {
        ch->look = true;
    }
}

uint64_t sending_look_again_ms(const encl_channel *ch) {
    int64_t wait;

    if (is_queue_full(ch)) {
        return 0;
    }
    wait = encl_pace_next(&ch->pace) - encl_now_ns();
    if (wait > ENCL_PACE_SLACK_NS) {
        wait = ENCL_PACE_SLACK_NS;
    }
    return wait <= 0 ? 1 : (uint64_t)(wait / 1000000 + 1);
}
