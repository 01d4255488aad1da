/* channel: who gets a slot, when it is free again, and who is woken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "local.h"
#include "streams.h"

static encl_channel *shared_channel;
static atomic_int failures;

static void *use_channel(void *arg) {
    char text[32];

    for (int round = 0; round < 20; round++) {
        uint8_t got[32];
        encl_stream *st;

        (void)snprintf(text, sizeof text, "thread %d round %d", (int)(intptr_t)arg, round);
        st = open_stream(shared_channel, text);
        read_exactly(st, got, strlen(text));
        if (memcmp(got, text, strlen(text)) != 0) {
            atomic_fetch_add(&failures, 1);
        }
        if (round % 2 == 0) {
            encl_stream_close(st);
        }
        encl_stream_release(st);
    }
    return NULL;
}

static void sixteen_threads_share_four_slots(void **state) {
    pthread_t threads[16];
    encl_channel_stats stats;

    (void)state;
    shared_channel = open_channel(4);
    for (int i = 0; i < 16; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, use_channel, (void *)(intptr_t)i), 0);
    }
    for (int i = 0; i < 16; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(failures, 0);
    encl_channel_get_stats(shared_channel, &stats);
    assert_int_equal(stats.streams_total, 16 * 20);
    assert_int_equal(stats.streams_open, 0);
    assert_int_equal(stats.slots_waiting, 0);
    assert_all_slots_come_free(shared_channel);
    done_with(shared_channel);
}

static void slots_are_granted_in_order(void **state) {
    encl_channel *ch = open_channel(1);
    encl_slot *first, *second, *third;
    encl_error err;

    (void)state;
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &first, &err), ENCL_OK);
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &second, &err), ENCL_OK);
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &third, &err), ENCL_OK);
    assert_true(encl_slot_granted(first));
    assert_false(encl_slot_granted(second));
    assert_int_equal(encl_slot_wait(second, encl_now_ns() + SECOND / 20, &err),
                     ENCL_E_POOL_TIMEOUT);
    encl_slot_release(second); /* gives its place in the queue up */
    encl_slot_release(first);
    assert_true(encl_slot_granted(third));
    encl_slot_release(third);
    done_with(ch);
}

/* More than are granted at once before any record was sent. */
#define EARLY 40

static void slots_asked_for_before_it_is_open_are_granted(void **state) {
    encl_channel *ch = start_channel(64);
    encl_slot *slots[EARLY];
    encl_stream *streams[EARLY];
    encl_error err;

    (void)state;
    for (int i = 0; i < EARLY; i++) {
        assert_int_equal(encl_channel_reserve(ch, NULL, 0, &slots[i], &err), ENCL_OK);
    }
    assert_int_equal(encl_channel_wait_open(ch, encl_now_ns() + 10 * SECOND, &err), ENCL_OK);
    for (int i = 0; i < EARLY; i++) {
        if (encl_slot_wait(slots[i], encl_now_ns() + 5 * SECOND, &err) != ENCL_OK) {
            fail_msg("slot %d: %s", i, err.message);
        }
        assert_int_equal(encl_stream_open(slots[i], ENCL_SLICE("x", 1), &streams[i], &err),
                         ENCL_OK);
    }
    for (int i = 0; i < EARLY; i++) {
        encl_slot_release(slots[i]);
        encl_stream_release(streams[i]);
    }
    done_with(ch);
}

static void *give_up_soon(void *arg) {
    usleep(50000);
    encl_slot_give_up(arg);
    return NULL;
}

static void giving_a_slot_up_wakes_whoever_waits_for_it(void **state) {
    encl_channel *ch = open_channel(1);
    encl_slot *first, *second;
    int64_t start = encl_now_ns();
    pthread_t thread;
    encl_error err;

    (void)state;
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &first, &err), ENCL_OK);
    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &second, &err), ENCL_OK);
    assert_int_equal(pthread_create(&thread, NULL, give_up_soon, second), 0);
    assert_int_equal(encl_slot_wait(second, encl_now_ns() + 10 * SECOND, &err), ENCL_E_STATE);
    assert_true(encl_now_ns() - start < 5 * SECOND);
    pthread_join(thread, NULL);
    encl_slot_release(second);
    encl_slot_release(first);
    done_with(ch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sixteen_threads_share_four_slots),
        cmocka_unit_test(slots_are_granted_in_order),
        cmocka_unit_test(slots_asked_for_before_it_is_open_are_granted),
        cmocka_unit_test(giving_a_slot_up_wakes_whoever_waits_for_it),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
