/* workload: dials the workload, passes bytes on in both directions, gathers the answer to a
 * one-shot request and keeps its time limit. It decides when a connection is tried again and when
 * it is over; whatever its client is to hear goes up through encl_workload_events. Calls net, whose
 * locks are not held in callbacks, and encl_stat_add; runs in the service thread and takes no other
 * lock. */
#include "enclave/workload.h"

#include <stdio.h>
#include <stdlib.h>

#include "platform/platform.h"

/* Bytes that wait for the dial: the client is no longer read once they pass high water, and what
 * was decoded by then is at most one more record. */
#define QUEUE_LIMIT (ENCL_CONN_HIGH_WATER + 2 * (size_t)ENCL_RECORD_MAX)
/* One byte more than any record could carry is enough to know that an answer does not fit. */
#define ANSWER_LIMIT  ((size_t)ENCL_NOISE_MAX_PLAIN + 1)
#define WRITE_CHUNK   ((size_t)32 * 1024)
#define FLUSH_POLL_MS 5
#define BROKEN_PIPE   "the workload's connection takes no more bytes"

typedef enum workload_state {
    DIALLING, /* connecting, or waiting to try again */
    UP,
    GONE, /* no connection any more, but the client has not closed the stream */
} workload_state;

struct encl_workload {
    encl_enclave *enclave;
    const encl_workload_events *events; /* NULL: freed, and only the end of conn is awaited */
    void *user;
    encl_workload_kind kind;
    bool silent;
    uint64_t id;
    workload_state state;
    encl_conn *conn;   /* until its closed callback */
    encl_timer *timer; /* the next dial, later the one-shot limit or the flush before the end */
    uint64_t dial_deadline_ms;
    encl_buf queued; /* for the workload, while dialling */
    encl_buf answer; /* one-shot */
    bool full;       /* more than high water waits to be written */
    bool paused;     /* the owner does not want to hear of bytes */
    bool write_shut; /* the client closed its direction */
    bool closing;    /* the client closed all */
    bool eof_seen;
};

static void on_timer(void *arg);

static uint64_t now_ms(void) {
    return (uint64_t)(encl_now_ns() / 1000000);
}

/* ---- birth and death */

encl_result encl_workload_new(encl_enclave *e, encl_workload_kind kind, bool silent, uint64_t id,
                              const encl_workload_events *events, void *user, encl_workload **out,
                              encl_error *err) {
    encl_workload *w = calloc(1, sizeof *w);

    *out = w;
    ENCL_ENSURE(w != NULL, err, ENCL_E_NOMEM, "out of memory for a stream");
    w->enclave = e;
    w->events = events;
    w->user = user;
    w->kind = kind;
    w->id = id;
    w->silent = silent;
    w->state = silent ? GONE : DIALLING;
    encl_buf_init(&w->queued, QUEUE_LIMIT);
    encl_buf_init(&w->answer, ANSWER_LIMIT);
    return ENCL_OK;
}

static void destroy(encl_workload *w) {
    encl_timer_free(w->timer);
    encl_buf_free(&w->queued);
    encl_buf_free(&w->answer);
    free(w);
}

void encl_workload_free(encl_workload *w) {
    w->events = NULL;
    if (w->conn == NULL) {
        destroy(w);
        return;
    }
    if (w->timer != NULL) {
        encl_timer_stop(w->timer);
    }
    encl_conn_abort(w->conn, false); /* its closed callback destroys w */
}

uint64_t encl_workload_id(const encl_workload *w) {
    return w->id;
}

bool encl_workload_addressable(const encl_workload *w) {
    return w->kind == ENCL_WORKLOAD_STREAM && !w->closing;
}

bool encl_workload_full(const encl_workload *w) {
    return w->full;
}

/* ---- reports: each is the last thing that its caller does with w */

static void report_end(encl_workload *w, const char *why) {
    w->events->ended(w->user, w, why);
}

static void set_full(encl_workload *w, bool full) {
    if (w->events != NULL && w->full != full) {
        w->full = full;
        w->events->weight(w->user, w);
    }
}

static bool is_over_high_water(const encl_workload *w) {
    size_t pending = w->state == UP ? encl_conn_tx_pending(w->conn) : encl_buf_readable(&w->queued);

    return pending > ENCL_CONN_HIGH_WATER;
}

static encl_result arm(encl_workload *w, uint64_t after_ms, encl_error *err) {
    if (w->timer == NULL) {
        ENCL_TRY(encl_timer_new(w->enclave->loop, on_timer, w, &w->timer, err));
    }
    encl_timer_set(w->timer, after_ms);
    return ENCL_OK;
}

