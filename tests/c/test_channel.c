/* channel: a verified connection to a local enclave, in one process, with an echoing workload. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "channel/state.h"
#include "local.h"
#include "streams.h"

/* ---- tests ---- */

static void a_stream_carries_bytes_both_ways(void **state) {
    encl_channel *ch = open_channel(64);
    encl_stream *st = open_stream(ch, "hello");
    uint8_t got[5];

    (void)state;
    read_exactly(st, got, sizeof got);
    assert_memory_equal(got, "hello", 5);
    encl_stream_release(st);
    done_with(ch);
}

static void many_bytes_come_back_in_order(void **state) {
    const size_t total = 8 * 1024 * 1024;
    encl_channel *ch = open_channel(64);
    encl_stream *st = open_stream(ch, "");
    uint8_t *sent = malloc(total), *got = malloc(total);
    pthread_t thread;
    pour p = {st, sent, total};

    (void)state;
    for (size_t i = 0; i < total; i++) {
        sent[i] = (uint8_t)rand();
    }
    assert_int_equal(pthread_create(&thread, NULL, pour_in, &p), 0);
    read_exactly(st, got, total);
    pthread_join(thread, NULL);
    assert_memory_equal(sent, got, total);
    free(sent);
    free(got);
    encl_stream_release(st);
    done_with(ch);
}

static void *abandon_soon(void *arg) {
    usleep(50000);
    encl_request_abandon(arg);
    return NULL;
}

/* The echoing workload never closes its answer, so none comes. */
static void abandoning_wakes_whoever_waits_for_the_answer(void **state) {
    encl_channel *ch = open_channel(1);
    encl_request *rq;
    encl_slot *slot;
    encl_slice answer;
    pthread_t thread;
    encl_error err;

    (void)state;
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &slot, &err), ENCL_OK);
    assert_int_equal(encl_request_start(slot, ENCL_SLICE("x", 1), &rq, &err), ENCL_OK);
    assert_int_equal(pthread_create(&thread, NULL, abandon_soon, rq), 0);
    assert_int_equal(encl_request_result(rq, encl_now_ns() + 10 * SECOND, &answer, &err),
                     ENCL_E_INVALID);
    pthread_join(thread, NULL);
    encl_request_release(rq);
    encl_slot_release(slot);
    done_with(ch);
}

static void *close_soon(void *arg) {
    usleep(50000);
    encl_channel_close(arg, NULL);
    return NULL;
}

static void closing_wakes_whoever_waits(void **state) {
    encl_channel *ch = open_channel(1);
    encl_stream *st = open_stream(ch, "x");
    encl_slot *slot;
    pthread_t thread;
    uint8_t byte;
    size_t got;
    encl_error err;

    (void)state;
    read_exactly(st, &byte, 1);
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &slot, &err), ENCL_OK);
    assert_int_equal(pthread_create(&thread, NULL, close_soon, ch), 0);
    assert_int_equal(encl_stream_read(st, &byte, 1, ENCL_FOREVER, &got, &err), ENCL_E_CLOSED);
    assert_int_equal(encl_slot_wait(slot, ENCL_FOREVER, &err), ENCL_E_CLOSED);
    pthread_join(thread, NULL);
    encl_slot_release(slot);
    encl_stream_release(st);
    done_with(ch);
}

static void stages_are_reached_in_order(void **state) {
    encl_channel *ch = start_channel(1);
    int64_t at[ENCL_STAGES], before = 0;
    encl_error err;

    (void)state;
    assert_int_equal(encl_channel_wait_open(ch, ENCL_FOREVER, &err), ENCL_OK);
    encl_channel_get_stages(ch, at);
    for (int stage = 0; stage < ENCL_STAGES; stage++) {
        if (stage == ENCL_STAGE_SECURED) {
            assert_int_equal(at[stage], 0); /* no TLS */
            continue;
        }
        assert_true(at[stage] != 0 && at[stage] >= before);
        before = at[stage];
    }
    done_with(ch);
}

