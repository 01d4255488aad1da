#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "session/app.h"
#include "session/record.h"
#include "session_sides.h"

const encl_slice no_bytes = {NULL, 0};

void side_new_with(side *x, encl_role role, const encl_pins *pins, size_t max_open,
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

void side_new(side *x, encl_role role) {
    side_new_with(x, role, NULL, 0, NULL);
}

void side_free(side *x) {
    encl_session_free(x->s);
    encl_policy_free(&x->policy);
    encl_buf_free(&x->out);
}

encl_session_state state_of(const side *x) {
    return encl_session_get_state(x->s);
}

encl_code feed(side *x, encl_slice bytes) {
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

void peer_new(peer *p, encl_role role) {
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

encl_slice peer_write_handshake(peer *p) {
    encl_buf_clear(&p->out);
    assert_int_equal(encl_noise_handshake_write(p->hs, no_bytes, &p->out, &p->err), ENCL_OK);
    return encl_buf_peek(&p->out);
}

void peer_read_handshake(peer *p, encl_buf *from, size_t size) {
    uint8_t block[64];
    encl_buf payload;
    encl_slice message;

    encl_buf_wrap(&payload, block, sizeof block);
    assert_int_equal(encl_buf_read(from, size, &message, &p->err), ENCL_OK);
    assert_int_equal(encl_noise_handshake_read(p->hs, message, &payload, &p->err), ENCL_OK);
}

encl_slice peer_record(peer *p, const encl_msg *m) {
    encl_direction direction = p->role == ENCL_RESPONDER ? ENCL_TO_CLIENT : ENCL_TO_SERVER;

    encl_buf_clear(&p->out);
    assert_int_equal(encl_record_seal(p->t, m, direction, &p->out, &p->err), ENCL_OK);
    return encl_buf_peek(&p->out);
}

encl_code peer_says(peer *p, side *x, encl_msg m) {
    return feed(x, peer_record(p, &m));
}

bool peer_hears(peer *p, side *x, encl_msg *m) {
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

void assert_hears(peer *p, side *x, encl_msg_type type, uint64_t id) {
    encl_msg m;

    assert_true(peer_hears(p, x, &m));
    assert_int_equal(m.type, type);
    assert_int_equal(m.id, id);
}

void assert_silent(side *x) {
    assert_int_equal(encl_buf_readable(&x->out), 0);
}

void attesting_with(side *x, peer *p) {
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

void attesting(side *x, peer *p) {
    side_new(x, ENCL_INITIATOR);
    attesting_with(x, p);
}

encl_msg stub_document(const peer *p) {
    return (encl_msg){.type = ENCL_MSG_ATTESTATION, .payload = ENCL_SLICE(p->hash, sizeof p->hash)};
}

void open_with(side *x, peer *p) {
    attesting_with(x, p);
    assert_int_equal(peer_says(p, x, stub_document(p)), ENCL_OK);
    assert_int_equal(x->event.type, ENCL_EV_OPEN);
    assert_int_equal(state_of(x), ENCL_SESSION_OPEN);
    assert_non_null(encl_session_app(x->s));
}

void opened(side *x, peer *p) {
    side_new(x, ENCL_INITIATOR);
    open_with(x, p);
}

void serving(side *x, peer *p, size_t max_open) {
    side_new_with(x, ENCL_RESPONDER, NULL, max_open, NULL);
    peer_new(p, ENCL_INITIATOR);
    assert_int_equal(feed(x, peer_write_handshake(p)), ENCL_OK);
    assert_int_equal(x->event.type, ENCL_EV_OPEN);
    assert_int_equal(encl_buf_readable(&x->out), 48);
    peer_read_handshake(p, &x->out, 48);
    assert_int_equal(encl_noise_handshake_split(p->hs, &p->t, p->hash, &p->err), ENCL_OK);
    assert_memory_equal(encl_session_handshake_hash(x->s), p->hash, sizeof p->hash);
}

void end(side *x, peer *p) {
    side_free(x);
    peer_free(p);
}

uint64_t open_stream(side *x, peer *p) {
    uint64_t id = 0;

    assert_int_equal(
        encl_app_open_stream(encl_session_app(x->s), TEXT("hi"), &id, &x->out, &x->err), ENCL_OK);
    assert_hears(p, x, ENCL_MSG_OPEN_STREAM, id);
    return id;
}

uint64_t request(side *x, peer *p) {
    uint64_t id = 0;

    assert_int_equal(encl_app_request(encl_session_app(x->s), TEXT("hi"), &id, &x->out, &x->err),
                     ENCL_OK);
    assert_hears(p, x, ENCL_MSG_DATA, id);
    return id;
}

void close_stream(side *x, peer *p, uint64_t id) {
    assert_int_equal(
        encl_app_stream_close(encl_session_app(x->s), id, ENCL_HALF_BOTH, &x->out, &x->err),
        ENCL_OK);
    assert_hears(p, x, ENCL_MSG_STREAM_CLOSE, id);
}

encl_msg message(encl_msg_type type, uint64_t id) {
    return (encl_msg){.type = type, .id = id, .payload = TEXT("some text")};
}

/* ---- a document of the debug form ---- */

static encl_pcr pcr_of(uint8_t fill) {
    encl_pcr pcr = {.len = 48};

    memset(pcr.value, fill, 48);
    return pcr;
}

void debug_document(encl_buf *document, encl_slice nonce, uint8_t pcr_fill) {
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

encl_pins debug_pins(uint8_t pcr_fill) {
    encl_pins pins = {0};

    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        pins.pcr[i] = pcr_of((uint8_t)(pcr_fill + i));
    }
    return pins;
}
