/* A pump between a stream and a socket. Decides how much is moved at a time, when each side is
 * read, and that it stops. The socket is a borrowed connection of net's. For the stream it waits as
 * an event loop does, but with a notifier that posts a job and has no descriptor.
 *
 * Everything here runs in the service thread, except for the functions of pump.h. It has no lock of
 * its own: other threads read atomics while it moves bytes, and the rest only after the state says
 * that it has stopped, which is written last. Calls stream, transfer, waits and settle. */
#include "channel/pump.h"

#include <stdlib.h>

#include "channel/settle.h"
#include "channel/transfer.h"
#include "channel/waits.h"

#define CHUNK ((size_t)65536)
/* A block of net's, and what was left of the one before. */
#define REST_MAX ((size_t)1024 * 1024)

enum { READ_TOKEN = 1, WRITE_TOKEN = 2, TOKENS = 2 };
enum { ASK_LOOK = 1u, ASK_STOP = 2u };

struct encl_pump {
    /* ---- set before anybody else has it ---- */
    encl_stream *st; /* a reference */
    encl_loop *loop;
    encl_conn *conn;
    encl_notifier *looks; /* posts the job */

    /* ---- any thread ---- */
    atomic_uint refs; /* the owner's, the connection's until it is closed, a queued job's */
    atomic_uint asked;
    encl_job job; /* queued while asked is not 0 */
    _Atomic encl_pump_state state;
    atomic_uint_fast64_t bytes_in, asked_records;
    atomic_int_fast64_t touched_at, asked_at;
    atomic_bool answered, rest_waits;

    /* ---- service thread; the owner's once it has stopped ---- */
    bool opened;   /* the connection is open, or was */
    bool stopping; /* this side ends it, and not the socket */
    encl_buf rest; /* read from the socket, not taken by the stream */
    encl_buf out;  /* what the socket had not taken at the end */
    watch over;
};

/* ---- memory ---- */

static void destroy(encl_pump *p) {
    watch_clear(&p->over);
    encl_notifier_release(p->looks);
    encl_conn_release(p->conn);
    encl_buf_free(&p->rest);
    encl_buf_free(&p->out);
    if (p->st != NULL) {
        transfer_release(&p->st->t);
    }
    free(p);
}

static void let_go(encl_pump *p) {
    if (atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) == 1) {
        destroy(p);
    }
}

static void hold(encl_pump *p) {
    atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
}

/* Any thread, with any lock held but the loop's. */
static void ask(encl_pump *p, unsigned what) {
    if (atomic_fetch_or(&p->asked, what) != 0) {
        return; /* in the queue already */
    }
    hold(p);
    if (!encl_loop_post(p->loop, &p->job)) {
        let_go(p);
    }
}

static void look_soon(void *arg) {
    ask(arg, ASK_LOOK);
}

/* ---- the end ---- */

static bool moves(encl_pump *p) {
    return atomic_load_explicit(&p->state, memory_order_relaxed) == ENCL_PUMP_MOVES;
}

/* The connection is closed, or will be before anybody is told. */
static void tell(encl_pump *p, encl_pump_state why) {
    waits_withdraw(&p->st->t, p->looks, READ_TOKEN);
    waits_withdraw(&p->st->t, p->looks, WRITE_TOKEN);
    atomic_store_explicit(&p->state, why, memory_order_release);
    watch_fire(&p->over);
}

static void stop(encl_pump *p, encl_pump_state why) {
    if (moves(p)) {
        p->stopping = true;
        encl_conn_give_back(p->conn, &p->out);
        tell(p, why);
    }
}

/* ---- from the socket to the stream ---- */

static void note_touched(encl_pump *p, bool answered) {
    atomic_store_explicit(&p->touched_at, encl_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&p->answered, answered, memory_order_relaxed);
}

/* Something is expected to come over the channel from now on. */
static void note_asked(encl_pump *p) {
    uint64_t records = counted(&p->st->t.ch->records_in);

    note_touched(p, false);
    if (records != p->asked_records || p->asked_at == 0) {
        atomic_store_explicit(&p->asked_records, records, memory_order_relaxed);
        atomic_store_explicit(&p->asked_at, p->touched_at, memory_order_relaxed);
    }
}

/* Whether all of it went. */
static bool put(encl_pump *p, encl_slice bytes, size_t *taken, encl_code *rc) {
    encl_error err;

    *rc = encl_stream_write(p->st, bytes, ENCL_POLL, taken, &err);
    atomic_fetch_add_explicit(&p->bytes_in, *taken, memory_order_relaxed);
    return *rc == ENCL_OK;
}

/* Waits for room where the stream is full. Any other failure is for the owner to find, who tries to
 * write the rest. */
