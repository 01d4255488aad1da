/* The session: bytes before the handshake is done, and, by a peer that holds the other end's keys,
 * anything that can be said under them, mixed with what the user of the session does.
 * Input: where to begin, then steps. */
#include "fuzz.h"
#include "session/record.h"
#include "session/session.h"

#define NOW       1760000000
#define BUF_LIMIT ((size_t)1 << 20)
#define MAX_STEPS 96

typedef struct world {
    encl_session *s;
    encl_policy policy;
    encl_role role; /* the session's; the peer has the other */
    encl_buf out, peer_out;
    encl_noise_transport *peer;
    uint8_t hash[ENCL_NOISE_HASH_BYTES];
    bool dead; /* the session failed, or is closed */
} world;

static const uint8_t session_key[32] = {1, 2, 3}, peer_key[32] = {4, 5, 6};

static encl_direction to_session(const world *w) {
    return w->role == ENCL_INITIATOR ? ENCL_TO_CLIENT : ENCL_TO_SERVER;
}

static encl_direction from_session(const world *w) {
    return w->role == ENCL_INITIATOR ? ENCL_TO_SERVER : ENCL_TO_CLIENT;
}

static void make_session(world *w, encl_role role) {
    encl_session_config config = {
        .role = role, .policy = &w->policy, .fixed_ephemeral = session_key};
    encl_error err;

    memset(w, 0, sizeof *w);
    w->role = role;
    encl_buf_init(&w->out, BUF_LIMIT);
    encl_buf_init(&w->peer_out, BUF_LIMIT);
    REQUIRE(encl_policy_init(&w->policy, NULL, 0, ENCL_SLICE_NONE, true, true, &err) == ENCL_OK);
    REQUIRE(encl_session_new(&config, &w->s, &err) == ENCL_OK);
}

static void free_world(world *w) {
    encl_session_free(w->s);
    encl_noise_transport_free(w->peer);
    encl_policy_free(&w->policy);
    encl_buf_free(&w->out);
    encl_buf_free(&w->peer_out);
}

/* Whatever the session wants sent is records that the peer can open and read. */
static void peer_reads(world *w) {
    encl_error err;

    while (w->peer != NULL && encl_buf_readable(&w->out) != 0) {
        encl_slice record;
        encl_msg m;
        uint32_t len;
        size_t plain_len;
        uint8_t *block;

        REQUIRE(encl_buf_read_u32(&w->out, &len, &err) == ENCL_OK);
        REQUIRE(len >= ENCL_RECORD_MIN_CIPHERTEXT && len <= ENCL_NOISE_MAX_MESSAGE);
        REQUIRE(encl_buf_read(&w->out, len, &record, &err) == ENCL_OK);
        block = fuzz_copy(record);
        REQUIRE(encl_noise_open(w->peer, block, len, &plain_len, &err) == ENCL_OK);
        REQUIRE(encl_wire_decode(block, plain_len, from_session(w), &m, &err) == ENCL_OK);
        free(block);
    }
}

static void check_world(world *w) {
    encl_session_state state = encl_session_get_state(w->s);
    /* A responder takes one id beyond the limit, to see a client that breaks it. */
    size_t most = w->role == ENCL_INITIATOR ? ENCL_MAX_OPEN : ENCL_MAX_OPEN + 1;

    w->dead = state == ENCL_SESSION_CLOSED;
    REQUIRE((state == ENCL_SESSION_OPEN) == (encl_session_app(w->s) != NULL));
    REQUIRE(encl_session_open_ids(w->s) <= most);
    peer_reads(w);
}

static void deliver(world *w, encl_slice bytes) {
    uint8_t *block = fuzz_copy(bytes);
    size_t at = 0;

    while (at < bytes.len && !w->dead) {
        size_t consumed = 0;
        encl_event event;
        encl_error err;
        encl_code rc = encl_session_recv(w->s, block + at, bytes.len - at, &consumed, NOW, &w->out,
                                         &event, &err);

        REQUIRE(consumed <= bytes.len - at);
        at += consumed;
        if (rc != ENCL_OK) {
            fuzz_check_error(rc, &err);
            REQUIRE(encl_session_get_state(w->s) == ENCL_SESSION_CLOSED);
        } else {
            REQUIRE(event.type != ENCL_EV_NONE || at == bytes.len);
            fuzz_touch(event.payload);
        }
        check_world(w);
    }
    free(block);
}