/* ---- towards the workload */

static encl_result send_chunk(encl_workload *w, encl_slice chunk, encl_error *err) {
    encl_code rc;
    encl_buf *tx;

    ENCL_TRY(encl_conn_tx_begin(w->conn, &tx, err));
    rc = encl_buf_write(tx, chunk, err);
    encl_conn_tx_end(w->conn);
    if (rc == ENCL_OK) {
        encl_stat_add(w->enclave, &w->enclave->stats.bytes_to_workload, chunk.len);
    }
    return rc;
}

/* A connection that is closing says why in its closed callback, so that is no failure here. */
static encl_result send_all(encl_workload *w, encl_slice bytes, encl_error *err) {
    while (bytes.len != 0) {
        size_t n = bytes.len < WRITE_CHUNK ? bytes.len : WRITE_CHUNK;
        encl_code rc = send_chunk(w, ENCL_SLICE(bytes.data, n), err);

        if (rc != ENCL_OK) {
            return rc == ENCL_E_CLOSED ? ENCL_OK : rc;
        }
        bytes = ENCL_SLICE(bytes.data + n, bytes.len - n);
    }
    return ENCL_OK;
}

static encl_result write_up(encl_workload *w, encl_slice bytes, encl_error *err) {
    ENCL_ENSURE(!w->write_shut, err, ENCL_E_STATE, BROKEN_PIPE);
    return send_all(w, bytes, err);
}

static encl_result write_in_state(encl_workload *w, encl_slice bytes, encl_error *err) {
    switch (w->state) {
    case DIALLING:
        return encl_buf_write(&w->queued, bytes, err);
    case UP:
        return write_up(w, bytes, err);
    default:
        return encl_fail(err, ENCL_E_STATE, BROKEN_PIPE);
    }
}

encl_result encl_workload_write(encl_workload *w, encl_slice bytes, encl_error *err) {
    if (w->silent) {
        return ENCL_OK;
    }
    ENCL_TRY(write_in_state(w, bytes, err));
    w->full = is_over_high_water(w);
    return ENCL_OK;
}

/* The place is held until all is written, however slowly the workload reads: encl_conn_close would
 * give up after a moment. Returns whether all is written, or cannot be waited for. */
static bool is_flushed(encl_workload *w) {
    encl_error err;

    return encl_conn_tx_pending(w->conn) == 0 || arm(w, FLUSH_POLL_MS, &err) != ENCL_OK;
}

/* Carries out what the client closed so far; true where w is over by that. A workload that is not
 * dialled yet is closed when it is: the real server, too, sees the close only after its dial. */
static bool carry_out_close(encl_workload *w) {
    if (w->state == UP && w->closing) {
        return is_flushed(w);
    }
    if (w->state == UP) {
        encl_conn_write_eof(w->conn);
    }
    return w->state == GONE && w->closing;
}

bool encl_workload_close(encl_workload *w, encl_half half) {
    w->write_shut = true;
    w->closing = w->closing || half == ENCL_HALF_BOTH;
    return carry_out_close(w);
}

void encl_workload_pause(encl_workload *w, bool paused) {
    w->paused = paused;
    if (w->state == UP) {
        encl_conn_pause(w->conn, paused);
    }
}

/* ---- from the workload */

static encl_result send_queued(encl_workload *w, encl_error *err) {
    encl_code rc = send_all(w, encl_buf_peek(&w->queued), err);

    encl_buf_free(&w->queued);
    if (rc == ENCL_OK && w->kind == ENCL_WORKLOAD_ONE_SHOT) {
        rc = arm(w, w->enclave->one_shot_timeout_ms, err);
    }
    return rc;
}

static void on_opened(void *user, encl_conn *conn) {
    encl_workload *w = user;
    encl_error err;

    if (w->events == NULL) {
        return;
    }
    w->enclave->workload_seen_up = true;
    w->state = UP;
    if (send_queued(w, &err) != ENCL_OK) {
        report_end(w, err.message);
        return;
    }
    encl_conn_pause(conn, w->paused);
    if (w->write_shut && carry_out_close(w)) {
        report_end(w, NULL);
    } else {
        set_full(w, is_over_high_water(w));
    }
}

static void gather(encl_workload *w, encl_slice bytes) {
    size_t room = ANSWER_LIMIT - encl_buf_readable(&w->answer);
    encl_error err;

    /* Bytes beyond the limit are not kept: the answer is too long by the limit's last byte. */
    if (encl_buf_write(&w->answer, ENCL_SLICE(bytes.data, bytes.len < room ? bytes.len : room),
                       &err) != ENCL_OK) {
        report_end(w, err.message);
    }
}

