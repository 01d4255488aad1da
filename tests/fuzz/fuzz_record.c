/* The session: bytes before the handshake is done, and, by a peer that holds the other end's keys,
 * anything that can be said under them, mixed with what the user of the session does. The peer
 * reads all that the session sends, keeps its own account of it, and ends the run where the session
 * breaks a rule (session_model.c). Input: record_script.h. */
#include <sanitizer/allocator_interface.h>

#include "attest_root.h"
#include "record_script.h"
#include "session/record.h"
#include "session_model.h"

#define BUF_LIMIT   ((size_t)1 << 22)
#define MAX_STEPS   256
#define AFTER_CLOSE 3 /* steps that go on once the session is closed */
#define PEER_IDS    80
/* Of one session: a record in parts, twice while its block grows, a document and the tables. */
#define MEMORY_BOUND ((size_t)160 << 10)
#define LARGE_TOTAL  ((size_t)128 << 10)
#define DOCUMENTS    4

#pragma weak __sanitizer_get_current_allocated_bytes

typedef struct world {
    encl_session *s;
    encl_policy policy;
    encl_role role; /* the session's; the peer has the other */
    encl_app *app;  /* as it was once given out */
    encl_buf out;   /* what the session sent and the peer did not read yet */
    encl_buf held;  /* what the peer sent and was not delivered yet */
    encl_noise_transport *peer;
    uint8_t hash[ENCL_NOISE_HASH_BYTES];
    model m;
    size_t memory;     /* before there was a session */
    size_t large_left; /* so that no run takes long */
    bool dead;         /* the session failed, or is closed */
    bool good_document;
    size_t piece;  /* everything is delivered in pieces of this size; 0: as it comes */
    uint64_t told; /* all that was reported, in order */
} world;

static const uint8_t session_key[32] = {1, 2, 3}, peer_key[32] = {4, 5, 6};
static uint8_t pattern[65536];
static bool counting; /* memory: not while libraries set themselves up */

static size_t allocated(void) {
    return __sanitizer_get_current_allocated_bytes == NULL
               ? 0
               : __sanitizer_get_current_allocated_bytes();
}

static encl_direction to_session(const world *w) {
    return w->role == ENCL_INITIATOR ? ENCL_TO_CLIENT : ENCL_TO_SERVER;
}

static encl_direction from_session(const world *w) {
    return w->role == ENCL_INITIATOR ? ENCL_TO_SERVER : ENCL_TO_CLIENT;
}

static void make_policy(encl_policy *policy, bool production) {
    encl_pins pins = {0};
    encl_error err;

    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        pins.pcr[i].len = 48;
        memset(pins.pcr[i].value, (int)(0x10 + i), sizeof pins.pcr[i].value);
    }
    REQUIRE(
        encl_policy_init(policy, production ? &pins : NULL, production ? 1 : 0,
                         production ? ENCL_SLICE(attest_root, sizeof attest_root) : ENCL_SLICE_NONE,
                         !production, true, &err) == ENCL_OK);
}

static void make_session(world *w, encl_role role, bool production, size_t piece) {
    encl_session_config config = {
        .role = role, .policy = &w->policy, .fixed_ephemeral = session_key};
    encl_error err;

    memset(w, 0, sizeof *w);
    w->role = role;
    w->large_left = LARGE_TOTAL;
    w->piece = piece;
    model_init(&w->m, role);
    encl_buf_init(&w->out, BUF_LIMIT);
    encl_buf_init(&w->held, BUF_LIMIT);
    make_policy(&w->policy, production);
    w->memory = allocated();
    REQUIRE(encl_session_new(&config, &w->s, &err) == ENCL_OK);
}

static void free_world(world *w) {
    encl_session_free(w->s);
    encl_noise_transport_free(w->peer);
    encl_policy_free(&w->policy);
    encl_buf_free(&w->out);
    encl_buf_free(&w->held);
}

