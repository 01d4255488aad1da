/* session: which ids may be used, by whom and until when; on both sides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "session/app.h"
#include "session_sides.h"

/* ---- ids ---- */

static void the_65th_id_is_refused_until_one_is_free(void **state) {
    uint64_t id = 0;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    for (uint64_t i = 1; i <= ENCL_MAX_OPEN; i++) {
        assert_int_equal(i % 2 ? open_stream(&x, &p) : request(&x, &p), i);
    }
    assert_int_equal(encl_session_open_ids(x.s), ENCL_MAX_OPEN);
    assert_int_equal(encl_app_open_stream(encl_session_app(x.s), no_bytes, &id, &x.out, &x.err),
                     ENCL_E_STATE);
    assert_int_equal(encl_app_request(encl_session_app(x.s), no_bytes, &id, &x.out, &x.err),
                     ENCL_E_STATE);
    assert_int_equal(id, 0);
    assert_silent(&x);
    assert_int_equal(encl_session_open_ids(x.s), ENCL_MAX_OPEN);
    /* The server's close does not free the slot: ours does. */
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_CLOSE, 5)), ENCL_OK);
    assert_int_equal(encl_app_open_stream(encl_session_app(x.s), no_bytes, &id, &x.out, &x.err),
                     ENCL_E_STATE);
    close_stream(&x, &p, 5);
    assert_int_equal(open_stream(&x, &p), 65);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_DATA, 6)), ENCL_OK);
    assert_int_equal(request(&x, &p), 66);
    end(&x, &p);

    side_new_with(&x, ENCL_INITIATOR, NULL, 1, NULL);
    open_with(&x, &p);
    (void)request(&x, &p);
    assert_int_equal(encl_app_request(encl_session_app(x.s), no_bytes, &id, &x.out, &x.err),
                     ENCL_E_STATE);
    end(&x, &p);
}

static const encl_msg_type about_ids[] = {ENCL_MSG_DATA, ENCL_MSG_STREAM_DATA,
                                          ENCL_MSG_STREAM_CLOSE, ENCL_MSG_ERROR};

static void messages_for_ids_never_issued_are_refused(void **state) {
    static const uint64_t ids[] = {0, 2, UINT64_MAX};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        for (size_t j = 0; j < 3; j++) {
            side x;
            peer p;

            opened(&x, &p);
            (void)open_stream(&x, &p);
            assert_int_equal(peer_says(&p, &x, message(about_ids[i], ids[j])), ENCL_E_PROTOCOL);
            assert_non_null(strstr(x.err.message, "expected an id between 1 and 1"));
            assert_non_null(strstr(x.err.message, encl_msg_type_name(about_ids[i])));
            end(&x, &p);
        }
    }
}

static void late_messages_for_a_given_up_id_are_dropped(void **state) {
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    (void)open_stream(&x, &p);
    close_stream(&x, &p, 1);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(peer_says(&p, &x, message(about_ids[i], 1)), ENCL_OK);
        assert_int_equal(x.event.type, ENCL_EV_NONE);
    }
    assert_silent(&x);
    assert_int_equal(open_stream(&x, &p), 2);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_DATA, 2)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_DATA);
    assert_int_equal(x.event.id, 2);
    assert_memory_equal(x.event.payload.data, "some text", 9);
    end(&x, &p);
}

/* Whoever holds the clock decides how many of them are too many. */
static void records_that_carry_nothing_are_counted(void **state) {
    encl_msg empty = message(ENCL_MSG_STREAM_DATA, 2);
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    (void)open_stream(&x, &p);
    close_stream(&x, &p, 1);
    assert_int_equal(open_stream(&x, &p), 2);
    assert_int_equal(encl_session_idle_records(x.s), 0);
    /* What still came for a given up stream was under way: it may be much. */
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_DATA, 1)), ENCL_OK);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_DATA, 2)), ENCL_OK);
    assert_int_equal(encl_session_idle_records(x.s), 0);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_ERROR, 1)), ENCL_OK);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_CLOSE, 1)), ENCL_OK);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_DATA, 1)), ENCL_OK);
    assert_int_equal(encl_session_idle_records(x.s), 3);
    empty.payload = no_bytes;
    assert_int_equal(peer_says(&p, &x, empty), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_NONE);
    assert_int_equal(encl_session_idle_records(x.s), 4);
    /* Ends of what is open do carry something. */
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_CLOSE, 2)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_CLOSED);
    assert_int_equal(request(&x, &p), 3);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_DATA, 3)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_DATA);
    assert_int_equal(encl_session_idle_records(x.s), 4);
    end(&x, &p);
}

static void nothing_may_follow_the_workloads_close(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        side x;
        peer p;

        opened(&x, &p);
        (void)open_stream(&x, &p);
        assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_CLOSE, 1)), ENCL_OK);
        assert_int_equal(x.event.type, ENCL_EV_STREAM_CLOSED);
        assert_int_equal(encl_app_stream_data(encl_session_app(x.s), 1, no_bytes, &x.out, &x.err),
                         ENCL_E_STATE);
        assert_silent(&x);
        assert_int_equal(
            peer_says(&p, &x, message(i == 0 ? ENCL_MSG_STREAM_DATA : ENCL_MSG_STREAM_CLOSE, 1)),
            ENCL_E_PROTOCOL);
        assert_non_null(strstr(x.err.message, "after its StreamClose"));
        end(&x, &p);
    }
}

