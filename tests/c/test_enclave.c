/* enclave: the local enclave, driven by an initiator's session over net. What needs certificates
 * or an independent client is tested from Python. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>
#include <time.h>

#include "enclave_sides.h"

/* ---- tests */

static void a_stream_reaches_the_workload_and_back(void **state) {
    fixture *f = *state;
    uint64_t id;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    id = ask(&p, make_open, 0, TEXT("first"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, 5, WAIT_S));
    ask(&p, make_data, id, TEXT("second"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, 11, WAIT_S));
    assert_int_equal(stats_of(f).slots_open, 1);
    assert_int_equal(stats_of(f).bytes_to_workload, 11);
    assert_int_equal(stats_of(f).bytes_from_workload, 11);
    ask(&p, make_close, id, ENCL_SLICE_NONE, ENCL_HALF_BOTH);
    assert_true(slots_reach(f, 0));
    peer_stop(&p);
}

static void a_half_closed_stream_ends_when_the_workload_ends(void **state) {
    fixture *f = *state;
    uint64_t id;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    id = ask(&p, make_open, 0, TEXT("words"), ENCL_HALF_NONE);
    ask(&p, make_close, id, ENCL_SLICE_NONE, ENCL_HALF_WRITE);
    assert_true(wait_for(&p, has_count, 3, WAIT_S));
    assert_string_equal(p.events[1].text, "words");
    assert_int_equal(p.events[2].type, ENCL_EV_STREAM_CLOSED);
    assert_int_equal(stats_of(f).slots_open, 1); /* until the client says Both */
    ask(&p, make_close, id, ENCL_SLICE_NONE, ENCL_HALF_BOTH);
    assert_true(slots_reach(f, 0));
    peer_stop(&p);
}

static void chunks_are_at_most_16_kib(void **state) {
    fixture *f = *state;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    ask(&p, make_open, 0, TEXT("*"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, MUCH, WAIT_S));
    peer_stop(&p);
    assert_int_equal(p.bytes, MUCH);
    assert_int_equal(p.longest, 16384);
}

static void a_one_shot_request_is_answered_once(void **state) {
    fixture *f = *state;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    ask(&p, make_request, 0, TEXT("!whole"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_count, 2, WAIT_S));
    assert_int_equal(p.events[1].type, ENCL_EV_DATA);
    assert_string_equal(p.events[1].text, "!whole");
    assert_true(slots_reach(f, 0));
    assert_int_equal(stats_of(f).requests_total, 1);
    peer_stop(&p);
}

static bool has_echo(const peer *p, uint64_t arg) {
    for (size_t i = 0; i < p->count; i++) {
        if (p->events[i].id == arg && p->events[i].type == ENCL_EV_DATA) {
            return true;
        }
    }
    return false;
}

/* The initiator's own limit is in the way: its closed stream is given up on our side first, while
 * the enclave, which takes no more input, still counts it. */
static void the_65th_waits_for_a_both(void **state) {
    fixture *f = *state;
    uint64_t ids[ENCL_MAX_OPEN], last;
    peer p;

    peer_open(&p, encl_enclave_port(f->enclave));
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        ids[i] = ask(&p, make_open, 0, TEXT("x"), ENCL_HALF_NONE);
    }
    assert_true(wait_for(&p, has_bytes, ENCL_MAX_OPEN, WAIT_S));
    assert_int_equal(stats_of(f).slots_open, ENCL_MAX_OPEN);
    ask(&p, make_close, ids[0], ENCL_SLICE_NONE, ENCL_HALF_BOTH);
    last = ask(&p, make_request, 0, TEXT("!late"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_echo, last, WAIT_S));
    peer_stop(&p);
}

static void connections_beyond_the_limit_are_closed(void **state) {
    fixture *f = *state;
    peer p[5];

    for (size_t i = 0; i < 4; i++) {
        peer_open(&p[i], encl_enclave_port(f->enclave));
    }
    peer_start(&p[4], encl_enclave_port(f->enclave));
    assert_true(wait_for(&p[4], has_closed, 0, WAIT_S));
    assert_int_equal(p[4].count, 0);
    assert_int_equal(stats_of(f).connections_open, 4);
    for (size_t i = 0; i < 5; i++) {
        peer_stop(&p[i]);
    }
}