/* Whatever the session wants sent is records that the peer can open and read. */
static void peer_reads(world *w) {
    encl_error err;

    while (w->peer != NULL && encl_buf_readable(&w->out) != 0) {
        encl_slice head, record;
        encl_msg m;
        size_t len, plain_len;
        uint8_t *block;

        REQUIRE(encl_buf_read(&w->out, ENCL_RECORD_HEAD, &head, &err) == ENCL_OK);
        REQUIRE(head.data[0] == 0 && head.data[1] == 0);
        len = (size_t)head.data[2] << 8 | head.data[3];
        REQUIRE(len >= ENCL_RECORD_MIN_CIPHERTEXT && len <= ENCL_NOISE_MAX_MESSAGE);
        REQUIRE(encl_buf_read(&w->out, len, &record, &err) == ENCL_OK);
        block = fuzz_copy(record);
        REQUIRE(encl_noise_open(w->peer, block, len, &plain_len, &err) == ENCL_OK);
        REQUIRE(encl_wire_decode(block, plain_len, from_session(w), &m, &err) == ENCL_OK);
        model_sent(&w->m, &m);
        free(block);
    }
}

static void check_world(world *w) {
    encl_session_state state = encl_session_get_state(w->s);
    encl_app *app = encl_session_app(w->s);

    w->dead = state == ENCL_SESSION_CLOSED;
    REQUIRE((state == ENCL_SESSION_OPEN) == (app != NULL));
    REQUIRE(app == NULL || (w->m.open && (w->app == NULL || w->app == app)));
    w->app = app == NULL ? w->app : app;
    peer_reads(w);
    if (!w->dead) {
        model_check_count(&w->m, encl_session_open_ids(w->s));
    }
}

static void check_memory(const world *w, size_t blocks) {
    size_t now = allocated();

    REQUIRE(!counting || now <= w->memory + blocks + w->out.cap + w->held.cap + MEMORY_BOUND);
}

/* FNV-1a */
static void note(world *w, const void *data, size_t len) {
    const uint8_t *bytes = data;

    for (size_t i = 0; i < len; i++) {
        w->told = (w->told ^ bytes[i]) * 0x100000001b3u;
    }
}

static void note_event(world *w, const encl_event *event) {
    if (event->type != ENCL_EV_NONE) {
        note(w, &event->type, sizeof event->type);
        note(w, &event->id, sizeof event->id);
        note(w, &event->half, sizeof event->half);
        note(w, event->payload.data, event->payload.len);
    }
}

static void deliver_block(world *w, uint8_t *block, size_t len) {
    size_t at = 0;

    while (at < len && !w->dead) {
        size_t consumed = 0;
        encl_event event;
        encl_error err;
        encl_code rc = encl_session_recv(w->s, block + at, len - at, &consumed, ATTEST_NOW, &w->out,
                                         &event, &err);

        REQUIRE(consumed <= len - at);
        at += consumed;
        check_memory(w, len);
        if (rc != ENCL_OK) {
            fuzz_check_error(rc, &err);
            REQUIRE(event.type == ENCL_EV_NONE);
            REQUIRE(encl_session_get_state(w->s) == ENCL_SESSION_CLOSED);
            note(w, &rc, sizeof rc);
        } else {
            REQUIRE(event.type != ENCL_EV_NONE || at == len);
            note_event(w, &event);
            model_event(&w->m, &event);
        }
        check_world(w);
    }
}

/* After the end nothing is taken and nothing comes out. */
static void deliver_to_the_dead(world *w, uint8_t *block, size_t len) {
    size_t consumed = 1, before = encl_buf_readable(&w->out);
    encl_event event;
    encl_error err;

    REQUIRE(encl_session_recv(w->s, block, len, &consumed, ATTEST_NOW, &w->out, &event, &err) ==
            ENCL_E_CLOSED);
    REQUIRE(consumed == 0 && event.type == ENCL_EV_NONE);
    REQUIRE(encl_buf_readable(&w->out) == before);
}

