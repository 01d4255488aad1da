/* Streams as their users have them: open, read, write, half-close, close, and what event loops ask.
 * Each function enters, changes, and leaves; one that says so takes no lock. Calls transfer,
 * sending, waits, slot and settle. */
#include <stdlib.h>

#include "channel/sending.h"
#include "channel/settle.h"
#include "channel/slot.h"
#include "channel/transfer.h"
#include "channel/waits.h"

/* ---- open and close ---- */

encl_result encl_stream_open(encl_slot *slot, encl_slice payload, encl_stream **out,
                             encl_error *err) {
    encl_stream *st;
    encl_code rc;

    *out = NULL;
    if (encl_channel_is_forked(slot->ch)) {
        return ch_forked(err);
    }
    ENCL_ENSURE(payload.len <= ENCL_STREAM_CHUNK, err, ENCL_E_INVALID,
                "first bytes of a stream: expected at most %d, got %zu", ENCL_STREAM_CHUNK,
                payload.len);
    st = calloc(1, sizeof *st);
    ENCL_ENSURE(st != NULL, err, ENCL_E_NOMEM, "out of memory");
    transfer_init(&st->t, slot->ch, true);
    rc = slot_use(slot, &st->t, payload, err);
    if (rc != ENCL_OK) {
        encl_stream_release(st);
        return rc;
    }
    *out = st;
    return ENCL_OK;
}

void encl_stream_close(encl_stream *st) {
    transfer *t = &st->t;
    encl_channel *ch = t->ch;

    if (ch_enter(ch)) {
        if (!t->closed && t->id != 0) {
            transfer_close(ch, t);
        }
        ch_leave(ch);
    }
}

void encl_stream_release(encl_stream *st) {
    if (st == NULL || encl_channel_is_forked(st->t.ch)) {
        return;
    }
    encl_stream_close(st);
    transfer_release(&st->t);
}

/* ---- asked by threads that must not wait for a lock; in a forked child nothing more comes ---- */

uint64_t encl_stream_id(const encl_stream *st) {
    return st->t.id;
}

bool encl_stream_is_closed(encl_stream *st) {
    return encl_channel_is_forked(st->t.ch) ||
           atomic_load_explicit(&st->t.closed, memory_order_acquire);
}

bool encl_stream_at_eof(encl_stream *st) {
    /* The end first: whoever sees it (acquire) sees the bytes before it as well. */
    return encl_channel_is_forked(st->t.ch) ||
           (atomic_load_explicit(&st->t.eof, memory_order_acquire) &&
            atomic_load_explicit(&st->t.unread, memory_order_acquire) == 0);
}

bool encl_stream_readable(encl_stream *st) {
    return encl_channel_is_forked(st->t.ch) || transfer_is_readable(&st->t);
}

size_t encl_stream_buffered(encl_stream *st) {
    return encl_channel_is_forked(st->t.ch)
               ? 0
               : atomic_load_explicit(&st->t.unread, memory_order_acquire);
}

bool encl_stream_read_now(encl_stream *st, uint8_t *out, size_t cap, size_t *got) {
    transfer *t = &st->t;
    encl_channel *ch = t->ch;

    *got = 0;
    if (encl_channel_is_forked(ch) || encl_stream_buffered(st) == 0 || !encl_trylock(&ch->lock)) {
        return false;
    }
    /* While a stream is over its high water, reading may have to wake the connection's thread.
     * Where none is, taking bytes out asks for no action: the lock is let go without settling. */
    if (!t->closed && ch->over_high_water == 0) {
        *got = transfer_read(ch, t, out, cap);
    }
    encl_unlock(&ch->lock);
    return *got != 0;
}

/* ---- read ---- */

static encl_result wait_until_readable(encl_channel *ch, transfer *t, int64_t until,
                                       encl_error *err) ENCL_REQUIRES(ch->lock) {
    while (t->ring.len == 0 && !t->eof) {
        ENCL_TRY(transfer_check(t, err));
        ENCL_ENSURE(waits_for_data(ch, t, until), err, ENCL_E_READ_TIMEOUT,
                    "expected bytes from the workload, got none");
    }
    return ENCL_OK;
}

