#include <stdlib.h>
#include <string.h>

#include "channel/internal.h"

/* ---- the table: lock held ---- */

flow *flow_find(encl_channel *ch, uint64_t id) {
    for (size_t i = 0; i < ch->flow_count; i++) {
        if (ch->flows[i]->id == id) {
            return ch->flows[i];
        }
    }
    return NULL;
}

/* Whether that was the last reference: the caller then destroys it without the lock. */
static bool drop(flow *f) {
    return atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) == 1;
}

static void destroy(flow *f) {
    encl_channel *ch = f->ch;

    encl_ring_free(&f->ring);
    encl_buf_free(&f->answer);
    watches_clear(&f->on_readable);
    watches_clear(&f->on_writable);
    pthread_cond_destroy(&f->readable);
    free(f);
    encl_channel_release(ch);
}

static void wake(flow *f) {
    pthread_cond_broadcast(&f->readable);
    watches_fire(&f->on_readable);
}

/* Nothing more comes for it: an emptied ring is not kept, which wipes what was read from it. */
static void forget_what_was_read(flow *f) {
    if (f->done && f->ring.len == 0) {
        encl_ring_free(&f->ring);
    }
}

void flow_forget(flow *f) {
    encl_channel *ch = f->ch;

    for (size_t i = 0; i < ch->flow_count; i++) {
        if (ch->flows[i] == f) {
            ch->flows[i] = ch->flows[--ch->flow_count];
            break;
        }
    }
    f->done = true;
    forget_what_was_read(f);
    if (f->is_stream && !f->closed) {
        count_down(&ch->streams_open);
    }
    backlog_leave(f);
    flow_expects(f, false);
    flow_wants(f, false);
    if (f->closing) {
        f->closing = false;
        ch->closing--;
    }
    slot_free_one(ch);
    if (drop(f)) {
        /* The channel cannot go with it: whoever calls holds a reference of their own. */
        destroy(f);
    }
}

void flow_wants(flow *f, bool wants) {
    encl_channel *ch = f->ch;

    if (wants && f->wants == 0) {
        f->wants = ++ch->want_next;
        ch->wanting++;
        backlog_somebody_waits(ch);
    } else if (!wants && f->wants != 0) {
        f->wants = 0;
        ch->wanting--;
    }
}

void flow_stopped_waiting(flow *f) {
    if (f->writers == 0 && f->on_writable.count == 0) {
        flow_wants(f, false);
    }
}

/* Something of it was sent: who still waits to send more is the last in the queue. */
static void had_its_turn(flow *f) {
    flow_wants(f, false);
    if (f->writers != 0 || watches_armed(&f->on_writable)) {
        flow_wants(f, true);
    }
}

void flow_expects(flow *f, bool expects) {
    if (f->expects != expects) {
        f->expects = expects;
        f->ch->expecting += expects ? 1 : (size_t)-1;
    }
}

void flow_fail(flow *f, const encl_error *why) {
    if (!f->failed) {
        f->failed = true;
        f->error = *why;
    }
    wake(f);
    watches_fire(&f->on_writable);
    pthread_cond_broadcast(&f->ch->changed);
}

void flow_received(flow *f, encl_slice bytes) {
    encl_error err;

    if (f->closed || f->failed) {
        return; /* what follows a gap must not be taken for what comes next */
    }
    if (encl_ring_write(&f->ring, bytes, &err) != ENCL_OK) {
        flow_fail(f, &err);
        return;
    }
    backlog_grew(f);
    wake(f);
}

void flow_answered(flow *f, encl_slice bytes) {
    encl_error err;

    if (f->user_gone || encl_buf_write(&f->answer, bytes, &err) == ENCL_OK) {
        f->eof = true;
    } else {
        flow_fail(f, &err);
    }
    wake(f);
    flow_forget(f);
}

void flow_ended(flow *f) {
    /* An end after a gap is no end of what was sent. */
    f->eof = !f->failed;
    wake(f);
    watches_fire(&f->on_writable);
    pthread_cond_broadcast(&f->ch->changed);
}

/* A slot that the server does not free would be lost for the whole connection. */
static void close_was_lost(encl_channel *ch, const encl_error *err) {
    encl_error why;

    encl_fail(&why, ENCL_E_CLOSED, "the end of a stream could not be sent: %.400s", err->message);
    ch_fail(ch, &why);
    encl_conn_close(ch->conn, 1002, NULL);
}

