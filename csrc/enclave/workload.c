#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "enclave/internal.h"

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
    encl_client *client; /* NULL: only the end of conn is awaited */
    encl_workload_kind kind;
    bool silent; /* a fault: takes everything, connects to nothing, answers nothing */
    uint64_t id;
    workload_state state;
    encl_conn *conn;   /* until its closed callback */
    encl_timer *timer; /* the next dial, later the one-shot limit or the flush before the end */
    uint64_t dial_deadline_ms;
    encl_buf queued; /* for the workload, while dialling */
    encl_buf answer; /* one-shot */
    bool full;       /* more than high water waits to be written */
    bool write_shut; /* the client closed its direction */
    bool closing;    /* the client closed all */
    bool eof_seen;
};

static void dial(encl_workload *w);

encl_result encl_workload_new(encl_enclave *e, encl_client *c, encl_workload_kind kind, bool silent,
                              uint64_t id, encl_workload **out, encl_error *err) {
    encl_workload *w = calloc(1, sizeof *w);

    ENCL_ENSURE(w != NULL, err, ENCL_E_NOMEM, "out of memory for a stream");
    w->enclave = e;
    w->client = c;
    w->kind = kind;
    w->id = id;
    w->silent = silent;
    w->state = silent ? GONE : DIALLING;
    encl_buf_init(&w->queued, QUEUE_LIMIT);
    encl_buf_init(&w->answer, ANSWER_LIMIT);
    *out = w;
    return ENCL_OK;
}

uint64_t encl_workload_id(const encl_workload *w) {
    return w->id;
}

bool encl_workload_addressable(const encl_workload *w) {
    return w->kind == ENCL_WORKLOAD_STREAM && !w->closing;
}

static void free_if_unused(encl_workload *w) {
    if (w->client != NULL || w->conn != NULL) {
        return;
    }
    if (w->timer != NULL) {
        encl_timer_free(w->timer);
    }
    encl_buf_free(&w->queued);
    encl_buf_free(&w->answer);
    free(w);
}

/* Gives the slot back; the socket, if there is one, ends on its own. */
static void finish(encl_workload *w) {
    if (w->timer != NULL) {
        encl_timer_stop(w->timer);
    }
    if (w->client != NULL) {
        encl_client *c = w->client;

        w->client = NULL;
        encl_client_free_slot(c, w, w->full);
    }
    if (w->conn != NULL) {
        encl_conn_abort(w->conn, false);
    }
    free_if_unused(w);
}

static void fail(encl_workload *w, const char *text) {
    encl_client_failed(w->client, w->id, text);
    finish(w);
}

/* The client may read on when this returns, and what it reads may end w: it comes last. */
static void set_full(encl_workload *w, bool full) {
    if (w->full != full && w->client != NULL) {
        w->full = full;
        encl_client_workload_full(w->client, full);
    }
}

static void measure(encl_workload *w) {
    size_t pending = encl_buf_readable(&w->queued);

    if (w->state == UP) {
        pending = encl_conn_tx_pending(w->conn);
    }
    set_full(w, pending > ENCL_CONN_HIGH_WATER);
}

static void on_timer(void *arg);

static encl_result arm(encl_workload *w, uint64_t after_ms, encl_error *err) {
    if (w->timer == NULL) {
        ENCL_TRY(encl_timer_new(w->enclave->loop, on_timer, w, &w->timer, err));
    }
    encl_timer_set(w->timer, after_ms);
    return ENCL_OK;
}

static void close_when_written(encl_workload *w);

