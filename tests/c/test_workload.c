/* workload: one stream or one-shot request of a local enclave, with this test in its client's
 * place. Everything is called in the enclave's service thread, as its client would. What is freed
 * within an event is looked at under AddressSanitizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "enclave/workload.h"

#define MUCH ((size_t)8 * 1024 * 1024)

typedef enum event { DATA, EOF_SEEN, ANSWERED, WEIGHT, ENDED, EVENTS } event;

typedef struct fixture {
    int listener, peer; /* the workload's side; -1 while there is none */
    encl_enclave *enclave;
    encl_workload *w; /* service thread only, like inside and free_in */
    bool inside;      /* a call of workload.h is being made */
    event free_in;    /* the event in which w is freed; EVENTS: in none */

    encl_mutex lock; /* guards all below */
    pthread_cond_t changed;
    unsigned seen[EVENTS];
    size_t bytes, answer_len;
    char why[128];
    bool broken; /* an event from within a call, or of too many bytes */
} fixture;

/* ---- the owner */

static void note(fixture *f, event which) {
    encl_lock(&f->lock);
    f->broken = f->broken || f->inside;
    f->seen[which]++;
    pthread_cond_broadcast(&f->changed);
    encl_unlock(&f->lock);
    if (f->free_in == which && f->w != NULL) {
        encl_workload_free(f->w);
        f->w = NULL;
    }
}

static void on_data(void *user, encl_workload *w, encl_slice bytes) {
    fixture *f = user;

    (void)w;
    encl_lock(&f->lock);
    f->broken = f->broken || bytes.len > ENCL_WORKLOAD_CHUNK;
    f->bytes += bytes.len;
    encl_unlock(&f->lock);
    note(f, DATA);
}

static void on_eof(void *user, encl_workload *w) {
    (void)w;
    note(user, EOF_SEEN);
}

static void on_answered(void *user, encl_workload *w, encl_slice answer) {
    fixture *f = user;

    (void)w;
    encl_lock(&f->lock);
    f->answer_len = answer.len;
    encl_unlock(&f->lock);
    note(f, ANSWERED);
}

static void on_weight(void *user, encl_workload *w) {
    (void)w;
    note(user, WEIGHT);
}

static void on_ended(void *user, encl_workload *w, const char *why) {
    fixture *f = user;

    (void)w;
    encl_lock(&f->lock);
    strncpy(f->why, why == NULL ? "" : why, sizeof f->why - 1);
    encl_unlock(&f->lock);
    note(f, ENDED);
}

static const encl_workload_events events = {
    .data = on_data,
    .eof = on_eof,
    .answered = on_answered,
    .weight = on_weight,
    .ended = on_ended,
};

static void wait_for(fixture *f, event which) {
    bool came;

    encl_lock(&f->lock);
    while (f->seen[which] == 0 && f->seen[ENDED] == 0) {
        encl_cond_wait(&f->changed, &f->lock);
    }
    came = f->seen[which] != 0;
    encl_unlock(&f->lock);
    if (!came) { /* the end is the last that it tells */
        fail_msg("expected event %d, got the end: %s", (int)which, f->why);
    }
}

static unsigned count_of(fixture *f, event which) {
    unsigned n;

    encl_lock(&f->lock);
    n = f->seen[which];
    encl_unlock(&f->lock);
    return n;
}

/* ---- calls, each made in the service thread */

typedef struct call {
    fixture *f;
    encl_workload_kind kind;
    bool silent;
    encl_slice bytes;
    encl_half half;
    encl_code rc;
    bool told; /* what the call returned besides */
    char message[128];
} call;

static void run(call *c, encl_task task) {
    assert_true(encl_loop_run(c->f->enclave->loop, task, c));
}

static void keep_message(call *c, const encl_error *err) {
    if (c->rc != ENCL_OK) {
        strncpy(c->message, err->message, sizeof c->message - 1);
    }
}

static void task_start(void *arg) {
    call *c = arg;
    fixture *f = c->f;
    encl_error err;

    f->inside = true;
    c->rc = encl_workload_new(f->enclave, c->kind, c->silent, 7, &events, f, &f->w, &err);
    if (c->rc == ENCL_OK) {
        c->rc = encl_workload_start(f->w, c->bytes, &err);
    }
    keep_message(c, &err);
    f->inside = false;
}

static void task_write(void *arg) {
    call *c = arg;
    encl_error err;

    c->f->inside = true;
    c->rc = encl_workload_write(c->f->w, c->bytes, &err);
    keep_message(c, &err);
    c->told = encl_workload_full(c->f->w);
    c->f->inside = false;
}

static void task_close(void *arg) {
    call *c = arg;

    c->f->inside = true;
    c->told = encl_workload_close(c->f->w, c->half);
    c->f->inside = false;
}

static void task_is_full(void *arg) {
    call *c = arg;

    c->told = encl_workload_full(c->f->w);
}

