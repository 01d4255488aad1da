/* session: a whole exchange under every split, and no application byte before the document
 * verified. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/app.h"
#include "session_sides.h"

/* ---- the whole exchange, under every split ---- */

/* A session with a script: what it does about each event. Everything is deterministic, so the
 * bytes that one run exchanged can be given again in other pieces. */
typedef struct actor {
    side x;
    encl_role role;
    char log[4096];
    encl_buf sent; /* everything that x.out ever held */
} actor;

static const uint8_t ephemerals[2][32] = {{1, 2, 3}, {4, 5, 6}};
static uint8_t long_payload[700];

static void actor_new(actor *a, encl_role role) {
    encl_pins pins = debug_pins(7);

    memset(a, 0, sizeof *a);
    a->role = role;
    side_new_with(&a->x, role, role == ENCL_INITIATOR ? &pins : NULL, 0, ephemerals[role]);
    encl_buf_init(&a->sent, BUF_LIMIT);
    if (role == ENCL_INITIATOR) {
        assert_int_equal(encl_session_start(a->x.s, &a->x.out, &a->x.err), ENCL_OK);
    }
}

static void actor_free(actor *a) {
    side_free(&a->x);
    encl_buf_free(&a->sent);
}

static void actor_note(actor *a, const encl_event *e) {
    size_t used = strlen(a->log);
    unsigned sum = 0;
    int n;

    for (size_t i = 0; i < e->payload.len; i++) {
        sum = sum * 31 + e->payload.data[i];
    }
    n = snprintf(a->log + used, sizeof a->log - used, "%d id=%llu half=%d %zu/%u; ", (int)e->type,
                 (unsigned long long)e->id, (int)e->half, e->payload.len, sum);
    assert_true(n > 0 && (size_t)n < sizeof a->log - used);
}

#define DO(call) assert_int_equal((call), ENCL_OK)

static void initiator_script(actor *a, const encl_event *e) {
    encl_app *app = encl_session_app(a->x.s);
    encl_slice bytes = ENCL_SLICE(long_payload, sizeof long_payload);
    encl_buf *out = &a->x.out;
    encl_error *err = &a->x.err;
    uint64_t id;

    if (e->type != ENCL_EV_OPEN) {
        return;
    }
    DO(encl_app_open_stream(app, bytes, &id, out, err));
    assert_int_equal(id, 1);
    DO(encl_app_request(app, TEXT("question"), &id, out, err));
    assert_int_equal(id, 2);
    DO(encl_app_open_stream(app, no_bytes, &id, out, err));
    DO(encl_app_request(app, TEXT("no answer please"), &id, out, err));
    DO(encl_app_request_attestation(app, out, err));
    DO(encl_app_stream_data(app, 1, TEXT("more"), out, err));
    DO(encl_app_stream_close(app, 1, ENCL_HALF_WRITE, out, err));
    DO(encl_app_open_stream(app, TEXT("fail"), &id, out, err));
    DO(encl_app_stream_close(app, 3, ENCL_HALF_BOTH, out, err));
}

static void give_document(actor *a) {
    encl_slice hash = ENCL_SLICE(encl_session_handshake_hash(a->x.s), ENCL_NOISE_HASH_BYTES);
    encl_buf document;

    debug_document(&document, hash, 7);
    DO(encl_app_attestation(encl_session_app(a->x.s), encl_buf_peek(&document), NULL, &a->x.out,
                            &a->x.err));
    encl_buf_free(&document);
}

static void responder_script(actor *a, const encl_event *e) {
    encl_app *app = encl_session_app(a->x.s);
    encl_buf *out = &a->x.out;
    encl_error *err = &a->x.err;

    switch (e->type) {
    case ENCL_EV_ATTESTATION_REQUESTED:
        give_document(a);
        break;
    case ENCL_EV_REQUEST:
        DO(encl_app_reply(app, e->id, TEXT("answer"), out, err));
        break;
    case ENCL_EV_STREAM_OPENED:
        if (e->payload.len == 4) {
            DO(encl_app_error(app, e->id, TEXT("it failed"), out, err));
        } else {
            DO(encl_app_stream_data(app, e->id, e->payload, out, err));
        }
        break;
    case ENCL_EV_STREAM_DATA:
        DO(encl_app_stream_data(app, e->id, ENCL_SLICE(long_payload, sizeof long_payload), out,
                                err));
        DO(encl_app_stream_data(app, e->id, no_bytes, out, err));
        break;
    case ENCL_EV_STREAM_CLOSED:
        if (e->half == ENCL_HALF_WRITE) {
            DO(encl_app_stream_close(app, e->id, ENCL_HALF_NONE, out, err));
        }
        break;
    default:
        break;
    }
}

