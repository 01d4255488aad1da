/* channel/pace: when another record may be sent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "channel/pace.h"

#define MS     ((int64_t)1000000)
#define START  (1000 * MS)
#define LARGE  31000
#define SMALL  400
#define NEW_ID 999

static size_t send_all_allowed(encl_pace *pace, uint64_t first_id, size_t bytes, int64_t now) {
    size_t sent = 0;

    while (sent < 1000 && encl_pace_may_send(pace, first_id + sent, 0, now)) {
        encl_pace_sent(pace, first_id + sent, bytes, false, now);
        sent++;
    }
    return sent;
}

static void small_records_are_bounded_by_what_can_be_done_in_a_row(void **state) {
    encl_pace pace = {0};
    size_t sent = send_all_allowed(&pace, 1, SMALL, START);

    (void)state;
    assert_in_range(sent, 2, 8);
    assert_in_range(sent * (1 + ENCL_PACE_ANSWERS), ENCL_PACE_TURNS, ENCL_PACE_TURNS + 2);
}

static void large_records_are_bounded_by_the_sockets_on_the_path(void **state) {
    encl_pace pace = {0};
    size_t sent = send_all_allowed(&pace, 1, LARGE, START);

    (void)state;
    assert_in_range(sent * LARGE, ENCL_PACE_BYTES - LARGE, ENCL_PACE_BYTES + LARGE);
}

static void an_answer_says_what_was_read(void **state) {
    encl_pace pace = {0};
    size_t sent = send_all_allowed(&pace, 1, SMALL, START);

    (void)state;
    assert_false(encl_pace_heard(&pace, NEW_ID, START));
    assert_int_equal(pace.count, sent);
    assert_true(encl_pace_heard(&pace, 3, START)); /* and so were 1 and 2 */
    assert_int_equal(pace.count, sent - 3);
    assert_false(encl_pace_heard(&pace, 1, START)); /* the rest of an answer */
    assert_int_equal(pace.count, sent - 3);
}

static void of_several_records_an_answer_says_one_was_read(void **state) {
    encl_pace pace = {0};

    (void)state;
    encl_pace_sent(&pace, 1, SMALL, false, START);
    encl_pace_sent(&pace, 1, SMALL, false, START);
    assert_true(encl_pace_heard(&pace, 1, START));
    assert_int_equal(pace.count, 1);
    assert_true(encl_pace_heard(&pace, 1, START));
    assert_int_equal(pace.count, 0);
}

/* However quickly answers come, the server must be seen to run out of work before it is given more
 * than it may do in a row. */
static void answers_count_until_nothing_is_unread(void **state) {
    encl_pace pace = {0};
    size_t in_a_row = 0;

    (void)state;
    for (uint64_t id = 1; encl_pace_may_send(&pace, id, 0, START); id++) {
        encl_pace_sent(&pace, id, SMALL, false, START);
        if (id > 1) {
            assert_true(encl_pace_heard(&pace, id - 1, START)); /* one is always unread */
        }
        in_a_row += 2;
        assert_true(in_a_row < 100);
    }
    assert_in_range(in_a_row, 8, ENCL_PACE_TURNS + 2);
    while (pace.count != 0) {
        (void)encl_pace_heard(&pace, pace.unread[pace.head].id, START);
    }
    assert_true(encl_pace_may_send(&pace, NEW_ID, 0, START));
    assert_in_range(send_all_allowed(&pace, NEW_ID, SMALL, START), 2, 8);
}

static void one_after_another_never_waits(void **state) {
    encl_pace pace = {0};

    (void)state;
    for (uint64_t id = 1; id < 1000; id++) {
        assert_true(encl_pace_may_send(&pace, id, 0, START));
        encl_pace_sent(&pace, id, SMALL, false, START);
        for (int part = 0; part < 50; part++) {
            (void)encl_pace_heard(&pace, id, START);
        }
    }
}

static void what_gets_no_answer_counts_as_read_after_a_while(void **state) {
    encl_pace pace = {0};
    size_t sent = send_all_allowed(&pace, 1, SMALL, START);
    int64_t next = encl_pace_next(&pace);

    (void)state;
    assert_true(next >= START + ENCL_PACE_SLACK_NS);
    assert_true(next <= START + ENCL_PACE_SLACK_NS + 5 * MS);
    assert_false(encl_pace_may_send(&pace, NEW_ID, 0, next - 1));
    assert_int_equal(pace.count, sent);
    assert_true(encl_pace_may_send(&pace, NEW_ID, 0, next + 5 * MS));
    assert_int_equal(pace.count, 0);
    assert_true(encl_pace_next(&pace) == INT64_MAX);
}

static int64_t time_until_read(int64_t heard_at, size_t bytes) {
    encl_pace pace = {0};

    if (heard_at != 0) {
        (void)encl_pace_heard(&pace, NEW_ID, heard_at);
    }
    encl_pace_sent(&pace, 1, bytes, false, START);
    return encl_pace_next(&pace) - START - ENCL_PACE_SLACK_NS;
}

static void large_records_take_longer_and_while_answers_come_all_do(void **state) {
    int64_t quiet = time_until_read(0, LARGE);

    (void)state;
    assert_true(quiet > 10 * time_until_read(0, SMALL));
    assert_true(time_until_read(START - 10 * MS, LARGE) == ENCL_PACE_CAREFUL * quiet);
    assert_true(time_until_read(START - ENCL_PACE_QUIET_NS, LARGE) == quiet);
}