static void tokens_are_announced(void **state) {
    encl_channel *ch = start_channel(64);
    encl_notifier *n;
    encl_stream *st;
    encl_error err;
    uint64_t tokens[4];
    struct pollfd pfd;
    uint8_t byte;
    size_t got;

    (void)state;
    assert_int_equal(encl_notifier_new(&n, &err), ENCL_OK);
    pfd = (struct pollfd){.fd = encl_notifier_fd(n), .events = POLLIN};
    assert_int_equal(encl_channel_notify_open(ch, n, 7, &err), ENCL_OK);
    assert_int_equal(poll(&pfd, 1, 10000), 1);
    assert_int_equal(encl_notifier_drain(n, tokens, 4), 1);
    assert_int_equal(tokens[0], 7);
    assert_int_equal(encl_channel_wait_open(ch, ENCL_POLL, &err), ENCL_OK);
    assert_int_equal(encl_channel_notify_stage(ch, 0, n, 9, &err), ENCL_OK);
    assert_int_equal(encl_notifier_drain(n, tokens, 4), 1);
    assert_int_equal(tokens[0], 9);
    encl_channel_withdraw(ch, n, 9);
    st = open_stream(ch, "");
    assert_int_equal(encl_stream_read(st, &byte, 1, ENCL_POLL, &got, &err), ENCL_E_READ_TIMEOUT);
    assert_int_equal(encl_stream_notify(st, ENCL_READABLE, n, 8, &err), ENCL_OK);
    assert_int_equal(encl_notifier_drain(n, tokens, 4), 0);
    assert_int_equal(encl_stream_write(st, ENCL_SLICE("y", 1), ENCL_POLL, &got, &err), ENCL_OK);
    assert_int_equal(poll(&pfd, 1, 10000), 1);
    assert_int_equal(encl_notifier_drain(n, tokens, 4), 1);
    assert_int_equal(tokens[0], 8);
    read_exactly(st, &byte, 1);
    assert_int_equal(byte, 'y');
    encl_stream_release(st);
    encl_notifier_release(n);
    done_with(ch);
}

typedef struct called {
    encl_notifier *n;
    int times;
} called;

static void note_call(void *arg) {
    called *c = arg;
    encl_error err;

    c->times++;
    assert_int_equal(encl_notifier_reserve(c->n, &err), ENCL_OK); /* takes the notifier's lock */
    encl_notifier_unreserve(c->n);
}

static void a_notifier_calls_without_its_lock_while_tokens_are_left(void **state) {
    called c = {0};
    uint64_t token;
    encl_error err;

    (void)state;
    assert_int_equal(encl_notifier_new_calling(note_call, &c, &c.n, &err), ENCL_OK);
    for (uint64_t i = 0; i < 3; i++) {
        assert_int_equal(encl_notifier_reserve(c.n, &err), ENCL_OK);
        encl_notifier_post(c.n, i);
    }
    assert_int_equal(c.times, 1);
    alarm(30); /* instead of a deadlock for ever */
    for (uint64_t i = 0; i < 3; i++) {
        assert_int_equal(encl_notifier_drain(c.n, &token, 1), 1);
        assert_int_equal(token, i);
        assert_int_equal(c.times, i < 2 ? 2 + i : 3);
    }
    alarm(0);
    encl_notifier_release(c.n);
}

/* What of a stream's registrations the core still counts as waiting. */
typedef struct waits {
    bool reads, wants;
    size_t wanting;
} waits;

static waits waits_of(encl_stream *st) {
    waits now;

    encl_lock(&st->t.ch->lock);
    now.reads = watches_armed(&st->t.on_readable) || st->t.readers != 0;
    now.wants = st->t.turn != 0;
    now.wanting = st->t.ch->writers_waiting;
    encl_unlock(&st->t.ch->lock);
    return now;
}

/* More than the connection takes at once. */
static void fill_up(encl_stream *st) {
    static uint8_t block[1024 * 1024];
    encl_error err;
    size_t put;

    while (encl_stream_write(st, ENCL_SLICE(block, sizeof block), ENCL_POLL, &put, &err) ==
           ENCL_OK) {
    }
    assert_int_equal(err.code, ENCL_E_WRITE_TIMEOUT);
}

