/* What the connection and the timers tell a channel, in the service thread: received bytes become
 * events of the session, and each event is handed to the transfer or the question that it is for.
 * Each callback takes the lock, changes, and leaves. Calls documents, sending, transfer, unread and
 * settle. */
#include "channel/events.h"

#include <string.h>
#include <time.h>

#include "channel/documents.h"
#include "channel/sending.h"
#include "channel/settle.h"
#include "channel/transfer.h"
#include "channel/unread.h"

/* ---- timers ---- */

static void pace_elapsed(void *arg) {
    encl_channel *ch = arg;

    encl_lock(&ch->lock);
    ch->pace_armed = false;
    ch->look = true;
    ch_leave(ch);
}

/* One is enough where that lets the others go on: the rest may still read theirs. */
static void end_slow_readers(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    transfer *t;

    while (unread_is_stalled(ch) && (t = unread_furthest_behind(ch)) != NULL) {
        transfer_give_up(ch, t);
    }
}

static void stall_elapsed(void *arg) {
    encl_channel *ch = arg;

    encl_lock(&ch->lock);
    ch->stall_armed = false;
    if (encl_stall_look(&ch->stall, unread_is_stalled(ch), encl_now_ns())) {
        end_slow_readers(ch);
    }
    ch_leave(ch);
}

/* ---- connected ---- */

static void broken(encl_channel *ch, encl_conn *conn, const encl_error *why)
    ENCL_REQUIRES(ch->lock) {
    ch_end(ch, why);
    encl_conn_close(conn, 1002, NULL);
}

static encl_result begin_handshake(encl_channel *ch, encl_buf *out, encl_error *err)
    ENCL_REQUIRES(ch->lock) {
    ENCL_TRY(encl_timer_new(ch->loop, pace_elapsed, ch, &ch->pace_timer, err));
    ENCL_TRY(encl_timer_new(ch->loop, stall_elapsed, ch, &ch->stall_timer, err));
    ENCL_TRY(encl_session_start(ch->session, out, err));
    return sending_own(ch, out, err);
}

static encl_channel_stage stage_of(encl_conn_stage stage) {
    switch (stage) {
    case ENCL_CONN_RESOLVED:
        return ENCL_STAGE_RESOLVED;
    case ENCL_CONN_CONNECTED:
        return ENCL_STAGE_CONNECTED;
    default:
        return ENCL_STAGE_SECURED;
    }
}

static void on_reached(void *user, encl_conn *conn, encl_conn_stage stage) {
    encl_channel *ch = user;

    (void)conn;
    encl_lock(&ch->lock);
    ch_reached(ch, stage_of(stage));
    ch_leave(ch);
}

static void on_opened(void *user, encl_conn *conn) {
    encl_channel *ch = user;
    encl_buf out;
    encl_error err;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    encl_lock(&ch->lock);
    ch_reached(ch, ENCL_STAGE_UPGRADED);
    if (ch->state == ENCL_CHANNEL_CONNECTING && begin_handshake(ch, &out, &err) != ENCL_OK) {
        broken(ch, conn, &err);
    }
    ch_leave(ch);
    encl_buf_free(&out);
}

/* ---- received ---- */

static encl_result became_open(encl_channel *ch, encl_error *err) ENCL_REQUIRES(ch->lock) {
    ENCL_TRY(documents_take(ch, err));
    ch->app = encl_session_app(ch->session);
    ENCL_ENSURE(ch->app != NULL, err, ENCL_E_INTERNAL, "an open session without a handle");
    memcpy(ch->handshake_hash, encl_session_handshake_hash(ch->session), 32);
    ch->state = ENCL_CHANNEL_OPEN;
    ch_reached(ch, ENCL_STAGE_VERIFIED);
    sending_heard(ch, 0);
    /* For slots asked for earlier: until now no timer would have looked at them again. */
    ch->look = true;
    watches_fire(&ch->opened);
    pthread_cond_broadcast(&ch->changed);
    return ENCL_OK;
}

static void server_error(encl_channel *ch, transfer *t, encl_slice text) ENCL_REQUIRES(ch->lock) {
    encl_error why;

    encl_fail(&why, ENCL_E_SERVER, "the enclave answered with an error: %.*s",
              (int)(text.len < 400 ? text.len : 400), (const char *)text.data);
    why.detail.server.id = t->id;
    transfer_fail(ch, t, &why);
    if (!t->is_stream) {
        transfer_forget(ch, t);
    }
}

static void hand_over(encl_channel *ch, transfer *t, const encl_event *event)
    ENCL_REQUIRES(ch->lock) {
    switch (event->type) {
    case ENCL_EV_DATA:
        transfer_answered(ch, t, event->payload);
        break;
    case ENCL_EV_STREAM_DATA:
        transfer_received(ch, t, event->payload);
        break;
    case ENCL_EV_STREAM_CLOSED:
        transfer_ended(ch, t);
        break;
    case ENCL_EV_ERROR:
        server_error(ch, t, event->payload);
        break;
    default:
        break;
    }
}

