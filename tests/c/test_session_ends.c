/* session: what each state refuses, says at its end, and never does twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "session/app.h"
#include "session_sides.h"

/* ---- what only a test that looks for it notices ---- */

/* A record of the length 17 is taken and then found to hold no message. */
static void the_shortest_record_is_judged_by_its_content(void **state) {
    uint8_t block[ENCL_RECORD_HEAD + 17] = {0, 0, 0, 17, 0xa0};
    size_t len;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    assert_int_equal(encl_noise_seal(p.t, block + ENCL_RECORD_HEAD, 1, 17, &len, &p.err), ENCL_OK);
    assert_int_equal(feed(&x, ENCL_SLICE(block, sizeof block)), ENCL_E_PROTOCOL);
    assert_null(strstr(x.err.message, "record length"));
    end(&x, &p);
}

static void a_responder_refuses_what_is_no_message(void **state) {
    uint8_t block[ENCL_RECORD_HEAD + 8 + ENCL_NOISE_TAG_BYTES] = {0, 0, 0, 24, 0xa1, 0x64};
    size_t len;
    side x;
    peer p;

    (void)state;
    serving(&x, &p, 0);
    assert_int_equal(encl_noise_seal(p.t, block + ENCL_RECORD_HEAD, 8, 24, &len, &p.err), ENCL_OK);
    assert_int_equal(feed(&x, ENCL_SLICE(block, sizeof block)), ENCL_E_PROTOCOL);
    end(&x, &p);
}

static void a_closed_session_says_so_for_no_bytes_too(void **state) {
    uint8_t none[1];
    size_t consumed;
    side x;

    (void)state;
    side_new(&x, ENCL_INITIATOR);
    assert_int_equal(encl_session_open_ids(x.s), 0);
    encl_session_close(x.s);
    assert_int_equal(encl_session_recv(x.s, none, 0, &consumed, NOW, &x.out, &x.event, &x.err),
                     ENCL_E_CLOSED);
    side_free(&x);
}

/* Whose answer finds no room has failed, and must not look as if it went on. */
static void what_cannot_be_answered_ends_the_session(void **state) {
    uint8_t small[8], block[64];
    encl_buf tight;
    encl_slice message;
    size_t consumed;
    side x;
    peer p;

    (void)state;
    side_new(&x, ENCL_INITIATOR);
    peer_new(&p, ENCL_RESPONDER);
    assert_int_equal(encl_session_start(x.s, &x.out, &x.err), ENCL_OK);
    peer_read_handshake(&p, &x.out, 32);
    message = peer_write_handshake(&p);
    memcpy(block, message.data, message.len);
    encl_buf_wrap(&tight, small, sizeof small);
    assert_int_equal(
        encl_session_recv(x.s, block, message.len, &consumed, NOW, &tight, &x.event, &x.err),
        ENCL_E_INVALID);
    assert_int_equal(state_of(&x), ENCL_SESSION_CLOSED);
    end(&x, &p);

    side_new(&x, ENCL_RESPONDER);
    peer_new(&p, ENCL_INITIATOR);
    message = peer_write_handshake(&p);
    memcpy(block, message.data, message.len);
    assert_int_equal(
        encl_session_recv(x.s, block, message.len, &consumed, NOW, &tight, &x.event, &x.err),
        ENCL_E_INVALID);
    assert_int_equal(state_of(&x), ENCL_SESSION_CLOSED);
    assert_null(encl_session_app(x.s));
    end(&x, &p);
}

/* A handshake is not a record: nothing of it is forgotten. */
static void a_partial_handshake_is_never_forgotten(void **state) {
    encl_slice message;
    side x;
    peer p;

    (void)state;
    side_new(&x, ENCL_RESPONDER);
    peer_new(&p, ENCL_INITIATOR);
    message = peer_write_handshake(&p);
    assert_int_equal(feed(&x, ENCL_SLICE(message.data, 5)), ENCL_OK);
    assert_false(encl_session_forget_partial_record(x.s));
    assert_int_equal(feed(&x, ENCL_SLICE(message.data + 5, message.len - 5)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_OPEN);
    end(&x, &p);
}

static void what_a_responder_cannot_send_changes_nothing(void **state) {
    uint8_t small[24];
    encl_buf tight;
    encl_app *app;
    side x;
    peer p;

    (void)state;
    encl_buf_wrap(&tight, small, sizeof small);
    serving(&x, &p, 0);
    app = encl_session_app(x.s);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_DATA, 1)), ENCL_OK);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_OPEN_STREAM, 2)), ENCL_OK);
    assert_int_equal(encl_app_reply(app, 1, TEXT("answer"), &tight, &x.err), ENCL_E_INVALID);
    assert_int_equal(encl_app_error(app, 1, TEXT("no"), &tight, &x.err), ENCL_E_INVALID);
    assert_int_equal(encl_app_attestation(app, TEXT("document"), NULL, &tight, &x.err),
                     ENCL_E_INVALID);
    assert_int_equal(encl_app_stream_close(app, 2, ENCL_HALF_NONE, &tight, &x.err), ENCL_E_INVALID);
    /* An error's text is UTF-8: what is not is refused whole. */
    assert_int_equal(encl_app_error(app, 1, TEXT("\xff"), &x.out, &x.err), ENCL_E_INVALID);
    assert_silent(&x);
    assert_int_equal(encl_session_open_ids(x.s), 2);
    assert_int_equal(encl_app_stream_data(app, 2, TEXT("x"), &x.out, &x.err), ENCL_OK);
    assert_hears(&p, &x, ENCL_MSG_STREAM_DATA, 2);
    end(&x, &p);
}