static void deliver_piece(world *w, size_t len) {
    uint8_t *block = fuzz_copy(ENCL_SLICE(encl_buf_peek(&w->held).data, len));
    encl_error err;

    REQUIRE(encl_buf_skip(&w->held, len, &err) == ENCL_OK);
    if (w->dead) {
        deliver_to_the_dead(w, block, len);
    } else {
        deliver_block(w, block, len);
    }
    free(block);
}

static void deliver(world *w, size_t max) {
    size_t left = encl_buf_readable(&w->held) < max ? encl_buf_readable(&w->held) : max;

    while (left != 0) {
        size_t len = w->piece != 0 && w->piece < left ? w->piece : left;

        deliver_piece(w, len);
        left -= len;
    }
}

static void deliver_as(world *w, uint16_t delivery) {
    if (delivery != 1) {
        deliver(w, delivery == 0 ? SIZE_MAX : (size_t)delivery - 1);
    }
}

/* A record around the plaintext, behind what is held. */
static void say(world *w, encl_slice plaintext) {
    encl_error err;

    if (w->peer != NULL && plaintext.len != 0 && plaintext.len <= ENCL_NOISE_MAX_PLAIN &&
        encl_buf_readable(&w->held) < BUF_LIMIT / 2) {
        REQUIRE(encl_record_seal_raw(w->peer, plaintext, &w->held, &err) == ENCL_OK);
    }
}

static void say_message(world *w, encl_msg m) {
    encl_buf plain;
    encl_error err;

    if (m.type == ENCL_MSG_ATTESTATION && m.payload.len == 0) {
        m.payload = ENCL_SLICE(w->hash, sizeof w->hash); /* the one that debug mode takes */
    }
    encl_buf_init(&plain, BUF_LIMIT);
    if (encl_wire_encode(&m, to_session(w), &plain, &err) == ENCL_OK) {
        say(w, encl_buf_peek(&plain));
    }
    encl_buf_free(&plain);
}

/* 0 is good; 1 was made for another channel, 2 by another image, 3 is signed by another key. */
static encl_slice document(const world *w, size_t variant) {
    static encl_buf made[DOCUMENTS];
    encl_doc_template doc = {.module_id = ENCL_SLICE("i-1", 3),
                             .timestamp_ms = 1000,
                             .certificate = ENCL_SLICE(attest_leaf, sizeof attest_leaf),
                             .cabundle = {ENCL_SLICE(attest_root, sizeof attest_root),
                                          ENCL_SLICE(attest_ca1, sizeof attest_ca1),
                                          ENCL_SLICE(attest_ca2, sizeof attest_ca2),
                                          ENCL_SLICE(attest_ca3, sizeof attest_ca3)},
                             .cabundle_len = 4,
                             .nonce = ENCL_SLICE(w->hash, sizeof w->hash)};
    size_t key = variant == 3 ? ATTEST_LEAF_KEY - 1 : ATTEST_LEAF_KEY;
    encl_error err;

    if (encl_buf_readable(&made[variant]) == 0) { /* the hash is the same in every run */
        for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
            doc.pcrs[i].len = 48;
            memset(doc.pcrs[i].value, (int)(0x10 + i), sizeof doc.pcrs[i].value);
        }
        doc.pcrs[2].value[0] ^= variant == 2 ? 1 : 0;
        if (variant == 1) {
            doc.nonce = ENCL_SLICE(session_key, sizeof session_key);
        }
        encl_buf_init(&made[variant], ENCL_DOCUMENT_MAX_BYTES);
        REQUIRE(encl_attest_sign(&doc, attest_keys[key].secret, &made[variant], &err) == ENCL_OK);
    }
    return encl_buf_peek(&made[variant]);
}