static encl_result handle(encl_channel *ch, const encl_event *event, encl_error *err)
    ENCL_REQUIRES(ch->lock) {
    transfer *t;

    switch (event->type) {
    case ENCL_EV_OPEN:
        return became_open(ch, err);
    case ENCL_EV_ATTESTED:
        sending_heard(ch, 0);
        return documents_answer(ch, err);
    default:
        break;
    }
    sending_heard(ch, event->id);
    t = transfer_find(ch, event->id);
    /* The session lets through what is open; an abandoned transfer may be gone. */
    if (t != NULL) {
        transfer_set_expecting(ch, t, false);
        hand_over(ch, t, event);
    }
    return ENCL_OK;
}

/* An honest server says at most one such thing for each record it is sent: that an end crossed
 * ours, or that it does not know the id any more. So many are free; a workload that closes every
 * connection, thousands of times a second, is no attack. */
static encl_result charge_idle(encl_channel *ch, encl_error *err) ENCL_REQUIRES(ch->lock) {
    ENCL_ENSURE(encl_charge_for(&ch->idle, encl_session_idle_records(ch->session),
                                counted(&ch->records_out), encl_now_ns),
                err, ENCL_E_PROTOCOL,
                "expected at most %d records a second that carry nothing (empty ones, and ends of "
                "what had ended), got more",
                ENCL_IDLE_PER_SECOND);
    return ENCL_OK;
}

static void note_handshake(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    if (ch->state == ENCL_CHANNEL_CONNECTING &&
        encl_session_get_state(ch->session) == ENCL_SESSION_ATTESTING) {
        ch_reached(ch, ENCL_STAGE_HANDSHAKE);
    }
}

static encl_result digest(encl_channel *ch, uint8_t *block, size_t len, encl_buf *out,
                          encl_error *err) ENCL_REQUIRES(ch->lock) {
    int64_t now = (int64_t)time(NULL);

    while (len != 0 && ch->state != ENCL_CHANNEL_CLOSED) {
        encl_event event;
        size_t taken;

        ENCL_TRY(encl_session_recv(ch->session, block, len, &taken, now, out, &event, err));
        ENCL_TRY(charge_idle(ch, err));
        note_handshake(ch);
        ENCL_TRY(sending_own(ch, out, err));
        encl_buf_clear(out);
        if (event.type != ENCL_EV_NONE) {
            count_up(&ch->records_in);
            ENCL_TRY(handle(ch, &event, err));
        }
        block += taken;
        len -= taken;
    }
    return ENCL_OK;
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    encl_channel *ch = user;
    encl_buf out;
    encl_error err;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    encl_lock(&ch->lock);
    if (ch->state != ENCL_CHANNEL_CLOSED && digest(ch, block, len, &out, &err) != ENCL_OK) {
        broken(ch, conn, &err);
    }
    ch_leave(ch);
    encl_buf_free(&out);
}

static void on_drained(void *user, encl_conn *conn) {
    encl_channel *ch = user;

    (void)conn;
    encl_lock(&ch->lock);
    ch->look = true;
    ch_leave(ch);
}

/* ---- closed ---- */

/* An enclave takes about two connections for each of its cores, and ends further ones without a
 * word before it answers the handshake. */
static const char *hint_of_early_end(const encl_channel *ch) {
    encl_session_state state = encl_session_get_state(ch->session);

    return state != ENCL_SESSION_NEW && state != ENCL_SESSION_HANDSHAKE
               ? ""
               : "; an enclave at its connection limit (about two for each of its cores) ends "
                 "further ones like this: share one client among threads and tasks, start fewer "
                 "processes, close clients and channels that are not used any more, or wait longer "
                 "(patience, or the connect timeout)";
}

/* Says what of the handshake was missing; what the connection said stands behind it. */
static void explain_early_end(encl_channel *ch, const encl_error *why, encl_error *err)
    ENCL_REQUIRES(ch->lock) {
    const char *hint = hint_of_early_end(ch);
    encl_error waiting;

    encl_session_eof(ch->session, &waiting);
    encl_fail(err, ENCL_E_CLOSED, "%.200s (%.150s)%s", waiting.message, why->message, hint);
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    encl_channel *ch = user;
    encl_error err = *why;

    (void)conn;
    encl_lock(&ch->lock);
    if (ch->state == ENCL_CHANNEL_CONNECTING && why->code == ENCL_E_CLOSED) {
        explain_early_end(ch, why, &err);
    }
    ch_end(ch, &err);
    ch->gone = true;
    encl_timer_free(ch->pace_timer);
    encl_timer_free(ch->stall_timer);
    ch->pace_timer = ch->stall_timer = NULL;
    pthread_cond_broadcast(&ch->changed);
    ch_leave(ch);
    ch_release(ch); /* the connection's */
}

const encl_conn_events channel_events = {
    .reached = on_reached,
    .opened = on_opened,
    .received = on_received,
    .drained = on_drained,
    .closed = on_closed,
};