static void dropped_connections_end_and_new_ones_are_taken(void **state) {
    fixture *f = *state;
    peer p;

    for (int reset = 0; reset < 2; reset++) {
        peer_open(&p, encl_enclave_port(f->enclave));
        ask(&p, make_open, 0, TEXT("open"), ENCL_HALF_NONE);
        assert_true(wait_for(&p, has_bytes, 4, WAIT_S));
        encl_enclave_drop_connections(f->enclave, reset != 0);
        assert_int_equal(stats_of(f).slots_open, 0);
        assert_true(wait_for(&p, has_closed, 0, WAIT_S));
        peer_stop(&p);
    }
}

static void stopping_takes_open_streams_along(void **state) {
    fixture *f = *state;
    encl_enclave_config config = config_for(f);
    encl_enclave *second;
    encl_error err;
    peer p;

    assert_int_equal(encl_enclave_start(&config, &second, &err), ENCL_OK);
    peer_open(&p, encl_enclave_port(second));
    ask(&p, make_open, 0, TEXT("open"), ENCL_HALF_NONE);
    ask(&p, make_request, 0, TEXT("waits"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, 4, WAIT_S));
    encl_enclave_stop(second);
    assert_true(wait_for(&p, has_closed, 0, WAIT_S));
    peer_stop(&p);
}

/* The workload's port is closed first. Without another dial the stream would fail then; and with
 * another dial after the workload was up, the second stream would wait for the minute of grace. */
static void a_refused_dial_is_retried_only_before_the_workload_was_up(void **state) {
    fixture *f = *state;
    encl_enclave_config config = config_for(f);
    encl_enclave *e;
    encl_error err;
    workload late;
    peer p;

    workload_start(&late);
    workload_stop(&late);
    config.workload_port = late.port;
    config.grace_ms = 60000;
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_OK);
    peer_open(&p, encl_enclave_port(e));
    ask(&p, make_open, 0, TEXT("x"), ENCL_HALF_NONE);
    assert_false(wait_for(&p, has_count, 2, 0.1));
    workload_start_at(&late, late.port);
    assert_true(wait_for(&p, has_bytes, 1, WAIT_S));
    workload_stop(&late);
    ask(&p, make_open, 0, TEXT("y"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_count, 3, WAIT_S));
    assert_int_equal(p.events[2].type, ENCL_EV_ERROR);
    assert_non_null(strstr(p.events[2].text, "refused"));
    peer_stop(&p);
    encl_enclave_stop(e);
}

static void a_refused_dial_is_not_retried_beyond_the_grace(void **state) {
    fixture *f = *state;
    encl_enclave_config config = config_for(f);
    encl_enclave *e;
    encl_error err;
    workload gone;
    peer p;

    workload_start(&gone);
    workload_stop(&gone);
    config.workload_port = gone.port;
    config.grace_ms = 600;
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_OK);
    peer_open(&p, encl_enclave_port(e));
    ask(&p, make_open, 0, TEXT("x"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_count, 2, WAIT_S));
    assert_int_equal(p.events[1].type, ENCL_EV_ERROR);
    assert_non_null(strstr(p.events[1].text, "refused"));
    peer_stop(&p);
    encl_enclave_stop(e);
}

static void each_handshake_fault_fails_the_client(void **state) {
    static const uint32_t faults[] = {ENCL_FAULT_SHORT_HANDSHAKE, ENCL_FAULT_LONG_HANDSHAKE,
                                      ENCL_FAULT_ZERO_KEY,        ENCL_FAULT_GARBAGE_RECORD,
                                      ENCL_FAULT_WRONG_NONCE,     ENCL_FAULT_RAW_RECORD_LENGTH};
    fixture *f = *state;

    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        peer p;

        set_faults(f, (encl_enclave_faults){.mask = faults[i], .record_length = 70000});
        peer_start(&p, encl_enclave_port(f->enclave));
        for (int t = 0; t < 100 && why_of(&p) == ENCL_OK; t++) {
            (void)wait_for(&p, has_closed, 0, 0.05);
        }
        assert_int_not_equal(p.why.code, ENCL_OK);
        assert_int_equal(p.count, 0);
        peer_stop(&p);
    }
}