static void who_stops_waiting_leaves_nothing_behind(void **state) {
    encl_channel *ch = open_channel(64);
    encl_stream *st = open_stream(ch, "");
    encl_notifier *n;
    encl_error err;
    uint64_t tokens[8];
    struct pollfd pfd;
    uint8_t byte;
    size_t got;

    (void)state;
    assert_int_equal(encl_notifier_new(&n, &err), ENCL_OK);
    pfd = (struct pollfd){.fd = encl_notifier_fd(n), .events = POLLIN};

    /* A look that takes no time, and a wait that ran out. */
    do {
        fill_up(st);
        assert_false(waits_of(st).wants);
    } while (encl_stream_write(st, ENCL_SLICE("x", 1), 1, &got, &err) == ENCL_OK);
    assert_int_equal(err.code, ENCL_E_WRITE_TIMEOUT);
    assert_false(waits_of(st).wants);
    assert_int_equal(waits_of(st).wanting, 0);

    /* One that was withdrawn before it was told. */
    fill_up(st);
    assert_int_equal(encl_stream_notify(st, ENCL_READABLE | ENCL_WRITABLE, n, 1, &err), ENCL_OK);
    encl_stream_withdraw(st, n, 2); /* somebody else's */
    encl_stream_withdraw(st, n, 1);
    assert_false(waits_of(st).reads);
    assert_false(waits_of(st).wants);
    assert_int_equal(waits_of(st).wanting, 0);

    (void)encl_notifier_drain(n, tokens, 8); /* there may have been room at once */

    /* One that was told and never came to write. */
    assert_int_equal(encl_stream_notify(st, ENCL_WRITABLE, n, 3, &err), ENCL_OK);
    assert_int_equal(poll(&pfd, 1, 10000), 1);
    assert_int_equal(encl_notifier_drain(n, tokens, 8), 1);
    assert_int_equal(tokens[0], 3);
    encl_stream_withdraw(st, n, 3);
    assert_false(waits_of(st).wants);
    assert_int_equal(waits_of(st).wanting, 0);
    encl_stream_release(st);

    /* One whose stream ended meanwhile. */
    st = open_stream(ch, "");
    fill_up(st);
    assert_int_equal(encl_stream_notify(st, ENCL_WRITABLE, n, 4, &err), ENCL_OK);
    encl_stream_close(st);
    assert_int_equal(poll(&pfd, 1, 10000), 1);
    assert_int_equal(waits_of(st).wanting, 0);
    encl_stream_withdraw(st, n, 4);
    assert_int_equal(waits_of(st).wanting, 0);
    assert_int_equal(encl_stream_read(st, &byte, 1, ENCL_POLL, &got, &err), ENCL_E_INVALID);
    encl_stream_release(st);
    encl_notifier_release(n);
    done_with(ch);
}

static void everybody_who_waits_is_told(void **state) {
    encl_channel *ch = open_channel(64);
    encl_stream *st = open_stream(ch, "");
    encl_notifier *mine, *other;
    encl_error err;
    uint64_t tokens[8];
    struct pollfd pfd[2];
    size_t put;

    (void)state;
    assert_int_equal(encl_notifier_new(&mine, &err), ENCL_OK);
    assert_int_equal(encl_notifier_new(&other, &err), ENCL_OK);
    pfd[0] = (struct pollfd){.fd = encl_notifier_fd(mine), .events = POLLIN};
    pfd[1] = (struct pollfd){.fd = encl_notifier_fd(other), .events = POLLIN};
    for (uint64_t token = 1; token <= 5; token++) {
        assert_int_equal(encl_stream_notify(st, ENCL_READABLE, mine, token, &err), ENCL_OK);
        assert_int_equal(encl_stream_notify(st, ENCL_READABLE, mine, token, &err), ENCL_OK);
    }
    assert_int_equal(encl_stream_notify(st, ENCL_READABLE, other, 1, &err), ENCL_OK);
    encl_stream_withdraw(st, mine, 2);
    assert_int_equal(encl_stream_write(st, ENCL_SLICE("y", 1), ENCL_POLL, &put, &err), ENCL_OK);
    assert_int_equal(poll(&pfd[0], 1, 10000), 1);
    assert_int_equal(poll(&pfd[1], 1, 10000), 1);
    encl_lock(&ch->lock); /* whoever tells them does so with it held */
    encl_unlock(&ch->lock);
    assert_int_equal(encl_notifier_drain(mine, tokens, 8), 4);
    assert_int_equal(encl_notifier_drain(other, tokens, 8), 1);
    /* Told once; and once more to whoever asks again. */
    assert_int_equal(encl_stream_notify(st, ENCL_READABLE, mine, 5, &err), ENCL_OK);
    assert_int_equal(encl_notifier_drain(mine, tokens, 8), 1);
    assert_int_equal(tokens[0], 5);
    encl_stream_release(st);
    encl_notifier_release(mine);
    encl_notifier_release(other);
    done_with(ch);
}

