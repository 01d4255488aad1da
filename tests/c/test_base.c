/* base: bounded buffer, error value, constant-time compare, fork generation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/list.h"
#include "base/rate.h"
#include "base/secmem.h"

static void grows_up_to_its_limit_and_not_beyond(void **state) {
    encl_buf b;
    encl_error err;
    uint8_t *room;

    (void)state;
    encl_buf_init(&b, 2000);
    for (int i = 0; i < 2000; i++) {
        assert_int_equal(encl_buf_write_u8(&b, (uint8_t)i, &err), ENCL_OK);
    }
    assert_int_equal(encl_buf_write_u8(&b, 1, &err), ENCL_E_INVALID);
    assert_non_null(strstr(err.message, "at most 0 bytes more, got 1"));
    assert_int_equal(encl_buf_readable(&b), 2000);
    assert_int_equal(encl_buf_skip(&b, 1500, &err), ENCL_OK);
    assert_int_equal(encl_buf_reserve(&b, 1500, &room, &err), ENCL_OK);
    assert_int_equal(encl_buf_reserve(&b, 1501, &room, &err), ENCL_E_INVALID);
    assert_int_equal(encl_buf_peek(&b).data[0], (uint8_t)1500);
    encl_buf_free(&b);
}

static void reads_are_checked_and_take_nothing_on_failure(void **state) {
    uint8_t block[9];
    encl_buf b;
    encl_error err;
    encl_slice got;

    (void)state;
    encl_buf_wrap(&b, block, sizeof block);
    assert_int_equal(encl_buf_write_u32(&b, 0x01020304u, &err), ENCL_OK);
    assert_int_equal(encl_buf_write_u8(&b, 5, &err), ENCL_OK);
    assert_int_equal(encl_buf_read(&b, 3, &got, &err), ENCL_OK);
    assert_memory_equal(got.data, "\x01\x02\x03", 3);
    assert_int_equal(encl_buf_read(&b, 3, &got, &err), ENCL_E_PROTOCOL);
    assert_non_null(strstr(err.message, "expected 3 bytes, got 2"));
    assert_int_equal(encl_buf_skip(&b, 3, &err), ENCL_E_PROTOCOL);
    assert_int_equal(encl_buf_skip(&b, 1, &err), ENCL_OK);
    assert_int_equal(encl_buf_read(&b, 1, &got, &err), ENCL_OK);
    assert_int_equal(got.data[0], 5);
    assert_int_equal(encl_buf_read(&b, SIZE_MAX, &got, &err), ENCL_E_PROTOCOL);
    assert_int_equal(encl_buf_readable(&b), 0);
}

static void wrapped_blocks_do_not_grow(void **state) {
    uint8_t block[4];
    encl_buf b;
    encl_error err;

    (void)state;
    encl_buf_wrap(&b, block, sizeof block);
    assert_int_equal(encl_buf_write_u32(&b, 7, &err), ENCL_OK);
    assert_int_equal(encl_buf_write_u8(&b, 7, &err), ENCL_E_INVALID);
    assert_int_equal(block[3], 7);
}

static void commit_beyond_the_reserve_is_refused(void **state) {
    encl_buf b;
    encl_error err;

    (void)state;
    encl_buf_init(&b, 100);
    assert_int_equal(encl_buf_commit(&b, 1, &err), ENCL_E_INTERNAL);
    encl_buf_free(&b);
}

static void errors_are_cut_not_overrun(void **state) {
    encl_error err;
    char long_text[2 * ENCL_ERROR_TEXT_MAX];

    (void)state;
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    assert_int_equal(encl_fail(&err, ENCL_E_CLOSED, "%s", long_text), ENCL_E_CLOSED);
    assert_int_equal(strlen(err.message), ENCL_ERROR_TEXT_MAX - 1);
    assert_true(err.retryable);
    encl_error_prefix(&err, "while reading");
    assert_int_equal(strlen(err.message), ENCL_ERROR_TEXT_MAX - 1);
    assert_memory_equal(err.message, "while reading: xxx", 18);
    encl_fail(&err, ENCL_E_PCR, "no");
    assert_false(err.retryable);
    encl_fail(&err, ENCL_E_READ_TIMEOUT, "late");
    assert_true(err.retryable);
    encl_fail(&err, ENCL_E_WRITE_TIMEOUT, "late");
    assert_true(err.retryable);
}

static void compares_lengths_and_every_byte(void **state) {
    uint8_t a[32] = {0}, b[32] = {0};

    (void)state;
    assert_true(encl_equal_ct(ENCL_SLICE(a, 32), ENCL_SLICE(b, 32)));
    assert_false(encl_equal_ct(ENCL_SLICE(a, 32), ENCL_SLICE(b, 31)));
    for (size_t i = 0; i < 32; i++) {
        b[i] = 1;
        assert_false(encl_equal_ct(ENCL_SLICE(a, 32), ENCL_SLICE(b, 32)));
        b[i] = 0;
    }
}

static void so_many_at_once_and_so_many_a_second(void **state) {
    const int64_t second = 1000000000;
    encl_rate rate = {0};
    int64_t now = 5 * second;

    (void)state;
    assert_true(encl_rate_take(&rate, ENCL_IDLE_AT_ONCE, now));
    assert_false(encl_rate_take(&rate, 1, now));
    now += second; /* pays for the one too many as well */
    assert_true(encl_rate_take(&rate, ENCL_IDLE_PER_SECOND - 1, now));
    for (int i = 0; i < 100; i++) {
        now += second;
        assert_true(encl_rate_take(&rate, ENCL_IDLE_PER_SECOND, now));
    }
    now += 1000 * second; /* no more is saved up than may come at once */
    assert_false(encl_rate_take(&rate, ENCL_IDLE_AT_ONCE + 1, now));
    rate = (encl_rate){0};
    assert_false(encl_rate_take(&rate, UINT64_MAX, now));
}