/* Time alone must not let the records of seconds pile up before a server that is busy. */
static void time_adds_up(void **state) {
    encl_pace pace = {0};
    int64_t first, last = 0;

    (void)state;
    encl_pace_sent(&pace, 1, LARGE, false, START);
    first = encl_pace_next(&pace);
    encl_pace_sent(&pace, 1, LARGE, false, START);
    encl_pace_sent(&pace, 1, LARGE, false, START);
    while (pace.count != 0) {
        last = encl_pace_next(&pace);
        (void)encl_pace_may_send(&pace, 1, 0, last);
    }
    assert_true(last - START - ENCL_PACE_SLACK_NS == 3 * (first - START - ENCL_PACE_SLACK_NS));
}

static void a_long_body_leaves_room_for_others(void **state) {
    encl_pace pace = {0};
    size_t sent = 0;

    (void)state;
    while (encl_pace_may_send(&pace, 1, 0, START)) {
        encl_pace_sent(&pace, 1, LARGE, false, START);
        sent++;
    }
    assert_in_range(sent, 2, 10);
    assert_true(encl_pace_may_send(&pace, 2, 0, START));

    memset(&pace, 0, sizeof pace);
    while (encl_pace_may_send(&pace, 1, 0, START)) {
        encl_pace_sent(&pace, 1, SMALL, false, START);
    }
    assert_true(encl_pace_may_send(&pace, 2, 0, START));
}

static void promises_take_room(void **state) {
    encl_pace pace = {0};
    size_t promised = 0;

    (void)state;
    while (promised < 1000 && encl_pace_may_send(&pace, NEW_ID, promised, START)) {
        promised++;
    }
    assert_int_equal(promised, send_all_allowed(&pace, 1, SMALL, START));
}

/* What is sent alone is at no risk, but what comes after it is not read before it. */
static void what_is_sent_alone_only_takes_time(void **state) {
    encl_pace pace = {0};

    (void)state;
    for (int i = 0; i < 1000; i++) {
        encl_pace_sent(&pace, 1, LARGE, true, START);
    }
    assert_int_equal(pace.count, 0);
    assert_true(encl_pace_may_send(&pace, 2, 0, START));
    encl_pace_sent(&pace, 2, SMALL, false, START);
    assert_true(encl_pace_next(&pace) > START + 1000 * LARGE * (int64_t)50);
    assert_true(encl_pace_heard(&pace, 2, START + MS)); /* so it was all read */
    encl_pace_sent(&pace, 3, SMALL, false, START + MS);
    assert_true(encl_pace_next(&pace) < START + 50 * MS);
}

static void quiet_is_about_others(void **state) {
    encl_pace pace = {0};

    (void)state;
    assert_true(encl_pace_is_quiet(&pace, 1, START));
    (void)encl_pace_heard(&pace, 1, START);
    assert_true(encl_pace_is_quiet(&pace, 1, START));
    assert_false(encl_pace_is_quiet(&pace, 2, START));
    (void)encl_pace_heard(&pace, 2, START + MS);
    (void)encl_pace_heard(&pace, 1, START + 2 * MS);
    (void)encl_pace_heard(&pace, 1, START + 3 * MS);
    assert_false(encl_pace_is_quiet(&pace, 1, START + 3 * MS));
    assert_true(encl_pace_is_quiet(&pace, 1, START + MS + ENCL_PACE_QUIET_NS));
    assert_false(encl_pace_is_quiet(&pace, 2, START + MS + ENCL_PACE_QUIET_NS));
}

static void more_than_fits_gives_up_the_oldest(void **state) {
    encl_pace pace = {0};

    (void)state;
    for (uint64_t id = 1; id <= 3 * ENCL_PACE_ENTRIES; id++) {
        encl_pace_sent(&pace, id, 10, false, START);
    }
    assert_int_equal(pace.count, ENCL_PACE_ENTRIES);
    assert_int_equal(pace.bytes, 10 * ENCL_PACE_ENTRIES);
    assert_false(encl_pace_heard(&pace, ENCL_PACE_ENTRIES, START));
    assert_true(encl_pace_heard(&pace, 3 * ENCL_PACE_ENTRIES, START));
    assert_int_equal(pace.count, 0);
    assert_int_equal(pace.bytes, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_records_are_bounded_by_what_can_be_done_in_a_row),
        cmocka_unit_test(large_records_are_bounded_by_the_sockets_on_the_path),
        cmocka_unit_test(an_answer_says_what_was_read),
        cmocka_unit_test(of_several_records_an_answer_says_one_was_read),
        cmocka_unit_test(answers_count_until_nothing_is_unread),
        cmocka_unit_test(one_after_another_never_waits),
        cmocka_unit_test(what_gets_no_answer_counts_as_read_after_a_while),
        cmocka_unit_test(large_records_take_longer_and_while_answers_come_all_do),
        cmocka_unit_test(time_adds_up),
        cmocka_unit_test(a_long_body_leaves_room_for_others),
        cmocka_unit_test(promises_take_room),
        cmocka_unit_test(what_is_sent_alone_only_takes_time),
        cmocka_unit_test(quiet_is_about_others),
        cmocka_unit_test(more_than_fits_gives_up_the_oldest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