static void silence_is_silence(void **state) {
    static const uint32_t faults[] = {ENCL_FAULT_SILENT_HANDSHAKE, ENCL_FAULT_SILENT_ATTESTATION,
                                      ENCL_FAULT_TEXT_ONLY};
    fixture *f = *state;

    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        peer p;

        set_faults(f, (encl_enclave_faults){.mask = faults[i]});
        peer_start(&p, encl_enclave_port(f->enclave));
        assert_false(wait_for(&p, has_count, 1, 0.3));
        assert_false(p.closed);
        peer_stop(&p);
    }
}

static void split_answers_are_whole_again(void **state) {
    fixture *f = *state;
    peer p;

    set_faults(f, (encl_enclave_faults){.mask = ENCL_FAULT_SPLIT, .split = 3});
    peer_open(&p, encl_enclave_port(f->enclave));
    ask(&p, make_open, 0, TEXT("in pieces"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_bytes, 9, WAIT_S));
    assert_string_equal(p.events[1].text, "in pieces");
    peer_stop(&p);
}

static void requests_can_be_answered_by_a_reset(void **state) {
    fixture *f = *state;
    peer p;

    set_faults(f, (encl_enclave_faults){.mask = ENCL_FAULT_CLOSE_ON_REQUEST});
    peer_open(&p, encl_enclave_port(f->enclave));
    ask(&p, make_open, 0, TEXT("x"), ENCL_HALF_NONE);
    assert_true(wait_for(&p, has_closed, 0, WAIT_S));
    peer_stop(&p);
}

static void hostile_plaintexts_are_sent_sealed(void **state) {
    static const uint8_t not_a_message[] = {0xf6};
    fixture *f = *state;
    encl_enclave_faults faults = {.after_attestation =
                                      ENCL_SLICE(not_a_message, sizeof not_a_message)};
    peer p;

    set_faults(f, faults);
    peer_start(&p, encl_enclave_port(f->enclave));
    for (int t = 0; t < 100 && why_of(&p) == ENCL_OK; t++) {
        (void)wait_for(&p, has_closed, 0, 0.05);
    }
    assert_int_equal(p.why.code, ENCL_E_PROTOCOL);
    assert_int_equal(p.count, 1); /* it was open by then */
    peer_stop(&p);
}

static void impossible_settings_are_refused(void **state) {
    fixture *f = *state;
    encl_enclave_config config = config_for(f);
    encl_enclave_faults faults = {.mask = ENCL_FAULT_SPLIT};
    encl_enclave *e;
    encl_error err;

    config.mode = ENCL_ENCLAVE_PRODUCTION; /* without a key */
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_E_INVALID);
    assert_null(e);
    config = config_for(f);
    config.max_connections = 0;
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_E_INVALID);
    config = config_for(f);
    config.port = encl_enclave_port(f->enclave);
    assert_int_equal(encl_enclave_start(&config, &e, &err), ENCL_E_CONNECT);
    assert_int_equal(encl_enclave_set_faults(f->enclave, &faults, &err), ENCL_E_INVALID);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_stream_reaches_the_workload_and_back),
        TEST(a_half_closed_stream_ends_when_the_workload_ends),
        TEST(chunks_are_at_most_16_kib),
        TEST(a_one_shot_request_is_answered_once),
        TEST(the_65th_waits_for_a_both),
        TEST(connections_beyond_the_limit_are_closed),
        TEST(dropped_connections_end_and_new_ones_are_taken),
        TEST(stopping_takes_open_streams_along),
        TEST(a_refused_dial_is_retried_only_before_the_workload_was_up),
        TEST(a_refused_dial_is_not_retried_beyond_the_grace),
        TEST(each_handshake_fault_fails_the_client),
        TEST(silence_is_silence),
        TEST(split_answers_are_whole_again),
        TEST(requests_can_be_answered_by_a_reset),
        TEST(hostile_plaintexts_are_sent_sealed),
        TEST(impossible_settings_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
