/* session: a whole exchange under every split, then a peer that breaks one rule at a time. The
 * hostile peer is made of the layers below and not of a session, so that it can say anything. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/secmem.h"
#include "session/app.h"
#include "session/record.h"
#include "session/session.h"

#define NOW         1760000000
#define BUF_LIMIT   ((size_t)1 << 20)
#define TEXT(bytes) ENCL_SLICE((bytes), sizeof(bytes) - 1)

static const encl_slice no_bytes = {NULL, 0};

/* ---- one session and the bytes it wants sent ---- */

typedef struct side {
    encl_session *s;
    encl_policy policy;
    encl_buf out;
    encl_error err;
    encl_event event;
} side;

static void side_new_with(side *x, encl_role role, const encl_pins *pins, size_t max_open,
                          const uint8_t *ephemeral) {
    encl_session_config config = {.role = role, .max_open = max_open, .fixed_ephemeral = ephemeral};

    memset(x, 0, sizeof *x);
    encl_buf_init(&x->out, BUF_LIMIT);
    if (role == ENCL_INITIATOR) {
        assert_int_equal(
            encl_policy_init(&x->policy, pins, pins == NULL ? 0 : 1, no_bytes, true, true, &x->err),
            ENCL_OK);
        config.policy = &x->policy;
    }
    assert_int_equal(encl_session_new(&config, &x->s, &x->err), ENCL_OK);
}

static void side_new(side *x, encl_role role) {
    side_new_with(x, role, NULL, 0, NULL);
}

static void side_free(side *x) {
    encl_session_free(x->s);
    encl_policy_free(&x->policy);
    encl_buf_free(&x->out);
}

static encl_session_state state_of(const side *x) {
    return encl_session_get_state(x->s);
}

/* Feeds a copy (recv overwrites), expecting it to be taken whole; the event stays in x. */
static encl_code feed(side *x, encl_slice bytes) {
    static uint8_t block[2 * ENCL_RECORD_MAX];
    size_t consumed;
    encl_code rc;

    assert_true(bytes.len <= sizeof block);
    memcpy(block, bytes.data, bytes.len);
    rc = encl_session_recv(x->s, block, bytes.len, &consumed, NOW, &x->out, &x->event, &x->err);
    if (rc == ENCL_OK) {
        assert_int_equal(consumed, bytes.len);
    } else {
        assert_int_equal(x->event.type, ENCL_EV_NONE);
        assert_int_equal(state_of(x), ENCL_SESSION_CLOSED);
        assert_null(encl_session_app(x->s));
    }
    return rc;
}

/* ---- the hostile peer ---- */

typedef struct peer {
    encl_role role;
    encl_noise_handshake *hs;
    encl_noise_transport *t;
    uint8_t hash[ENCL_NOISE_HASH_BYTES];
    encl_buf out;
    encl_error err;
} peer;

static void peer_new(peer *p, encl_role role) {
    memset(p, 0, sizeof *p);
    p->role = role;
    encl_buf_init(&p->out, BUF_LIMIT);
    assert_int_equal(encl_noise_handshake_new(role, no_bytes, NULL, &p->hs, &p->err), ENCL_OK);
}

static void peer_free(peer *p) {
    encl_noise_handshake_free(p->hs);
    encl_noise_transport_free(p->t);
    encl_buf_free(&p->out);
}

static encl_slice peer_write_handshake(peer *p) {
    encl_buf_clear(&p->out);
    assert_int_equal(encl_noise_handshake_write(p->hs, no_bytes, &p->out, &p->err), ENCL_OK);
    return encl_buf_peek(&p->out);
}

static void peer_read_handshake(peer *p, encl_buf *from, size_t size) {
    uint8_t block[64];
    encl_buf payload;
    encl_slice message;

    encl_buf_wrap(&payload, block, sizeof block);
    assert_int_equal(encl_buf_read(from, size, &message, &p->err), ENCL_OK);
    assert_int_equal(encl_noise_handshake_read(p->hs, message, &payload, &p->err), ENCL_OK);
}

static encl_slice peer_record(peer *p, const encl_msg *m) {
    encl_direction direction = p->role == ENCL_RESPONDER ? ENCL_TO_CLIENT : ENCL_TO_SERVER;

    encl_buf_clear(&p->out);
    assert_int_equal(encl_record_seal(p->t, m, direction, &p->out, &p->err), ENCL_OK);
    return encl_buf_peek(&p->out);
}