static void wait_to_put(encl_pump *p, encl_code rc) {
    encl_error err;

    if (rc != ENCL_E_WRITE_TIMEOUT ||
        encl_stream_notify(p->st, ENCL_WRITABLE, p->looks, WRITE_TOKEN, &err) != ENCL_OK) {
        stop(p, ENCL_PUMP_STOPPED);
    }
}

static void keep(encl_pump *p, encl_slice bytes) {
    encl_error err;

    if (encl_buf_write(&p->rest, bytes, &err) != ENCL_OK) {
        stop(p, ENCL_PUMP_LOST);
        return;
    }
    atomic_store_explicit(&p->rest_waits, true, memory_order_relaxed);
    encl_conn_pause(p->conn, true);
}

static void receive(encl_pump *p, encl_slice bytes) {
    size_t taken;
    encl_code rc;

    note_asked(p);
    if (put(p, bytes, &taken, &rc)) {
        return;
    }
    keep(p, ENCL_SLICE(bytes.data + taken, bytes.len - taken));
    if (moves(p)) {
        wait_to_put(p, rc);
    }
}

static void put_rest(encl_pump *p) {
    size_t taken;
    encl_code rc;
    bool all = put(p, encl_buf_peek(&p->rest), &taken, &rc);

    p->rest.r += taken;
    if (!all) {
        wait_to_put(p, rc);
        return;
    }
    encl_buf_free(&p->rest);
    atomic_store_explicit(&p->rest_waits, false, memory_order_relaxed);
    encl_conn_pause(p->conn, false);
}

/* ---- from the stream to the socket ---- */

typedef enum moved {
    MOVED_SOME,
    MOVED_NONE,   /* nothing was there */
    MOVED_BROKEN, /* the connection is, and will say so */
    MOVED_OVER,   /* the stream has ended, or failed */
} moved;

/* Into the queue of the connection, which writes what the socket takes at once. */
static moved take(encl_pump *p, encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    size_t n = t->ring.len < CHUNK ? t->ring.len : CHUNK;
    moved outcome = MOVED_OVER;
    encl_error err;
    encl_buf *queue;
    uint8_t *room;

    if (encl_conn_tx_begin(p->conn, &queue, &err) != ENCL_OK) {
        return MOVED_BROKEN;
    }
    /* Without memory nothing is taken: its owner may try. */
    if (encl_buf_reserve(queue, n, &room, &err) == ENCL_OK) {
        size_t got = transfer_read(ch, t, room, n);

        outcome = encl_buf_commit(queue, got, &err) == ENCL_OK ? MOVED_SOME : MOVED_BROKEN;
    }
    encl_conn_tx_end(p->conn);
    return outcome;
}

static moved move(encl_pump *p) {
    transfer *t = &p->st->t;
    encl_channel *ch = t->ch;
    moved outcome = MOVED_NONE;

    if (!ch_enter(ch)) {
        return MOVED_OVER;
    }
    if (t->closed) {
        outcome = MOVED_OVER;
    } else if (t->ring.len != 0) {
        outcome = take(p, ch, t);
    } else if (t->eof || t->failed) {
        outcome = MOVED_OVER;
    }
    ch_leave(ch);
    return outcome;
}

static void wait_for_more(encl_pump *p) {
    encl_error err;

    if (encl_stream_notify(p->st, ENCL_READABLE, p->looks, READ_TOKEN, &err) != ENCL_OK) {
        stop(p, ENCL_PUMP_STOPPED);
    }
}

/* Until the stream is empty, or the queue is full: then the connection says when it is not. */
static void move_all(encl_pump *p) {
    while (encl_conn_tx_pending(p->conn) < ENCL_CONN_HIGH_WATER) {
        switch (move(p)) {
        case MOVED_SOME:
            note_touched(p, true);
            break;
        case MOVED_NONE:
            wait_for_more(p);
            return;
        case MOVED_BROKEN:
            return;
        case MOVED_OVER:
            stop(p, ENCL_PUMP_STOPPED);
            return;
        }
    }
}

/* ---- the connection's events; each may be the one that ends it, and lets its reference go ---- */

static void on_opened(void *user, encl_conn *conn) {
    encl_pump *p = user;

    (void)conn;
    hold(p);
    p->opened = true;
    move_all(p);
    let_go(p);
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    encl_pump *p = user;

    (void)conn;
    hold(p);
    receive(p, ENCL_SLICE(block, len));
    let_go(p);
}

static void on_received_eof(void *user, encl_conn *conn) {
    encl_pump *p = user;

    (void)conn;
    hold(p);
    stop(p, ENCL_PUMP_STOPPED);
    let_go(p);
}

static void on_drained(void *user, encl_conn *conn) {
    encl_pump *p = user;

    (void)conn;
    hold(p);
    atomic_store_explicit(&p->touched_at, encl_now_ns(), memory_order_relaxed);
    move_all(p);
    let_go(p);
}

