/* channel: a reader that takes its time holds a bounded amount, and nobody else up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "channel/state.h"
#include "local.h"
#include "streams.h"

static void a_slow_reader_holds_no_more_than_its_bound(void **state) {
    encl_channel *ch = open_channel(64);
    encl_stream *st = open_stream(ch, "");
    const size_t total = 24 * 1024 * 1024;
    uint8_t *bytes = calloc(1, total);
    size_t put, most = 0, read = 0;
    pthread_t thread;
    pour p = {st, bytes, total};

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, pour_in, &p), 0);
    for (int i = 0; i < 20 || most == 0; i++) {
        usleep(10000);
        put = encl_stream_buffered(st);
        most = put > most ? put : most;
    }
    /* The high water mark, and at most one block of what had been read when it was passed. */
    assert_in_range(most, 1, ENCL_STREAM_HIGH_WATER + 512 * 1024);
    while (read < total) {
        encl_error err;

        assert_int_equal(
            encl_stream_read(st, bytes, 65536, encl_now_ns() + 10 * SECOND, &put, &err), ENCL_OK);
        read += put;
    }
    pthread_join(thread, NULL);
    free(bytes);
    encl_stream_release(st);
    done_with(ch);
}

static bool eventually_holds(encl_stream *st, size_t at_least) {
    int64_t until = encl_now_ns() + 30 * SECOND;

    while (encl_stream_buffered(st) < at_least) {
        if (encl_now_ns() > until) {
            return false;
        }
        usleep(1000);
    }
    return true;
}

static void assert_nothing_more_is_held(encl_stream *st) {
    size_t before;

    do {
        before = encl_stream_buffered(st);
        usleep(100000);
    } while (encl_stream_buffered(st) != before);
    assert_in_range(before, ENCL_STREAM_HIGH_WATER, ENCL_STREAM_HIGH_WATER + 512 * 1024);
}

static void a_slow_reader_does_not_stop_the_others(void **state) {
    const size_t total = 10 * 1024 * 1024; /* less than may be held */
    encl_channel *ch = open_channel(64);
    encl_stream *slow = open_stream(ch, "");
    uint8_t *bytes = calloc(1, total);
    pthread_t thread;
    pour p = {slow, bytes, total};

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, pour_in, &p), 0);
    assert_true(eventually_holds(slow, ENCL_STREAM_HIGH_WATER));
    assert_nothing_more_is_held(slow);
    for (int i = 0; i < 20; i++) {
        encl_stream *st = open_stream(ch, "hello");
        uint8_t got[5];

        read_exactly(st, got, sizeof got);
        encl_stream_release(st);
    }
    assert_in_range(encl_stream_buffered(slow), ENCL_STREAM_HIGH_WATER, total);
    read_exactly(slow, bytes, total);
    pthread_join(thread, NULL);
    free(bytes);
    encl_stream_release(slow);
    assert_all_slots_come_free(ch);
    done_with(ch);
}

static void *pour_until_refused(void *arg) {
    pour *p = arg;
    encl_error err;
    size_t put;

    if (encl_stream_write(p->st, ENCL_SLICE(p->bytes, p->len), encl_now_ns() + 30 * SECOND, &put,
                          &err) == ENCL_OK) {
        print_message("expected the channel to close before all was sent\n");
        abort();
    }
    return NULL;
}

static bool is_paused(encl_channel *ch) {
    bool paused;

    encl_lock(&ch->lock);
    paused = ch->paused;
    encl_unlock(&ch->lock);
    return paused;
}

/* The peer's close frame ends the connection in good order. It stands behind the bytes that were
 * not read, so a connection that stays paused would not see it. */
static void closing_reads_on_behind_a_slow_reader(void **state) {
    const size_t total = 64 * 1024 * 1024; /* more than sockets and queues hold together */
    encl_channel *ch = open_channel(64);
    encl_stream *slow = open_stream(ch, "");
    uint8_t *bytes = calloc(1, total);
    pthread_t thread;
    pour p = {slow, bytes, total};

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, pour_until_refused, &p), 0);
    assert_true(eventually_holds(slow, ENCL_STREAM_HIGH_WATER));
    assert_nothing_more_is_held(slow);
    assert_true(is_paused(ch));
    encl_channel_close(ch, NULL);
    assert_false(is_paused(ch));
    pthread_join(thread, NULL);
    free(bytes);
    encl_stream_release(slow);
    done_with(ch);
}

static void what_a_slow_reader_was_sent_is_there_when_it_comes(void **state) {
    const size_t total = ENCL_CHANNEL_UNREAD_MAX + 2 * 1024 * 1024;
    encl_channel *ch = open_channel(64);
    encl_stream *slow = open_stream(ch, ""), *waiting = open_stream(ch, "");
    uint8_t *sent = malloc(total), *got = malloc(total), byte;
    pthread_t thread;
    pour p = {slow, sent, total};
    size_t n;
    encl_error err;

    (void)state;
    for (size_t i = 0; i < total; i++) {
        sent[i] = (uint8_t)rand();
    }
    assert_int_equal(pthread_create(&thread, NULL, pour_in, &p), 0);
    assert_true(eventually_holds(slow, ENCL_STREAM_HIGH_WATER));
    /* Nothing will come for the other one: while it waits, all is read that may be held. */
    for (int i = 0; i < 300 && encl_stream_buffered(slow) < ENCL_CHANNEL_UNREAD_MAX; i++) {
        assert_int_equal(encl_stream_read(waiting, &byte, 1, encl_now_ns() + SECOND / 10, &n, &err),
                         ENCL_E_READ_TIMEOUT);
    }
    assert_in_range(encl_stream_buffered(slow), ENCL_CHANNEL_UNREAD_MAX,
                    ENCL_CHANNEL_UNREAD_MAX + 512 * 1024);
    read_exactly(slow, got, total);
    pthread_join(thread, NULL);
    assert_memory_equal(sent, got, total);
    free(sent);
    free(got);
    encl_stream_release(waiting);
    encl_stream_release(slow);
    done_with(ch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slow_reader_holds_no_more_than_its_bound),
        cmocka_unit_test(a_slow_reader_does_not_stop_the_others),
        cmocka_unit_test(what_a_slow_reader_was_sent_is_there_when_it_comes),
        cmocka_unit_test(closing_reads_on_behind_a_slow_reader),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
