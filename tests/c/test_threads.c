/* channel: sixteen threads do everything that can be done with one, at once. What counts is what
 * ThreadSanitizer and AddressSanitizer see, and that each of them comes to an end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "local.h"
#include "session/session.h"

#define THREADS 16
#define ROUNDS  40

typedef struct worker {
    encl_channel *ch;
    encl_notifier *notifier;
    unsigned number, seed;
    bool strict; /* nothing may fail */
} worker;

static atomic_int failures;

static bool check(const worker *w, bool ok, const char *what, const encl_error *err) {
    if (!ok && w->strict) {
        atomic_fetch_add(&failures, 1);
        print_message("thread %u: %s: %s\n", w->number, what, err->message);
    }
    return ok;
}

static void either_way(encl_code rc) {
    (void)rc;
}

static int64_t soon(void) {
    return encl_now_ns() + 20 * SECOND;
}

static unsigned draw(worker *w, unsigned below) {
    w->seed = w->seed * 1103515245u + 12345u;
    return (w->seed >> 16) % below;
}

static encl_slot *reserved(worker *w) {
    encl_slot *slot = NULL;
    encl_error err;

    if (check(w, encl_channel_reserve(w->ch, NULL, 0, &slot, &err) == ENCL_OK, "reserve", &err) &&
        !check(w, encl_slot_wait(slot, soon(), &err) == ENCL_OK, "slot", &err)) {
        encl_slot_release(slot);
        slot = NULL;
    }
    return slot;
}

static encl_stream *opened(worker *w, encl_slice first) {
    encl_slot *slot = reserved(w);
    encl_stream *st = NULL;
    encl_error err;

    if (slot != NULL) {
        (void)check(w, encl_stream_open(slot, first, &st, &err) == ENCL_OK, "open", &err);
        encl_slot_release(slot);
    }
    return st;
}

/* ---- what they do ---- */

static void echo(worker *w) {
    static const uint8_t bytes[40000];
    encl_stream *st = opened(w, ENCL_SLICE("x", 1));
    size_t size = 1 + draw(w, sizeof bytes), put = 0, got = 0, n;
    uint8_t block[8192];
    encl_error err;
    bool ok = st != NULL;

    if (ok) {
        ok = check(w, encl_stream_write(st, ENCL_SLICE(bytes, size), soon(), &put, &err) == ENCL_OK,
                   "write", &err);
    }
    while (ok && got < size + 1) {
        ok = check(w, encl_stream_read(st, block, sizeof block, soon(), &n, &err) == ENCL_OK,
                   "read", &err);
        got += n;
    }
    encl_stream_release(st);
}

static void leave_a_stream_with_data_coming(worker *w) {
    static const uint8_t bytes[ENCL_STREAM_CHUNK];
    encl_stream *st = opened(w, ENCL_SLICE(bytes, sizeof bytes));

    if (st != NULL && draw(w, 2) == 0) {
        encl_stream_close(st);
    }
    encl_stream_release(st);
}

static void half_close(worker *w) {
    encl_stream *st = opened(w, ENCL_SLICE("half", 4));
    uint8_t block[64];
    size_t n = 1;
    encl_error err;

    if (st == NULL) {
        return;
    }
    (void)check(w, encl_stream_write_eof(st, &err) == ENCL_OK, "write_eof", &err);
    while (n != 0 &&
           check(w, encl_stream_read(st, block, sizeof block, soon(), &n, &err) == ENCL_OK,
                 "read to the end", &err)) {
    }
    (void)encl_stream_at_eof(st);
    (void)encl_stream_is_closed(st);
    encl_stream_release(st);
}

static void request(worker *w) {
    encl_slot *slot = reserved(w);
    encl_request *rq = NULL;
    encl_slice answer;
    encl_error err;

    if (slot == NULL) {
        return;
    }
    if (check(w, encl_request_start(slot, ENCL_SLICE(CLOSING, 4), &rq, &err) == ENCL_OK, "request",
              &err) &&
        check(w, encl_request_result(rq, soon(), &answer, &err) == ENCL_OK, "answer", &err)) {
        (void)check(w, answer.len == 4, "answer's size", &err);
    }
    encl_request_release(rq);
    encl_slot_release(slot);
}

