/* enclave: the local enclave, driven by an initiator's session over net. What needs certificates
 * or an independent client is tested from Python. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "enclave/enclave.h"
#include "net/net.h"
#include "session/session.h"

#define WAIT_S     10
#define EVENTS_MAX 512

/* ---- a workload: echoes until end of file, or says much; each connection has a thread */

#define MUCH ((size_t)1024 * 1024)

typedef struct workload {
    int listener;
    uint16_t port;
    pthread_t thread;
} workload;

static void *echo(void *arg) {
    int fd = (int)(intptr_t)arg;
    uint8_t block[65536];
    ssize_t n;

    while ((n = recv(fd, block, sizeof block, 0)) > 0) {
        if (block[0] == '*') {
            static const uint8_t much[MUCH];

            (void)!send(fd, much, sizeof much, MSG_NOSIGNAL);
            break;
        }
        /* A request that begins with '!' is answered once, then the connection ends. */
        if (send(fd, block, (size_t)n, MSG_NOSIGNAL) != n || block[0] == '!') {
            break;
        }
    }
    close(fd);
    return NULL;
}

static void *accept_all(void *arg) {
    workload *w = arg;
    int fd;

    while ((fd = accept(w->listener, NULL, NULL)) >= 0) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, echo, (void *)(intptr_t)fd) == 0) {
            pthread_detach(thread);
        }
    }
    return NULL;
}

/* port 0: any free one. */
static void workload_start_at(workload *w, uint16_t port) {
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    socklen_t len = sizeof at;

    w->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(w->listener >= 0);
    assert_int_equal(bind(w->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(w->listener, 256), 0);
    assert_int_equal(getsockname(w->listener, (struct sockaddr *)&at, &len), 0);
    w->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(&w->thread, NULL, accept_all, w), 0);
}

static void workload_start(workload *w) {
    workload_start_at(w, 0);
}

static void workload_stop(workload *w) {
    shutdown(w->listener, SHUT_RDWR);
    pthread_join(w->thread, NULL);
    close(w->listener);
}

/* ---- a client */

typedef struct seen {
    encl_event_type type;
    uint64_t id;
    size_t len;
    uint8_t first;
    char text[64];
} seen;

typedef struct peer {
    encl_loop *loop;
    encl_conn *conn;
    encl_policy policy;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    encl_session *session;
    seen events[EVENTS_MAX];
    size_t count, bytes, longest;
    bool closed;
    encl_error why;
} peer;

static void note(peer *p, const encl_event *event) {
    seen *s = &p->events[p->count];

    p->bytes += event->payload.len;
    p->longest = event->payload.len > p->longest ? event->payload.len : p->longest;
    if (p->count == EVENTS_MAX) {
        return;
    }
    *s = (seen){.type = event->type, .id = event->id, .len = event->payload.len};
    if (event->payload.len != 0) {
        size_t n =
            event->payload.len < sizeof s->text - 1 ? event->payload.len : sizeof s->text - 1;

        s->first = event->payload.data[0];
        memcpy(s->text, event->payload.data, n);
    }
    p->count++;
}

static void send_buf(peer *p, const encl_buf *bytes) {
    encl_error err;
    encl_buf *tx;

    if (encl_buf_readable(bytes) != 0 && encl_conn_tx_begin(p->conn, &tx, &err) == ENCL_OK) {
        (void)!encl_buf_write(tx, encl_buf_peek(bytes), &err);
        encl_conn_tx_end(p->conn);
    }
}

static void on_opened(void *user, encl_conn *conn) {
    peer *p = user;
    encl_error err;
    encl_buf out;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    (void)conn;
    pthread_mutex_lock(&p->lock);
    if (encl_session_start(p->session, &out, &err) == ENCL_OK) {
        send_buf(p, &out);
    }
    pthread_mutex_unlock(&p->lock);
    encl_buf_free(&out);
}