static int64_t looks; /* how often the clock was looked at */

static int64_t five_seconds(void) {
    looks++;
    return 5 * (int64_t)1000000000;
}

static void only_what_is_new_and_not_excused_is_charged(void **state) {
    encl_charge charge = {{0}, 0, 0};

    (void)state;
    looks = 0;
    assert_true(encl_charge_for(&charge, 0, 0, five_seconds));
    assert_int_equal(looks, 0);
    assert_true(encl_charge_for(&charge, ENCL_IDLE_AT_ONCE, 0, five_seconds));
    assert_true(encl_charge_for(&charge, ENCL_IDLE_AT_ONCE, 0, five_seconds)); /* nothing new */
    assert_int_equal(looks, 1);
    /* three of them are excused, one is left of that */
    assert_true(encl_charge_for(&charge, ENCL_IDLE_AT_ONCE + 3, 4, five_seconds));
    assert_true(encl_charge_for(&charge, ENCL_IDLE_AT_ONCE + 4, 4, five_seconds));
    assert_false(encl_charge_for(&charge, ENCL_IDLE_AT_ONCE + 5, 4, five_seconds));
}

typedef struct item {
    int number;
    encl_link link;
} item;

static void assert_items(const encl_list *list, const char *expected) {
    char found[16] = "";
    size_t n = 0;

    for (encl_link *at = encl_list_first(list); at != NULL; at = encl_list_next(list, at)) {
        found[n++] = (char)('0' + ENCL_OWNER(at, item, link)->number);
    }
    found[n] = '\0';
    assert_string_equal(found, expected);
}

static void a_list_keeps_its_order(void **state) {
    item items[5] = {{0, {0}}, {1, {0}}, {2, {0}}, {3, {0}}, {4, {0}}};
    encl_list list;

    (void)state;
    encl_list_init(&list);
    assert_true(encl_list_is_empty(&list));
    assert_null(ENCL_OWNER(encl_list_first(&list), item, link));
    encl_list_append(&list, &items[1].link);
    encl_list_append(&list, &items[3].link);
    encl_list_prepend(&list, &items[0].link);
    encl_link_before(&items[3].link, &items[2].link);
    encl_link_before(&list.ends, &items[4].link);
    assert_items(&list, "01234");
    encl_link_remove(&items[0].link);
    encl_link_remove(&items[2].link);
    encl_link_remove(&items[4].link);
    assert_items(&list, "13");
    assert_false(encl_link_is_linked(&items[2].link));
    encl_link_remove(&items[2].link); /* it is in no list */
    encl_list_append(&list, &items[2].link);
    assert_items(&list, "132");
}

static void a_forked_child_has_another_generation(void **state) {
    encl_error err;
    uint64_t mine;
    pid_t child;
    int status;

    (void)state;
    assert_int_equal(encl_base_init(&err), ENCL_OK);
    mine = encl_fork_generation();
    child = fork();
    if (child == 0) {
        _exit(encl_fork_generation() == mine ? 1 : 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(encl_fork_generation(), mine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grows_up_to_its_limit_and_not_beyond),
        cmocka_unit_test(reads_are_checked_and_take_nothing_on_failure),
        cmocka_unit_test(wrapped_blocks_do_not_grow),
        cmocka_unit_test(commit_beyond_the_reserve_is_refused),
        cmocka_unit_test(errors_are_cut_not_overrun),
        cmocka_unit_test(compares_lengths_and_every_byte),
        cmocka_unit_test(so_many_at_once_and_so_many_a_second),
        cmocka_unit_test(only_what_is_new_and_not_excused_is_charged),
        cmocka_unit_test(a_list_keeps_its_order),
        cmocka_unit_test(a_forked_child_has_another_generation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