static void abandon_a_request(worker *w) {
    encl_slot *slot = reserved(w);
    encl_request *rq = NULL;
    encl_slice answer;
    encl_error err;

    if (slot != NULL &&
        check(w, encl_request_start(slot, ENCL_SLICE(CLOSING, 4), &rq, &err) == ENCL_OK, "request",
              &err)) {
        either_way(encl_request_notify(rq, w->notifier, 1, &err));
        if (encl_request_result(rq, encl_now_ns() + SECOND / 1000, &answer, &err) != ENCL_OK) {
            encl_request_abandon(rq);
        }
    }
    encl_request_release(rq);
    encl_slot_release(slot);
}

static void time_out(worker *w) {
    encl_stream *st = opened(w, ENCL_SLICE_NONE);
    uint8_t byte;
    size_t n;
    encl_error err;

    if (st != NULL) {
        (void)check(w,
                    encl_stream_read(st, &byte, 1, encl_now_ns() + SECOND / 500, &n, &err) ==
                        ENCL_E_READ_TIMEOUT,
                    "a timeout", &err);
    }
    encl_stream_release(st);
}

static void be_told(worker *w) {
    struct pollfd pfd = {.fd = encl_notifier_fd(w->notifier), .events = POLLIN};
    encl_stream *st = opened(w, ENCL_SLICE("told", 4));
    uint64_t tokens[8];
    uint8_t block[64];
    size_t n;
    encl_error err;

    if (st == NULL) {
        return;
    }
    (void)check(
        w, encl_stream_notify(st, ENCL_READABLE | ENCL_WRITABLE, w->notifier, 2, &err) == ENCL_OK,
        "notify", &err);
    (void)poll(&pfd, 1, 20000);
    (void)encl_notifier_drain(w->notifier, tokens, 8);
    (void)encl_stream_readable(st);
    either_way(encl_stream_notify(st, 0, NULL, 0, &err));
    either_way(encl_stream_write(st, ENCL_SLICE("more", 4), ENCL_POLL, &n, &err));
    either_way(encl_stream_read(st, block, sizeof block, ENCL_POLL, &n, &err));
    either_way(encl_stream_notify(st, ENCL_READABLE, w->notifier, 3, &err));
    encl_stream_release(st);
}

static void attest(worker *w) {
    encl_doc *doc = NULL;
    uint64_t number;
    encl_error err;

    /* No more than sixteen may be unanswered, abandoned ones among them. */
    if (encl_channel_start_attest(w->ch, w->notifier, 4, &number, &err) != ENCL_OK) {
        (void)check(w, err.code == ENCL_E_STATE, "ask", &err);
        return;
    }
    if (draw(w, 3) == 0) {
        encl_channel_abandon_attest(w->ch, number);
        return;
    }
    if (!check(w, encl_channel_finish_attest(w->ch, number, soon(), &doc, &err) == ENCL_OK,
               "a fresh document", &err)) {
        encl_channel_abandon_attest(w->ch, number);
    }
    encl_doc_release(doc);
}

static void look(worker *w) {
    encl_channel_stats stats;
    uint8_t hash[32];
    encl_doc *doc;
    encl_error err;

    encl_channel_get_stats(w->ch, &stats);
    (void)encl_channel_get_state(w->ch);
    (void)encl_channel_why(w->ch, &err);
    (void)check(w, encl_channel_handshake_hash(w->ch, hash, &err) == ENCL_OK, "hash", &err);
    if (check(w, encl_channel_attestation(w->ch, &doc, &err) == ENCL_OK, "document", &err)) {
        encl_doc_release(doc);
    }
}

static void give_a_slot_up(worker *w) {
    encl_slot *slot;
    encl_error err;

    if (check(w, encl_channel_reserve(w->ch, w->notifier, 5, &slot, &err) == ENCL_OK, "reserve",
              &err)) {
        (void)encl_slot_granted(slot);
        either_way(encl_slot_wait(slot, encl_now_ns() + SECOND / 1000, &err));
        if (draw(w, 2) == 0) {
            encl_slot_give_up(slot);
        }
        encl_slot_release(slot);
    }
}