/* A record around the plaintext; split somewhere when cut is not 0. */
static void say(world *w, encl_slice plaintext, size_t cut) {
    encl_error err;
    encl_slice record;

    if (plaintext.len == 0 || plaintext.len > ENCL_NOISE_MAX_PLAIN) {
        return;
    }
    encl_buf_clear(&w->peer_out);
    REQUIRE(encl_record_seal_raw(w->peer, plaintext, &w->peer_out, &err) == ENCL_OK);
    record = encl_buf_peek(&w->peer_out);
    cut = cut < record.len ? cut : record.len;
    deliver(w, ENCL_SLICE(record.data, cut));
    deliver(w, ENCL_SLICE(record.data + cut, record.len - cut));
}

static void say_message(world *w, fuzz_input *in) {
    encl_msg m = {.type = (encl_msg_type)(fuzz_u8(in) % ENCL_MSG_COUNT_)};
    encl_buf plain;
    encl_error err;

    m.id = fuzz_u8(in) % 80;
    m.half = (encl_half)(m.id % 3);
    m.payload = fuzz_take(in, fuzz_u8(in));
    if (m.type == ENCL_MSG_ATTESTATION && m.payload.len == 0) {
        m.payload = ENCL_SLICE(w->hash, sizeof w->hash); /* the one that verifies */
    }
    encl_buf_init(&plain, BUF_LIMIT);
    if (encl_wire_encode(&m, to_session(w), &plain, &err) == ENCL_OK) {
        say(w, encl_buf_peek(&plain), SIZE_MAX);
    }
    encl_buf_free(&plain);
}

static encl_code initiator_acts(world *w, encl_app *app, uint8_t action, uint64_t id,
                                encl_slice payload, encl_error *err) {
    uint64_t new_id;

    switch (action % 6) {
    case 0:
        return encl_app_open_stream(app, payload, &new_id, &w->out, err);
    case 1:
        return encl_app_request(app, payload, &new_id, &w->out, err);
    case 2:
        return encl_app_stream_data(app, id, payload, &w->out, err);
    case 3:
        return encl_app_stream_close(app, id, payload.len == 0 ? ENCL_HALF_BOTH : ENCL_HALF_WRITE,
                                     &w->out, err);
    case 4:
        return encl_app_request_attestation(app, &w->out, err);
    default:
        return encl_app_abandon_request(app, id, err);
    }
}

static encl_code responder_acts(world *w, encl_app *app, uint8_t action, uint64_t id,
                                encl_slice payload, encl_error *err) {
    static const uint8_t nonce[ENCL_CONTROL_NONCE_BYTES];

    switch (action % 5) {
    case 0:
        return encl_app_stream_data(app, id, payload, &w->out, err);
    case 1:
        return encl_app_stream_close(app, id, ENCL_HALF_BOTH, &w->out, err);
    case 2:
        return encl_app_reply(app, id, payload, &w->out, err);
    case 3:
        return encl_app_error(app, id, payload, &w->out, err);
    default:
        return encl_app_attestation(app, payload, nonce, &w->out, err);
    }
}

static void act(world *w, fuzz_input *in) {
    encl_app *app = encl_session_app(w->s);
    uint8_t action = fuzz_u8(in);
    uint64_t id = fuzz_u8(in) % 80;
    encl_slice payload = fuzz_take(in, fuzz_u8(in));
    size_t before = encl_buf_readable(&w->out), open_before = encl_session_open_ids(w->s);
    encl_error err;
    encl_code rc;

    if (app == NULL) {
        return;
    }
    rc = w->role == ENCL_INITIATOR ? initiator_acts(w, app, action, id, payload, &err)
                                   : responder_acts(w, app, action, id, payload, &err);
    if (rc != ENCL_OK) {
        fuzz_check_error(rc, &err);
        REQUIRE(encl_buf_readable(&w->out) == before);
        REQUIRE(encl_session_open_ids(w->s) == open_before);
    }
    check_world(w);
}