/* The owner may free w at each report; conn then keeps its memory until this returns. */
static void pass_on(encl_workload *w, encl_slice bytes) {
    while (bytes.len != 0 && w->events != NULL) {
        size_t n = bytes.len < ENCL_WORKLOAD_CHUNK ? bytes.len : ENCL_WORKLOAD_CHUNK;

        w->events->data(w->user, w, ENCL_SLICE(bytes.data, n));
        bytes = ENCL_SLICE(bytes.data + n, bytes.len - n);
    }
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    encl_workload *w = user;

    (void)conn;
    encl_stat_add(w->enclave, &w->enclave->stats.bytes_from_workload, len);
    if (w->events == NULL || w->closing) {
        return;
    }
    if (w->kind == ENCL_WORKLOAD_ONE_SHOT) {
        gather(w, ENCL_SLICE(block, len));
    } else {
        pass_on(w, ENCL_SLICE(block, len));
    }
}

static void on_received_eof(void *user, encl_conn *conn) {
    encl_workload *w = user;

    (void)conn;
    if (w->events == NULL || w->closing || w->eof_seen) {
        return;
    }
    w->eof_seen = true;
    if (w->kind == ENCL_WORKLOAD_ONE_SHOT) {
        w->events->answered(w->user, w, encl_buf_peek(&w->answer));
    } else {
        w->events->eof(w->user, w);
    }
}

static void on_drained(void *user, encl_conn *conn) {
    (void)conn;
    set_full(user, false);
}

/* ---- dialling */

/* Returns OK where another dial follows, else why not. A workload that was seen up once is not
 * waited for again. */
static encl_result dial_later(encl_workload *w, const encl_error *why, encl_error *err) {
    *err = *why;
    if (why->code != ENCL_E_CONNECT || w->enclave->workload_seen_up ||
        now_ms() + ENCL_DIAL_INTERVAL_MS > w->dial_deadline_ms) {
        return why->code;
    }
    return arm(w, ENCL_DIAL_INTERVAL_MS, err);
}

static void ended_while_up(encl_workload *w, const encl_error *why) {
    if (w->closing) {
        report_end(w, NULL);
        return;
    }
    if (!w->eof_seen) { /* an orderly end is announced before */
        report_end(w, why->message);
        return;
    }
    /* As in the real server, which notices only when the client writes again. */
    w->state = GONE;
    set_full(w, false);
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    encl_workload *w = user;
    encl_error err;

    w->conn = NULL;
    encl_conn_release(conn);
    if (w->events == NULL) {
        destroy(w);
    } else if (w->state != DIALLING) {
        ended_while_up(w, why);
    } else if (dial_later(w, why, &err) != ENCL_OK) {
        report_end(w, err.message);
    }
}

static const encl_conn_events conn_events = {
    .opened = on_opened,
    .received = on_received,
    .received_eof = on_received_eof,
    .drained = on_drained,
    .closed = on_closed,
};

static encl_result dial(encl_workload *w, encl_error *err) {
    encl_enclave *e = w->enclave;
    encl_error why;

    if (encl_conn_connect_tcp(e->loop, e->workload_host, e->workload_port, &conn_events, w,
                              &w->conn, &why) == ENCL_OK) {
        return ENCL_OK;
    }
    w->conn = NULL;
    return dial_later(w, &why, err);
}

encl_result encl_workload_start(encl_workload *w, encl_slice payload, encl_error *err) {
    if (w->silent) {
        return ENCL_OK;
    }
    ENCL_TRY(encl_buf_write(&w->queued, payload, err));
    w->dial_deadline_ms = now_ms() + w->enclave->grace_ms;
    return dial(w, err);
}

static void dial_again(encl_workload *w) {
    encl_error err;

    if (dial(w, &err) != ENCL_OK) {
        report_end(w, err.message);
    }
}

static void end_when_flushed(encl_workload *w) {
    if (is_flushed(w)) {
        report_end(w, NULL);
    }
}

static void end_late_answer(encl_workload *w) {
    char text[96];

    (void)snprintf(text, sizeof text, "the workload did not close its answer within %llu ms",
                   (unsigned long long)w->enclave->one_shot_timeout_ms);
    report_end(w, text);
}

static void on_timer(void *arg) {
    encl_workload *w = arg;

    if (w->state == DIALLING) {
        dial_again(w);
    } else if (w->closing) {
        end_when_flushed(w);
    } else {
        end_late_answer(w);
    }
}