/* Lock held. The id is over for us: tells the server, which frees its slot, and frees ours. */
static void send_close(flow *f) {
    encl_channel *ch = f->ch;
    encl_buf *out;
    encl_error err;
    encl_code rc;

    rc = ch_tx_begin(ch, &out, &err);
    if (rc == ENCL_OK) {
        rc = encl_app_stream_close(ch->app, f->id, ENCL_HALF_BOTH, out, &err);
        ch_tx_end(ch, f->id, f);
    }
    if (rc != ENCL_OK && rc != ENCL_E_CLOSED) {
        close_was_lost(ch, &err);
        return;
    }
    flow_forget(f);
}

static flow *find_closing(encl_channel *ch) {
    for (size_t i = 0; i < ch->flow_count; i++) {
        if (ch->flows[i]->closing) {
            return ch->flows[i];
        }
    }
    return NULL;
}

static void send_closes(encl_channel *ch) {
    while (ch->closing != 0 && ch_may_send(ch, NULL)) {
        send_close(find_closing(ch));
    }
}

static flow *longest_waiting(encl_channel *ch) {
    flow *found = NULL;

    for (size_t i = 0; i < ch->flow_count; i++) {
        flow *f = ch->flows[i];

        if (watches_armed(&f->on_writable) && (found == NULL || f->wants < found->wants)) {
            found = f;
        }
    }
    return found;
}

void flow_room(encl_channel *ch) {
    flow *f;
    size_t woken = 0;

    send_closes(ch);
    while ((f = longest_waiting(ch)) != NULL) {
        if (!ch_has_room(ch, f, woken)) {
            ch_arm(ch);
            break;
        }
        watches_fire(&f->on_writable);
        woken++;
    }
}

/* ---- opening ---- */

static flow *flow_new(encl_channel *ch, size_t size, bool is_stream) {
    flow *f = calloc(1, size);

    if (f != NULL) {
        atomic_init(&f->refs, 1);
        encl_cond_init(&f->readable);
        encl_ring_init(&f->ring, STREAM_BUFFER_LIMIT);
        encl_buf_init(&f->answer, ENCL_RECORD_MAX);
        f->is_stream = is_stream;
        f->ch = ch;
        ch_retain(ch);
    }
    return f;
}

static encl_result start(flow *f, encl_slot *slot, encl_slice payload, encl_error *err) {
    encl_channel *ch = f->ch;
    encl_buf *out;
    encl_code rc;

    encl_lock(&ch->lock);
    ENCL_TRY_GOTO(ch_need_open(ch, err), done);
    ENCL_ENSURE_GOTO(slot->state == SLOT_GRANTED, done, err, ENCL_E_STATE,
                     "expected a granted slot that was not used before");
    ENCL_TRY_GOTO(ch_tx_begin(ch, &out, err), done);
    rc = f->is_stream ? encl_app_open_stream(ch->app, payload, &f->id, out, err)
                      : encl_app_request(ch->app, payload, &f->id, out, err);
    ch_tx_end(ch, f->id, f);
    if (rc == ENCL_OK) {
        slot->state = SLOT_USED;
        ch->promised--;
        atomic_fetch_add(&f->refs, 1); /* the channel's, given back in flow_forget */
        ch->flows[ch->flow_count++] = f;
        if (f->is_stream) {
            count_up(&ch->streams_total);
            count_up(&ch->streams_open);
        }
        flow_expects(f, true);
        slot_grant_more(ch); /* less is promised */
    }
done:
    encl_unlock(&ch->lock);
    return rc;
}

encl_result encl_stream_open(encl_slot *slot, encl_slice payload, encl_stream **out,
                             encl_error *err) {
    encl_stream *st;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(ch_check(slot->ch, err));
    ENCL_ENSURE(payload.len <= ENCL_STREAM_FIRST_MAX, err, ENCL_E_INVALID,
                "first bytes of a stream: expected at most %d, got %zu", ENCL_STREAM_FIRST_MAX,
                payload.len);
    st = (encl_stream *)flow_new(slot->ch, sizeof *st, true);
    ENCL_ENSURE(st != NULL, err, ENCL_E_NOMEM, "out of memory");
    rc = start(&st->f, slot, payload, err);
    if (rc != ENCL_OK) {
        encl_stream_release(st);
        return rc;
    }
    *out = st;
    return ENCL_OK;
}

