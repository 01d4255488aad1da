#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/slice.h"
#include "enclave/internal.h"

/* What was read but not decoded when reading stopped: blocks that were on their way by then. */
#define UNREAD_LIMIT ((size_t)4 * 1024 * 1024)

/* No message of the connection is longer, not even as hex digits. */
#define PIECE_MAX ((size_t)32000)

struct encl_client {
    encl_enclave *enclave;
    encl_client *prev, *next;
    encl_conn *conn;
    encl_session *session;
    encl_timer *idle;
    encl_workload *slots[ENCL_MAX_OPEN];
    size_t slots_taken;
    size_t streams_open;   /* not yet closed by the client: no idle timeout while there are any */
    size_t workloads_full; /* of the slots: their queue is above high water */
    encl_buf unread;
    encl_buf answer; /* a record that is sent in pieces, the handshake */
    encl_event held; /* the 65th; type NONE where there is none */
    encl_buf held_payload;
    bool full;   /* more than high water waits for the client */
    bool paused; /* we do not read from the client */
    bool busy;   /* decoding: what is freed meanwhile is seen by the loop that decodes */
    bool open, attested, ended;
};

static void end(encl_client *c, const char *reason);
static void resume(encl_client *c);

static void count(encl_client *c, uint64_t *field) {
    encl_stat_add(c->enclave, field, 1);
}

/* ---- idle timeout and back-pressure */

static bool blocked(const encl_client *c) {
    return c->full || c->workloads_full != 0 || c->held.type != ENCL_EV_NONE;
}

static void on_idle(void *arg) {
    end(arg, "idle timeout");
}

static void watch_idle(encl_client *c) {
    if (c->ended || !c->open) {
        return;
    }
    if (c->streams_open == 0 && !blocked(c)) {
        encl_timer_set(c->idle, c->enclave->idle_timeout_ms);
    } else {
        encl_timer_stop(c->idle);
    }
}

static void update_reading(encl_client *c) {
    bool paused = blocked(c);

    if (!c->ended && c->paused != paused) {
        c->paused = paused;
        encl_conn_pause(c->conn, paused);
    }
}

static void set_full(encl_client *c, bool full) {
    if (c->full == full) {
        return;
    }
    c->full = full;
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        if (c->slots[i] != NULL) {
            encl_workload_pause(c->slots[i], full);
        }
    }
    if (full) {
        update_reading(c);
    } else {
        resume(c);
    }
}

bool encl_client_full(const encl_client *c) {
    return c->full;
}

void encl_client_workload_full(encl_client *c, bool full) {
    c->workloads_full = full ? c->workloads_full + 1 : c->workloads_full - 1;
    if (full) {
        update_reading(c);
    } else {
        resume(c);
    }
}

/* ---- ends */

static void abandon_all(encl_client *c) {
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        encl_workload *w = c->slots[i];

        c->slots[i] = NULL;
        if (w != NULL) {
            encl_workload_abandon(w);
        }
    }
    encl_stat_sub(c->enclave, &c->enclave->stats.slots_open, c->slots_taken);
    c->slots_taken = c->streams_open = c->workloads_full = 0;
}

static void stop_serving(encl_client *c) {
    c->ended = true;
    encl_timer_stop(c->idle);
    encl_session_close(c->session);
    abandon_all(c);
}

static void end(encl_client *c, const char *reason) {
    if (!c->ended) {
        stop_serving(c);
        encl_conn_close(c->conn, 0, reason);
    }
}

void encl_client_abort(encl_client *c, bool reset) {
    if (!c->ended) {
        stop_serving(c);
    }
    encl_conn_abort(c->conn, reset);
}

encl_client *encl_client_next(const encl_client *c) {
    return c->next;
}

/* ---- answers: one record each, made in the connection's own buffer */

static encl_result write_hex(encl_buf *tx, encl_slice piece, encl_error *err) {
    uint8_t *room;

    ENCL_TRY(encl_buf_reserve(tx, 2 * piece.len, &room, err));
    encl_slice_hex(piece, (char *)room);
    return encl_buf_commit(tx, 2 * piece.len, err);
}

/* The fault must be a frame that any WebSocket library takes, so its text is made of digits. */
static encl_result send_text(encl_client *c, encl_slice piece, encl_error *err) {
    encl_buf *tx;
    encl_code rc;

    ENCL_TRY(encl_conn_tx_begin(c->conn, &tx, err));
    rc = write_hex(tx, piece, err);
    encl_conn_tx_end_text(c->conn);
    return rc;
}