static bool take_one(peer *p, uint8_t **block, size_t *len) {
    encl_event event;
    encl_error err;
    encl_buf out;
    size_t used = 0;
    bool good;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    good = encl_session_recv(p->session, *block, *len, &used, (int64_t)time(NULL), &out, &event,
                             &err) == ENCL_OK;
    if (good) {
        send_buf(p, &out);
        if (event.type != ENCL_EV_NONE) {
            note(p, &event);
        }
    } else {
        p->why = err;
    }
    encl_buf_free(&out);
    *block += used;
    *len -= used;
    return good && event.type != ENCL_EV_NONE;
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    peer *p = user;

    (void)conn;
    pthread_mutex_lock(&p->lock);
    while (encl_session_get_state(p->session) != ENCL_SESSION_CLOSED && take_one(p, &block, &len)) {
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    peer *p = user;

    (void)conn;
    pthread_mutex_lock(&p->lock);
    p->closed = true;
    if (p->why.code == ENCL_OK) {
        p->why = *why;
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static const encl_conn_events peer_events = {
    .opened = on_opened,
    .received = on_received,
    .closed = on_closed,
};

typedef bool (*condition)(const peer *p, uint64_t arg);

static bool has_closed(const peer *p, uint64_t arg) {
    (void)arg;
    return p->closed;
}

static bool has_count(const peer *p, uint64_t arg) {
    return p->count >= arg;
}

static bool has_bytes(const peer *p, uint64_t arg) {
    return p->bytes >= arg;
}

static encl_code why_of(peer *p) {
    encl_code code;

    pthread_mutex_lock(&p->lock);
    code = p->why.code;
    pthread_mutex_unlock(&p->lock);
    return code;
}

static bool wait_for(peer *p, condition ready, uint64_t arg, double seconds) {
    struct timespec until;
    bool met;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&p->lock);
    while (!(met = ready(p, arg)) && pthread_cond_timedwait(&p->changed, &p->lock, &until) == 0) {
    }
    pthread_mutex_unlock(&p->lock);
    return met;
}

static void peer_start(peer *p, uint16_t port) {
    encl_ws_target target = {
        .host = "127.0.0.1", .port = port, .path = "/", .authority = "127.0.0.1"};
    encl_session_config config = {.role = ENCL_INITIATOR};
    encl_error err;
    encl_code rc;

    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    assert_int_equal(encl_policy_init(&p->policy, NULL, 0, ENCL_SLICE_NONE, true, true, &err),
                     ENCL_OK);
    config.policy = &p->policy;
    assert_int_equal(encl_session_new(&config, &p->session, &err), ENCL_OK);
    assert_int_equal(encl_loop_new(&p->loop, &err), ENCL_OK);
    pthread_mutex_lock(&p->lock); /* callbacks use conn */
    rc = encl_conn_connect_ws(p->loop, &target, &peer_events, p, &p->conn, &err);
    pthread_mutex_unlock(&p->lock);
    assert_int_equal(rc, ENCL_OK);
}

/* Connected, attested: events[0] is OPEN. */
static void peer_open(peer *p, uint16_t port) {
    peer_start(p, port);
    if (!wait_for(p, has_count, 1, WAIT_S)) {
        fail_msg("not open: %s", p->why.message);
    }
    assert_int_equal(p->events[0].type, ENCL_EV_OPEN);
}

static void peer_stop(peer *p) {
    encl_loop_free(p->loop);
    encl_conn_release(p->conn);
    encl_session_free(p->session);
    encl_policy_free(&p->policy);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
}

typedef encl_code (*maker)(encl_app *app, uint64_t *id, encl_slice payload, encl_half half,
                           encl_buf *out, encl_error *err);

static encl_code make_open(encl_app *app, uint64_t *id, encl_slice payload, encl_half half,
                           encl_buf *out, encl_error *err) {
    (void)half;
    return encl_app_open_stream(app, payload, id, out, err);
}

static encl_code make_data(encl_app *app, uint64_t *id, encl_slice payload, encl_half half,
                           encl_buf *out, encl_error *err) {
    (void)half;
    return encl_app_stream_data(app, *id, payload, out, err);
}

static encl_code make_close(encl_app *app, uint64_t *id, encl_slice payload, encl_half half,
                            encl_buf *out, encl_error *err) {
    (void)payload;
    return encl_app_stream_close(app, *id, half, out, err);
}

static encl_code make_request(encl_app *app, uint64_t *id, encl_slice payload, encl_half half,
                              encl_buf *out, encl_error *err) {
    (void)half;
    return encl_app_request(app, payload, id, out, err);
}

static uint64_t ask(peer *p, maker make, uint64_t id, encl_slice payload, encl_half half) {
    encl_error err = {0};
    encl_buf out;
    encl_code rc;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    pthread_mutex_lock(&p->lock);
    rc = make(encl_session_app(p->session), &id, payload, half, &out, &err);
    send_buf(p, &out);
    pthread_mutex_unlock(&p->lock);
    encl_buf_free(&out);
    if (rc != ENCL_OK) {
        fail_msg("%s", err.message);
    }
    return id;
}

#define TEXT(s) ENCL_SLICE((s), strlen(s))

/* ---- the enclave under test */

typedef struct fixture {
    workload workload;
    encl_enclave *enclave;
} fixture;

static encl_enclave_config config_for(const fixture *f) {
    static const uint8_t certificate[64];
    encl_enclave_config config = {
        .mode = ENCL_ENCLAVE_DEBUG,
        .workload_host = "127.0.0.1",
        .workload_port = f->workload.port,
        .idle_timeout_ms = 30000,
        .grace_ms = 2000,
        .one_shot_timeout_ms = 5000,
        .max_connections = 4,
    };

    config.document.module_id = TEXT("i-test");
    config.document.certificate = ENCL_SLICE(certificate, sizeof certificate);
    config.document.cabundle[0] = config.document.certificate;
    config.document.cabundle_len = 1;
    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        config.document.pcrs[i].len = 48;
    }
    return config;
}

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    encl_enclave_config config;
    encl_error err;

    workload_start(&f->workload);
    config = config_for(f);
    if (encl_enclave_start(&config, &f->enclave, &err) != ENCL_OK) {
        fail_msg("%s", err.message);
    }
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;

    encl_enclave_stop(f->enclave);
    workload_stop(&f->workload);
    free(f);
    return 0;
}

