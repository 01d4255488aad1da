/* Change, then settle: the one file of this folder that acts on what the state has become. It
 * grants slots, sends the closes that are due, tells writers that they may go on, pauses and
 * resumes the connection, sets the timers, tells everybody when the channel has ended, and wakes
 * the readers that were told of something. Nothing else in channel/ does any of these. It is called
 * wherever the lock is let go, before a wait as well as before the unlock, so no state that asks
 * for an action is ever left to itself; and nobody acts in the middle of a change, so nothing is
 * freed or sent under the feet of whoever changes.
 *
 * Calls queue, sending, transfer, unread, documents and watch, which never call back. The channel's
 * lock is held. */
#include "channel/settle.h"

#include "channel/documents.h"
#include "channel/queue.h"
#include "channel/sending.h"
#include "channel/transfer.h"
#include "channel/unread.h"

/* There was no room for somebody: look again after a while, where no sign comes before. */
static void arm_pace(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    uint64_t after_ms;

    if (ch->pace_armed || ch->pace_timer == NULL || ch->state != ENCL_CHANNEL_OPEN) {
        return;
    }
    after_ms = sending_look_again_ms(ch);
    if (after_ms != 0) {
        ch->pace_armed = true;
        encl_timer_set(ch->pace_timer, after_ms);
    }
}

static bool has_room(encl_channel *ch, const transfer *t, size_t more) ENCL_REQUIRES(ch->lock) {
    if (sending_has_room(ch, t, more)) {
        return true;
    }
    arm_pace(ch);
    return false;
}

/* In the order of the queue: while places are free and their opening records may go. */
static bool grant_slots(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    encl_slot *slot;
    bool told = false;

    while ((slot = queue_next(ch)) != NULL && has_room(ch, NULL, 0)) {
        queue_grant(ch, slot);
        told = true;
    }
    return told;
}

/* A place that the server does not free would be lost for the whole connection. */
static void close_was_lost(encl_channel *ch, const encl_error *err) ENCL_REQUIRES(ch->lock) {
    encl_error why;

    encl_fail(&why, ENCL_E_CLOSED, "the end of a stream could not be sent: %.400s", err->message);
    ch_end(ch, &why);
    encl_conn_close(ch->conn, 1002, NULL);
}

/* The id is over: tells the server, which frees its place, and frees ours. */
static void send_close(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    encl_buf *out;
    encl_error err;
    encl_code rc;

    rc = sending_begin(ch, &out, &err);
    if (rc == ENCL_OK) {
        rc = encl_app_stream_close(ch->app, t->id, ENCL_HALF_BOTH, out, &err);
        sending_end(ch, t->id, t);
    }
    if (rc != ENCL_OK && rc != ENCL_E_CLOSED) {
        close_was_lost(ch, &err);
        return;
    }
    transfer_forget(ch, t);
}

/* Each one frees a place, which the next slot in the queue gets at once. */
static bool send_due_closes(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    transfer *t;
    bool told = false;

    while (ch->state == ENCL_CHANNEL_OPEN && (t = transfer_next_closing(ch)) != NULL &&
           has_room(ch, NULL, 0)) {
        send_close(ch, t);
        told = grant_slots(ch) || told;
    }
    return told;
}

/* In the order in which they began to wait: as many as may send. One that may not, since the server
 * has not read its last record yet, does not keep those behind it from going on. */
static bool tell_writers(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    transfer *t = NULL;
    size_t told = 0;

    if (ch->writers_waiting == 0) {
        return false;
    }
    while ((t = transfer_next_writer(ch, t == NULL ? 0 : t->turn)) != NULL) {
        if (has_room(ch, t, told)) {
            transfer_tell_writer(ch, t);
            told++;
        } else if (!sending_has_room(ch, NULL, told)) {
            break;
        }
    }
    return told != 0;
}

static void weigh_unread(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    if (ch->over_high_water == 0 && !ch->paused) {
        return;
    }
    ch->paused = unread_should_pause(ch);
    encl_conn_pause(ch->conn, ch->paused);
    if (ch->over_high_water != 0 && !ch->stall_armed && ch->stall_timer != NULL) {
        ch->stall_armed = true;
        encl_timer_set(ch->stall_timer, ENCL_STALL_LOOK_NS / 1000000);
    }
}

static void tell_the_end(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    ch->end_told = true;
    while (ch->transfer_count != 0) {
        transfer *t = ch->transfers[ch->transfer_count - 1];

        transfer_fail(ch, t, &ch->why);
        transfer_forget(ch, t);
    }
    queue_tell_all(ch);
    documents_tell_all(ch);
    watches_fire(&ch->opened);
    watches_fire(&ch->progressed);
    pthread_cond_broadcast(&ch->changed);
}

/* Whether anybody was told anything, who may be the one that is about to wait. */
static bool settle(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    bool told = false;

    if (ch->look && ch->state != ENCL_CHANNEL_CLOSED) {
        told = grant_slots(ch);
        told = send_due_closes(ch) || told;
        told = tell_writers(ch) || told;
        ch->look = false;
    }
    if (ch->state == ENCL_CHANNEL_CLOSED && !ch->end_told) {
        tell_the_end(ch);
        told = true;
    }
    /* After the end as well: nobody's bytes wait any more, and a connection that is not read would
     * not see the peer's close frame. */
    weigh_unread(ch);
    return told;
}

bool ch_enter(encl_channel *ch) {
    if (encl_channel_is_forked(ch)) {
        return false;
    }
    encl_lock(&ch->lock);
    return true;
}

/* What the caller holds itself keeps the channel: the references given back here are not its
 * last. */
static void wake_all(const told_readers *told) {
    for (size_t i = 0; i < told->count; i++) {
        transfer_wake(told->of[i]);
    }
}

void ch_leave(encl_channel *ch) {
    told_readers told;

    (void)settle(ch);
    told = ch->to_wake;
    ch->to_wake.count = 0;
    encl_unlock(&ch->lock);
    wake_all(&told);
}

bool ch_wait(encl_channel *ch, pthread_cond_t *cond, int64_t until) {
    if (until != ENCL_FOREVER && until <= encl_now_ns()) {
        return false;
    }
    if (settle(ch)) {
        return true; /* a signal that was given just now would not end a wait that begins now */
    }
    wake_all(&ch->to_wake);
    ch->to_wake.count = 0;
    if (until == ENCL_FOREVER) {
        encl_cond_wait(cond, &ch->lock);
    } else {
        encl_cond_wait_until(cond, &ch->lock, until);
    }
    return true;
}