/* The thread that has the lock, as the service thread has it while it verifies. */
static void looking_waits_for_no_lock(void **state) {
    encl_channel *ch = open_channel(64);
    encl_stream *st = open_stream(ch, "hello");
    encl_channel_stats stats;
    encl_slot *slot;
    encl_error err;
    uint8_t got[5];
    size_t n;

    (void)state;
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &slot, &err), ENCL_OK);
    assert_int_equal(encl_slot_wait(slot, encl_now_ns() + 10 * SECOND, &err), ENCL_OK);
    while (encl_stream_buffered(st) != 5) {
        usleep(1000);
    }
    encl_lock(&ch->lock);
    assert_int_equal(encl_channel_get_state(ch), ENCL_CHANNEL_OPEN);
    assert_true(encl_slot_granted(slot));
    assert_true(encl_stream_readable(st));
    assert_false(encl_stream_at_eof(st));
    assert_false(encl_stream_is_closed(st));
    assert_int_equal(encl_stream_buffered(st), 5);
    encl_channel_get_stats(ch, &stats);
    assert_int_equal(stats.streams_open, 1);
    assert_int_equal(stats.streams_total, 1);
    assert_int_equal(stats.slots_in_use, 2);
    assert_false(encl_stream_read_now(st, got, sizeof got, &n));
    encl_unlock(&ch->lock);
    while (!encl_stream_read_now(st, got, sizeof got, &n)) {
        usleep(1000); /* the service thread may have it */
    }
    assert_int_equal(n, 5);
    assert_memory_equal(got, "hello", 5);
    assert_false(encl_stream_read_now(st, got, sizeof got, &n));
    encl_slot_release(slot);
    encl_stream_release(st);
    encl_channel_get_stats(ch, &stats);
    assert_int_equal(stats.streams_open, 0);
    done_with(ch);
}

static void fresh_documents_are_collected_by_number(void **state) {
    encl_channel *ch = open_channel(64);
    uint64_t first, second;
    encl_doc *doc;
    encl_error err;

    (void)state;
    assert_int_equal(encl_channel_start_attest(ch, NULL, 0, &first, &err), ENCL_OK);
    assert_int_equal(encl_channel_start_attest(ch, NULL, 0, &second, &err), ENCL_OK);
    assert_int_equal(encl_channel_finish_attest(ch, second, encl_now_ns() + 5 * SECOND, &doc, &err),
                     ENCL_OK);
    assert_int_equal(encl_doc_get(doc)->form, ENCL_DOC_STUB);
    encl_doc_release(doc);
    assert_int_equal(encl_channel_finish_attest(ch, first, encl_now_ns() + 5 * SECOND, &doc, &err),
                     ENCL_OK);
    encl_doc_release(doc);
    assert_int_equal(encl_channel_finish_attest(ch, first, ENCL_POLL, &doc, &err), ENCL_E_STATE);
    done_with(ch);
}

static void no_more_than_sixteen_documents_are_kept(void **state) {
    encl_channel *ch = open_channel(64);
    uint64_t numbers[17];
    encl_doc *doc;
    encl_error err;

    (void)state;
    for (int i = 0; i < 16; i++) {
        assert_int_equal(encl_channel_start_attest(ch, NULL, 0, &numbers[i], &err), ENCL_OK);
    }
    assert_int_equal(encl_channel_start_attest(ch, NULL, 0, &numbers[16], &err), ENCL_E_STATE);
    assert_int_equal(
        encl_channel_finish_attest(ch, numbers[15], encl_now_ns() + 5 * SECOND, &doc, &err),
        ENCL_OK);
    encl_doc_release(doc);
    assert_int_equal(encl_channel_start_attest(ch, NULL, 0, &numbers[16], &err), ENCL_OK);
    done_with(ch);
}

static void nothing_is_sent_before_it_is_open(void **state) {
    encl_channel *ch = start_channel(64);
    encl_slot *slot;
    encl_stream *st;
    uint64_t number;
    encl_error err;
    encl_code rc;

    (void)state;
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &slot, &err), ENCL_OK);
    rc = encl_stream_open(slot, ENCL_SLICE("secret", 6), &st, &err);
    if (encl_channel_get_state(ch) == ENCL_CHANNEL_CONNECTING) {
        assert_int_equal(rc, ENCL_E_STATE);
        assert_null(st);
        assert_int_equal(encl_channel_start_attest(ch, NULL, 0, &number, &err), ENCL_E_STATE);
    }
    encl_stream_release(st);
    encl_slot_release(slot);
    done_with(ch);
}

#define PACED_BYTES ((size_t)3 * 1024 * 1024)

typedef struct upload {
    encl_stream *stream;
    encl_code rc;
} upload;

static void *send_it_all(void *arg) {
    static uint8_t bytes[PACED_BYTES];
    upload *u = arg;
    encl_error err;
    size_t put;

    u->rc = encl_stream_write(u->stream, ENCL_SLICE(bytes, sizeof bytes),
                              encl_now_ns() + 60 * SECOND, &put, &err);
    return NULL;
}