static encl_code peer_says(peer *p, side *x, encl_msg m) {
    return feed(x, peer_record(p, &m));
}

/* Decodes the next record that x wants sent; false where there is none. */
static bool peer_hears(peer *p, side *x, encl_msg *m) {
    static uint8_t block[ENCL_NOISE_MAX_MESSAGE];
    encl_direction direction = p->role == ENCL_RESPONDER ? ENCL_TO_SERVER : ENCL_TO_CLIENT;
    encl_slice head, record;
    size_t len, plain_len;

    if (encl_buf_readable(&x->out) == 0) {
        return false;
    }
    assert_int_equal(encl_buf_read(&x->out, ENCL_RECORD_HEAD, &head, &p->err), ENCL_OK);
    assert_int_equal(head.data[0] | head.data[1], 0);
    len = (size_t)head.data[2] << 8 | head.data[3];
    assert_int_equal(encl_buf_read(&x->out, len, &record, &p->err), ENCL_OK);
    memcpy(block, record.data, len);
    assert_int_equal(encl_noise_open(p->t, block, len, &plain_len, &p->err), ENCL_OK);
    assert_int_equal(encl_wire_decode(block, plain_len, direction, m, &p->err), ENCL_OK);
    return true;
}

static void assert_hears(peer *p, side *x, encl_msg_type type, uint64_t id) {
    encl_msg m;

    assert_true(peer_hears(p, x, &m));
    assert_int_equal(m.type, type);
    assert_int_equal(m.id, id);
}

static void assert_silent(side *x) {
    assert_int_equal(encl_buf_readable(&x->out), 0);
}

/* An initiator in ATTESTING, and a peer that has read its one record. */
static void attesting_with(side *x, peer *p) {
    peer_new(p, ENCL_RESPONDER);
    assert_int_equal(encl_session_start(x->s, &x->out, &x->err), ENCL_OK);
    assert_int_equal(encl_buf_readable(&x->out), 32);
    peer_read_handshake(p, &x->out, 32);
    assert_int_equal(feed(x, peer_write_handshake(p)), ENCL_OK);
    assert_int_equal(encl_noise_handshake_split(p->hs, &p->t, p->hash, &p->err), ENCL_OK);
    assert_int_equal(state_of(x), ENCL_SESSION_ATTESTING);
    assert_memory_equal(encl_session_handshake_hash(x->s), p->hash, sizeof p->hash);
    assert_hears(p, x, ENCL_MSG_REQUEST_ATTESTATION, 0);
    assert_silent(x);
}

static void attesting(side *x, peer *p) {
    side_new(x, ENCL_INITIATOR);
    attesting_with(x, p);
}

static encl_msg stub_document(const peer *p) {
    return (encl_msg){.type = ENCL_MSG_ATTESTATION, .payload = ENCL_SLICE(p->hash, sizeof p->hash)};
}

static void open_with(side *x, peer *p) {
    attesting_with(x, p);
    assert_int_equal(peer_says(p, x, stub_document(p)), ENCL_OK);
    assert_int_equal(x->event.type, ENCL_EV_OPEN);
    assert_int_equal(state_of(x), ENCL_SESSION_OPEN);
    assert_non_null(encl_session_app(x->s));
}

static void opened(side *x, peer *p) {
    side_new(x, ENCL_INITIATOR);
    open_with(x, p);
}

static void serving(side *x, peer *p, size_t max_open) {
    side_new_with(x, ENCL_RESPONDER, NULL, max_open, NULL);
    peer_new(p, ENCL_INITIATOR);
    assert_int_equal(feed(x, peer_write_handshake(p)), ENCL_OK);
    assert_int_equal(x->event.type, ENCL_EV_OPEN);
    assert_int_equal(encl_buf_readable(&x->out), 48);
    peer_read_handshake(p, &x->out, 48);
    assert_int_equal(encl_noise_handshake_split(p->hs, &p->t, p->hash, &p->err), ENCL_OK);
    assert_memory_equal(encl_session_handshake_hash(x->s), p->hash, sizeof p->hash);
}