static void task_free(void *arg) {
    call *c = arg;

    c->f->inside = true;
    if (c->f->w != NULL) {
        encl_workload_free(c->f->w);
        c->f->w = NULL;
    }
    c->f->inside = false;
}

static void start(fixture *f, encl_workload_kind kind, const char *payload) {
    call c = {.f = f, .kind = kind, .bytes = ENCL_SLICE(payload, strlen(payload))};

    run(&c, task_start);
    assert_int_equal(c.rc, ENCL_OK);
}

static call write_bytes(fixture *f, const void *bytes, size_t len) {
    call c = {.f = f, .bytes = ENCL_SLICE(bytes, len)};

    run(&c, task_write);
    return c;
}

static bool close_half(fixture *f, encl_half half) {
    call c = {.f = f, .half = half};

    run(&c, task_close);
    return c.told;
}

static bool is_full(fixture *f) {
    call c = {.f = f};

    run(&c, task_is_full);
    return c.told;
}

/* ---- the workload's side */

static void peer_accept(fixture *f) {
    f->peer = accept(f->listener, NULL, NULL);
    assert_true(f->peer >= 0);
}

static void peer_read(fixture *f, size_t len) {
    static char block[65536];

    while (len != 0) {
        ssize_t n = recv(f->peer, block, len < sizeof block ? len : sizeof block, 0);

        assert_true(n > 0);
        len -= (size_t)n;
    }
}

/* As much as the workload's other side sends before it is freed. */
static void peer_read_to_the_end(fixture *f, size_t most) {
    static char block[65536];
    ssize_t n = 1;

    while (most != 0 && n > 0) {
        n = recv(f->peer, block, most < sizeof block ? most : sizeof block, 0);
        most -= n > 0 ? (size_t)n : 0;
    }
}