static encl_result send_piece(encl_client *c, encl_slice piece, encl_error *err) {
    encl_buf *tx;
    encl_code rc;

    if (encl_fault_on(c->enclave, ENCL_FAULT_TEXT_ONLY)) {
        return send_text(c, piece, err);
    }
    ENCL_TRY(encl_conn_tx_begin(c->conn, &tx, err));
    rc = encl_buf_write(tx, piece, err);
    encl_conn_tx_end(c->conn);
    return rc;
}

static encl_result send_pieces(encl_client *c, encl_slice bytes, size_t split, encl_error *err) {
    if (split == 0 || split > PIECE_MAX) {
        split = PIECE_MAX;
    }
    while (bytes.len != 0) {
        size_t n = bytes.len < split ? bytes.len : split;

        ENCL_TRY(send_piece(c, ENCL_SLICE(bytes.data, n), err));
        bytes = ENCL_SLICE(bytes.data + n, bytes.len - n);
    }
    return ENCL_OK;
}

typedef struct record {
    encl_app *app;
    encl_buf *out;
    size_t split;
} record;

/* Records that can be longer than one message of the connection are made aside. */
static encl_result record_begin(encl_client *c, bool may_be_long, record *r, encl_error *err) {
    r->app = encl_session_app(c->session);
    ENCL_ENSURE(!c->ended && r->app != NULL, err, ENCL_E_CLOSED, "the connection is ending");
    if (encl_fault_on(c->enclave, ENCL_FAULT_HALF_RECORD_LOST)) {
        (void)encl_session_forget_partial_record(c->session);
    }
    r->split = encl_fault_split(c->enclave);
    if (r->split == 0 && (may_be_long || encl_fault_on(c->enclave, ENCL_FAULT_TEXT_ONLY))) {
        r->split = PIECE_MAX;
    }
    if (r->split != 0) {
        encl_buf_clear(&c->answer);
        r->out = &c->answer;
        return ENCL_OK;
    }
    return encl_conn_tx_begin(c->conn, &r->out, err);
}

/* Sends what was made; made is the result of making it. */
static void record_end(encl_client *c, record *r, encl_code made, encl_error *err) {
    encl_code rc = made;

    if (r->split == 0) {
        encl_conn_tx_end(c->conn);
    } else if (rc == ENCL_OK) {
        rc = send_pieces(c, encl_buf_peek(&c->answer), r->split, err);
    }
    if (rc != ENCL_OK) {
        end(c, err->message);
        return;
    }
    if (encl_conn_tx_pending(c->conn) > ENCL_CONN_HIGH_WATER) {
        set_full(c, true);
    }
    watch_idle(c);
}

void encl_client_stream_data(encl_client *c, uint64_t id, encl_slice bytes) {
    encl_error err;
    record r;

    if (record_begin(c, false, &r, &err) == ENCL_OK) {
        record_end(c, &r, encl_app_stream_data(r.app, id, bytes, r.out, &err), &err);
    }
}

void encl_client_stream_eof(encl_client *c, uint64_t id) {
    encl_error err;
    record r;

    if (record_begin(c, false, &r, &err) == ENCL_OK) {
        record_end(c, &r, encl_app_stream_close(r.app, id, ENCL_HALF_NONE, r.out, &err), &err);
    }
}

void encl_client_reply(encl_client *c, uint64_t id, encl_slice answer) {
    encl_error err;
    record r;

    if (record_begin(c, true, &r, &err) == ENCL_OK) {
        record_end(c, &r, encl_app_reply(r.app, id, answer, r.out, &err), &err);
    }
}

void encl_client_reply_too_long(encl_client *c, uint64_t id) {
    char reason[96];

    (void)snprintf(reason, sizeof reason, "the answer to request %llu does not fit one record",
                   (unsigned long long)id);
    end(c, reason);
}

void encl_client_failed(encl_client *c, uint64_t id, const char *text) {
    encl_error err;
    record r;

    if (record_begin(c, false, &r, &err) == ENCL_OK) {
        record_end(c, &r, encl_app_error(r.app, id, ENCL_SLICE(text, strlen(text)), r.out, &err),
                   &err);
    }
}