static void end(side *x, peer *p) {
    side_free(x);
    peer_free(p);
}

static uint64_t open_stream(side *x, peer *p) {
    uint64_t id = 0;

    assert_int_equal(
        encl_app_open_stream(encl_session_app(x->s), TEXT("hi"), &id, &x->out, &x->err), ENCL_OK);
    assert_hears(p, x, ENCL_MSG_OPEN_STREAM, id);
    return id;
}

static uint64_t request(side *x, peer *p) {
    uint64_t id = 0;

    assert_int_equal(encl_app_request(encl_session_app(x->s), TEXT("hi"), &id, &x->out, &x->err),
                     ENCL_OK);
    assert_hears(p, x, ENCL_MSG_DATA, id);
    return id;
}

static void close_stream(side *x, peer *p, uint64_t id) {
    assert_int_equal(
        encl_app_stream_close(encl_session_app(x->s), id, ENCL_HALF_BOTH, &x->out, &x->err),
        ENCL_OK);
    assert_hears(p, x, ENCL_MSG_STREAM_CLOSE, id);
}

static encl_msg message(encl_msg_type type, uint64_t id) {
    return (encl_msg){.type = type, .id = id, .payload = TEXT("some text")};
}

/* ---- a document of the debug form ---- */

static encl_pcr pcr_of(uint8_t fill) {
    encl_pcr pcr = {.len = 48};

    memset(pcr.value, fill, 48);
    return pcr;
}

static void debug_document(encl_buf *document, encl_slice nonce, uint8_t pcr_fill) {
    static const uint8_t certificate[64];
    encl_doc_template doc = {.module_id = TEXT("i-test"),
                             .timestamp_ms = 1,
                             .certificate = ENCL_SLICE(certificate, sizeof certificate),
                             .cabundle = {ENCL_SLICE(certificate, sizeof certificate)},
                             .cabundle_len = 1,
                             .nonce = nonce};
    encl_error err;

    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        doc.pcrs[i] = pcr_of((uint8_t)(pcr_fill + i));
    }
    encl_buf_init(document, ENCL_DOCUMENT_MAX_BYTES);
    assert_int_equal(encl_attest_sign(&doc, no_bytes, document, &err), ENCL_OK);
}

static encl_pins debug_pins(uint8_t pcr_fill) {
    encl_pins pins;

    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        pins.pcr[i] = pcr_of((uint8_t)(pcr_fill + i));
    }
    return pins;
}

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

/* ---- records ---- */

static void lengths_out_of_bounds_are_refused(void **state) {
    static const uint32_t lengths[] = {0, 1, 15, 16, 65536, 1u << 24, UINT32_MAX};

    (void)state;
    for (size_t i = 0; i < 2 * sizeof lengths / sizeof *lengths; i++) {
        uint32_t n = lengths[i / 2];
        uint8_t record[32] = {(uint8_t)(n >> 24), (uint8_t)(n >> 16), (uint8_t)(n >> 8),
                              (uint8_t)n};
        char got[32];
        side x;
        peer p;

        opened(&x, &p);
        if (i % 2 == 0) {
            assert_int_equal(feed(&x, ENCL_SLICE(record, sizeof record)), ENCL_E_PROTOCOL);
        } else {
            for (size_t j = 0; j < 3; j++) {
                assert_int_equal(feed(&x, ENCL_SLICE(record + j, 1)), ENCL_OK);
                assert_true(encl_session_has_partial_record(x.s));
            }
            assert_int_equal(feed(&x, ENCL_SLICE(record + 3, 1)), ENCL_E_PROTOCOL);
        }
        (void)snprintf(got, sizeof got, "got %lu", (unsigned long)n);
        assert_non_null(strstr(x.err.message, "17 to 65535"));
        assert_non_null(strstr(x.err.message, got));
        assert_false(encl_session_has_partial_record(x.s));
        end(&x, &p);
    }
}

