/* web: a connection over a WebSocket that belongs to somebody else, who is played here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "web/web.h"

/* What a connection's user was told. */
typedef struct user {
    int opened, closed, drained;
    bool pause_in_callback, let_go_in_callback;
    size_t received;
    encl_error why;
} user;

static void on_opened(void *arg, encl_conn *conn) {
    user *u = arg;

    (void)conn;
    u->opened++;
}

static void on_received(void *arg, encl_conn *conn, uint8_t *block, size_t len) {
    user *u = arg;

    u->received += len;
    memset(block, 0xaa, len); /* it may */
    if (u->pause_in_callback) {
        encl_conn_pause(conn, true);
    }
    if (u->let_go_in_callback) {
        encl_conn_close(conn, 1000, NULL);
        encl_web_closed(conn, 1000, ENCL_SLICE_NONE);
        encl_conn_release(conn);
    }
}

static void on_drained(void *arg, encl_conn *conn) {
    user *u = arg;

    (void)conn;
    u->drained++;
}

static void on_closed(void *arg, encl_conn *conn, const encl_error *why) {
    user *u = arg;

    (void)conn;
    u->closed++;
    u->why = *why;
}

static const encl_conn_events events = {
    .opened = on_opened, .received = on_received, .drained = on_drained, .closed = on_closed};

static encl_loop *loop;

static int make_loop(void **state) {
    encl_error err;

    (void)state;
    return encl_net_init(&err) == ENCL_OK && encl_loop_new(&loop, &err) == ENCL_OK ? 0 : -1;
}

static int free_loop(void **state) {
    (void)state;
    encl_loop_free(loop);
    return 0;
}

static const encl_ws_target target = {
    .host = "e.example", .port = 443, .tls = true, .path = "/", .authority = "e", .verify = true};

static encl_conn *connect_to(user *u) {
    encl_conn *conn;
    encl_error err;

    memset(u, 0, sizeof *u);
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, u, &conn, &err), ENCL_OK);
    return conn;
}

static encl_conn *open_to(user *u) {
    encl_conn *conn = connect_to(u);

    encl_web_opened(conn);
    encl_web_opened(conn); /* told twice, done once */
    assert_int_equal(u->opened, 1);
    return conn;
}

static void send_bytes(encl_conn *conn, size_t len) {
    uint8_t *bytes = calloc(1, len + 1);
    encl_buf *out;
    encl_error err;

    bytes[0] = 'a';
    assert_int_equal(encl_conn_tx_begin(conn, &out, &err), ENCL_OK);
    assert_int_equal(encl_buf_write(out, ENCL_SLICE(bytes, len), &err), ENCL_OK);
    encl_conn_tx_end(conn);
    free(bytes);
}

static size_t take(encl_conn *conn) {
    size_t len = encl_web_next(conn);
    uint8_t *message = malloc(len + 1);

    if (len != 0) {
        assert_true(encl_web_take(conn, message, len));
        assert_int_equal(message[0], 'a');
    }
    free(message);
    return len;
}

static void each_message_is_taken_as_it_was_sent(void **state) {
    user u;
    encl_conn *conn = connect_to(&u);
    encl_buf *out;
    encl_error err;

    (void)state;
    assert_int_equal(encl_conn_tx_begin(conn, &out, &err), ENCL_E_CLOSED);
    encl_web_opened(conn);
    (void)encl_web_had_work(conn);
    send_bytes(conn, 0);
    assert_false(encl_web_had_work(conn));
    send_bytes(conn, 32);
    send_bytes(conn, 70000);
    assert_true(encl_web_had_work(conn));
    assert_false(encl_web_had_work(conn));
    assert_int_equal(take(conn), 32);
    assert_int_equal(take(conn), 70000);
    assert_int_equal(take(conn), 0);
    assert_int_equal(encl_conn_bytes_out(conn), 70032);
    assert_int_equal(encl_conn_tx_pending(conn), 0);
    encl_web_closed(conn, 1000, ENCL_SLICE_NONE);
    encl_conn_release(conn);
}