/* False: the deadline. */
static bool wait_for_data(flow *f, int64_t until) ENCL_REQUIRES(f->ch->lock) {
    bool waited;

    if (until == ENCL_POLL) {
        return false;
    }
    f->readers++;
    backlog_somebody_waits(f->ch);
    waited = ch_wait(f->ch, &f->readable, until);
    f->readers--;
    return waited;
}

/* ---- streams ---- */

uint64_t encl_stream_id(const encl_stream *st) {
    return st->f.id;
}

void flow_begin_close(flow *f) {
    if (f->done || f->closing) {
        return;
    }
    flow_wants(f, false);
    f->closing = true;
    f->ch->closing++;
    send_closes(f->ch);
}

/* Lock held. */
static void close_stream(flow *f) {
    if (!f->done) {
        count_down(&f->ch->streams_open);
    }
    f->closed = true;
    wake(f);
    watches_fire(&f->on_writable);
    pthread_cond_broadcast(&f->ch->changed); /* its writers */
    backlog_drop(f);
    flow_begin_close(f);
}

void encl_stream_close(encl_stream *st) {
    encl_channel *ch = st->f.ch;

    if (encl_channel_is_forked(ch)) {
        return;
    }
    encl_lock(&ch->lock);
    if (!st->f.closed && st->f.id != 0) {
        close_stream(&st->f);
    }
    encl_unlock(&ch->lock);
}

void encl_stream_release(encl_stream *st) {
    if (st == NULL || encl_channel_is_forked(st->f.ch)) {
        return;
    }
    encl_stream_close(st);
    if (drop(&st->f)) {
        destroy(&st->f);
    }
}

/* These take no lock: they are asked by threads that must not wait for one. In a forked child
 * nothing more comes. */

bool encl_stream_is_closed(encl_stream *st) {
    return encl_channel_is_forked(st->f.ch) ||
           atomic_load_explicit(&st->f.closed, memory_order_acquire);
}

static bool is_readable(flow *f) {
    return atomic_load_explicit(&f->unread, memory_order_acquire) != 0 ||
           atomic_load_explicit(&f->eof, memory_order_acquire) ||
           atomic_load_explicit(&f->failed, memory_order_acquire) ||
           atomic_load_explicit(&f->closed, memory_order_acquire);
}

bool encl_stream_at_eof(encl_stream *st) {
    /* The end first: whoever sees it (acquire) sees what came before it as well. */
    return encl_channel_is_forked(st->f.ch) ||
           (atomic_load_explicit(&st->f.eof, memory_order_acquire) &&
            atomic_load_explicit(&st->f.unread, memory_order_acquire) == 0);
}

bool encl_stream_readable(encl_stream *st) {
    return encl_channel_is_forked(st->f.ch) || is_readable(&st->f);
}

size_t encl_stream_buffered(encl_stream *st) {
    return encl_channel_is_forked(st->f.ch)
               ? 0
               : atomic_load_explicit(&st->f.unread, memory_order_acquire);
}

bool encl_stream_read_now(encl_stream *st, uint8_t *out, size_t cap, size_t *got) {
    flow *f = &st->f;
    encl_channel *ch = f->ch;

    *got = 0;
    if (encl_channel_is_forked(ch) || encl_stream_buffered(st) == 0 || !encl_trylock(&ch->lock)) {
        return false;
    }
    /* While a stream is over its high water, reading may have to wake the connection's thread. */
    if (!f->closed && ch->over_high_water == 0) {
        *got = encl_ring_read(&f->ring, out, cap);
        forget_what_was_read(f);
        backlog_shrank(f);
    }
    encl_unlock(&ch->lock);
    return *got != 0;
}

/* Lock held. What keeps this stream from going on, for its user. */
static encl_result blocked(const flow *f, encl_error *err) {
    ENCL_ENSURE(!f->closed, err, ENCL_E_INVALID, "this stream is closed");
    if (f->failed) {
        *err = f->error;
        return err->code;
    }
    return ENCL_OK;
}