static void every_changed_byte_of_a_record_closes_the_session(void **state) {
    (void)state;
    for (size_t i = ENCL_RECORD_HEAD; i < 40; i++) {
        uint8_t copy[128];
        encl_msg m = message(ENCL_MSG_STREAM_DATA, 1);
        encl_slice record;
        side x;
        peer p;

        opened(&x, &p);
        (void)open_stream(&x, &p);
        record = peer_record(&p, &m);
        assert_true(record.len > 40 && record.len < sizeof copy);
        memcpy(copy, record.data, record.len);
        copy[i] ^= 1;
        assert_int_equal(feed(&x, ENCL_SLICE(copy, record.len)), ENCL_E_PROTOCOL);
        assert_non_null(strstr(x.err.message, "does not decrypt"));
        assert_int_equal(feed(&x, record), ENCL_E_CLOSED);
        end(&x, &p);
    }
}

static void a_record_that_holds_no_message_closes_the_session(void **state) {
    uint8_t block[ENCL_RECORD_HEAD + 8 + ENCL_NOISE_TAG_BYTES] = {0, 0, 0, 24, 0xa1, 0x64};
    size_t len;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    assert_int_equal(encl_noise_seal(p.t, block + ENCL_RECORD_HEAD, 8,
                                     sizeof block - ENCL_RECORD_HEAD, &len, &p.err),
                     ENCL_OK);
    assert_int_equal(feed(&x, ENCL_SLICE(block, sizeof block)), ENCL_E_PROTOCOL);
    end(&x, &p);
}

static void the_largest_record_passes_whole_and_split(void **state) {
    static uint8_t zeros[ENCL_NOISE_MAX_PLAIN];
    size_t fits =
        sizeof zeros -
        encl_wire_size(
            &(encl_msg){.type = ENCL_MSG_STREAM_DATA, .id = 1, .payload = ENCL_SLICE(zeros, 65000)},
            ENCL_TO_CLIENT) +
        65000;
    encl_msg m = {.type = ENCL_MSG_STREAM_DATA, .id = 1, .payload = ENCL_SLICE(zeros, fits)};
    encl_slice record;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    (void)open_stream(&x, &p);
    for (size_t cut = 0; cut < 5; cut++) {
        static const size_t cuts[] = {0, 2, 4, 5, 40000};

        record = peer_record(&p, &m);
        assert_int_equal(record.len, ENCL_RECORD_MAX);
        if (cuts[cut] != 0) {
            assert_int_equal(feed(&x, ENCL_SLICE(record.data, cuts[cut])), ENCL_OK);
            assert_int_equal(x.event.type, ENCL_EV_NONE);
            assert_true(encl_session_has_partial_record(x.s));
        }
        assert_int_equal(feed(&x, ENCL_SLICE(record.data + cuts[cut], record.len - cuts[cut])),
                         ENCL_OK);
        assert_int_equal(x.event.type, ENCL_EV_STREAM_DATA);
        assert_int_equal(x.event.payload.len, fits);
        assert_memory_equal(x.event.payload.data, zeros, fits);
        assert_false(encl_session_has_partial_record(x.s));
    }
    end(&x, &p);
}