static void senders_are_told_that_there_is_room(void **state) {
    user u;
    encl_conn *conn = open_to(&u);

    (void)state;
    for (int i = 0; i < 20; i++) {
        send_bytes(conn, 16 * 1024);
    }
    assert_true(encl_conn_tx_pending(conn) > ENCL_CONN_HIGH_WATER);
    while (encl_conn_tx_pending(conn) > ENCL_CONN_LOW_WATER) {
        assert_int_equal(u.drained, 0);
        take(conn);
    }
    assert_int_equal(u.drained, 1);
    while (take(conn) != 0) {
    }
    assert_int_equal(u.drained, 1);
    encl_web_closed(conn, 1000, ENCL_SLICE_NONE);
    encl_conn_release(conn);
}

static void a_block_of_its_length_alone_is_written(void **state) {
    user u;
    encl_conn *conn = open_to(&u);
    uint8_t block[8] = {0};

    (void)state;
    send_bytes(conn, 4);
    assert_false(encl_web_take(conn, block, 3));
    assert_int_equal(block[0], 0);
    assert_int_equal(encl_web_next(conn), 4);
    assert_true(encl_web_take(conn, block, 4));
    assert_int_equal(block[0], 'a');
    assert_false(encl_web_take(conn, block, 4)); /* there is none */
    encl_web_closed(conn, 1000, ENCL_SLICE_NONE);
    encl_conn_release(conn);
}

static void what_was_sent_before_the_end_is_the_last_to_take(void **state) {
    user u;
    encl_conn *conn = open_to(&u);
    const char *reason;
    uint16_t code;

    (void)state;
    send_bytes(conn, 4);
    assert_false(encl_web_is_closing(conn));
    encl_conn_close(conn, 1000, NULL);
    assert_true(encl_web_is_closing(conn));
    assert_false(encl_web_is_finished(conn, &code, &reason));
    assert_int_equal(take(conn), 4);
    assert_true(encl_web_is_finished(conn, &code, &reason));
    encl_web_closed(conn, 1000, ENCL_SLICE_NONE);
    assert_true(encl_web_is_closing(conn));
    encl_conn_release(conn);
}

static void a_pause_within_a_message_leaves_the_rest(void **state) {
    user u;
    encl_conn *conn = open_to(&u);
    size_t len = 300 * 1024, taken, rest;
    uint8_t *bytes = calloc(1, len);

    (void)state;
    u.pause_in_callback = true;
    taken = encl_web_received(conn, ENCL_SLICE(bytes, len));
    assert_in_range(taken, 1, len - 1);
    assert_int_equal(u.received, taken);
    assert_false(encl_web_wants_reading(conn));
    assert_int_equal(encl_web_received(conn, ENCL_SLICE(bytes, len)), 0);
    assert_int_equal(u.received, taken);
    u.pause_in_callback = false;
    (void)encl_web_had_work(conn);
    encl_conn_pause(conn, false);
    assert_true(encl_web_had_work(conn));
    assert_true(encl_web_wants_reading(conn));
    rest = len - taken;
    assert_int_equal(encl_web_received(conn, ENCL_SLICE(bytes, rest)), rest);
    assert_int_equal(encl_conn_bytes_in(conn), len);
    assert_int_equal(bytes[0], 0); /* the owner's bytes are its own */
    encl_web_closed(conn, 1000, ENCL_SLICE_NONE);
    encl_conn_release(conn);
    free(bytes);
}

static void what_was_sent_is_taken_before_the_end(void **state) {
    user u;
    encl_conn *conn = open_to(&u);
    const char *reason;
    uint16_t code;

    (void)state;
    send_bytes(conn, 10);
    encl_conn_close(conn, 1002, "why");
    encl_conn_close(conn, 1000, "later");
    assert_false(encl_web_is_finished(conn, &code, &reason));
    assert_int_equal(encl_web_received(conn, ENCL_SLICE("x", 1)), 1);
    assert_int_equal(u.received, 0);
    assert_int_equal(take(conn), 10);
    assert_true(encl_web_is_finished(conn, &code, &reason));
    assert_int_equal(code, 1002);
    assert_string_equal(reason, "why");
    assert_int_equal(u.closed, 0);
    encl_web_closed(conn, 1002, ENCL_SLICE_NONE);
    encl_web_closed(conn, 1006, ENCL_SLICE_NONE);
    assert_int_equal(u.closed, 1);
    assert_string_equal(u.why.message, "the connection was closed on this side");
    encl_conn_release(conn);
}