static void send_plaintext(encl_client *c, encl_slice plaintext) {
    encl_error err;
    record r;

    if (record_begin(c, true, &r, &err) == ENCL_OK) {
        record_end(c, &r, encl_app_raw(r.app, plaintext, r.out, &err), &err);
    }
}

/* ---- handshake and attestation */

static encl_result answer_handshake(encl_client *c, encl_error *err) {
    bool silent = false, closing = false;
    size_t split = encl_fault_split(c->enclave);

    ENCL_TRY(encl_fault_handshake(c->enclave, &c->answer, &silent, &closing, err));
    if (!silent) {
        ENCL_TRY(send_pieces(c, encl_buf_peek(&c->answer), split, err));
    }
    encl_buf_clear(&c->answer);
    if (closing) {
        end(c, "handshake cut short");
        return ENCL_OK;
    }
    ENCL_TRY(encl_fault_after_handshake(c->enclave, &c->answer, err));
    ENCL_TRY(send_pieces(c, encl_buf_peek(&c->answer), split, err));
    encl_buf_clear(&c->answer);
    return ENCL_OK;
}

static encl_result send_document(encl_client *c, encl_error *err) {
    encl_slice hash = ENCL_SLICE(encl_session_handshake_hash(c->session), ENCL_NOISE_HASH_BYTES);
    encl_buf document;
    encl_code rc;
    record r;

    encl_buf_init(&document, ENCL_DOCUMENT_MAX_BYTES);
    ENCL_TRY_GOTO(encl_identity_document(c->enclave, hash, &document, err), done);
    ENCL_TRY_GOTO(record_begin(c, true, &r, err), done);
    record_end(c, &r,
               encl_app_attestation(r.app, encl_buf_peek(&document), c->enclave->control_nonce,
                                    r.out, err),
               err);
done:
    encl_buf_free(&document);
    return rc;
}

static encl_result send_hostile(encl_client *c, encl_hostile which, bool *sent, encl_error *err) {
    encl_buf plaintext;
    encl_code rc;

    encl_buf_init(&plaintext, ENCL_NOISE_MAX_PLAIN);
    rc = encl_fault_plaintext(c->enclave, which, &plaintext, err);
    *sent = rc == ENCL_OK && encl_buf_readable(&plaintext) != 0;
    if (*sent) {
        send_plaintext(c, encl_buf_peek(&plaintext));
    }
    encl_buf_free(&plaintext);
    return rc;
}

static encl_result attest(encl_client *c, encl_error *err) {
    bool first = !c->attested, sent;

    count(c, &c->enclave->stats.attestations_total);
    if (encl_fault_on(c->enclave, ENCL_FAULT_SILENT_ATTESTATION)) {
        return ENCL_OK;
    }
    c->attested = true;
    ENCL_TRY(send_hostile(c, ENCL_INSTEAD_OF_ATTESTATION, &sent, err));
    if (!sent) {
        ENCL_TRY(send_document(c, err));
    }
    return first ? send_hostile(c, ENCL_AFTER_ATTESTATION, &sent, err) : ENCL_OK;
}

/* ---- slots */

static size_t free_index(const encl_client *c) {
    size_t i = 0;

    while (c->slots[i] != NULL) {
        i++;
    }
    return i;
}

static encl_result take_slot(encl_client *c, const encl_event *event, encl_error *err) {
    encl_workload_kind kind =
        event->type == ENCL_EV_REQUEST ? ENCL_WORKLOAD_ONE_SHOT : ENCL_WORKLOAD_STREAM;
    bool silent = encl_fault_on(c->enclave, ENCL_FAULT_SILENT_STREAMS);
    encl_workload *w;

    ENCL_TRY(encl_workload_new(c->enclave, c, kind, silent, event->id, &w, err));
    c->slots[free_index(c)] = w;
    c->slots_taken++;
    if (kind == ENCL_WORKLOAD_STREAM) {
        c->streams_open++;
        count(c, &c->enclave->stats.streams_total);
    } else {
        count(c, &c->enclave->stats.requests_total);
    }
    count(c, &c->enclave->stats.slots_open);
    encl_workload_start(w, event->payload);
    return ENCL_OK;
}