static encl_enclave_stats stats_of(const fixture *f) {
    encl_enclave_stats stats;

    encl_enclave_get_stats(f->enclave, &stats);
    return stats;
}

static bool slots_reach(const fixture *f, uint64_t expected) {
    for (int i = 0; i < WAIT_S * 100; i++) {
        if (stats_of(f).slots_open == expected) {
            return true;
        }
        usleep(10000);
    }
    return false;
}

static void set_faults(const fixture *f, encl_enclave_faults faults) {
    encl_error err;

    assert_int_equal(encl_enclave_set_faults(f->enclave, &faults, &err), ENCL_OK);
}

/* ---- tests */

static void a_stream_reaches_the_workload_and_back(void **state) {
    fixture *f = *state;
    uint64_t id;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    id = ask(&p, make_open, 0, TEXT("first"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, 5, WAIT_S));
    ask(&p, make_data, id, TEXT("second"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, 11, WAIT_S));
    assert_int_equal(stats_of(f).slots_open, 1);
    assert_int_equal(stats_of(f).bytes_to_workload, 11);
    assert_int_equal(stats_of(f).bytes_from_workload, 11);
    ask(&p, make_close, id, ENCL_SLICE_NONE, ENCL_HALF_BOTH);
    assert_true(slots_reach(f, 0));
    peer_stop(&p);
}

static void a_half_closed_stream_ends_when_the_workload_ends(void **state) {
    fixture *f = *state;
    uint64_t id;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    id = ask(&p, make_open, 0, TEXT("words"), ENCL_HALF_NONE);
    ask(&p, make_close, id, ENCL_SLICE_NONE, ENCL_HALF_WRITE);
    assert_true(wait_for(&p, has_count, 3, WAIT_S));
    assert_string_equal(p.events[1].text, "words");
    assert_int_equal(p.events[2].type, ENCL_EV_STREAM_CLOSED);
    assert_int_equal(stats_of(f).slots_open, 1); /* until the client says Both */
    ask(&p, make_close, id, ENCL_SLICE_NONE, ENCL_HALF_BOTH);
    assert_true(slots_reach(f, 0));
    peer_stop(&p);
}

static void chunks_are_at_most_16_kib(void **state) {
    fixture *f = *state;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    ask(&p, make_open, 0, TEXT("*"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, MUCH, WAIT_S));
    peer_stop(&p);
    assert_int_equal(p.bytes, MUCH);
    assert_int_equal(p.longest, 16384);
}

static void a_one_shot_request_is_answered_once(void **state) {
    fixture *f = *state;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    ask(&p, make_request, 0, TEXT("!whole"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_count, 2, WAIT_S));
    assert_int_equal(p.events[1].type, ENCL_EV_DATA);
    assert_string_equal(p.events[1].text, "!whole");
    assert_true(slots_reach(f, 0));
    assert_int_equal(stats_of(f).requests_total, 1);
    peer_stop(&p);
}

static bool has_echo(const peer *p, uint64_t arg) {
    for (size_t i = 0; i < p->count; i++) {
        if (p->events[i].id == arg && p->events[i].type == ENCL_EV_DATA) {
            return true;
        }
    }
    return false;
}

/* The initiator's own limit is in the way: its closed stream is given up on our side first, while
 * the enclave, which takes no more input, still counts it. */