static void actor_collect(actor *a) {
    DO(encl_buf_write(&a->sent, encl_buf_peek(&a->x.out), &a->x.err));
    encl_buf_clear(&a->x.out);
}

static void actor_feed(actor *a, const uint8_t *bytes, size_t len) {
    uint8_t *block = malloc(len == 0 ? 1 : len);
    size_t pos = 0, consumed;

    assert_non_null(block);
    memcpy(block, bytes, len);
    do {
        encl_event e;

        DO(encl_session_recv(a->x.s, block + pos, len - pos, &consumed, NOW, &a->x.out, &e,
                             &a->x.err));
        pos += consumed;
        if (e.type != ENCL_EV_NONE) {
            actor_note(a, &e);
            if (a->role == ENCL_INITIATOR) {
                initiator_script(a, &e);
            } else {
                responder_script(a, &e);
            }
        }
        actor_collect(a);
    } while (pos < len);
    free(block);
}

static void assert_same_run(const actor *a, const actor *expected) {
    assert_string_equal(a->log, expected->log);
    assert_int_equal(encl_buf_readable(&a->sent), encl_buf_readable(&expected->sent));
    assert_memory_equal(a->sent.data, expected->sent.data, encl_buf_readable(&a->sent));
    assert_int_equal(encl_session_open_ids(a->x.s), encl_session_open_ids(expected->x.s));
    assert_false(encl_session_has_partial_record(a->x.s));
}

static void replay(const actor *expected, encl_slice bytes, size_t first, size_t step) {
    actor a;

    actor_new(&a, expected->role);
    actor_collect(&a);
    actor_feed(&a, bytes.data, first);
    for (size_t at = first; at < bytes.len; at += step) {
        actor_feed(&a, bytes.data + at, step < bytes.len - at ? step : bytes.len - at);
    }
    assert_same_run(&a, expected);
    actor_free(&a);
}

static void exchange(actor *a, actor *b) {
    size_t a_given = 0, b_given = 0;

    actor_new(a, ENCL_INITIATOR);
    actor_new(b, ENCL_RESPONDER);
    actor_collect(a);
    do {
        size_t n = encl_buf_readable(&a->sent) - a_given;

        actor_feed(b, a->sent.data + a_given, n);
        a_given += n;
        n = encl_buf_readable(&b->sent) - b_given;
        actor_feed(a, b->sent.data + b_given, n);
        b_given += n;
    } while (a_given != encl_buf_readable(&a->sent));
}

static void every_split_gives_the_same_events_and_bytes(void **state) {
    actor *a = malloc(sizeof *a), *b = malloc(sizeof *b);

    (void)state;
    assert_true(a != NULL && b != NULL);
    for (size_t i = 0; i < sizeof long_payload; i++) {
        long_payload[i] = (uint8_t)(i * 37);
    }
    exchange(a, b);
    /* 1 OPEN, 2 ATTESTED, 3 DATA, 4 STREAM_DATA, 5 STREAM_CLOSED, 6 ERROR */
    for (char c = '1'; c <= '6'; c++) {
        char start[] = {c, ' ', 'i', 'd', '\0'};

        assert_non_null(strstr(a->log, start));
    }
    assert_non_null(strstr(b->log, "half=1"));
    assert_non_null(strstr(b->log, "half=2"));
    assert_int_equal(encl_session_open_ids(a->x.s), 2);
    for (int role = 0; role < 2; role++) {
        const actor *me = role == 0 ? a : b, *other = role == 0 ? b : a;
        encl_slice bytes = encl_buf_peek(&other->sent);

        replay(me, bytes, bytes.len, 1);
        replay(me, bytes, 0, 1);
        replay(me, bytes, 0, 3);
        for (size_t at = 1; at < bytes.len; at++) {
            replay(me, bytes, at, bytes.len);
        }
    }
    actor_free(a);
    actor_free(b);
    free(a);
    free(b);
}

/* ---- no application byte before the document verified ---- */

