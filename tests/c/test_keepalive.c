/* net/keepalive: when a peer is asked for a sign of life, and when it is given up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "net/keepalive.h"

#define S     ((int64_t)1000000000)
#define START (1000 * S)
#define EVERY (20 * S)

static encl_keepalive started(void) {
    encl_keepalive k;

    encl_keepalive_start(&k, EVERY, START);
    return k;
}

static void a_silent_peer_is_asked_and_then_given_up(void **state) {
    encl_keepalive k = started();

    (void)state;
    assert_int_equal(encl_keepalive_next(&k), START + EVERY);
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + EVERY - 1), ENCL_KEEPALIVE_WAIT);
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + EVERY), ENCL_KEEPALIVE_PING);
    assert_int_equal(encl_keepalive_next(&k), START + 2 * EVERY);
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + 2 * EVERY - 1), ENCL_KEEPALIVE_WAIT);
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + 2 * EVERY), ENCL_KEEPALIVE_DEAD);
}

static void any_byte_begins_the_silence_anew(void **state) {
    encl_keepalive k = started();

    (void)state;
    assert_int_equal(encl_keepalive_look(&k, START + 15 * S, false, START + EVERY),
                     ENCL_KEEPALIVE_WAIT);
    assert_int_equal(encl_keepalive_next(&k), START + 15 * S + EVERY);
    assert_int_equal(encl_keepalive_look(&k, START + 15 * S, false, START + 35 * S),
                     ENCL_KEEPALIVE_PING);
    /* The pong, or whatever else, a moment before it would be given up. */
    assert_int_equal(encl_keepalive_look(&k, START + 54 * S, false, START + 55 * S),
                     ENCL_KEEPALIVE_WAIT);
    assert_int_equal(encl_keepalive_next(&k), START + 74 * S);
    assert_int_equal(encl_keepalive_look(&k, START + 54 * S, false, START + 74 * S),
                     ENCL_KEEPALIVE_PING);
}

static void what_came_before_the_ping_does_not_answer_it(void **state) {
    encl_keepalive k = started();

    (void)state;
    assert_int_equal(encl_keepalive_look(&k, START + 5 * S, false, START + 25 * S),
                     ENCL_KEEPALIVE_PING);
    assert_int_equal(encl_keepalive_look(&k, START + 5 * S, false, START + 45 * S),
                     ENCL_KEEPALIVE_DEAD);
}

static void an_excuse_is_a_sign_of_life_at_any_time(void **state) {
    encl_keepalive k = started();

    (void)state;
    assert_int_equal(encl_keepalive_look(&k, 0, true, START + EVERY), ENCL_KEEPALIVE_WAIT);
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + 2 * EVERY), ENCL_KEEPALIVE_PING);
    /* Paused with a ping under way: nothing can be told from what is not read. */
    assert_int_equal(encl_keepalive_look(&k, 0, true, START + 3 * EVERY), ENCL_KEEPALIVE_WAIT);
    assert_int_equal(encl_keepalive_next(&k), START + 4 * EVERY);
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + 4 * EVERY), ENCL_KEEPALIVE_PING);
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + 5 * EVERY), ENCL_KEEPALIVE_DEAD);
}

static void a_late_look_asks_first(void **state) {
    encl_keepalive k = started();

    (void)state;
    /* The thread, or the whole machine, slept: no verdict without a question. */
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + 1000 * EVERY), ENCL_KEEPALIVE_PING);
    assert_int_equal(encl_keepalive_look(&k, 0, false, START + 1000 * EVERY + 1),
                     ENCL_KEEPALIVE_WAIT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_silent_peer_is_asked_and_then_given_up),
        cmocka_unit_test(any_byte_begins_the_silence_anew),
        cmocka_unit_test(what_came_before_the_ping_does_not_answer_it),
        cmocka_unit_test(an_excuse_is_a_sign_of_life_at_any_time),
        cmocka_unit_test(a_late_look_asks_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
