/* Transfers: the table of what is open, and what happened to each. Decides what its reader and its
 * writer find when they look, and who waits to send in which order. It never sends: a close is
 * noted here and sent by settle.c. Calls queue (a place is free), unread (bytes came or went), ring
 * and watch. The channel's lock is held, unless said otherwise. */
#include "channel/transfer.h"

#include <stdlib.h>

#include "channel/queue.h"
#include "channel/unread.h"

/* All that a channel may hold, and the block on top that was read when that was reached. */
#define STREAM_BUFFER_LIMIT (ENCL_CHANNEL_UNREAD_MAX + (size_t)1024 * 1024)

/* ---- lifetime ---- */

void transfer_init(transfer *t, encl_channel *ch, bool is_stream) {
    atomic_init(&t->refs, 1);
    encl_cond_init(&t->readable);
    encl_ring_init(&t->ring, STREAM_BUFFER_LIMIT);
    encl_buf_init(&t->answer, ENCL_RECORD_MAX);
    t->is_stream = is_stream;
    t->ch = ch;
    ch_retain(ch);
}

static void destroy(transfer *t) {
    encl_channel *ch = t->ch;

    encl_ring_free(&t->ring);
    encl_buf_free(&t->answer);
    watches_clear(&t->on_readable);
    watches_clear(&t->on_writable);
    pthread_cond_destroy(&t->readable);
    free(t);
    encl_channel_release(ch);
}

void transfer_hold(transfer *t) {
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
}

void transfer_release(transfer *t) {
    if (atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) == 1) {
        destroy(t);
    }
}

void transfer_wake(transfer *t) {
    pthread_cond_broadcast(&t->readable);
    transfer_release(t);
}

/* ---- the table ---- */

void transfer_add(encl_channel *ch, transfer *t) {
    atomic_fetch_add(&t->refs, 1);
    ch->transfers[ch->transfer_count++] = t;
    if (t->is_stream) {
        count_up(&ch->streams_total);
        count_up(&ch->streams_open);
    }
    transfer_set_expecting(ch, t, true);
}

transfer *transfer_find(encl_channel *ch, uint64_t id) {
    for (size_t i = 0; i < ch->transfer_count; i++) {
        if (ch->transfers[i]->id == id) {
            return ch->transfers[i];
        }
    }
    return NULL;
}

static void take_out(encl_channel *ch, const transfer *t) ENCL_REQUIRES(ch->lock) {
    for (size_t i = 0; i < ch->transfer_count; i++) {
        if (ch->transfers[i] == t) {
            ch->transfers[i] = ch->transfers[--ch->transfer_count];
            return;
        }
    }
}

/* Nothing more is received for it: an emptied ring is not kept, which wipes what was read from it.
 */
static void forget_what_was_read(transfer *t) {
    if (t->done && t->ring.len == 0) {
        encl_ring_free(&t->ring);
    }
}

static void set_not_waiting(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    if (t->turn != 0) {
        t->turn = 0;
        ch->writers_waiting--;
    }
}

static void set_closing(encl_channel *ch, transfer *t, bool closing) ENCL_REQUIRES(ch->lock) {
    if (t->closing != closing) {
        t->closing = closing;
        ch->closing += closing ? 1 : (size_t)-1;
        ch->look = true;
    }
}

void transfer_forget(encl_channel *ch, transfer *t) {
    take_out(ch, t);
    t->done = true;
    forget_what_was_read(t);
    if (t->is_stream && !t->closed) {
        count_down(&ch->streams_open);
    }
    unread_leave(ch, t);
    transfer_set_expecting(ch, t, false);
    set_not_waiting(ch, t);
    set_closing(ch, t, false);
    queue_free_place(ch);
    /* The channel does not go with it: whoever holds the lock has a reference of their own. */
    transfer_release(t);
}

/* ---- what was received ---- */

static bool is_to_be_woken(const encl_channel *ch, const transfer *t) {
    for (size_t i = 0; i < ch->to_wake.count; i++) {
        if (ch->to_wake.of[i] == t) {
            return true;
        }
    }
    return false;
}

/* A thread that is woken needs the lock first of all. Woken now, it would find the lock taken, go
 * back to sleep, and be woken a second time: so that is left to settle.c, which does it when the
 * lock has been let go. The reference keeps the condition until then. */
static void wake_reader(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    if (t->readers == 0 || is_to_be_woken(ch, t)) {
        return;
    }
    if (ch->to_wake.count == WOKEN_LATER_MAX) {
        pthread_cond_broadcast(&t->readable);
        return;
    }
    transfer_hold(t);
    ch->to_wake.of[ch->to_wake.count++] = t;
}

static void tell_reader(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    wake_reader(ch, t);
    watches_fire(&t->on_readable);
}

/* Everybody who waits for anything of it: it has ended, or failed. */
static void tell_everybody(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    tell_reader(ch, t);
    watches_fire(&t->on_writable);
    if (t->writers != 0) {
        pthread_cond_broadcast(&ch->changed);
    }
}