encl_result encl_stream_read(encl_stream *st, uint8_t *out, size_t cap, int64_t until, size_t *got,
                             encl_error *err) {
    transfer *t = &st->t;
    encl_channel *ch = t->ch;
    encl_code rc = ENCL_OK;

    *got = 0;
    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    if (cap != 0) {
        ENCL_TRY_GOTO(wait_until_readable(ch, t, until, err), done);
    }
    ENCL_ENSURE_GOTO(!t->closed, done, err, ENCL_E_INVALID, "this stream is closed");
    *got = transfer_read(ch, t, out, cap);
done:
    ch_leave(ch);
    return rc;
}

/* ---- write ---- */

static encl_result may_write(const transfer *t, encl_error *err) {
    ENCL_TRY(transfer_check(t, err));
    ENCL_ENSURE(!t->write_ended, err, ENCL_E_INVALID, "writing was ended on this stream");
    ENCL_ENSURE(!t->eof, err, ENCL_E_CLOSED, "the workload closed the stream");
    return ENCL_OK;
}

/* One record. */
static encl_result send_chunk(encl_channel *ch, transfer *t, encl_slice chunk, encl_error *err)
    ENCL_REQUIRES(ch->lock) {
    encl_buf *out;
    encl_code rc;

    ENCL_TRY(ch_need_open(ch, err));
    ENCL_TRY(sending_begin(ch, &out, err));
    rc = encl_app_stream_data(ch->app, t->id, chunk, out, err);
    sending_end(ch, t->id, t);
    transfer_sent(ch, t);
    return rc;
}

/* Sends one record of what is left, or waits until there may be room for it. */
static encl_result write_some(encl_channel *ch, transfer *t, encl_slice bytes, int64_t until,
                              size_t *put, encl_error *err) ENCL_REQUIRES(ch->lock) {
    size_t left = bytes.len - *put;
    size_t n = left < ENCL_STREAM_CHUNK ? left : ENCL_STREAM_CHUNK;

    ENCL_TRY(may_write(t, err));
    if (sending_has_room(ch, t, 0)) {
        ENCL_TRY(send_chunk(ch, t, ENCL_SLICE(bytes.data + *put, n), err));
        *put += n;
    } else {
        ENCL_ENSURE(waits_to_send(ch, t, until), err, ENCL_E_WRITE_TIMEOUT,
                    "expected to send %zu bytes, could send %zu", bytes.len, *put);
    }
    return ENCL_OK;
}

encl_result encl_stream_write(encl_stream *st, encl_slice bytes, int64_t until, size_t *put,
                              encl_error *err) {
    transfer *t = &st->t;
    encl_channel *ch = t->ch;
    encl_code rc = ENCL_OK;

    *put = 0;
    if (encl_channel_is_forked(ch)) {
        return ch_forked(err);
    }
    while (rc == ENCL_OK && *put < bytes.len) {
        /* Entered for each record anew, so that the other streams get their turn. */
        if (!ch_enter(ch)) {
            return ch_forked(err);
        }
        rc = write_some(ch, t, bytes, until, put, err);
        if (rc != ENCL_OK) {
            transfer_stopped_waiting(ch, t);
        }
        ch_leave(ch);
    }
    return rc;
}

encl_result encl_stream_write_eof(encl_stream *st, encl_error *err) {
    transfer *t = &st->t;
    encl_channel *ch = t->ch;
    encl_buf *out;
    encl_code rc;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    ENCL_TRY_GOTO(transfer_check(t, err), done);
    if (t->write_ended || t->eof) {
        goto done;
    }
    ENCL_TRY_GOTO(ch_need_open(ch, err), done);
    ENCL_TRY_GOTO(sending_begin(ch, &out, err), done);
    rc = encl_app_stream_close(ch->app, t->id, ENCL_HALF_WRITE, out, err);
    sending_end(ch, t->id, t);
    t->write_ended = rc == ENCL_OK;
done:
    ch_leave(ch);
    return rc;
}

/* ---- event loops ---- */

encl_result encl_stream_notify(encl_stream *st, int what, encl_notifier *n, uint64_t token,
                               encl_error *err) {
    return waits_notify(&st->t, what, n, token, err);
}

void encl_stream_withdraw(encl_stream *st, const encl_notifier *n, uint64_t token) {
    waits_withdraw(&st->t, n, token);
}