static void the_65th_waits_for_a_both(void **state) {
    fixture *f = *state;
    uint64_t ids[ENCL_MAX_OPEN], last;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        ids[i] = ask(&p, make_open, 0, TEXT("x"), ENCL_HALF_NONE);
    }
    assert_true(wait_for(&p, has_bytes, ENCL_MAX_OPEN, WAIT_S));
    assert_int_equal(stats_of(f).slots_open, ENCL_MAX_OPEN);
    ask(&p, make_close, ids[0], ENCL_SLICE_NONE, ENCL_HALF_BOTH);
    last = ask(&p, make_request, 0, TEXT("!late"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_echo, last, WAIT_S));
    peer_stop(&p);
}

static void connections_beyond_the_limit_are_closed(void **state) {
    fixture *f = *state;
    peer p[5];

    for (size_t i = 0; i < 4; i++) {
        peer_open(&p[i], encl_enclave_port(f->enclave));
    }
    peer_start(&p[4], encl_enclave_port(f->enclave));
    assert_true(wait_for(&p[4], has_closed, 0, WAIT_S));
    assert_int_equal(p[4].count, 0);
    assert_int_equal(stats_of(f).connections_open, 4);
    for (size_t i = 0; i < 5; i++) {
        peer_stop(&p[i]);
    }
}

static void dropped_connections_end_and_new_ones_are_taken(void **state) {
    fixture *f = *state;
    peer p;

    for (int reset = 0; reset < 2; reset++) {
        peer_open(&p, encl_enclave_port(f->enclave));
        ask(&p, make_open, 0, TEXT("open"), ENCL_HALF_NONE);
        assert_true(wait_for(&p, has_bytes, 4, WAIT_S));
        encl_enclave_drop_connections(f->enclave, reset != 0);
        assert_int_equal(stats_of(f).slots_open, 0);
        assert_true(wait_for(&p, has_closed, 0, WAIT_S));
        peer_stop(&p);
    }
}

static void stopping_takes_open_streams_along(void **state) {
    fixture *f = *state;
    encl_enclave_config config = config_for(f);
    encl_enclave *second;
    encl_error err;
    peer p;

    assert_int_equal(encl_enclave_start(&config, &second, &err), ENCL_OK);
    peer_open(&p, encl_enclave_port(second));
    ask(&p, make_open, 0, TEXT("open"), ENCL_HALF_NONE);
    ask(&p, make_request, 0, TEXT("waits"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, 4, WAIT_S));
    encl_enclave_stop(second);
    assert_true(wait_for(&p, has_closed, 0, WAIT_S));
    peer_stop(&p);
}

/* The workload's port is closed first. Without another dial the stream would fail then; and with
 * another dial after the workload was up, the second stream would wait for the minute of grace. */
static void a_refused_dial_is_retried_only_before_the_workload_was_up(void **state) {
    fixture *f = *state;
    encl_enclave_config config = config_for(f);
    encl_enclave *e;
    encl_error err;
    workload late;
    peer p;

    workload_start(&late);
    workload_stop(&late);
    config.workload_port = late.port;
    config.grace_ms = 60000;
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_OK);
    peer_open(&p, encl_enclave_port(e));
    ask(&p, make_open, 0, TEXT("x"), ENCL_HALF_NONE);
    assert_false(wait_for(&p, has_count, 2, 0.1));
    workload_start_at(&late, late.port);
    assert_true(wait_for(&p, has_bytes, 1, WAIT_S));
    workload_stop(&late);
    ask(&p, make_open, 0, TEXT("y"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_count, 3, WAIT_S));
    assert_int_equal(p.events[2].type, ENCL_EV_ERROR);
    assert_non_null(strstr(p.events[2].text, "refused"));
    peer_stop(&p);
    encl_enclave_stop(e);
}

static void a_refused_dial_is_not_retried_beyond_the_grace(void **state) {
    fixture *f = *state;
    encl_enclave_config config = config_for(f);
    encl_enclave *e;
    encl_error err;
    workload gone;
    peer p;

    workload_start(&gone);
    workload_stop(&gone);
    config.workload_port = gone.port;
    config.grace_ms = 600;
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_OK);
    peer_open(&p, encl_enclave_port(e));
    ask(&p, make_open, 0, TEXT("x"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_count, 2, WAIT_S));
    assert_int_equal(p.events[1].type, ENCL_EV_ERROR);
    assert_non_null(strstr(p.events[1].text, "refused"));
    peer_stop(&p);
    encl_enclave_stop(e);
}