static void the_user_may_let_go_in_a_callback(void **state) {
    user u;
    encl_conn *conn = open_to(&u);

    (void)state;
    u.let_go_in_callback = true;
    assert_int_equal(encl_web_received(conn, ENCL_SLICE("xyz", 3)), 3);
    assert_int_equal(u.closed, 1);
}

static void reasons_are_cut_to_what_a_close_frame_has(void **state) {
    user u;
    encl_conn *conn = open_to(&u);
    char text[400];

    (void)state;
    memset(text, 'r', sizeof text);
    encl_web_closed(conn, 4000, ENCL_SLICE(text, sizeof text));
    assert_int_equal(u.why.code, ENCL_E_CLOSED);
    assert_in_range(strlen(u.why.message), 123, 200);
    encl_conn_release(conn);
}

static void an_owner_says_why_it_gave_up(void **state) {
    user u;
    encl_conn *conn = open_to(&u);

    (void)state;
    encl_web_closed(conn, 1006, ENCL_SLICE("too much", 8));
    assert_int_equal(u.why.code, ENCL_E_CLOSED);
    assert_string_equal(u.why.message, "the connection was ended on this side: too much");
    encl_conn_release(conn);
}

static void what_a_browser_cannot_do_is_refused(void **state) {
    const encl_header header = {"a", "b"};
    encl_ws_target wrong[] = {target, target, target, target, target};
    encl_conn *conn;
    encl_error err;
    user u;

    (void)state;
    wrong[0].headers = &header;
    wrong[0].header_count = 1;
    wrong[1].proxy_host = "p";
    wrong[2].ca_file = "f";
    wrong[3].verify = false;
    wrong[4].keepalive_ms = 1;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(encl_conn_connect_ws(loop, &wrong[i], &events, &u, &conn, &err),
                         ENCL_E_INVALID);
        assert_null(conn);
    }
}

static void count_up(void *arg) {
    (*(int *)arg)++;
}

static void timers_fire_when_the_owner_asks(void **state) {
    user u;
    encl_conn *conn = open_to(&u);
    encl_timer *soon, *late;
    encl_error err;
    int fired = 0;

    (void)state;
    assert_int_equal(encl_web_tick(conn), -1);
    assert_int_equal(encl_timer_new(loop, count_up, &fired, &soon, &err), ENCL_OK);
    assert_int_equal(encl_timer_new(loop, count_up, &fired, &late, &err), ENCL_OK);
    (void)encl_web_had_work(conn);
    encl_timer_set(late, 3600 * 1000);
    assert_true(encl_web_had_work(conn));
    assert_true(encl_web_tick(conn) > 0);
    encl_timer_set(soon, 0);
    assert_true(encl_web_had_work(conn));
    assert_true(encl_web_tick(conn) > 0); /* the late one's */
    assert_int_equal(fired, 1);
    encl_timer_set(late, UINT64_MAX);
    assert_true(encl_web_tick(conn) > (int64_t)3600 * 1000000000);
    encl_timer_stop(late);
    assert_int_equal(encl_web_tick(conn), -1);
    assert_int_equal(fired, 1);
    encl_timer_free(soon);
    encl_timer_free(late);
    encl_web_closed(conn, 1000, ENCL_SLICE_NONE);
    encl_conn_release(conn);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_message_is_taken_as_it_was_sent),
        cmocka_unit_test(senders_are_told_that_there_is_room),
        cmocka_unit_test(a_block_of_its_length_alone_is_written),
        cmocka_unit_test(what_was_sent_before_the_end_is_the_last_to_take),
        cmocka_unit_test(a_pause_within_a_message_leaves_the_rest),
        cmocka_unit_test(what_was_sent_is_taken_before_the_end),
        cmocka_unit_test(the_user_may_let_go_in_a_callback),
        cmocka_unit_test(reasons_are_cut_to_what_a_close_frame_has),
        cmocka_unit_test(an_owner_says_why_it_gave_up),
        cmocka_unit_test(what_a_browser_cannot_do_is_refused),
        cmocka_unit_test(timers_fire_when_the_owner_asks),
    };

    return cmocka_run_group_tests_name("web", tests, make_loop, free_loop);
}
