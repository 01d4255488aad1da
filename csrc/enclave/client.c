/* client: one client's connection. Callbacks of net, of a timer and of workloads each are one turn:
 * it changes what is known here (decodes, takes and gives back places, sends answers), and settle()
 * then acts on that: it goes on with what waited, ends the connection, stops or resumes reading on
 * both sides, and sets the idle timer. Nothing else in this folder does any of these.
 *
 * Stands above answers, greeting and places, which know no clients and report by what they return.
 * Everything runs in the loop's service thread, so there is no lock. */
#include "enclave/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "enclave/answers.h"
#include "enclave/faults.h"
#include "enclave/greeting.h"
#include "enclave/places.h"

/* What was read but not decoded when reading stopped: blocks that were on their way by then. */
#define UNREAD_LIMIT ((size_t)4 * 1024 * 1024)

typedef enum ending {
    GOES_ON,
    MUST_CLOSE, /* orderly, with the reason */
    MUST_RESET,
} ending;

struct encl_client {
    encl_enclave *enclave;
    encl_link link; /* in enclave->clients */
    encl_conn *conn;
    encl_answers answers; /* with the session */
    encl_places places;
    encl_buf unread; /* received, but not decoded while something blocked */
    bool open;       /* the handshake is done */
    bool attested;
    bool full; /* more than high water waits for the client */
    bool late; /* a fault: what was received is not to be taken before the timer `lateness` */
    ending ending;
    char reason[ENCL_ERROR_TEXT_MAX];

    /* What settle has done: */
    encl_timer *idle, *lateness;
    bool idle_set;
    bool paused; /* we do not read from the client */
    bool ended;  /* the session is closed, the places are empty; only conn's end is awaited */
};

static void settle(encl_client *c);

static void count(encl_client *c, uint64_t *field) {
    encl_stat_add(c->enclave, field, 1);
}

/* ---- what is known */

static bool goes_on(const encl_client *c) {
    return !c->ended && c->ending == GOES_ON;
}

static void must_close(encl_client *c, const char *reason) {
    if (goes_on(c)) {
        c->ending = MUST_CLOSE;
        (void)snprintf(c->reason, sizeof c->reason, "%s", reason);
    }
}

/* Nothing may be decoded: there is no room for the answer, or no place for what it asks, or a fault
 * has it wait. */
static bool blocked(const encl_client *c) {
    return c->full || c->late || encl_places_blocked(&c->places);
}

static void weigh_answers(encl_client *c) {
    if (encl_conn_tx_pending(c->conn) > ENCL_CONN_HIGH_WATER) {
        c->full = true;
    }
}

/* A connection that is closing already will say so itself, in its closed callback. */
static void note_sent(encl_client *c, encl_code rc, const encl_error *err) {
    if (rc == ENCL_OK) {
        weigh_answers(c);
    } else if (rc != ENCL_E_CLOSED) {
        must_close(c, err->message);
    }
}

/* ---- places */

static void answer_failure(encl_client *c, uint64_t id, const char *text) {
    encl_error err;
    encl_code rc = encl_answers_failed(&c->answers, id, text, &err);

    note_sent(c, rc, &err);
}

static void fail_place(encl_place *place, const char *text) {
    answer_failure(place->all->owner, encl_workload_id(place->workload), text);
    encl_places_give_back(place);
}

static void pass_data(encl_client *c, uint64_t id, encl_slice bytes) {
    encl_error err;
    encl_code rc = encl_answers_data(&c->answers, id, bytes, &err);

    note_sent(c, rc, &err);
}

static void pass_eof(encl_client *c, uint64_t id) {
    encl_error err;
    encl_code rc = encl_answers_eof(&c->answers, id, &err);

    note_sent(c, rc, &err);
}

/* A fault: the answer's beginning, and then its end, although the workload sends more. */
static void pass_truncated(encl_client *c, encl_place *place, encl_slice bytes, size_t after) {
    uint64_t id = encl_workload_id(place->workload);
    size_t n = encl_places_truncate(place, bytes, after);

    if (n != 0) {
        pass_data(c, id, ENCL_SLICE(bytes.data, n));
    }
    if (place->cut) {
        pass_eof(c, id);
    }
}