static void messages_of_the_other_kind_are_refused(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        side x;
        peer p;

        opened(&x, &p);
        (void)open_stream(&x, &p);
        (void)request(&x, &p);
        assert_int_equal(peer_says(&p, &x, message(about_ids[i], i == 0 ? 1 : 2)), ENCL_E_PROTOCOL);
        end(&x, &p);
    }
}

static void an_error_holds_the_slot_until_it_is_closed(void **state) {
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    (void)open_stream(&x, &p);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_ERROR, 1)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_ERROR);
    assert_int_equal(x.event.payload.len, 9);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(peer_says(&p, &x, message(about_ids[i], 1)), ENCL_OK);
        assert_int_equal(x.event.type, ENCL_EV_NONE);
    }
    assert_int_equal(encl_app_stream_data(encl_session_app(x.s), 1, no_bytes, &x.out, &x.err),
                     ENCL_E_STATE);
    assert_int_equal(
        encl_app_stream_close(encl_session_app(x.s), 1, ENCL_HALF_WRITE, &x.out, &x.err),
        ENCL_E_STATE);
    assert_int_equal(encl_session_open_ids(x.s), 1);
    close_stream(&x, &p, 1);
    assert_int_equal(encl_session_open_ids(x.s), 0);
    end(&x, &p);
}

static void one_shot_requests_end_with_their_answer(void **state) {
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    for (uint64_t id = 1; id <= 4; id++) {
        encl_msg_type type = id % 2 ? ENCL_MSG_DATA : ENCL_MSG_ERROR;
        encl_event_type event = id % 2 ? ENCL_EV_DATA : ENCL_EV_ERROR;

        assert_int_equal(request(&x, &p), id);
        assert_silent(&x);
        assert_int_equal(encl_session_open_ids(x.s), 1);
        assert_int_equal(peer_says(&p, &x, message(type, id)), ENCL_OK);
        assert_int_equal(x.event.type, event);
        assert_int_equal(encl_session_open_ids(x.s), 0);
    }
    end(&x, &p);
}

static void writing_stops_where_it_was_shut_down(void **state) {
    encl_app *app;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    app = encl_session_app(x.s);
    (void)open_stream(&x, &p);
    (void)request(&x, &p);
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_NONE, &x.out, &x.err), ENCL_E_INVALID);
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_WRITE, &x.out, &x.err), ENCL_OK);
    assert_hears(&p, &x, ENCL_MSG_STREAM_CLOSE, 1);
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_WRITE, &x.out, &x.err), ENCL_E_STATE);
    assert_int_equal(encl_app_stream_data(app, 1, no_bytes, &x.out, &x.err), ENCL_E_STATE);
    assert_int_equal(encl_app_stream_data(app, 2, no_bytes, &x.out, &x.err), ENCL_E_STATE);
    assert_int_equal(encl_app_stream_close(app, 2, ENCL_HALF_BOTH, &x.out, &x.err), ENCL_E_STATE);
    assert_int_equal(encl_app_stream_data(app, 3, no_bytes, &x.out, &x.err), ENCL_E_STATE);
    assert_silent(&x);
    /* The workload may still answer. */
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_DATA, 1)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_DATA);
    end(&x, &p);
}

static void control_messages_are_refused_with_their_text(void **state) {
    static const encl_msg_type types[] = {ENCL_MSG_CONTROL_RESULT, ENCL_MSG_CONTROL_NONCE};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        side x;
        peer p;

        opened(&x, &p);
        assert_int_equal(peer_says(&p, &x, message(types[i], 0)), ENCL_E_PROTOCOL);
        assert_non_null(strstr(x.err.message, encl_msg_type_name(types[i])));
        assert_true(i == 1 || strstr(x.err.message, "some text") != NULL);
        end(&x, &p);
    }
    for (size_t i = 0; i < 2; i++) {
        side x;
        peer p;

        serving(&x, &p, 0);
        assert_int_equal(
            peer_says(&p, &x, message(i == 0 ? ENCL_MSG_CONTROL : ENCL_MSG_GET_CONTROL_NONCE, 0)),
            ENCL_E_PROTOCOL);
        end(&x, &p);
    }
}

/* ---- the responder ---- */

static void the_responder_checks_the_ids_of_a_client(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        encl_msg_type type = i % 2 ? ENCL_MSG_DATA : ENCL_MSG_OPEN_STREAM;
        side x;
        peer p;

        serving(&x, &p, 3);
        if (i < 2) {
            assert_int_equal(peer_says(&p, &x, message(type, 0)), ENCL_E_PROTOCOL);
        } else if (i < 4) {
            assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_OPEN_STREAM, 9)), ENCL_OK);
            assert_int_equal(peer_says(&p, &x, message(type, 9)), ENCL_E_PROTOCOL);
        } else { /* one beyond the limit is seen, the next is not taken */
            for (uint64_t id = 1; id <= 4; id++) {
                assert_int_equal(peer_says(&p, &x, message(type, id)), ENCL_OK);
            }
            assert_int_equal(encl_session_open_ids(x.s), 4);
            assert_int_equal(peer_says(&p, &x, message(type, 5)), ENCL_E_PROTOCOL);
        }
        end(&x, &p);
    }
}