static void step(world *w, fuzz_input *in) {
    uint8_t what = fuzz_u8(in);

    switch (what % 6) {
    case 0:
    case 1: {
        size_t len = (size_t)fuzz_u8(in) << 8 | fuzz_u8(in);

        say(w, fuzz_take(in, len), what % 6 == 0 ? SIZE_MAX : what / 6);
        return;
    }
    case 2:
        say_message(w, in);
        return;
    case 3:
    case 4:
        act(w, in);
        return;
    default:
        deliver(w, fuzz_take(in, fuzz_u8(in)));
    }
}

/* The handshake, with the peer's side held here. */
static void shake_hands(world *w) {
    encl_noise_handshake *hs;
    encl_buf payload;
    encl_error err;
    encl_role role = w->role == ENCL_INITIATOR ? ENCL_RESPONDER : ENCL_INITIATOR;

    encl_buf_init(&payload, 64);
    REQUIRE(encl_noise_handshake_new(role, ENCL_SLICE_NONE, peer_key, &hs, &err) == ENCL_OK);
    if (w->role == ENCL_INITIATOR) {
        REQUIRE(encl_session_start(w->s, &w->out, &err) == ENCL_OK);
        REQUIRE(encl_noise_handshake_read(hs, encl_buf_peek(&w->out), &payload, &err) == ENCL_OK);
        encl_buf_clear(&w->out);
    }
    REQUIRE(encl_noise_handshake_write(hs, ENCL_SLICE_NONE, &w->peer_out, &err) == ENCL_OK);
    deliver(w, encl_buf_peek(&w->peer_out));
    if (w->role == ENCL_RESPONDER) {
        REQUIRE(encl_noise_handshake_read(hs, encl_buf_peek(&w->out), &payload, &err) == ENCL_OK);
        encl_buf_clear(&w->out);
    }
    REQUIRE(encl_noise_handshake_split(hs, &w->peer, w->hash, &err) == ENCL_OK);
    encl_noise_handshake_free(hs);
    encl_buf_free(&payload);
    check_world(w);
}

static void verify_stub(world *w) {
    encl_msg m = {.type = ENCL_MSG_ATTESTATION, .payload = ENCL_SLICE(w->hash, sizeof w->hash)};
    encl_buf plain;
    encl_error err;

    encl_buf_init(&plain, BUF_LIMIT);
    REQUIRE(encl_wire_encode(&m, ENCL_TO_CLIENT, &plain, &err) == ENCL_OK);
    say(w, encl_buf_peek(&plain), SIZE_MAX);
    encl_buf_free(&plain);
    REQUIRE(encl_session_get_state(w->s) == ENCL_SESSION_OPEN);
}

static void begin(world *w, uint8_t where) {
    encl_error err;

    switch (where % 5) {
    case 0: /* no handshake: bytes are all that can come */
        make_session(w, ENCL_INITIATOR);
        REQUIRE(encl_session_start(w->s, &w->out, &err) == ENCL_OK);
        return;
    case 1:
        make_session(w, ENCL_RESPONDER);
        return;
    case 2:
        make_session(w, ENCL_INITIATOR);
        shake_hands(w);
        REQUIRE(encl_session_get_state(w->s) == ENCL_SESSION_ATTESTING);
        return;
    case 3:
        make_session(w, ENCL_INITIATOR);
        shake_hands(w);
        verify_stub(w);
        return;
    default:
        make_session(w, ENCL_RESPONDER);
        shake_hands(w);
        REQUIRE(encl_session_get_state(w->s) == ENCL_SESSION_OPEN);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    uint8_t where = fuzz_u8(&in);
    encl_error err;
    world w;

    begin(&w, where);
    for (size_t i = 0; i < MAX_STEPS && in.len != 0 && !w.dead; i++) {
        if (w.peer == NULL) {
            deliver(&w, fuzz_take(&in, (size_t)fuzz_u8(&in) + 1));
        } else {
            step(&w, &in);
        }
    }
    encl_session_eof(w.s, &err);
    free_world(&w);
    return 0;
}