static void what_does_not_fit_changes_nothing(void **state) {
    static uint8_t bytes[ENCL_NOISE_MAX_PLAIN + 1];
    uint8_t small[64];
    encl_app *app;
    encl_buf tight;
    uint64_t id = 0;
    side x;
    peer p;

    (void)state;
    memset(bytes, 200, sizeof bytes);
    opened(&x, &p);
    app = encl_session_app(x.s);
    (void)open_stream(&x, &p);
    assert_int_equal(encl_app_request(app, ENCL_SLICE(bytes, 32768), &id, &x.out, &x.err),
                     ENCL_E_INVALID);
    assert_non_null(strstr(x.err.message, "32768 bytes of payload"));
    assert_non_null(strstr(x.err.message, "at most 65519"));
    assert_int_equal(
        encl_app_stream_data(app, 1, ENCL_SLICE(bytes, ENCL_NOISE_MAX_PLAIN), &x.out, &x.err),
        ENCL_E_INVALID);
    assert_int_equal(encl_app_stream_data(app, 1, ENCL_SLICE(bytes, sizeof bytes), &x.out, &x.err),
                     ENCL_E_INVALID);
    memset(bytes, 0, sizeof bytes);
    assert_int_equal(
        encl_app_open_stream(app, ENCL_SLICE(bytes, ENCL_NOISE_MAX_PLAIN), &id, &x.out, &x.err),
        ENCL_E_INVALID);
    assert_non_null(strstr(x.err.message, "expected at most 65519"));
    assert_int_equal(
        encl_app_open_stream(app, ENCL_SLICE(bytes, sizeof bytes), &id, &x.out, &x.err),
        ENCL_E_INVALID);
    assert_non_null(strstr(x.err.message, "expected at most 65519"));
    encl_buf_wrap(&tight, small, sizeof small);
    assert_int_equal(encl_app_open_stream(app, ENCL_SLICE(bytes, 64), &id, &tight, &x.err),
                     ENCL_E_INVALID);
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_BOTH, &tight, &x.err), ENCL_E_INVALID);
    assert_int_equal(encl_app_request_attestation(app, &tight, &x.err), ENCL_E_INVALID);
    assert_int_equal(encl_buf_readable(&tight), 0);
    assert_silent(&x);
    assert_int_equal(id, 0);
    assert_int_equal(encl_session_open_ids(x.s), 1);
    /* Neither an id nor a nonce was spent: the peer understands what comes next. */
    assert_int_equal(open_stream(&x, &p), 2);
    memset(bytes, 200, sizeof bytes);
    assert_int_equal(
        encl_app_stream_data(app, 2, ENCL_SLICE(bytes, ENCL_STREAM_CHUNK), &x.out, &x.err),
        ENCL_OK);
    assert_true(encl_buf_readable(&x.out) <= 32768 - 14);
    assert_hears(&p, &x, ENCL_MSG_STREAM_DATA, 2);
    assert_int_equal(peer_says(&p, &x, stub_document(&p)), ENCL_E_PROTOCOL);
    end(&x, &p);
}

/* ---- a payload in memory that others write to ---- */

/* Pages that fault when they are read. The page before the one that is read is then filled with
 * other bytes and guarded again: whoever comes back to it is counted, and finds it changed. */
static struct {
    uint8_t *pages;
    size_t page, count, faults;
} guarded;

static void on_guarded(int signal, siginfo_t *info, void *context) {
    size_t at = (size_t)((uint8_t *)info->si_addr - guarded.pages) / guarded.page;

    (void)context;
    if (at >= guarded.count) {
        (void)!write(2, "a fault outside the guarded pages\n", 34);
        abort();
    }
    guarded.faults++;
    (void)signal;
    (void)mprotect(guarded.pages + at * guarded.page, guarded.page, PROT_READ);
    if (at != 0) {
        uint8_t *before = guarded.pages + (at - 1) * guarded.page;

        (void)mprotect(before, guarded.page, PROT_READ | PROT_WRITE);
        memset(before, 0xff, guarded.page);
        (void)mprotect(before, guarded.page, PROT_NONE);
    }
}

static void a_payload_that_changes_is_read_once(void **state) {
    struct sigaction guard = {.sa_sigaction = on_guarded, .sa_flags = SA_SIGINFO}, old;
    size_t len;
    encl_msg back;
    uint64_t id = 0;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    guarded.page = (size_t)sysconf(_SC_PAGESIZE);
    /* More than half of what fits a record: only what the bytes are decides whether it fits. */
    guarded.count = ENCL_NOISE_MAX_PLAIN * 3 / 4 / guarded.page;
    len = guarded.count * guarded.page;
    guarded.faults = 0;
    guarded.pages = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(guarded.pages != MAP_FAILED);
    assert_int_equal(sigaction(SIGSEGV, &guard, &old), 0);
    assert_int_equal(encl_app_request(encl_session_app(x.s), ENCL_SLICE(guarded.pages, len), &id,
                                      &x.out, &x.err),
                     ENCL_OK);
    assert_int_equal(sigaction(SIGSEGV, &old, NULL), 0);
    assert_int_equal(guarded.faults, guarded.count);
    assert_true(peer_hears(&p, &x, &back));
    assert_int_equal(back.type, ENCL_MSG_DATA);
    assert_int_equal(back.payload.len, len);
    for (size_t i = 0; i < len; i++) {
        assert_int_equal(back.payload.data[i], 0);
    }
    assert_int_equal(munmap(guarded.pages, len), 0);
    end(&x, &p);
}