static void on_data(void *user, encl_workload *w, encl_slice bytes) {
    encl_place *place = user;
    encl_client *c = place->all->owner;
    size_t after;

    if (place->cut || place->mute) {
        return;
    }
    if (encl_fault_truncates(c->enclave, &after)) {
        pass_truncated(c, place, bytes, after);
    } else {
        pass_data(c, encl_workload_id(w), bytes);
    }
    settle(c);
}

static void on_eof(void *user, encl_workload *w) {
    encl_place *place = user;
    encl_client *c = place->all->owner;

    if (!place->cut && !place->mute) {
        pass_eof(c, encl_workload_id(w));
    }
    settle(c);
}

static void on_answered(void *user, encl_workload *w, encl_slice answer) {
    encl_place *place = user;
    encl_client *c = place->all->owner;
    encl_error err;
    encl_code rc = encl_answers_reply(&c->answers, encl_workload_id(w), answer, &err);

    note_sent(c, rc, &err);
    encl_places_give_back(place);
    settle(c);
}

static void on_weight(void *user, encl_workload *w) {
    encl_place *place = user;

    (void)w;
    encl_places_weigh(place);
    settle(place->all->owner);
}

static void on_workload_ended(void *user, encl_workload *w, const char *why) {
    encl_place *place = user;
    encl_client *c = place->all->owner;

    (void)w;
    if (why != NULL) {
        fail_place(place, why);
    } else {
        encl_places_give_back(place);
    }
    settle(c);
}

static const encl_workload_events workload_events = {
    .data = on_data,
    .eof = on_eof,
    .answered = on_answered,
    .weight = on_weight,
    .ended = on_workload_ended,
};

/* A workload that cannot be started answers with an error; the connection goes on. */
static encl_result start(encl_client *c, const encl_event *event, encl_error *err) {
    encl_error why;
    encl_place *place;

    ENCL_TRY(encl_places_take(&c->places, event, &workload_events, &place, err));
    if (encl_workload_start(place->workload, event->payload, &why) != ENCL_OK) {
        fail_place(place, why.message);
    }
    return ENCL_OK;
}

/* A fault. */
static bool must_reset(const encl_client *c) {
    return encl_fault_on(c->enclave, ENCL_FAULT_CLOSE_ON_REQUEST);
}

static encl_result start_or_hold(encl_client *c, const encl_event *event, encl_error *err) {
    if (must_reset(c)) {
        c->ending = MUST_RESET;
        return ENCL_OK;
    }
    return c->places.taken < ENCL_MAX_OPEN ? start(c, event, err)
                                           : encl_places_hold(&c->places, event, err);
}

/* A fault. A stream that the client wrote to while it was on stays mute for good: bytes are missing
 * in it. */
static bool is_mute(const encl_client *c, encl_place *place) {
    place->mute = place->mute || encl_fault_on(c->enclave, ENCL_FAULT_SILENT_STREAMS);
    return place->mute;
}

static void write_stream(encl_client *c, const encl_event *event) {
    encl_place *place = encl_places_find(&c->places, event->id);
    encl_error err;

    if (place == NULL) {
        answer_failure(c, event->id, "unknown stream id");
    } else if (must_reset(c)) {
        c->ending = MUST_RESET;
    } else if (is_mute(c, place)) {
        return;
    } else if (encl_workload_write(place->workload, event->payload, &err) != ENCL_OK) {
        fail_place(place, err.message);
    } else {
        encl_places_expect_answer(place);
        encl_places_weigh(place);
    }
}

static void close_stream(encl_client *c, const encl_event *event) {
    encl_place *place = encl_places_find(&c->places, event->id);

    if (place != NULL && encl_places_close(place, event->half)) {
        encl_places_give_back(place);
    }
}

/* ---- input */

static encl_result attest(encl_client *c, encl_error *err) {
    ENCL_TRY(encl_greeting_attest(&c->answers, &c->attested, err));
    weigh_answers(c);
    return ENCL_OK;
}

static encl_result take_event(encl_client *c, const encl_event *event, encl_error *err) {
    switch (event->type) {
    case ENCL_EV_OPEN:
        c->open = true;
        return ENCL_OK;
    case ENCL_EV_ATTESTATION_REQUESTED:
        return attest(c, err);
    case ENCL_EV_REQUEST:
    case ENCL_EV_STREAM_OPENED:
        return start_or_hold(c, event, err);
    case ENCL_EV_STREAM_DATA:
        write_stream(c, event);
        return ENCL_OK;
    case ENCL_EV_STREAM_CLOSED:
        close_stream(c, event);
        return ENCL_OK;
    default:
        return encl_fail(err, ENCL_E_INTERNAL, "event %d is none of a responder", (int)event->type);
    }
}