static void (*const acts[])(worker *) = {
    echo,
    leave_a_stream_with_data_coming,
    half_close,
    request,
    abandon_a_request,
    time_out,
    be_told,
    attest,
    look,
    echo,
    give_a_slot_up,
};

static void *work(void *arg) {
    worker *w = arg;

    for (unsigned round = 0; round < ROUNDS; round++) {
        acts[draw(w, sizeof acts / sizeof *acts)](w);
    }
    return NULL;
}

/* ---- many of them ---- */

typedef struct crew {
    worker workers[THREADS];
    pthread_t threads[THREADS];
} crew;

static void begin(crew *c, encl_channel *ch, bool strict, unsigned seed) {
    encl_error err;

    atomic_store(&failures, 0);
    for (unsigned i = 0; i < THREADS; i++) {
        c->workers[i] = (worker){.ch = ch, .number = i, .seed = seed + i * 7919, .strict = strict};
        assert_int_equal(encl_notifier_new(&c->workers[i].notifier, &err), ENCL_OK);
        assert_int_equal(pthread_create(&c->threads[i], NULL, work, &c->workers[i]), 0);
    }
}

static void finish(crew *c) {
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(c->threads[i], NULL);
        encl_notifier_release(c->workers[i].notifier);
    }
    assert_int_equal(atomic_load(&failures), 0);
}

static void sixteen_threads_do_everything(void **state) {
    encl_channel *ch = open_channel(8);
    int64_t until = soon();
    encl_channel_stats stats;
    crew c;

    (void)state;
    begin(&c, ch, true, 1);
    finish(&c);
    do {
        usleep(1000);
        encl_channel_get_stats(ch, &stats);
    } while (stats.slots_in_use != 0 && encl_now_ns() < until);
    assert_int_equal(stats.slots_in_use, 0);
    assert_int_equal(stats.slots_waiting, 0);
    done_with(ch);
}

static void one_thread_closes_in_the_middle(void **state) {
    crew c;

    (void)state;
    for (unsigned i = 0; i < 6; i++) {
        encl_channel *ch = open_channel(8);

        begin(&c, ch, false, 100 + i);
        usleep(5000 * i);
        encl_channel_close(ch, NULL);
        finish(&c);
        done_with(ch);
    }
}

static void closing_races_with_connecting(void **state) {
    crew c;

    (void)state;
    for (unsigned i = 0; i < 6; i++) {
        encl_channel *ch = start_channel(8);

        begin(&c, ch, false, 200 + i);
        usleep(300 * i);
        encl_channel_close(ch, NULL);
        finish(&c);
        done_with(ch);
    }
}

static void the_connection_is_lost_in_the_middle(void **state) {
    crew c;

    (void)state;
    for (unsigned i = 0; i < 6; i++) {
        encl_channel *ch = open_channel(8);

        begin(&c, ch, false, 300 + i);
        usleep(5000 * i);
        encl_enclave_drop_connections(enclave, i % 2 == 0);
        finish(&c);
        done_with(ch);
    }
}

static void the_enclave_misbehaves(void **state) {
    static const uint32_t masks[] = {
        ENCL_FAULT_WRONG_NONCE,
        ENCL_FAULT_GARBAGE_RECORD,
        ENCL_FAULT_SPLIT,
        ENCL_FAULT_SHORT_HANDSHAKE,
        ENCL_FAULT_ZERO_KEY,
        ENCL_FAULT_CLOSE_ON_REQUEST,
        ENCL_FAULT_HALF_RECORD_LOST,
        ENCL_FAULT_RAW_RECORD_LENGTH,
        ENCL_FAULT_UPGRADE_503,
        ENCL_FAULT_FULL,
        ENCL_FAULT_SLOW,
        ENCL_FAULT_TRUNCATED,
        ENCL_FAULT_SILENT_STREAMS,
    };
    encl_enclave_faults faults = {.split = 7, .record_length = 3, .delay_ms = 5};
    encl_error err;
    crew c;

    (void)state;
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        encl_channel *ch;

        faults.mask = masks[i];
        assert_int_equal(encl_enclave_set_faults(enclave, &faults, &err), ENCL_OK);
        ch = start_channel(8);
        begin(&c, ch, false, 400 + (unsigned)i);
        either_way(encl_channel_wait_open(ch, encl_now_ns() + SECOND, &err));
        usleep(20000);
        encl_channel_close(ch, NULL);
        finish(&c);
        done_with(ch);
    }
    faults.mask = 0;
    assert_int_equal(encl_enclave_set_faults(enclave, &faults, &err), ENCL_OK);
}