static void the_responder_reports_unknown_streams_and_answers_them(void **state) {
    encl_msg close = message(ENCL_MSG_STREAM_CLOSE, 4);
    side x;
    peer p;

    (void)state;
    serving(&x, &p, 0);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_DATA, 4)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_DATA);
    assert_int_equal(encl_app_stream_data(encl_session_app(x.s), 4, no_bytes, &x.out, &x.err),
                     ENCL_E_STATE);
    assert_int_equal(encl_app_reply(encl_session_app(x.s), 4, no_bytes, &x.out, &x.err),
                     ENCL_E_STATE);
    assert_int_equal(
        encl_app_error(encl_session_app(x.s), 4, TEXT("unknown stream id"), &x.out, &x.err),
        ENCL_OK);
    assert_hears(&p, &x, ENCL_MSG_ERROR, 4);
    close.half = ENCL_HALF_BOTH;
    assert_int_equal(peer_says(&p, &x, close), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_CLOSED);
    assert_int_equal(x.event.half, ENCL_HALF_BOTH);
    end(&x, &p);
}

static void the_responders_slot_is_freed_by_the_client(void **state) {
    encl_msg close = message(ENCL_MSG_STREAM_CLOSE, 1);
    encl_app *app;
    side x;
    peer p;

    (void)state;
    serving(&x, &p, 0);
    app = encl_session_app(x.s);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_OPEN_STREAM, 1)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_OPENED);
    close.half = ENCL_HALF_WRITE;
    assert_int_equal(peer_says(&p, &x, close), ENCL_OK);
    assert_int_equal(x.event.half, ENCL_HALF_WRITE);
    assert_int_equal(encl_app_stream_data(app, 1, TEXT("x"), &x.out, &x.err), ENCL_OK);
    assert_hears(&p, &x, ENCL_MSG_STREAM_DATA, 1);
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_NONE, &x.out, &x.err), ENCL_OK);
    assert_hears(&p, &x, ENCL_MSG_STREAM_CLOSE, 1);
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_NONE, &x.out, &x.err), ENCL_E_STATE);
    assert_int_equal(encl_app_stream_data(app, 1, TEXT("x"), &x.out, &x.err), ENCL_E_STATE);
    assert_int_equal(encl_session_open_ids(x.s), 1);
    close.half = ENCL_HALF_BOTH;
    assert_int_equal(peer_says(&p, &x, close), ENCL_OK);
    assert_int_equal(encl_session_open_ids(x.s), 0);
    /* A failed one and an answered request free theirs at once. */
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_OPEN_STREAM, 2)), ENCL_OK);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_DATA, 3)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_REQUEST);
    assert_int_equal(encl_app_error(app, 2, TEXT("no"), &x.out, &x.err), ENCL_OK);
    assert_int_equal(encl_app_reply(app, 3, TEXT("yes"), &x.out, &x.err), ENCL_OK);
    assert_int_equal(encl_app_reply(app, 3, TEXT("yes"), &x.out, &x.err), ENCL_E_STATE);
    assert_hears(&p, &x, ENCL_MSG_ERROR, 2);
    assert_hears(&p, &x, ENCL_MSG_DATA, 3);
    assert_int_equal(encl_session_open_ids(x.s), 0);
    end(&x, &p);

    serving(&x, &p, 0);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_OPEN_STREAM, 1)), ENCL_OK);
    close.half = ENCL_HALF_WRITE;
    assert_int_equal(peer_says(&p, &x, close), ENCL_OK);
    assert_int_equal(peer_says(&p, &x, message(ENCL_MSG_STREAM_DATA, 1)), ENCL_E_PROTOCOL);
    end(&x, &p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_65th_id_is_refused_until_one_is_free),
        cmocka_unit_test(messages_for_ids_never_issued_are_refused),
        cmocka_unit_test(late_messages_for_a_given_up_id_are_dropped),
        cmocka_unit_test(records_that_carry_nothing_are_counted),
        cmocka_unit_test(nothing_may_follow_the_workloads_close),
        cmocka_unit_test(messages_of_the_other_kind_are_refused),
        cmocka_unit_test(an_error_holds_the_slot_until_it_is_closed),
        cmocka_unit_test(one_shot_requests_end_with_their_answer),
        cmocka_unit_test(writing_stops_where_it_was_shut_down),
        cmocka_unit_test(control_messages_are_refused_with_their_text),
        cmocka_unit_test(the_responder_checks_the_ids_of_a_client),
        cmocka_unit_test(the_responder_reports_unknown_streams_and_answers_them),
        cmocka_unit_test(the_responders_slot_is_freed_by_the_client),
    };

    return cmocka_run_group_tests_name("session ids", tests, NULL, NULL);
}