void encl_client_free_slot(encl_client *c, const encl_workload *w, bool full) {
    size_t i = 0;

    while (i < ENCL_MAX_OPEN && c->slots[i] != w) {
        i++;
    }
    if (i == ENCL_MAX_OPEN) {
        return;
    }
    c->slots[i] = NULL;
    c->slots_taken--;
    if (full) {
        c->workloads_full--;
    }
    if (encl_workload_addressable(w)) {
        c->streams_open--;
    }
    encl_stat_sub(c->enclave, &c->enclave->stats.slots_open, 1);
    resume(c);
}

static encl_result hold(encl_client *c, const encl_event *event, encl_error *err) {
    ENCL_TRY(encl_buf_write(&c->held_payload, event->payload, err));
    c->held = *event;
    return ENCL_OK;
}

static encl_result start_held(encl_client *c, encl_error *err) {
    encl_event event = c->held;
    encl_code rc;

    event.payload = encl_buf_peek(&c->held_payload);
    c->held.type = ENCL_EV_NONE;
    rc = take_slot(c, &event, err);
    encl_buf_free(&c->held_payload);
    return rc;
}

static encl_result on_request(encl_client *c, const encl_event *event, encl_error *err) {
    if (encl_fault_on(c->enclave, ENCL_FAULT_CLOSE_ON_REQUEST)) {
        encl_client_abort(c, true);
        return ENCL_OK;
    }
    return c->slots_taken < ENCL_MAX_OPEN ? take_slot(c, event, err) : hold(c, event, err);
}

static encl_workload *find_stream(const encl_client *c, uint64_t id) {
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        encl_workload *w = c->slots[i];

        if (w != NULL && encl_workload_id(w) == id && encl_workload_addressable(w)) {
            return w;
        }
    }
    return NULL;
}

static void on_stream_data(encl_client *c, const encl_event *event) {
    encl_workload *w = find_stream(c, event->id);

    if (w != NULL) {
        encl_workload_write(w, event->payload);
    } else {
        encl_client_failed(c, event->id, "unknown stream id");
    }
}

static void on_stream_closed(encl_client *c, const encl_event *event) {
    encl_workload *w = find_stream(c, event->id);

    if (w == NULL) {
        return;
    }
    if (event->half == ENCL_HALF_BOTH) {
        c->streams_open--;
    }
    encl_workload_close(w, event->half);
}

/* ---- input */

static encl_result on_event(encl_client *c, const encl_event *event, encl_error *err) {
    switch (event->type) {
    case ENCL_EV_OPEN:
        c->open = true;
        return ENCL_OK;
    case ENCL_EV_ATTESTATION_REQUESTED:
        return attest(c, err);
    case ENCL_EV_REQUEST:
    case ENCL_EV_STREAM_OPENED:
        return on_request(c, event, err);
    case ENCL_EV_STREAM_DATA:
        on_stream_data(c, event);
        return ENCL_OK;
    case ENCL_EV_STREAM_CLOSED:
        on_stream_closed(c, event);
        return ENCL_OK;
    default:
        return encl_fail(err, ENCL_E_INTERNAL, "event %d is none of a responder", (int)event->type);
    }
}

/* One event. *used: bytes of the block that were taken; *idle: there was nothing to report. */
static encl_result step(encl_client *c, uint8_t *block, size_t len, size_t *used, bool *nothing,
                        encl_error *err) {
    encl_event event = {.type = ENCL_EV_NONE};
    encl_code rc;

    encl_buf_clear(&c->answer);
    rc = encl_session_recv(c->session, block, len, used, (int64_t)time(NULL), &c->answer, &event,
                           err);
    if (rc != ENCL_OK) {
        count(c, &c->enclave->stats.protocol_errors);
        return rc;
    }
    if (encl_buf_readable(&c->answer) != 0) {
        ENCL_TRY(answer_handshake(c, err));
    }
    *nothing = event.type == ENCL_EV_NONE;
    if (*nothing || c->ended) {
        return ENCL_OK;
    }
    return on_event(c, &event, err);
}

/* Returns how many bytes were taken: all, unless something blocks. */
static size_t consume(encl_client *c, uint8_t *block, size_t len) {
    bool nothing = false;
    size_t at = 0;

    while (!c->ended && !nothing && !blocked(c) && at < len) {
        size_t used = 0;
        encl_error err;

        if (step(c, block + at, len - at, &used, &nothing, &err) != ENCL_OK) {
            end(c, err.message);
        }
        at += used;
        watch_idle(c);
    }
    return at;
}