static void on_timer(void *arg) {
    encl_workload *w = arg;
    char text[96];

    if (w->state == DIALLING) {
        dial(w);
        return;
    }
    if (w->closing) {
        close_when_written(w);
        return;
    }
    (void)snprintf(text, sizeof text, "the workload did not close its answer within %llu ms",
                   (unsigned long long)w->enclave->one_shot_timeout_ms);
    fail(w, text);
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

/* The slot is held until all is written, however slowly the workload reads: encl_conn_close would
 * give up after a moment. */
static void close_when_written(encl_workload *w) {
    encl_error err;

    if (encl_conn_tx_pending(w->conn) == 0 || arm(w, FLUSH_POLL_MS, &err) != ENCL_OK) {
        finish(w);
    }
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

void encl_workload_write(encl_workload *w, encl_slice bytes) {
    encl_error err;

    if (w->silent) {
        return;
    }
    if (write_in_state(w, bytes, &err) != ENCL_OK) {
        fail(w, err.message);
        return;
    }
    measure(w);
}

void encl_workload_close(encl_workload *w, encl_half half) {
    w->write_shut = true;
    w->closing = w->closing || half == ENCL_HALF_BOTH;
    if (w->state == UP && w->closing) {
        close_when_written(w);
    } else if (w->state == UP) {
        encl_conn_write_eof(w->conn);
    } else if (w->state == GONE && w->closing) {
        finish(w);
    }
    /* DIALLING: the real server sees the close only after its dial ended; so does opened(). */
}

void encl_workload_abandon(encl_workload *w) {
    w->client = NULL;
    finish(w);
}

void encl_workload_pause(encl_workload *w, bool paused) {
    if (w->state == UP) {
        encl_conn_pause(w->conn, paused);
    }
}

/* ---- from the workload */

static void on_opened(void *user, encl_conn *conn) {
    encl_workload *w = user;
    encl_error err;
    encl_code rc;

    if (w->client == NULL) {
        return;
    }
    w->enclave->workload_seen_up = true;
    w->state = UP;
    rc = send_all(w, encl_buf_peek(&w->queued), &err);
    encl_buf_free(&w->queued);
    if (rc == ENCL_OK && w->kind == ENCL_WORKLOAD_ONE_SHOT) {
        rc = arm(w, w->enclave->one_shot_timeout_ms, &err);
    }
    if (rc != ENCL_OK) {
        fail(w, err.message);
        return;
    }
    encl_conn_pause(conn, encl_client_full(w->client));
    if (w->write_shut) {
        encl_workload_close(w, w->closing ? ENCL_HALF_BOTH : ENCL_HALF_WRITE);
    }
    measure(w);
}

static void gather(encl_workload *w, encl_slice bytes) {
    size_t room = ANSWER_LIMIT - encl_buf_readable(&w->answer);
    encl_error err;

    /* What is beyond the limit will not be sent: that it came is all that counts. */
    if (encl_buf_write(&w->answer, ENCL_SLICE(bytes.data, bytes.len < room ? bytes.len : room),
                       &err) != ENCL_OK) {
        fail(w, err.message);
    }
}

static void pass_on(encl_workload *w, encl_slice bytes) {
    while (bytes.len != 0 && w->client != NULL) {
        size_t n = bytes.len < ENCL_WORKLOAD_CHUNK ? bytes.len : ENCL_WORKLOAD_CHUNK;

        encl_client_stream_data(w->client, w->id, ENCL_SLICE(bytes.data, n));
        bytes = ENCL_SLICE(bytes.data + n, bytes.len - n);
    }
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    encl_workload *w = user;

    (void)conn;
    encl_stat_add(w->enclave, &w->enclave->stats.bytes_from_workload, len);
    if (w->client == NULL || w->closing) {
        return;
    }
    if (w->kind == ENCL_WORKLOAD_ONE_SHOT) {
        gather(w, ENCL_SLICE(block, len));
    } else {
        pass_on(w, ENCL_SLICE(block, len));
    }
}

static void answer(encl_workload *w) {
    if (encl_buf_readable(&w->answer) == ANSWER_LIMIT) {
        encl_client_reply_too_long(w->client, w->id);
    } else {
        encl_client_reply(w->client, w->id, encl_buf_peek(&w->answer));
    }
    finish(w);
}

static void on_received_eof(void *user, encl_conn *conn) {
    encl_workload *w = user;

    (void)conn;
    if (w->client == NULL || w->closing || w->eof_seen) {
        return;
    }
    w->eof_seen = true;
    if (w->kind == ENCL_WORKLOAD_ONE_SHOT) {
        answer(w);
    } else {
        encl_client_stream_eof(w->client, w->id);
    }
}

static void on_drained(void *user, encl_conn *conn) {
    (void)conn;
    set_full(user, false);
}

static void dial_failed(encl_workload *w, const encl_error *why) {
    encl_enclave *e = w->enclave;
    encl_error err = *why;

    if (why->code == ENCL_E_CONNECT && !e->workload_seen_up &&
        encl_monotonic_ms() + ENCL_DIAL_INTERVAL_MS <= w->dial_deadline_ms &&
        arm(w, ENCL_DIAL_INTERVAL_MS, &err) == ENCL_OK) {
        return;
    }
    fail(w, err.message);
}

static void ended_while_up(encl_workload *w, const encl_error *why) {
    if (w->closing) {
        finish(w);
        return;
    }
    if (!w->eof_seen) { /* an orderly end is announced before */
        fail(w, why->message);
        return;
    }
    /* As in the real server, which notices only when the client writes again. */
    w->state = GONE;
    set_full(w, false);
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    encl_workload *w = user;

    w->conn = NULL;
    encl_conn_release(conn);
    if (w->client == NULL) {
        free_if_unused(w);
    } else if (w->state == DIALLING) {
        dial_failed(w, why);
    } else {
        ended_while_up(w, why);
    }
}

static const encl_conn_events events = {
    .opened = on_opened,
    .received = on_received,
    .received_eof = on_received_eof,
    .drained = on_drained,
    .closed = on_closed,
};

static void dial(encl_workload *w) {
    encl_enclave *e = w->enclave;
    encl_error err;

    if (encl_conn_connect_tcp(e->loop, e->workload_host, e->workload_port, &events, w, &w->conn,
                              &err) != ENCL_OK) {
        w->conn = NULL;
        dial_failed(w, &err);
    }
}

void encl_workload_start(encl_workload *w, encl_slice payload) {
    encl_error err;

    if (w->silent) {
        return;
    }
    if (encl_buf_write(&w->queued, payload, &err) != ENCL_OK) {
        fail(w, err.message);
        return;
    }
    w->dial_deadline_ms = encl_monotonic_ms() + w->enclave->grace_ms;
    dial(w);
}