/* One event. *used: bytes of the block that were taken; *nothing: there was none to report. */
static encl_result step(encl_client *c, uint8_t *block, size_t len, size_t *used, bool *nothing,
                        encl_error *err) {
    encl_event event = {.type = ENCL_EV_NONE};
    encl_buf *made = &c->answers.made;
    encl_code rc;

    encl_buf_clear(made);
    rc = encl_session_recv(c->answers.session, block, len, used, (int64_t)time(NULL), made, &event,
                           err);
    if (rc != ENCL_OK) {
        count(c, &c->enclave->stats.protocol_errors);
        return rc;
    }
    if (encl_buf_readable(made) != 0) {
        ENCL_TRY(encl_greeting_handshake(&c->answers, err));
    }
    *nothing = event.type == ENCL_EV_NONE;
    return *nothing ? ENCL_OK : take_event(c, &event, err);
}

/* Returns how many bytes were taken: all, unless something blocks. */
static size_t consume(encl_client *c, uint8_t *block, size_t len) {
    bool nothing = false;
    size_t at = 0;

    while (goes_on(c) && !nothing && !blocked(c) && at < len) {
        size_t used = 0;
        encl_error err;

        if (step(c, block + at, len - at, &used, &nothing, &err) != ENCL_OK) {
            must_close(c, err.message);
        }
        at += used;
    }
    return at;
}

static void keep(encl_client *c, encl_slice rest) {
    encl_error err;

    if (goes_on(c) && encl_buf_write(&c->unread, rest, &err) != ENCL_OK) {
        must_close(c, err.message);
    }
}

/* A fault: what comes now is taken later, with all that comes meanwhile. */
static void delay(encl_client *c) {
    uint64_t delay_ms = encl_fault_delay_ms(c->enclave);

    if (delay_ms != 0 && !c->late) {
        c->late = true;
        encl_timer_set(c->lateness, delay_ms);
    }
}

/* ---- settle: what a turn ends with */

static void take_unread(encl_client *c) {
    size_t n = encl_buf_readable(&c->unread);
    encl_error err;

    n = consume(c, c->unread.data + c->unread.r, n);
    if (encl_buf_skip(&c->unread, n, &err) != ENCL_OK) {
        must_close(c, err.message);
    }
    if (encl_buf_readable(&c->unread) == 0) {
        encl_buf_free(&c->unread);
    }
}

static void start_held(encl_client *c) {
    encl_event event;
    encl_buf payload;
    encl_error err;

    if (!encl_places_take_held(&c->places, &event, &payload)) {
        return;
    }
    if (start(c, &event, &err) != ENCL_OK) {
        must_close(c, err.message);
    }
    encl_buf_free(&payload);
}

/* First the request that waited for a place, then what was received behind it. */
static void serve_waiting(encl_client *c) {
    start_held(c);
    if (encl_buf_readable(&c->unread) != 0) {
        take_unread(c);
    }
}

static void stop_serving(encl_client *c) {
    c->ended = true;
    encl_timer_stop(c->idle);
    encl_timer_stop(c->lateness);
    encl_session_close(c->answers.session);
    encl_places_drop(&c->places);
}

static void end(encl_client *c) {
    stop_serving(c);
    if (c->ending == MUST_RESET) {
        encl_conn_abort(c->conn, true);
    } else {
        encl_conn_close(c->conn, 0, c->reason);
    }
}

static void set_reading(encl_client *c) {
    bool paused = blocked(c);

    encl_places_pause(&c->places, c->full);
    if (c->paused != paused) {
        c->paused = paused;
        encl_conn_pause(c->conn, paused);
    }
}

/* The time begins anew with each turn, and does not run while a stream is open or while we are the
 * ones who do not read. */
static void watch_idle(encl_client *c) {
    bool watch = c->open && c->places.streams_open == 0 && !blocked(c);

    if (watch) {
        encl_timer_set(c->idle, c->enclave->idle_timeout_ms);
    } else if (c->idle_set) {
        encl_timer_stop(c->idle);
    }
    c->idle_set = watch;
}