static void a_close_of_a_one_shot_request_is_none(void **state) {
    encl_msg close = message(ENCL_MSG_STREAM_CLOSE, 1);
    side x;
    peer p;

    (void)state;
    serving(&x, &p, 0);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_DATA, 1)), ENCL_OK);
    close.half = ENCL_HALF_BOTH;
    assert_int_equal(peer_says(&p, &x, close), ENCL_OK);
    assert_int_equal(encl_session_open_ids(x.s), 1);
    assert_int_equal(encl_app_reply(encl_session_app(x.s), 1, TEXT("yes"), &x.out, &x.err),
                     ENCL_OK);
    end(&x, &p);
}

static void a_half_that_is_none_is_not_closed(void **state) {
    uint8_t small[24];
    encl_buf tight;
    encl_app *app;
    side x;
    peer p;

    (void)state;
    encl_buf_wrap(&tight, small, sizeof small);
    opened(&x, &p);
    (void)open_stream(&x, &p);
    app = encl_session_app(x.s);
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_NONE, &x.out, &x.err), ENCL_E_INVALID);
    assert_non_null(strstr(x.err.message, "the half Write or Both"));
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_WRITE, &tight, &x.err),
                     ENCL_E_INVALID);
    assert_int_equal(encl_app_stream_data(app, 1, TEXT("x"), &x.out, &x.err), ENCL_OK);
    end(&x, &p);
}

static void the_last_id_is_never_used(void **state) {
    uint64_t id = 0;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    encl_session_app(x.s)->next_id = UINT64_MAX;
    assert_int_equal(encl_app_open_stream(encl_session_app(x.s), TEXT("x"), &id, &x.out, &x.err),
                     ENCL_E_STATE);
    assert_non_null(strstr(x.err.message, "no id is left"));
    assert_silent(&x);
    end(&x, &p);
}

static void a_table_holds_an_id_once(void **state) {
    encl_table t;
    encl_error err;

    (void)state;
    encl_table_init(&t, 4);
    assert_int_equal(encl_table_add(&t, 7, ENCL_ID_STREAM, &err), ENCL_OK);
    assert_int_equal(encl_table_add(&t, 7, ENCL_ID_STREAM, &err), ENCL_E_STATE);
    assert_int_equal(t.open, 1);
}

/* ---- life ---- */

static void assert_eof_says(side *x, const char *text) {
    encl_session_eof(x->s, &x->err);
    assert_int_equal(x->err.code, ENCL_E_CLOSED);
    assert_string_equal(x->err.message, text);
    assert_int_equal(state_of(x), ENCL_SESSION_CLOSED);
    encl_session_eof(x->s, &x->err);
    assert_string_equal(x->err.message, "the session is closed");
}

static void eof_says_what_was_awaited(void **state) {
    uint8_t bytes[64] = {0, 0, 1, 0};
    side x;
    peer p;

    (void)state;
    side_new(&x, ENCL_INITIATOR);
    assert_eof_says(&x, "the connection closed before the handshake began");
    side_free(&x);

    side_new(&x, ENCL_INITIATOR);
    assert_int_equal(encl_session_start(x.s, &x.out, &x.err), ENCL_OK);
    assert_int_equal(feed(&x, ENCL_SLICE(bytes, 31)), ENCL_OK);
    assert_false(encl_session_has_partial_record(x.s));
    assert_eof_says(&x, "the connection closed after 31 of 48 bytes of the handshake answer");
    side_free(&x);

    side_new(&x, ENCL_RESPONDER);
    assert_int_equal(feed(&x, ENCL_SLICE(bytes, 5)), ENCL_OK);
    assert_eof_says(&x, "the connection closed after 5 of 32 bytes of the handshake");
    side_free(&x);

    attesting(&x, &p);
    assert_int_equal(feed(&x, ENCL_SLICE(bytes, 3)), ENCL_OK);
    assert_eof_says(&x, "the connection closed before the attestation document was received, after "
                        "3 of 4 bytes of a record's length");
    end(&x, &p);

    opened(&x, &p);
    (void)open_stream(&x, &p);
    assert_int_equal(feed(&x, ENCL_SLICE(bytes, 10)), ENCL_OK);
    assert_eof_says(&x, "the connection closed with 1 in flight, after 10 of 260 "
                        "bytes of a record");
    end(&x, &p);
}