void transfer_fail(encl_channel *ch, transfer *t, const encl_error *why) {
    if (!t->failed) {
        t->failed = true;
        t->error = *why;
    }
    tell_everybody(ch, t);
}

void transfer_received(encl_channel *ch, transfer *t, encl_slice bytes) {
    encl_error err;

    if (t->closed || t->failed) {
        return; /* bytes were dropped before, for want of memory: later ones would hide the gap */
    }
    if (encl_ring_write(&t->ring, bytes, &err) != ENCL_OK) {
        transfer_fail(ch, t, &err);
        return;
    }
    unread_grew(ch, t);
    tell_reader(ch, t);
}

void transfer_answered(encl_channel *ch, transfer *t, encl_slice bytes) {
    encl_error err;

    if (t->abandoned || encl_buf_write(&t->answer, bytes, &err) == ENCL_OK) {
        t->eof = true;
    } else {
        transfer_fail(ch, t, &err);
    }
    tell_reader(ch, t);
    transfer_forget(ch, t);
}

void transfer_ended(encl_channel *ch, transfer *t) {
    t->eof = !t->failed; /* where bytes were lost, this must not look like a whole answer */
    tell_everybody(ch, t);
}

/* ---- its user ---- */

size_t transfer_read(encl_channel *ch, transfer *t, uint8_t *out, size_t cap) {
    size_t got = encl_ring_read(&t->ring, out, cap);

    forget_what_was_read(t);
    unread_shrank(ch, t);
    return got;
}

void transfer_sent(encl_channel *ch, transfer *t) {
    /* Whoever waits to send more of it is the last in the queue from now on. */
    set_not_waiting(ch, t);
    if (t->writers != 0 || watches_armed(&t->on_writable)) {
        transfer_set_waiting(ch, t);
    }
    transfer_set_expecting(ch, t, true);
}

static void drop_unread(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    encl_ring_free(&t->ring);
    unread_shrank(ch, t);
}

static void begin_close(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    if (!t->done) {
        set_not_waiting(ch, t);
        set_closing(ch, t, true);
    }
}

void transfer_close(encl_channel *ch, transfer *t) {
    if (!t->done) {
        count_down(&ch->streams_open);
    }
    t->closed = true;
    tell_everybody(ch, t);
    drop_unread(ch, t);
    begin_close(ch, t);
}

void transfer_give_up(encl_channel *ch, transfer *t) {
    encl_error why;

    encl_fail(&why, ENCL_E_SLOW_READER,
              "%zu bytes of this stream were not read while others waited behind them for %d s: "
              "expected a reader that keeps up, or one with a connection of its own",
              t->ring.len, (int)(ENCL_STALL_NS / 1000000000));
    t->eof = false; /* what is dropped here must not look like a whole answer */
    transfer_fail(ch, t, &why);
    drop_unread(ch, t);
    begin_close(ch, t);
}

encl_result transfer_check(const transfer *t, encl_error *err) {
    ENCL_ENSURE(!t->closed, err, ENCL_E_INVALID, "this stream is closed");
    if (t->failed) {
        *err = t->error;
        return err->code;
    }
    return ENCL_OK;
}

bool transfer_is_readable(transfer *t) {
    return atomic_load_explicit(&t->unread, memory_order_acquire) != 0 ||
           atomic_load_explicit(&t->eof, memory_order_acquire) ||
           atomic_load_explicit(&t->failed, memory_order_acquire) ||
           atomic_load_explicit(&t->closed, memory_order_acquire);
}

/* ---- who waits to send ---- */

void transfer_set_expecting(encl_channel *ch, transfer *t, bool expecting) {
    if (t->expecting != expecting) {
        t->expecting = expecting;
        ch->expecting += expecting ? 1 : (size_t)-1;
    }
}

void transfer_set_waiting(encl_channel *ch, transfer *t) {
    if (t->turn == 0) {
        t->turn = ++ch->last_turn;
        ch->writers_waiting++;
    }
    ch->look = true;
}

void transfer_stopped_waiting(encl_channel *ch, transfer *t) {
    if (t->writers == 0 && t->on_writable.count == 0) {
        set_not_waiting(ch, t);
    }
}

static bool asks_for_a_turn(const transfer *t) {
    return t->ask_threads || watches_armed(&t->on_writable);
}

transfer *transfer_next_writer(encl_channel *ch, uint64_t turn) {
    transfer *found = NULL;

    for (size_t i = 0; i < ch->transfer_count; i++) {
        transfer *t = ch->transfers[i];

        if (t->turn > turn && asks_for_a_turn(t) && (found == NULL || t->turn < found->turn)) {
            found = t;
        }
    }
    return found;
}

void transfer_tell_writer(encl_channel *ch, transfer *t) {
    watches_fire(&t->on_writable);
    if (t->ask_threads) {
        t->ask_threads = false;
        pthread_cond_broadcast(&ch->changed);
    }
}

transfer *transfer_next_closing(encl_channel *ch) {
    for (size_t i = 0; ch->closing != 0 && i < ch->transfer_count; i++) {
        if (ch->transfers[i]->closing) {
            return ch->transfers[i];
        }
    }
    return NULL;
}