/* The last thing of every turn: c may have ended by then. */
static void settle(encl_client *c) {
    if (goes_on(c)) {
        serve_waiting(c);
    }
    if (c->ended) {
        return;
    }
    if (c->ending != GOES_ON) {
        end(c);
        return;
    }
    set_reading(c);
    watch_idle(c);
}

/* ---- callbacks of the connection and of the timer */

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    encl_client *c = user;
    size_t used = 0;

    (void)conn;
    if (c->ended) {
        return;
    }
    delay(c);
    if (encl_buf_readable(&c->unread) == 0) {
        used = consume(c, block, len);
    }
    keep(c, ENCL_SLICE(block + used, len - used));
    settle(c);
}

static void on_drained(void *user, encl_conn *conn) {
    encl_client *c = user;

    (void)conn;
    c->full = false;
    settle(c);
}

static void on_idle(void *arg) {
    encl_client *c = arg;

    c->idle_set = false;
    must_close(c, "idle timeout");
    settle(c);
}

static void on_late(void *arg) {
    encl_client *c = arg;

    c->late = false;
    settle(c);
}

static void free_client(encl_client *c) {
    encl_timer_free(c->idle);
    encl_timer_free(c->lateness);
    encl_places_drop(&c->places);
    encl_answers_free(&c->answers);
    encl_buf_free(&c->unread);
    free(c);
}

static void unlink_client(encl_client *c) {
    encl_link_remove(&c->link);
    c->enclave->client_count--;
    encl_stat_sub(c->enclave, &c->enclave->stats.connections_open, 1);
}

static void link_client(encl_client *c) {
    encl_list_prepend(&c->enclave->clients, &c->link);
    c->enclave->client_count++;
    count(c, &c->enclave->stats.connections_total);
    count(c, &c->enclave->stats.connections_open);
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    encl_client *c = user;

    (void)why;
    unlink_client(c);
    free_client(c);
    encl_conn_release(conn);
}

static const encl_conn_events conn_events = {
    .received = on_received,
    .drained = on_drained,
    .closed = on_closed,
};

/* ---- for enclave.c */

static encl_result client_new(encl_enclave *e, encl_conn *conn, encl_client **out,
                              encl_error *err) {
    encl_client *c = calloc(1, sizeof *c);
    encl_code rc;

    ENCL_ENSURE(c != NULL, err, ENCL_E_NOMEM, "out of memory for a connection");
    c->enclave = e;
    c->conn = conn;
    encl_buf_init(&c->unread, UNREAD_LIMIT);
    encl_places_init(&c->places, e, c);
    ENCL_TRY_GOTO(encl_answers_init(&c->answers, e, conn, err), fail);
    ENCL_TRY_GOTO(encl_timer_new(e->loop, on_idle, c, &c->idle, err), fail);
    ENCL_TRY_GOTO(encl_timer_new(e->loop, on_late, c, &c->lateness, err), fail);
    *out = c;
    return ENCL_OK;
fail:
    free_client(c);
    return rc;
}

void encl_client_accept(encl_enclave *e, encl_conn *conn) {
    bool full = e->client_count >= e->max_connections || encl_fault_on(e, ENCL_FAULT_FULL);
    encl_client *c = NULL;
    encl_error err;

    if (full || client_new(e, conn, &c, &err) != ENCL_OK) {
        return; /* net drops a connection that nobody accepted */
    }
    link_client(c);
    encl_conn_accept(conn, &conn_events, c);
}

/* A connection that is being closed in an orderly way ends at once too. */
void encl_clients_abort(encl_enclave *e, bool reset) {
    for (encl_link *at = encl_list_first(&e->clients); at != NULL;
         at = encl_list_next(&e->clients, at)) {
        encl_client *c = ENCL_OWNER(at, encl_client, link);

        if (!c->ended) {
            stop_serving(c);
        }
        encl_conn_abort(c->conn, reset);
    }
}

/* By the timer, even where it is to be taken at once: so each client has a turn of its own. */
void encl_clients_delay_anew(encl_enclave *e) {
    uint64_t delay_ms = encl_fault_delay_ms(e);

    for (encl_link *at = encl_list_first(&e->clients); at != NULL;
         at = encl_list_next(&e->clients, at)) {
        const encl_client *c = ENCL_OWNER(at, encl_client, link);

        if (c->late && !c->ended) {
            encl_timer_set(c->lateness, delay_ms);
        }
    }
}