static void each_handshake_fault_fails_the_client(void **state) {
    static const uint32_t faults[] = {ENCL_FAULT_SHORT_HANDSHAKE, ENCL_FAULT_LONG_HANDSHAKE,
                                      ENCL_FAULT_ZERO_KEY,        ENCL_FAULT_GARBAGE_RECORD,
                                      ENCL_FAULT_WRONG_NONCE,     ENCL_FAULT_RAW_RECORD_LENGTH};
    fixture *f = *state;

    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        peer p;

        set_faults(f, (encl_enclave_faults){.mask = faults[i], .record_length = 70000});
        peer_start(&p, encl_enclave_port(f->enclave));
        for (int t = 0; t < 100 && why_of(&p) == ENCL_OK; t++) {
            (void)wait_for(&p, has_closed, 0, 0.05);
        }
        assert_int_not_equal(p.why.code, ENCL_OK);
        assert_int_equal(p.count, 0);
        peer_stop(&p);
    }
}

static void silence_is_silence(void **state) {
    static const uint32_t faults[] = {ENCL_FAULT_SILENT_HANDSHAKE, ENCL_FAULT_SILENT_ATTESTATION,
                                      ENCL_FAULT_TEXT_ONLY};
    fixture *f = *state;

    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        peer p;

        set_faults(f, (encl_enclave_faults){.mask = faults[i]});
        peer_start(&p, encl_enclave_port(f->enclave));
        assert_false(wait_for(&p, has_count, 1, 0.3));
        assert_false(p.closed);
        peer_stop(&p);
    }
}

static void split_answers_are_whole_again(void **state) {
    fixture *f = *state;
    peer p;

    set_faults(f, (encl_enclave_faults){.mask = ENCL_FAULT_SPLIT, .split = 3});
    peer_open(&p, encl_enclave_port(f->enclave));
    ask(&p, make_open, 0, TEXT("in pieces"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, 9, WAIT_S));
    assert_string_equal(p.events[1].text, "in pieces");
    peer_stop(&p);
}

static void requests_can_be_answered_by_a_reset(void **state) {
    fixture *f = *state;
    peer p;

    set_faults(f, (encl_enclave_faults){.mask = ENCL_FAULT_CLOSE_ON_REQUEST});
    peer_open(&p, encl_enclave_port(f->enclave));
    ask(&p, make_open, 0, TEXT("x"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_closed, 0, WAIT_S));
    peer_stop(&p);
}

static void hostile_plaintexts_are_sent_sealed(void **state) {
    static const uint8_t not_a_message[] = {0xf6};
    fixture *f = *state;
    encl_enclave_faults faults = {.after_attestation =
                                      ENCL_SLICE(not_a_message, sizeof not_a_message)};
    peer p;

    set_faults(f, faults);
    peer_start(&p, encl_enclave_port(f->enclave));
    for (int t = 0; t < 100 && why_of(&p) == ENCL_OK; t++) {
        (void)wait_for(&p, has_closed, 0, 0.05);
    }
    assert_int_equal(p.why.code, ENCL_E_PROTOCOL);
    assert_int_equal(p.count, 1); /* it was open by then */
    peer_stop(&p);
}

static void impossible_settings_are_refused(void **state) {
    fixture *f = *state;
    encl_enclave_config config = config_for(f);
    encl_enclave_faults faults = {.mask = ENCL_FAULT_SPLIT};
    encl_enclave *e;
    encl_error err;

    config.mode = ENCL_ENCLAVE_PRODUCTION; /* without a key */
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_E_INVALID);
    assert_null(e);
    config = config_for(f);
    config.max_connections = 0;
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_E_INVALID);
    config = config_for(f);
    config.port = encl_enclave_port(f->enclave);
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_E_CONNECT);
    assert_int_equal(encl_enclave_set_faults(f->enclave, &faults, &err), ENCL_E_INVALID);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_stream_reaches_the_workload_and_back),
        TEST(a_half_closed_stream_ends_when_the_workload_ends),
        TEST(chunks_are_at_most_16_kib),
        TEST(a_one_shot_request_is_answered_once),
        TEST(the_65th_waits_for_a_both),
        TEST(connections_beyond_the_limit_are_closed),
        TEST(dropped_connections_end_and_new_ones_are_taken),
        TEST(stopping_takes_open_streams_along),
        TEST(a_refused_dial_is_retried_only_before_the_workload_was_up),
        TEST(a_refused_dial_is_not_retried_beyond_the_grace),
        TEST(each_handshake_fault_fails_the_client),
        TEST(silence_is_silence),
        TEST(split_answers_are_whole_again),
        TEST(requests_can_be_answered_by_a_reset),
        TEST(hostile_plaintexts_are_sent_sealed),
        TEST(impossible_settings_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