static void peer_send(fixture *f, const char *text) {
    assert_int_equal(send(f->peer, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static void peer_close(fixture *f) {
    close(f->peer);
    f->peer = -1;
}

static int set_up(void **state) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    fixture *f = calloc(1, sizeof *f);
    encl_enclave_config config = {.mode = ENCL_ENCLAVE_STUB,
                                  .workload_host = "127.0.0.1",
                                  .one_shot_timeout_ms = 60000,
                                  .max_connections = 1};
    socklen_t len = sizeof at;
    encl_error err;

    assert_non_null(f);
    assert_true(encl_mutex_init(&f->lock));
    pthread_cond_init(&f->changed, NULL);
    f->free_in = EVENTS;
    f->peer = -1;
    f->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(f->listener, 4), 0);
    assert_int_equal(getsockname(f->listener, (struct sockaddr *)&at, &len), 0);
    config.workload_port = ntohs(at.sin_port);
    config.document.module_id = ENCL_SLICE("i-test", 6);
    assert_int_equal(encl_enclave_start(&config, &f->enclave, &err), ENCL_OK);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    fixture *f = *state;
    call c = {.f = f};

    run(&c, task_free);
    assert_false(f->broken);
    encl_enclave_stop(f->enclave);
    if (f->peer >= 0) {
        close(f->peer);
    }
    close(f->listener);
    pthread_cond_destroy(&f->changed);
    encl_mutex_destroy(&f->lock);
    free(f);
    return 0;
}

/* ---- tests */

static void a_stream_reports_bytes_and_its_end(void **state) {
    fixture *f = *state;

    start(f, ENCL_WORKLOAD_STREAM, "hello");
    peer_accept(f);
    peer_read(f, 5);
    peer_send(f, "answer");
    wait_for(f, DATA);
    peer_close(f);
    wait_for(f, EOF_SEEN);
    assert_int_equal(f->bytes, 6);
    assert_int_equal(count_of(f, ENDED), 0); /* not before the client has closed it */
    assert_true(close_half(f, ENCL_HALF_BOTH));
    assert_int_equal(count_of(f, ENDED), 0); /* the call has said so */
}

static void a_one_shot_reports_its_whole_answer(void **state) {
    fixture *f = *state;

    start(f, ENCL_WORKLOAD_ONE_SHOT, "ask");
    peer_accept(f);
    peer_read(f, 3);
    peer_send(f, "two ");
    peer_send(f, "parts");
    peer_close(f);
    wait_for(f, ANSWERED);
    assert_int_equal(f->answer_len, 9);
    assert_int_equal(count_of(f, DATA) + count_of(f, EOF_SEEN), 0);
}

static void a_failed_write_is_the_calls_result_alone(void **state) {
    fixture *f = *state;
    call c;

    start(f, ENCL_WORKLOAD_STREAM, "x");
    peer_accept(f);
    peer_read(f, 1);
    assert_false(close_half(f, ENCL_HALF_WRITE));
    c = write_bytes(f, "y", 1);
    assert_int_equal(c.rc, ENCL_E_STATE);
    assert_non_null(strstr(c.message, "takes no more bytes"));
    assert_int_equal(count_of(f, ENDED), 0);
}

static void a_queue_that_fills_in_a_call_is_reported_when_it_empties(void **state) {
    static const uint8_t much[MUCH];
    fixture *f = *state;

    start(f, ENCL_WORKLOAD_STREAM, "x");
    peer_accept(f);
    peer_read(f, 1);
    assert_true(write_bytes(f, much, MUCH).told);
    assert_int_equal(count_of(f, WEIGHT), 0);
    peer_read(f, MUCH);
    wait_for(f, WEIGHT);
    assert_false(is_full(f));
}

static void what_is_written_is_flushed_before_the_end(void **state) {
    static const uint8_t much[MUCH];
    fixture *f = *state;

    start(f, ENCL_WORKLOAD_STREAM, "x");
    peer_accept(f);
    peer_read(f, 1);
    assert_int_equal(write_bytes(f, much, MUCH).rc, ENCL_OK);
    assert_false(close_half(f, ENCL_HALF_BOTH));
    peer_read(f, MUCH);
    wait_for(f, ENDED);
    assert_string_equal(f->why, "");
}

static void a_silent_one_takes_everything_and_dials_nothing(void **state) {
    fixture *f = *state;
    call c = {.f = f, .kind = ENCL_WORKLOAD_STREAM, .silent = true, .bytes = ENCL_SLICE("x", 1)};

    run(&c, task_start);
    assert_int_equal(c.rc, ENCL_OK);
    assert_int_equal(write_bytes(f, "y", 1).rc, ENCL_OK);
    assert_false(close_half(f, ENCL_HALF_WRITE));
    assert_true(close_half(f, ENCL_HALF_BOTH));
}

static void an_owner_may_free_it_at_bytes(void **state) {
    fixture *f = *state;

    f->free_in = DATA;
    start(f, ENCL_WORKLOAD_STREAM, "x");
    peer_accept(f);
    peer_read(f, 1);
    for (int i = 0; i < 8; i++) {
        (void)!send(f->peer, (char[65536]){0}, 65536, MSG_NOSIGNAL);
    }
    wait_for(f, DATA);
    assert_int_equal(count_of(f, DATA), 1);
}

static void an_owner_may_free_it_at_the_end_of_file(void **state) {
    fixture *f = *state;

    f->free_in = EOF_SEEN;
    start(f, ENCL_WORKLOAD_STREAM, "x");
    peer_accept(f);
    peer_read(f, 1); /* closing with something unread would be a reset */
    peer_close(f);
    wait_for(f, EOF_SEEN);
}

static void an_owner_may_free_it_at_its_answer(void **state) {
    fixture *f = *state;

    f->free_in = ANSWERED;
    start(f, ENCL_WORKLOAD_ONE_SHOT, "x");
    peer_accept(f);
    peer_read(f, 1);
    peer_close(f);
    wait_for(f, ANSWERED);
    assert_int_equal(count_of(f, ENDED), 0);
}

static void an_owner_may_free_it_when_its_queue_is_empty(void **state) {
    static const uint8_t much[MUCH];
    fixture *f = *state;

    f->free_in = WEIGHT;
    start(f, ENCL_WORKLOAD_STREAM, "x");
    peer_accept(f);
    peer_read(f, 1);
    assert_true(write_bytes(f, much, MUCH).told);
    /* It is freed while some bytes may be unsent, so the peer may miss the last ones. */
    peer_read_to_the_end(f, MUCH);
    wait_for(f, WEIGHT);
}

static void an_owner_may_free_it_when_it_is_over(void **state) {
    fixture *f = *state;
    struct linger reset = {.l_onoff = 1};

    f->free_in = ENDED;
    start(f, ENCL_WORKLOAD_STREAM, "x");
    peer_accept(f);
    peer_read(f, 1);
    assert_int_equal(setsockopt(f->peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
    peer_close(f);
    wait_for(f, ENDED);
    assert_string_not_equal(f->why, "");
}

static void an_owner_may_free_it_while_it_dials(void **state) {
    fixture *f = *state;
    call c = {.f = f};

    start(f, ENCL_WORKLOAD_STREAM, "x");
    run(&c, task_free);
    assert_int_equal(count_of(f, ENDED), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_stream_reports_bytes_and_its_end),
        TEST(a_one_shot_reports_its_whole_answer),
        TEST(a_failed_write_is_the_calls_result_alone),
        TEST(a_queue_that_fills_in_a_call_is_reported_when_it_empties),
        TEST(what_is_written_is_flushed_before_the_end),
        TEST(a_silent_one_takes_everything_and_dials_nothing),
        TEST(an_owner_may_free_it_at_bytes),
        TEST(an_owner_may_free_it_at_the_end_of_file),
        TEST(an_owner_may_free_it_at_its_answer),
        TEST(an_owner_may_free_it_when_its_queue_is_empty),
        TEST(an_owner_may_free_it_when_it_is_over),
        TEST(an_owner_may_free_it_while_it_dials),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