static void say_document(world *w, const step *s) {
    encl_msg m = {.type = ENCL_MSG_ATTESTATION};

    if (w->role == ENCL_INITIATOR && w->peer != NULL) {
        size_t variant = s->what % DOCUMENTS;

        m.payload = document(w, variant);
        w->good_document = w->good_document || variant == 0;
        say_message(w, m);
    }
}

static encl_code initiator_acts(world *w, const step *s, encl_slice payload, encl_error *err) {
    uint64_t new_id, id = s->id % PEER_IDS;

    switch (s->what % 6) {
    case 0:
        return encl_app_open_stream(w->app, payload, &new_id, &w->out, err);
    case 1:
        return encl_app_request(w->app, payload, &new_id, &w->out, err);
    case 2:
        return encl_app_stream_data(w->app, id, payload, &w->out, err);
    case 3:
        return encl_app_stream_close(
            w->app, id, payload.len == 0 ? ENCL_HALF_BOTH : ENCL_HALF_WRITE, &w->out, err);
    default:
        return encl_app_request_attestation(w->app, &w->out, err);
    }
}

static encl_code responder_acts(world *w, const step *s, encl_slice payload, encl_error *err) {
    static const uint8_t nonce[ENCL_CONTROL_NONCE_BYTES];
    uint64_t id = s->id % PEER_IDS;

    switch (s->what % 5) {
    case 0:
        return encl_app_stream_data(w->app, id, payload, &w->out, err);
    case 1:
        return encl_app_stream_close(w->app, id, ENCL_HALF_BOTH, &w->out, err);
    case 2:
        return encl_app_reply(w->app, id, payload, &w->out, err);
    case 3:
        return encl_app_error(w->app, id, ENCL_SLICE("", 0), &w->out, err);
    default:
        return encl_app_attestation(w->app, payload, nonce, &w->out, err);
    }
}

/* A handle that was given out may be used at any later time. */
static void act(world *w, const step *s, encl_slice payload) {
    size_t before = encl_buf_readable(&w->out), open_before = encl_session_open_ids(w->s);
    encl_error err;
    encl_code rc;

    rc = w->role == ENCL_INITIATOR ? initiator_acts(w, s, payload, &err)
                                   : responder_acts(w, s, payload, &err);
    REQUIRE(rc != ENCL_OK || (!w->dead && w->m.open));
    if (rc != ENCL_OK) {
        fuzz_check_error(rc, &err);
        REQUIRE(encl_buf_readable(&w->out) == before);
        REQUIRE(encl_session_open_ids(w->s) == open_before);
    }
    check_world(w);
}

static void take_step(world *w, const step *s) {
    encl_msg m = {.type = (encl_msg_type)(s->what % ENCL_MSG_COUNT_),
                  .id = s->id % PEER_IDS,
                  .half = (encl_half)(s->id % 3),
                  .payload = s->bytes};
    encl_slice large = ENCL_SLICE(pattern, s->size < w->large_left ? s->size : w->large_left);
    encl_error err;

    w->large_left -= s->kind == STEP_LARGE || s->kind == STEP_ACT_LARGE ? large.len : 0;
    switch (s->kind) {
    case STEP_SAY:
        say(w, s->bytes);
        break;
    case STEP_MESSAGE:
        say_message(w, m);
        break;
    case STEP_LARGE:
        m.payload = large;
        say_message(w, m);
        break;
    case STEP_ACT:
        act(w, s, s->bytes);
        return;
    case STEP_ACT_LARGE:
        act(w, s, large);
        return;
    case STEP_DOCUMENT:
        say_document(w, s);
        break;
    default:
        REQUIRE(encl_buf_write(&w->held, s->bytes, &err) == ENCL_OK);
    }
    deliver_as(w, s->delivery);
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
    REQUIRE(encl_noise_handshake_write(hs, ENCL_SLICE_NONE, &w->held, &err) == ENCL_OK);
    deliver(w, SIZE_MAX);
    if (w->role == ENCL_RESPONDER) {
        REQUIRE(encl_noise_handshake_read(hs, encl_buf_peek(&w->out), &payload, &err) == ENCL_OK);
        encl_buf_clear(&w->out);
    }
    REQUIRE(encl_noise_handshake_split(hs, &w->peer, w->hash, &err) == ENCL_OK);
    REQUIRE(memcmp(w->hash, encl_session_handshake_hash(w->s), sizeof w->hash) == 0);
    encl_noise_handshake_free(hs);
    encl_buf_free(&payload);
    w->memory = allocated() - w->out.cap - w->held.cap;
    check_world(w);
}