static encl_code run_command(encl_app *app, int command, encl_buf *out, encl_error *err) {
    uint64_t id = 77;
    encl_code rc;

    switch (command) {
    case 0:
        rc = encl_app_open_stream(app, TEXT("secret"), &id, out, err);
        break;
    case 1:
        rc = encl_app_request(app, TEXT("secret"), &id, out, err);
        break;
    case 2:
        rc = encl_app_stream_data(app, 1, TEXT("secret"), out, err);
        break;
    case 3:
        rc = encl_app_stream_close(app, 1, ENCL_HALF_BOTH, out, err);
        break;
    case 4:
        rc = encl_app_request_attestation(app, out, err);
        break;
    case 5:
        rc = encl_app_attestation(app, TEXT("secret"), NULL, out, err);
        break;
    case 6:
        rc = encl_app_reply(app, 1, TEXT("secret"), out, err);
        break;
    default:
        rc = encl_app_error(app, 1, TEXT("secret"), out, err);
        break;
    }
    assert_int_equal(id, 77);
    return rc;
}

#define COMMANDS 8

static void assert_nothing_can_be_sent(side *x, encl_app *app, encl_code expected) {
    size_t before = encl_buf_readable(&x->out);

    for (int command = 0; command < COMMANDS; command++) {
        assert_int_equal(run_command(app, command, &x->out, &x->err), expected);
        assert_int_equal(encl_buf_readable(&x->out), before);
    }
}

static void only_an_open_session_has_a_handle_that_sends(void **state) {
    side x;
    peer p;
    encl_app *held;

    (void)state;
    side_new(&x, ENCL_INITIATOR);
    assert_int_equal(state_of(&x), ENCL_SESSION_NEW);
    assert_null(encl_session_app(x.s));
    assert_nothing_can_be_sent(&x, encl_session_app(x.s), ENCL_E_STATE);
    side_free(&x);

    side_new(&x, ENCL_INITIATOR);
    assert_int_equal(encl_session_start(x.s, &x.out, &x.err), ENCL_OK);
    assert_int_equal(state_of(&x), ENCL_SESSION_HANDSHAKE);
    assert_null(encl_session_app(x.s));
    assert_nothing_can_be_sent(&x, encl_session_app(x.s), ENCL_E_STATE);
    side_free(&x);

    attesting(&x, &p);
    assert_null(encl_session_app(x.s));
    assert_null(encl_session_attestation(x.s));
    assert_nothing_can_be_sent(&x, encl_session_app(x.s), ENCL_E_STATE);
    assert_int_equal(peer_says(&p, &x, stub_document(&p)), ENCL_OK);
    assert_int_equal(state_of(&x), ENCL_SESSION_OPEN);
    held = encl_session_app(x.s);
    assert_non_null(held);
    (void)open_stream(&x, &p);

    encl_session_close(x.s);
    assert_int_equal(state_of(&x), ENCL_SESSION_CLOSED);
    assert_null(encl_session_app(x.s));
    assert_nothing_can_be_sent(&x, encl_session_app(x.s), ENCL_E_STATE);
    assert_nothing_can_be_sent(&x, held, ENCL_E_CLOSED);
    end(&x, &p);

    side_new(&x, ENCL_RESPONDER);
    assert_int_equal(state_of(&x), ENCL_SESSION_HANDSHAKE);
    assert_null(encl_session_app(x.s));
    assert_int_equal(encl_session_start(x.s, &x.out, &x.err), ENCL_E_STATE);
    side_free(&x);
}

static void roles_cannot_send_each_others_messages(void **state) {
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    for (int command = 5; command < COMMANDS; command++) {
        assert_int_equal(run_command(encl_session_app(x.s), command, &x.out, &x.err), ENCL_E_STATE);
    }
    assert_silent(&x);
    end(&x, &p);
    serving(&x, &p, 0);
    for (int command = 0; command < 5; command++) {
        assert_int_equal(run_command(encl_session_app(x.s), command, &x.out, &x.err), ENCL_E_STATE);
    }
    assert_silent(&x);
    end(&x, &p);
}

static void attesting_takes_an_attestation_and_nothing_else(void **state) {
    static const encl_msg_type others[] = {ENCL_MSG_DATA,           ENCL_MSG_ERROR,
                                           ENCL_MSG_STREAM_DATA,    ENCL_MSG_STREAM_CLOSE,
                                           ENCL_MSG_CONTROL_RESULT, ENCL_MSG_CONTROL_NONCE};

    (void)state;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        side x;
        peer p;

        attesting(&x, &p);
        assert_int_equal(peer_says(&p, &x, message(others[i], 1)), ENCL_E_PROTOCOL);
        assert_non_null(strstr(x.err.message, "expected Attestation"));
        assert_non_null(strstr(x.err.message, encl_msg_type_name(others[i])));
        assert_silent(&x);
        end(&x, &p);
    }
}