/* ---- one stream, several threads ---- */

static void *read_all(void *arg) {
    uint8_t block[4096];
    encl_error err;
    size_t n = 1;

    while (n != 0 && encl_stream_read(arg, block, sizeof block, soon(), &n, &err) == ENCL_OK) {
    }
    return NULL;
}

static void *write_much(void *arg) {
    static const uint8_t bytes[2 * 1024 * 1024];
    encl_error err;
    size_t put;

    either_way(encl_stream_write(arg, ENCL_SLICE(bytes, sizeof bytes), soon(), &put, &err));
    return NULL;
}

static void *watch_it(void *arg) {
    encl_notifier *n;
    uint64_t tokens[8];
    encl_error err;

    if (encl_notifier_new(&n, &err) != ENCL_OK) {
        return NULL;
    }
    for (int i = 0; i < 50; i++) {
        either_way(encl_stream_notify(arg, i % 3, n, (uint64_t)i, &err));
        (void)encl_stream_readable(arg);
        (void)encl_stream_buffered(arg);
        (void)encl_notifier_drain(n, tokens, 8);
    }
    encl_notifier_release(n);
    return NULL;
}

static void *close_it(void *arg) {
    usleep(20000);
    encl_stream_close(arg);
    return NULL;
}

static void one_stream_is_used_by_many(void **state) {
    static void *(*const tasks[])(void *) = {read_all, read_all, write_much, write_much,
                                             watch_it, watch_it, close_it,   close_it};
    encl_channel *ch = open_channel(8);
    pthread_t threads[THREADS];
    worker w = {.ch = ch, .strict = true};

    (void)state;
    for (int round = 0; round < 4; round++) {
        encl_stream *st = opened(&w, ENCL_SLICE_NONE);

        assert_non_null(st);
        for (int i = 0; i < THREADS; i++) {
            assert_int_equal(pthread_create(&threads[i], NULL, tasks[i / 2], st), 0);
        }
        for (int i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
        }
        encl_stream_release(st);
    }
    done_with(ch);
}

/* Reading goes on for others, and stops again, over and over. */
static void readers_that_stop_meet_readers_that_wait(void **state) {
    encl_channel *ch = open_channel(8);
    worker w = {.ch = ch, .strict = true};
    encl_stream *slow[2];
    pthread_t pourers[2];
    crew c;

    (void)state;
    for (int i = 0; i < 2; i++) {
        slow[i] = opened(&w, ENCL_SLICE_NONE);
        assert_non_null(slow[i]);
        assert_int_equal(pthread_create(&pourers[i], NULL, write_much, slow[i]), 0);
    }
    begin(&c, ch, true, 500);
    finish(&c);
    for (int i = 0; i < 2; i++) {
        encl_stream_close(slow[i]);
        pthread_join(pourers[i], NULL);
        encl_stream_release(slow[i]);
    }
    done_with(ch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sixteen_threads_do_everything),
        cmocka_unit_test(one_thread_closes_in_the_middle),
        cmocka_unit_test(closing_races_with_connecting),
        cmocka_unit_test(the_connection_is_lost_in_the_middle),
        cmocka_unit_test(the_enclave_misbehaves),
        cmocka_unit_test(one_stream_is_used_by_many),
        cmocka_unit_test(readers_that_stop_meet_readers_that_wait),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