/* Once, and last. One that was never open has read nothing: its owner does without a pump. */
static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    encl_pump *p = user;

    (void)conn;
    (void)why;
    if (!p->stopping) {
        tell(p, p->opened ? ENCL_PUMP_GONE : ENCL_PUMP_STOPPED);
    }
    let_go(p); /* the connection's */
}

static const encl_conn_events events = {
    .opened = on_opened,
    .received = on_received,
    .received_eof = on_received_eof,
    .drained = on_drained,
    .closed = on_closed,
};

/* ---- jobs ---- */

static void look(encl_pump *p) {
    uint64_t tokens[TOKENS];

    (void)encl_notifier_drain(p->looks, tokens, TOKENS);
    if (moves(p) && encl_buf_readable(&p->rest) != 0) {
        put_rest(p);
    }
    if (moves(p)) {
        move_all(p);
    }
}

static void run_asked(void *arg) {
    encl_pump *p = arg;
    unsigned asked = atomic_exchange(&p->asked, 0);

    if ((asked & ASK_STOP) != 0) {
        stop(p, ENCL_PUMP_STOPPED);
    }
    if ((asked & ASK_LOOK) != 0) {
        look(p);
    }
    let_go(p);
}

/* ---- pump.h ---- */

static encl_result pump_new(encl_stream *st, encl_pump **out, encl_error *err) {
    encl_pump *p = calloc(1, sizeof *p);

    *out = p;
    ENCL_ENSURE(p != NULL, err, ENCL_E_NOMEM, "out of memory");
    atomic_init(&p->refs, 1);
    p->loop = st->t.ch->loop;
    p->job = (encl_job){.run = run_asked, .arg = p};
    encl_buf_init(&p->rest, REST_MAX);
    encl_buf_init(&p->out, 0);
    return ENCL_OK;
}

encl_result encl_pump_start(encl_stream *st, int fd, encl_notifier *n, uint64_t token,
                            encl_pump **out, encl_error *err) {
    encl_pump *p;
    encl_code rc;

    *out = NULL;
    if (encl_channel_is_forked(st->t.ch)) {
        return ch_forked(err);
    }
    ENCL_TRY(pump_new(st, &p, err));
    ENCL_TRY_GOTO(encl_notifier_new_calling(look_soon, p, &p->looks, err), fail);
    ENCL_TRY_GOTO(watch_set(&p->over, n, token, err), fail);
    transfer_hold(&st->t);
    p->st = st;
    hold(p); /* the connection's */
    rc = encl_conn_borrow(p->loop, fd, &events, p, &p->conn, err);
    if (rc != ENCL_OK) {
        let_go(p);
        goto fail;
    }
    *out = p;
    return ENCL_OK;
fail:
    let_go(p);
    return rc;
}

void encl_pump_stop(encl_pump *p) {
    if (!encl_channel_is_forked(p->st->t.ch)) {
        ask(p, ASK_STOP);
    }
}

void encl_pump_release(encl_pump *p) {
    if (p == NULL || encl_channel_is_forked(p->st->t.ch)) {
        return; /* a child has a copy of the memory alone, and no thread that moves anything */
    }
    if (encl_pump_get_state(p) == ENCL_PUMP_MOVES) {
        ask(p, ASK_STOP);
    }
    let_go(p);
}

encl_pump_state encl_pump_get_state(encl_pump *p) {
    return atomic_load_explicit(&p->state, memory_order_acquire);
}

encl_slice encl_pump_rest_in(encl_pump *p) {
    return encl_pump_get_state(p) == ENCL_PUMP_MOVES ? ENCL_SLICE_NONE : encl_buf_peek(&p->rest);
}

encl_slice encl_pump_rest_out(encl_pump *p) {
    return encl_pump_get_state(p) == ENCL_PUMP_MOVES ? ENCL_SLICE_NONE : encl_buf_peek(&p->out);
}

void encl_pump_get_stats(encl_pump *p, encl_pump_stats *stats) {
    *stats = (encl_pump_stats){
        .bytes_in = atomic_load_explicit(&p->bytes_in, memory_order_relaxed),
        .bytes_out = encl_conn_bytes_out(p->conn),
        .answered = atomic_load_explicit(&p->answered, memory_order_relaxed),
        .touched_at = atomic_load_explicit(&p->touched_at, memory_order_relaxed),
        .asked_at = atomic_load_explicit(&p->asked_at, memory_order_relaxed),
        .asked_records = atomic_load_explicit(&p->asked_records, memory_order_relaxed),
    };
    if (!encl_channel_is_forked(p->st->t.ch)) {
        stats->pending = atomic_load_explicit(&p->rest_waits, memory_order_relaxed) ||
                         encl_conn_tx_pending(p->conn) != 0;
    }
}