static void a_wrong_document_closes_the_session(void **state) {
    for (int i = 0; i < 5; i++) {
        static const encl_code expected[] = {ENCL_OK, ENCL_E_NONCE, ENCL_E_PCR, ENCL_E_DOCUMENT,
                                             ENCL_E_NONCE};
        encl_pins pins = debug_pins(7);
        uint8_t nonce[32];
        encl_buf document;
        side x;
        peer p;
        encl_msg m = {.type = ENCL_MSG_ATTESTATION};

        (void)state;
        side_new_with(&x, ENCL_INITIATOR, i == 4 ? NULL : &pins, 0, NULL);
        attesting_with(&x, &p);
        memcpy(nonce, p.hash, sizeof nonce);
        nonce[31] ^= i == 1 || i == 4 ? 1 : 0;
        debug_document(&document, ENCL_SLICE(nonce, sizeof nonce), i == 2 ? 8 : 7);
        m.payload = encl_buf_peek(&document);
        m.payload.len -= i == 3 ? 1 : 0;
        if (i == 4) {
            m.payload = ENCL_SLICE(nonce, sizeof nonce);
        }
        assert_int_equal(peer_says(&p, &x, m), expected[i]);
        assert_int_equal(encl_session_app(x.s) == NULL, i != 0);
        assert_int_equal(encl_session_attestation(x.s) == NULL, i != 0);
        assert_silent(&x);
        encl_buf_free(&document);
        end(&x, &p);
    }
}

static void a_fresh_document_must_be_asked_for_and_verify(void **state) {
    encl_attestation *first;
    uint8_t wrong[32];
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    first = encl_session_take_attestation(x.s);
    assert_non_null(first);
    assert_null(encl_session_attestation(x.s));
    encl_attestation_free(first);
    assert_int_equal(encl_app_request_attestation(encl_session_app(x.s), &x.out, &x.err), ENCL_OK);
    assert_hears(&p, &x, ENCL_MSG_REQUEST_ATTESTATION, 0);
    assert_int_equal(peer_says(&p, &x, stub_document(&p)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_ATTESTED);
    assert_non_null(encl_session_attestation(x.s));
    assert_int_equal(peer_says(&p, &x, stub_document(&p)), ENCL_E_PROTOCOL);
    assert_non_null(strstr(x.err.message, "only where it was asked for"));
    end(&x, &p);

    opened(&x, &p);
    assert_int_equal(encl_app_request_attestation(encl_session_app(x.s), &x.out, &x.err), ENCL_OK);
    memcpy(wrong, p.hash, sizeof wrong);
    wrong[0] ^= 1;
    assert_int_equal(
        peer_says(&p, &x,
                  (encl_msg){.type = ENCL_MSG_ATTESTATION, .payload = ENCL_SLICE(wrong, 32)}),
        ENCL_E_NONCE);
    end(&x, &p);
}

static void the_responder_gives_documents_with_a_control_nonce(void **state) {
    static const uint8_t nonce[ENCL_CONTROL_NONCE_BYTES] = {1, 30, 200};
    encl_msg m;
    side x;
    peer p;

    (void)state;
    serving(&x, &p, 0);
    /* Unasked, as a test enclave that misbehaves must be able to. */
    assert_int_equal(
        encl_app_attestation(encl_session_app(x.s), TEXT("document"), nonce, &x.out, &x.err),
        ENCL_OK);
    assert_true(peer_hears(&p, &x, &m));
    assert_int_equal(m.type, ENCL_MSG_ATTESTATION);
    assert_int_equal(m.payload.len, 8);
    assert_memory_equal(m.payload.data, "document", 8);
    assert_memory_equal(m.control_nonce, nonce, sizeof nonce);
    end(&x, &p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split_gives_the_same_events_and_bytes),
        cmocka_unit_test(only_an_open_session_has_a_handle_that_sends),
        cmocka_unit_test(roles_cannot_send_each_others_messages),
        cmocka_unit_test(attesting_takes_an_attestation_and_nothing_else),
        cmocka_unit_test(a_wrong_document_closes_the_session),
        cmocka_unit_test(a_fresh_document_must_be_asked_for_and_verify),
        cmocka_unit_test(the_responder_gives_documents_with_a_control_nonce),
    };

    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