static void keep(encl_client *c, encl_slice rest) {
    encl_error err;

    if (!c->ended && encl_buf_write(&c->unread, rest, &err) != ENCL_OK) {
        end(c, err.message);
    }
}

static void take_unread(encl_client *c) {
    size_t n = encl_buf_readable(&c->unread);
    encl_error err;

    if (n == 0) {
        return;
    }
    n = consume(c, c->unread.data + c->unread.r, n);
    if (encl_buf_skip(&c->unread, n, &err) != ENCL_OK) {
        end(c, err.message);
    }
    if (encl_buf_readable(&c->unread) == 0) {
        encl_buf_free(&c->unread);
    }
}

/* Something was freed: goes on with what waited for it. */
static void resume(encl_client *c) {
    encl_error err;

    if (c->busy || c->ended) {
        return;
    }
    c->busy = true;
    if (c->held.type != ENCL_EV_NONE && c->slots_taken < ENCL_MAX_OPEN &&
        start_held(c, &err) != ENCL_OK) {
        end(c, err.message);
    }
    take_unread(c);
    c->busy = false;
    watch_idle(c);
    update_reading(c);
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    encl_client *c = user;
    size_t used = 0;

    (void)conn;
    if (c->ended) {
        return;
    }
    c->busy = true;
    if (encl_buf_readable(&c->unread) == 0) {
        used = consume(c, block, len);
    }
    keep(c, ENCL_SLICE(block + used, len - used));
    c->busy = false;
    update_reading(c);
}

static void on_drained(void *user, encl_conn *conn) {
    (void)conn;
    set_full(user, false);
}

/* ---- birth and death */

static void free_client(encl_client *c) {
    if (c->idle != NULL) {
        encl_timer_free(c->idle);
    }
    encl_session_free(c->session);
    encl_buf_free(&c->unread);
    encl_buf_free(&c->answer);
    encl_buf_free(&c->held_payload);
    free(c);
}

static void unlink_client(encl_client *c) {
    if (c->prev != NULL) {
        c->prev->next = c->next;
    } else {
        c->enclave->clients = c->next;
    }
    if (c->next != NULL) {
        c->next->prev = c->prev;
    }
    c->enclave->client_count--;
    encl_stat_sub(c->enclave, &c->enclave->stats.connections_open, 1);
}

static void link_client(encl_client *c) {
    c->next = c->enclave->clients;
    if (c->next != NULL) {
        c->next->prev = c;
    }
    c->enclave->clients = c;
    c->enclave->client_count++;
    count(c, &c->enclave->stats.connections_total);
    count(c, &c->enclave->stats.connections_open);
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    encl_client *c = user;

    (void)why;
    if (!c->ended) {
        stop_serving(c);
    }
    unlink_client(c);
    free_client(c);
    encl_conn_release(conn);
}

static const encl_conn_events events = {
    .received = on_received,
    .drained = on_drained,
    .closed = on_closed,
};

static encl_result client_new(encl_enclave *e, encl_conn *conn, encl_client **out,
                              encl_error *err) {
    encl_session_config config = {.role = ENCL_RESPONDER};
    encl_client *c = calloc(1, sizeof *c);
    encl_code rc;

    ENCL_ENSURE(c != NULL, err, ENCL_E_NOMEM, "out of memory for a connection");
    c->enclave = e;
    c->conn = conn;
    encl_buf_init(&c->unread, UNREAD_LIMIT);
    encl_buf_init(&c->answer, ENCL_RECORD_MAX);
    encl_buf_init(&c->held_payload, ENCL_NOISE_MAX_PLAIN);
    ENCL_TRY_GOTO(encl_session_new(&config, &c->session, err), fail);
    ENCL_TRY_GOTO(encl_timer_new(e->loop, on_idle, c, &c->idle, err), fail);
    *out = c;
    return ENCL_OK;
fail:
    free_client(c);
    return rc;
}

void encl_client_accept(encl_enclave *e, encl_conn *conn) {
    encl_client *c = NULL;
    encl_error err;

    if (e->client_count >= e->max_connections || client_new(e, conn, &c, &err) != ENCL_OK) {
        return; /* net drops a connection that nobody accepted */
    }
    link_client(c);
    encl_conn_accept(conn, &events, c);
}