static void begin(world *w, uint8_t where, size_t piece) {
    bool responds = where == BEGIN_FIRST || where == BEGIN_SERVING;
    encl_error err;

    make_session(w, responds ? ENCL_RESPONDER : ENCL_INITIATOR, where == BEGIN_PRODUCTION, piece);
    switch (where) {
    case BEGIN_NEW:
    case BEGIN_FIRST:
        return;
    case BEGIN_ANSWER:
        REQUIRE(encl_session_start(w->s, &w->out, &err) == ENCL_OK);
        return;
    default:
        shake_hands(w);
    }
    if (where == BEGIN_OPEN) {
        say_message(w, (encl_msg){.type = ENCL_MSG_ATTESTATION});
        deliver(w, SIZE_MAX);
    }
    REQUIRE(encl_session_get_state(w->s) ==
            (responds || where == BEGIN_OPEN ? ENCL_SESSION_OPEN : ENCL_SESSION_ATTESTING));
}

/* Without the keys a peer never gets an initiator further than its first message. */
static void check_outcome(const world *w, uint8_t where) {
    if (where == BEGIN_NEW || where == BEGIN_ANSWER) {
        REQUIRE(!w->m.open && w->app == NULL);
        REQUIRE(encl_buf_readable(&w->out) == (where == BEGIN_NEW ? 0 : ENCL_NOISE_KEY_BYTES));
    }
    if (where == BEGIN_PRODUCTION && w->m.open) {
        REQUIRE(w->good_document);
    }
}

/* One whole course, so that what OpenSSL and libsodium keep for good is there before memory is
 * counted, and so that no check below is empty because nothing verifies any more. */
static void run_once(uint8_t where, uint8_t variant, bool opens) {
    step s = {.kind = STEP_DOCUMENT, .what = variant};
    world w;

    begin(&w, where, 0);
    take_step(&w, &s);
    REQUIRE(w.m.open == opens && w.dead == !opens);
    free_world(&w);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    memset(pattern, 0xa5, sizeof pattern);
    for (uint8_t variant = 0; variant < DOCUMENTS; variant++) {
        run_once(BEGIN_PRODUCTION, variant, variant == 0);
    }
    counting = true;
    return 0;
}

static uint64_t run(fuzz_input in, uint8_t where, size_t piece) {
    size_t after_close = 0;
    uint64_t told;
    encl_error err;
    world w;

    begin(&w, where, piece);
    for (size_t i = 0; i < MAX_STEPS && in.len != 0 && after_close < AFTER_CLOSE; i++) {
        step s = script_next(&in);

        take_step(&w, &s);
        after_close += w.dead ? 1 : 0;
    }
    deliver(&w, SIZE_MAX);
    check_outcome(&w, where);
    encl_session_eof(w.s, &err);
    fuzz_check_error(err.code, &err);
    note(&w, &err.code, sizeof err.code);
    told = w.told;
    free_world(&w);
    return told;
}

/* Where the path cuts the same bytes makes no difference. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    uint8_t first = fuzz_u8(&in), where = first % BEGIN_COUNT;
    size_t piece = first / BEGIN_COUNT;
    uint64_t told = run(in, where, 0);

    REQUIRE(piece == 0 || run(in, where, piece) == told);
    return 0;
}