static void a_forgotten_partial_record_leaves_the_rest_as_garbage(void **state) {
    encl_msg m = message(ENCL_MSG_OPEN_STREAM, 1);
    encl_slice record;
    side x;
    peer p;

    (void)state;
    serving(&x, &p, 0);
    assert_false(encl_session_forget_partial_record(x.s));
    record = peer_record(&p, &m);
    assert_int_equal(feed(&x, ENCL_SLICE(record.data, 20)), ENCL_OK);
    assert_true(encl_session_has_partial_record(x.s));
    assert_true(encl_session_forget_partial_record(x.s));
    assert_false(encl_session_forget_partial_record(x.s));
    assert_false(encl_session_has_partial_record(x.s));
    assert_int_equal(feed(&x, ENCL_SLICE(record.data + 20, record.len - 20)), ENCL_E_PROTOCOL);
    assert_false(encl_session_forget_partial_record(x.s));
    end(&x, &p);

    /* Forgetting on a boundary loses nothing, not even the event just given. */
    serving(&x, &p, 0);
    record = peer_record(&p, &m);
    assert_int_equal(feed(&x, ENCL_SLICE(record.data, 20)), ENCL_OK);
    assert_int_equal(feed(&x, ENCL_SLICE(record.data + 20, record.len - 20)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_OPENED);
    assert_false(encl_session_forget_partial_record(x.s));
    assert_memory_equal(x.event.payload.data, "some text", 9);
    m.id = 2;
    assert_int_equal(peer_says(&p, &x, m), ENCL_OK);
    end(&x, &p);
}

static void a_forked_child_can_neither_send_nor_receive(void **state) {
    encl_msg m = message(ENCL_MSG_STREAM_DATA, 1);
    encl_slice record;
    uint64_t id = 0;
    int status;
    side x, fresh;
    peer p;
    pid_t child;

    (void)state;
    opened(&x, &p);
    (void)open_stream(&x, &p);
    record = peer_record(&p, &m);
    side_new(&fresh, ENCL_INITIATOR);
    child = fork();
    if (child == 0) {
        encl_app *app = encl_session_app(x.s);
        bool refused = encl_app_stream_data(app, 1, TEXT("x"), &x.out, &x.err) == ENCL_E_FORKED &&
                       encl_app_open_stream(app, TEXT("x"), &id, &x.out, &x.err) == ENCL_E_FORKED &&
                       encl_buf_readable(&x.out) == 0 && encl_session_open_ids(x.s) == 1 &&
                       feed(&x, record) == ENCL_E_FORKED && state_of(&x) == ENCL_SESSION_CLOSED &&
                       encl_session_start(fresh.s, &fresh.out, &fresh.err) == ENCL_E_FORKED &&
                       state_of(&fresh) == ENCL_SESSION_CLOSED;

        _exit(refused ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(feed(&x, record), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_DATA);
    side_free(&fresh);
    end(&x, &p);
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
        cmocka_unit_test(every_split_gives_the_same_events_and_bytes),
        cmocka_unit_test(only_an_open_session_has_a_handle_that_sends),
        cmocka_unit_test(roles_cannot_send_each_others_messages),
        cmocka_unit_test(attesting_takes_an_attestation_and_nothing_else),
        cmocka_unit_test(a_wrong_document_closes_the_session),
        cmocka_unit_test(a_fresh_document_must_be_asked_for_and_verify),
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
        cmocka_unit_test(lengths_out_of_bounds_are_refused),
        cmocka_unit_test(every_changed_byte_of_a_record_closes_the_session),
        cmocka_unit_test(a_record_that_holds_no_message_closes_the_session),
        cmocka_unit_test(the_largest_record_passes_whole_and_split),
        cmocka_unit_test(what_does_not_fit_changes_nothing),
        cmocka_unit_test(a_payload_that_changes_is_read_once),
        cmocka_unit_test(a_forgotten_partial_record_leaves_the_rest_as_garbage),
        cmocka_unit_test(a_forked_child_can_neither_send_nor_receive),
        cmocka_unit_test(the_responder_checks_the_ids_of_a_client),
        cmocka_unit_test(the_responder_reports_unknown_streams_and_answers_them),
        cmocka_unit_test(the_responders_slot_is_freed_by_the_client),
        cmocka_unit_test(the_responder_gives_documents_with_a_control_nonce),
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

    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