encl_result encl_stream_read(encl_stream *st, uint8_t *out, size_t cap, int64_t until, size_t *got,
                             encl_error *err) {
    flow *f = &st->f;
    encl_channel *ch = f->ch;
    encl_code rc = ENCL_OK;

    *got = 0;
    ENCL_TRY(ch_check(ch, err));
    encl_lock(&f->ch->lock);
    for (;;) {
        ENCL_ENSURE_GOTO(!f->closed, done, err, ENCL_E_INVALID, "this stream is closed");
        if (f->ring.len != 0 || f->eof || cap == 0) {
            break;
        }
        ENCL_TRY_GOTO(blocked(f, err), done);
        if (!wait_for_data(f, until)) {
            rc = encl_fail(err, ENCL_E_READ_TIMEOUT,
                           "expected bytes from the workload in time, got none");
            goto done;
        }
    }
    *got = encl_ring_read(&f->ring, out, cap);
    forget_what_was_read(f);
    backlog_shrank(f);
done:
    encl_unlock(&f->ch->lock);
    return rc;
}

/* Lock held. One record. */
static encl_result send_chunk(flow *f, encl_slice chunk, encl_error *err) {
    encl_channel *ch = f->ch;
    encl_buf *out;
    encl_code rc;

    ENCL_TRY(ch_need_open(ch, err));
    ENCL_TRY(ch_tx_begin(ch, &out, err));
    rc = encl_app_stream_data(ch->app, f->id, chunk, out, err);
    ch_tx_end(ch, f->id, f);
    had_its_turn(f);
    flow_expects(f, true);
    return rc;
}

static encl_result may_write(const flow *f, encl_error *err) {
    ENCL_TRY(blocked(f, err));
    ENCL_ENSURE(!f->write_ended, err, ENCL_E_INVALID, "writing was ended on this stream");
    if (f->eof) {
        (void)encl_fail(err, ENCL_E_CLOSED, "the workload closed the stream");
        return err->code;
    }
    return ENCL_OK;
}

/* False: the deadline. Who does not wait leaves nothing behind. */
static bool wait_to_send(flow *f, int64_t until) ENCL_REQUIRES(f->ch->lock) {
    bool waited;

    if (until == ENCL_POLL) {
        return false;
    }
    f->writers++;
    flow_wants(f, true);
    ch_arm(f->ch);
    waited = ch_wait(f->ch, &f->ch->changed, until);
    f->writers--;
    return waited;
}

encl_result encl_stream_write(encl_stream *st, encl_slice bytes, int64_t until, size_t *put,
                              encl_error *err) {
    flow *f = &st->f;
    encl_channel *ch = f->ch;
    encl_code rc = ENCL_OK;

    *put = 0;
    ENCL_TRY(ch_check(ch, err));
    while (*put < bytes.len) {
        size_t n = bytes.len - *put < ENCL_STREAM_CHUNK ? bytes.len - *put : ENCL_STREAM_CHUNK;

        /* Taken for each record anew, so that the other streams get their turn. */
        encl_lock(&f->ch->lock);
        rc = may_write(f, err);
        if (rc == ENCL_OK && !ch_has_room(ch, f, 0)) {
            if (!wait_to_send(f, until)) {
                rc = encl_fail(err, ENCL_E_WRITE_TIMEOUT,
                               "the connection took %zu of %zu bytes in time", *put, bytes.len);
            }
            n = 0;
        }
        if (rc == ENCL_OK && n != 0) {
            rc = send_chunk(f, ENCL_SLICE(bytes.data + *put, n), err);
        }
        if (rc != ENCL_OK) {
            flow_stopped_waiting(f);
        }
        encl_unlock(&f->ch->lock);
        if (rc != ENCL_OK) {
            return rc;
        }
        *put += n;
    }
    return ENCL_OK;
}

encl_result encl_stream_write_eof(encl_stream *st, encl_error *err) {
    flow *f = &st->f;
    encl_channel *ch = f->ch;
    encl_buf *out;
    encl_code rc;

    ENCL_TRY(ch_check(ch, err));
    encl_lock(&ch->lock);
    ENCL_TRY_GOTO(blocked(f, err), done);
    if (f->write_ended || f->eof) {
        goto done;
    }
    ENCL_TRY_GOTO(ch_need_open(ch, err), done);
    ENCL_TRY_GOTO(ch_tx_begin(ch, &out, err), done);
    rc = encl_app_stream_close(ch->app, f->id, ENCL_HALF_WRITE, out, err);
    ch_tx_end(ch, f->id, f);
    f->write_ended = rc == ENCL_OK;
done:
    encl_unlock(&ch->lock);
    return rc;
}

