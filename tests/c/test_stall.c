/* channel/stall: how long readers that do not read may hold up others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "channel/stall.h"

#define START ((int64_t)1000 * 1000000)

/* Looks from *now on until it is over or there were enough; returns how many it took, 0: not over.
 */
static int looks_until_over(encl_stall *stall, bool stalled, int most, int64_t *now) {
    for (int i = 1; i <= most; i++) {
        bool over = encl_stall_look(stall, stalled, *now);

        *now += ENCL_STALL_LOOK_NS;
        if (over) {
            return i;
        }
    }
    return 0;
}

#define LOOKS ((int)(ENCL_STALL_NS / ENCL_STALL_LOOK_NS))

static void nobody_who_waits_holds_nothing_up(void **state) {
    encl_stall stall = {0};
    int64_t now = START;

    (void)state;
    assert_int_equal(looks_until_over(&stall, false, 10 * LOOKS, &now), 0);
}

static void it_is_over_after_its_time_and_begins_anew(void **state) {
    encl_stall stall = {0};
    int64_t now = START;

    (void)state;
    assert_int_equal(looks_until_over(&stall, true, LOOKS, &now), 0);
    assert_int_equal(looks_until_over(&stall, true, 1, &now), 1);
    assert_int_equal(looks_until_over(&stall, true, LOOKS, &now), 0);
    assert_int_equal(looks_until_over(&stall, true, 1, &now), 1);
}

static void a_look_that_finds_nobody_does_not_begin_anew(void **state) {
    encl_stall stall = {0};
    int64_t now = START;
    bool over = false;

    (void)state;
    for (int i = 0; i <= LOOKS && !over; i++, now += ENCL_STALL_LOOK_NS) {
        over = encl_stall_look(&stall, i % 3 == 0, now);
    }
    assert_true(over || encl_stall_look(&stall, true, now));
}

static void whoever_comes_later_waits_as_long(void **state) {
    encl_stall stall = {0};
    int64_t now = START;

    (void)state;
    assert_int_equal(looks_until_over(&stall, true, LOOKS - 1, &now), 0);
    now += ENCL_STALL_LAPSE_NS + 1;
    assert_int_equal(looks_until_over(&stall, true, LOOKS, &now), 0);
    assert_int_equal(looks_until_over(&stall, true, 1, &now), 1);
}

static void time_that_was_not_looked_at_does_not_count(void **state) {
    encl_stall stall = {0};

    (void)state;
    assert_false(encl_stall_look(&stall, true, START));
    /* A machine that slept. */
    assert_false(encl_stall_look(&stall, true, START + 100 * ENCL_STALL_NS));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_who_waits_holds_nothing_up),
        cmocka_unit_test(it_is_over_after_its_time_and_begins_anew),
        cmocka_unit_test(a_look_that_finds_nobody_does_not_begin_anew),
        cmocka_unit_test(whoever_comes_later_waits_as_long),
        cmocka_unit_test(time_that_was_not_looked_at_does_not_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
