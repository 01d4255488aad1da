/* What has come and was not read: whether the connection is read on, and who has to go when readers
 * that do not read hold up others. Lock held throughout. */
#include "channel/internal.h"

static size_t unread_bytes(const encl_channel *ch) {
    size_t n = 0;

    for (size_t i = 0; i < ch->flow_count; i++) {
        n += ch->flows[i]->ring.len;
    }
    return n;
}

/* What one does not read itself holds up its own writing too: that is nobody else's matter. */
static bool waits(const flow *f) {
    bool for_data = (f->readers != 0 || watches_armed(&f->on_readable)) && f->ring.len == 0;

    return for_data || (f->wants != 0 && !f->over_high_water);
}

static bool attestation_is_due(const encl_channel *ch) {
    for (size_t i = 0; i < ch->attest_count; i++) {
        if (ch->attests[i].doc == NULL && !ch->attests[i].abandoned) {
            return true;
        }
    }
    return false;
}

/* Whether anybody waits for what is behind the bytes that nobody reads. */
static bool somebody_waits(const encl_channel *ch) {
    for (size_t i = 0; i < ch->flow_count; i++) {
        if (waits(ch->flows[i])) {
            return true;
        }
    }
    return ch->waiting_head != NULL || attestation_is_due(ch);
}

static bool is_held_up(const encl_channel *ch) {
    return ch->over_high_water != 0 && unread_bytes(ch) >= ENCL_CHANNEL_UNREAD_MAX &&
           somebody_waits(ch);
}

void backlog_weigh(encl_channel *ch) {
    bool stop = ch->over_high_water != 0 &&
                (unread_bytes(ch) >= ENCL_CHANNEL_UNREAD_MAX || !somebody_waits(ch));

    encl_conn_pause(ch->conn, stop);
}

void backlog_somebody_waits(encl_channel *ch) {
    if (ch->over_high_water != 0) {
        backlog_weigh(ch);
    }
}

/* For those who look without the lock. Released after the bytes it counts were put there. */
static void publish(flow *f) {
    atomic_store_explicit(&f->unread, f->ring.len, memory_order_release);
}

void backlog_grew(flow *f) {
    encl_channel *ch = f->ch;

    publish(f);
    if (f->ring.len > ENCL_STREAM_HIGH_WATER && !f->over_high_water) {
        f->over_high_water = true;
        if (ch->over_high_water++ == 0) {
            encl_timer_set(ch->hold_timer, ENCL_HOLD_LOOK_NS / 1000000);
        }
    }
    backlog_somebody_waits(ch);
}

void backlog_shrank(flow *f) {
    encl_channel *ch = f->ch;

    publish(f);
    if (ch->over_high_water == 0) {
        return;
    }
    if (f->ring.len < ENCL_STREAM_LOW_WATER && f->over_high_water) {
        f->over_high_water = false;
        ch->over_high_water--;
    }
    backlog_weigh(ch);
}

void backlog_drop(flow *f) {
    encl_ring_free(&f->ring);
    backlog_shrank(f);
}

void backlog_leave(flow *f) {
    if (f->over_high_water) {
        f->over_high_water = false;
        f->ch->over_high_water--;
        backlog_weigh(f->ch);
    }
}

/* ---- who has to go ---- */

static void give_up(flow *f) {
    encl_error why;

    encl_fail(&why, ENCL_E_SLOW_READER,
              "%zu bytes of this stream were not read while others waited behind them for %d s: "
              "expected a reader that keeps up, or one with a connection of its own",
              f->ring.len, (int)(ENCL_HOLD_NS / 1000000000));
    f->eof = false; /* what is dropped here must not look like a whole answer */
    flow_fail(f, &why);
    backlog_drop(f);
    flow_begin_close(f);
}

static flow *furthest_behind(encl_channel *ch) {
    flow *found = NULL;

    for (size_t i = 0; i < ch->flow_count; i++) {
        flow *f = ch->flows[i];

        if (f->over_high_water && (found == NULL || f->ring.len > found->ring.len)) {
            found = f;
        }
    }
    return found;
}

/* One is enough where it lets the others go on: the rest may still read theirs. */
static void let_the_others_go_on(encl_channel *ch) {
    flow *f;

    while (is_held_up(ch) && (f = furthest_behind(ch)) != NULL) {
        give_up(f);
    }
}

void backlog_look(encl_channel *ch, int64_t now) {
    if (encl_hold_look(&ch->hold, is_held_up(ch), now)) {
        let_the_others_go_on(ch);
    }
    if (ch->over_high_water != 0 && ch->hold_timer != NULL) {
        backlog_weigh(ch);
        encl_timer_set(ch->hold_timer, ENCL_HOLD_LOOK_NS / 1000000);
    }
}