encl_result encl_stream_notify(encl_stream *st, int what, encl_notifier *n, uint64_t token,
                               encl_error *err) {
    flow *f = &st->f;
    encl_code rc = ENCL_OK;

    ENCL_TRY(ch_check(f->ch, err));
    encl_lock(&f->ch->lock);
    if (what == 0) {
        watches_clear(&f->on_readable);
        watches_clear(&f->on_writable);
        flow_stopped_waiting(f);
    }
    if ((what & ENCL_READABLE) != 0) {
        ENCL_TRY_GOTO(watches_add(&f->on_readable, n, token, err), done);
        if (is_readable(f)) {
            watches_fire(&f->on_readable);
        }
    }
    if ((what & ENCL_WRITABLE) != 0) {
        ENCL_TRY_GOTO(watches_add(&f->on_writable, n, token, err), done);
        if (f->closed || f->failed || f->eof || ch_may_send(f->ch, f)) {
            watches_fire(&f->on_writable);
        }
    }
done:
    backlog_somebody_waits(f->ch);
    encl_unlock(&f->ch->lock);
    return rc;
}

static void withdraw(flow *f, const encl_notifier *n, uint64_t token) {
    if (encl_channel_is_forked(f->ch)) {
        return;
    }
    encl_lock(&f->ch->lock);
    watches_withdraw(&f->on_readable, n, token);
    watches_withdraw(&f->on_writable, n, token);
    flow_stopped_waiting(f);
    backlog_somebody_waits(f->ch);
    encl_unlock(&f->ch->lock);
}

void encl_stream_withdraw(encl_stream *st, const encl_notifier *n, uint64_t token) {
    withdraw(&st->f, n, token);
}

void encl_request_withdraw(encl_request *rq, const encl_notifier *n, uint64_t token) {
    withdraw(&rq->f, n, token);
}

/* ---- one-shot requests ---- */

encl_result encl_request_start(encl_slot *slot, encl_slice payload, encl_request **out,
                               encl_error *err) {
    encl_request *rq;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(ch_check(slot->ch, err));
    rq = (encl_request *)flow_new(slot->ch, sizeof *rq, false);
    ENCL_ENSURE(rq != NULL, err, ENCL_E_NOMEM, "out of memory");
    rc = start(&rq->f, slot, payload, err);
    if (rc != ENCL_OK) {
        encl_request_release(rq);
        return rc;
    }
    *out = rq;
    return ENCL_OK;
}

/* The id stays open until its answer comes, as its slot does on the server. */
void encl_request_abandon(encl_request *rq) {
    flow *f = &rq->f;
    encl_error why;

    if (encl_channel_is_forked(f->ch)) {
        return;
    }
    encl_fail(&why, ENCL_E_INVALID, "this request was abandoned");
    encl_lock(&f->ch->lock);
    f->user_gone = true;
    flow_fail(f, &why);
    encl_unlock(&f->ch->lock);
}

void encl_request_release(encl_request *rq) {
    if (rq == NULL || encl_channel_is_forked(rq->f.ch)) {
        return;
    }
    encl_request_abandon(rq);
    if (drop(&rq->f)) {
        destroy(&rq->f);
    }
}

encl_result encl_request_result(encl_request *rq, int64_t until, encl_slice *answer,
                                encl_error *err) {
    flow *f = &rq->f;
    encl_channel *ch = f->ch;
    encl_code rc = ENCL_OK;

    *answer = ENCL_SLICE_NONE;
    ENCL_TRY(ch_check(ch, err));
    encl_lock(&f->ch->lock);
    while (rc == ENCL_OK && !f->eof) {
        rc = blocked(f, err);
        if (rc == ENCL_OK && !wait_for_data(f, until)) {
            rc = encl_fail(err, ENCL_E_READ_TIMEOUT, "expected an answer in time, got none");
        }
    }
    if (rc == ENCL_OK) {
        *answer = encl_buf_peek(&f->answer);
    }
    encl_unlock(&f->ch->lock);
    return rc;
}

encl_result encl_request_notify(encl_request *rq, encl_notifier *n, uint64_t token,
                                encl_error *err) {
    flow *f = &rq->f;
    encl_code rc;

    ENCL_TRY(ch_check(f->ch, err));
    encl_lock(&f->ch->lock);
    rc = watches_add(&f->on_readable, n, token, err);
    if (rc == ENCL_OK && is_readable(f)) {
        watches_fire(&f->on_readable);
    }
    backlog_somebody_waits(f->ch);
    encl_unlock(&f->ch->lock);
    return rc;
}