static void every_changed_byte_of_the_answer_closes_the_session(void **state) {
    (void)state;
    for (size_t i = 0; i < 48; i++) {
        uint8_t answer[48];
        side x;
        peer p;

        side_new(&x, ENCL_INITIATOR);
        peer_new(&p, ENCL_RESPONDER);
        assert_int_equal(encl_session_start(x.s, &x.out, &x.err), ENCL_OK);
        peer_read_handshake(&p, &x.out, 32);
        memcpy(answer, peer_write_handshake(&p).data, sizeof answer);
        answer[i] ^= 1;
        assert_int_equal(feed(&x, ENCL_SLICE(answer, sizeof answer)), ENCL_E_PROTOCOL);
        assert_silent(&x);
        end(&x, &p);
    }
}

static void states_that_take_no_bytes_say_so(void **state) {
    static const uint8_t zeros[32];
    side x;
    peer p;

    (void)state;
    side_new(&x, ENCL_INITIATOR);
    assert_int_equal(feed(&x, TEXT("x")), ENCL_E_STATE);
    assert_int_equal(feed(&x, TEXT("x")), ENCL_E_CLOSED);
    assert_int_equal(encl_session_start(x.s, &x.out, &x.err), ENCL_E_STATE);
    side_free(&x);

    /* A key of low order: the responder must not answer it. */
    side_new(&x, ENCL_RESPONDER);
    assert_int_equal(feed(&x, ENCL_SLICE(zeros, sizeof zeros)), ENCL_E_PROTOCOL);
    assert_silent(&x);
    side_free(&x);

    opened(&x, &p);
    encl_session_close(x.s);
    encl_session_close(x.s);
    assert_int_equal(feed(&x, TEXT("x")), ENCL_E_CLOSED);
    assert_int_equal(encl_session_open_ids(x.s), 0);
    end(&x, &p);
}

static void configurations_that_cannot_be_safe_are_refused(void **state) {
    encl_session_config no_policy = {.role = ENCL_INITIATOR};
    encl_session_config too_many = {.role = ENCL_RESPONDER, .max_open = ENCL_MAX_OPEN + 1};
    encl_session_config no_role = {.role = (encl_role)7};
    encl_session_config most = {.role = ENCL_RESPONDER, .max_open = ENCL_MAX_OPEN};
    encl_session *s;
    encl_error err;

    (void)state;
    assert_int_equal(encl_session_new(&no_policy, &s, &err), ENCL_E_INVALID);
    assert_null(s);
    assert_int_equal(encl_session_new(&too_many, &s, &err), ENCL_E_INVALID);
    assert_int_equal(encl_session_new(&no_role, &s, &err), ENCL_E_INVALID);
    assert_int_equal(encl_session_new(&most, &s, &err), ENCL_OK);
    encl_session_free(s);
    encl_session_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_shortest_record_is_judged_by_its_content),
        cmocka_unit_test(a_responder_refuses_what_is_no_message),
        cmocka_unit_test(a_closed_session_says_so_for_no_bytes_too),
        cmocka_unit_test(what_cannot_be_answered_ends_the_session),
        cmocka_unit_test(a_partial_handshake_is_never_forgotten),
        cmocka_unit_test(what_a_responder_cannot_send_changes_nothing),
        cmocka_unit_test(a_close_of_a_one_shot_request_is_none),
        cmocka_unit_test(a_half_that_is_none_is_not_closed),
        cmocka_unit_test(the_last_id_is_never_used),
        cmocka_unit_test(a_table_holds_an_id_once),
        cmocka_unit_test(eof_says_what_was_awaited),
        cmocka_unit_test(every_changed_byte_of_the_answer_closes_the_session),
        cmocka_unit_test(states_that_take_no_bytes_say_so),
        cmocka_unit_test(configurations_that_cannot_be_safe_are_refused),
    };

    return cmocka_run_group_tests_name("session ends", tests, NULL, NULL);
}