/* Two uploads at once wait for each other, and for the time that the server needs. The service
 * thread has to sleep meanwhile: it turns for records and for timers, not for the time that goes
 * by. */
static void a_paced_upload_does_not_keep_the_loop_busy(void **state) {
    static uint8_t block[65536];
    encl_channel *ch = open_channel(4);
    encl_channel_stats stats;
    pthread_t threads[2];
    upload uploads[2];
    size_t left[2] = {PACED_BYTES + 1, PACED_BYTES + 1};
    uint64_t before, turns, records;
    encl_error err;

    (void)state;
    before = encl_loop_turns(ch->loop);
    for (int i = 0; i < 2; i++) {
        encl_slot *slot;

        assert_int_equal(encl_channel_reserve(ch, NULL, 0, &slot, &err), ENCL_OK);
        assert_int_equal(encl_slot_wait(slot, encl_now_ns() + 5 * SECOND, &err), ENCL_OK);
        assert_int_equal(encl_stream_open(slot, ENCL_SLICE("x", 1), &uploads[i].stream, &err),
                         ENCL_OK);
        encl_slot_release(slot);
        assert_int_equal(pthread_create(&threads[i], NULL, send_it_all, &uploads[i]), 0);
    }
    while (left[0] + left[1] != 0) {
        for (int i = 0; i < 2; i++) {
            size_t got;
            encl_code rc = left[i] == 0
                               ? ENCL_E_READ_TIMEOUT
                               : encl_stream_read(uploads[i].stream, block, sizeof block,
                                                  encl_now_ns() + SECOND / 100, &got, &err);

            if (rc != ENCL_E_READ_TIMEOUT) {
                assert_int_equal(rc, ENCL_OK);
                assert_true(got != 0);
                left[i] -= got;
            }
        }
    }
    turns = encl_loop_turns(ch->loop) - before;
    encl_channel_get_stats(ch, &stats);
    records = stats.records_in + stats.records_out;
    print_message("%llu records took %llu turns\n", (unsigned long long)records,
                  (unsigned long long)turns);
    assert_true(turns <= 6 * records);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(uploads[i].rc, ENCL_OK);
        encl_stream_release(uploads[i].stream);
    }
    done_with(ch);
}

static void a_forked_child_is_refused(void **state) {
    encl_channel *ch = open_channel(64);
    encl_stream *st = open_stream(ch, "a");
    encl_error err;
    uint8_t byte;
    size_t n;
    int status;
    pid_t child;

    (void)state;
    read_exactly(st, &byte, 1);
    child = fork();
    if (child == 0) {
        encl_slot *slot;
        int bad = 0;

        bad |= encl_stream_write(st, ENCL_SLICE("b", 1), ENCL_POLL, &n, &err) != ENCL_E_FORKED;
        bad |= encl_stream_read(st, &byte, 1, ENCL_POLL, &n, &err) != ENCL_E_FORKED;
        bad |= encl_channel_reserve(ch, NULL, 0, &slot, &err) != ENCL_E_FORKED;
        bad |= encl_channel_get_state(ch) != ENCL_CHANNEL_CLOSED;
        encl_stream_release(st);
        encl_channel_close(ch, NULL);
        encl_channel_release(ch);
        _exit(bad);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(encl_stream_write(st, ENCL_SLICE("c", 1), ENCL_FOREVER, &n, &err), ENCL_OK);
    read_exactly(st, &byte, 1);
    assert_int_equal(byte, 'c');
    encl_stream_release(st);
    done_with(ch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_carries_bytes_both_ways),
        cmocka_unit_test(many_bytes_come_back_in_order),
        cmocka_unit_test(abandoning_wakes_whoever_waits_for_the_answer),
        cmocka_unit_test(closing_wakes_whoever_waits),
        cmocka_unit_test(tokens_are_announced),
        cmocka_unit_test(a_notifier_calls_without_its_lock_while_tokens_are_left),
        cmocka_unit_test(stages_are_reached_in_order),
        cmocka_unit_test(who_stops_waiting_leaves_nothing_behind),
        cmocka_unit_test(everybody_who_waits_is_told),
        cmocka_unit_test(looking_waits_for_no_lock),
        cmocka_unit_test(fresh_documents_are_collected_by_number),
        cmocka_unit_test(no_more_than_sixteen_documents_are_kept),
        cmocka_unit_test(nothing_is_sent_before_it_is_open),
        cmocka_unit_test(a_paced_upload_does_not_keep_the_loop_busy),
        cmocka_unit_test(a_forked_child_is_refused),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
