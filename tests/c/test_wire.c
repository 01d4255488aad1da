/* wire: both directions of every message, the payload loops, what must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/secmem.h"
#include "base/utf8.h"
#include "wire/bytes.h"
#include "wire/wire.h"

/* A copy of exactly its size, so that AddressSanitizer sees every step beyond it. */
static uint8_t *exact(const void *bytes, size_t len) {
    uint8_t *copy = malloc(len == 0 ? 1 : len);

    assert_non_null(copy);
    if (len != 0) {
        memcpy(copy, bytes, len);
    }
    return copy;
}

/* Exactly count elements. */
static bool decode(const uint8_t *in, size_t in_len, size_t count, uint8_t *out, size_t *consumed) {
    return encl_bytes_decode_run(in, in_len, count, out, consumed) == count;
}

static void assert_slice(encl_slice got, encl_slice want) {
    assert_int_equal(got.len, want.len);
    if (want.len != 0) {
        assert_memory_equal(got.data, want.data, want.len);
    }
}

static void assert_survives(const encl_msg *m, encl_direction direction) {
    encl_buf out;
    encl_error err;
    encl_msg back;
    uint8_t *block;
    size_t size = encl_wire_size(m, direction);

    encl_buf_init(&out, size); /* not one byte more than announced */
    assert_int_equal(encl_wire_encode(m, direction, &out, &err), ENCL_OK);
    assert_int_equal(encl_buf_readable(&out), size);
    block = exact(out.data, size);
    assert_int_equal(encl_wire_decode(block, size, direction, &back, &err), ENCL_OK);
    assert_int_equal(back.type, m->type);
    assert_true(back.id == m->id);
    assert_int_equal(back.half, m->half);
    assert_int_equal(back.success, m->success);
    assert_slice(back.payload, m->payload);
    assert_slice(back.signature, m->signature);
    assert_memory_equal(back.control_nonce, m->control_nonce, ENCL_CONTROL_NONCE_BYTES);
    free(block);

    for (size_t cut = 0; cut < size; cut += cut < 128 ? 1 : 101) {
        block = exact(out.data, cut);
        assert_int_equal(encl_wire_decode(block, cut, direction, &back, &err), ENCL_E_PROTOCOL);
        free(block);
    }
    encl_buf_free(&out);
}

static void every_message_survives_both_ways(void **state) {
    static const uint64_t ids[] = {0,     1,     23,          24,          255,       256,
                                   65535, 65536, 4294967295u, 4294967296u, UINT64_MAX};
    static const size_t sizes[] = {0, 1, 15, 16, 17, 23, 24, 255, 256, 1000, 16320};
    static const encl_msg_type carriers[] = {ENCL_MSG_DATA, ENCL_MSG_OPEN_STREAM,
                                             ENCL_MSG_STREAM_DATA};
    uint8_t *random = malloc(16320);
    encl_error err;
    encl_msg m;

    (void)state;
    assert_non_null(random);
    assert_int_equal(encl_random(random, 16320, &err), ENCL_OK);
    for (size_t t = 0; t < 3; t++) {
        for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
            m = (encl_msg){.type = carriers[t], .id = ids[i]};
            m.payload = ENCL_SLICE(random, sizes[i]);
            assert_survives(&m, ENCL_TO_SERVER);
            if (m.type != ENCL_MSG_OPEN_STREAM) {
                assert_survives(&m, ENCL_TO_CLIENT);
            }
        }
    }
    m = (encl_msg){.type = ENCL_MSG_REQUEST_ATTESTATION};
    assert_survives(&m, ENCL_TO_SERVER);
    m = (encl_msg){.type = ENCL_MSG_GET_CONTROL_NONCE};
    assert_survives(&m, ENCL_TO_SERVER);
    m = (encl_msg){.type = ENCL_MSG_STREAM_CLOSE, .id = 7, .half = ENCL_HALF_WRITE};
    assert_survives(&m, ENCL_TO_SERVER);
    m.half = ENCL_HALF_BOTH;
    assert_survives(&m, ENCL_TO_SERVER);
    m.half = ENCL_HALF_NONE;
    assert_survives(&m, ENCL_TO_CLIENT);
    m = (encl_msg){.type = ENCL_MSG_CONTROL, .payload = ENCL_SLICE(random, 40)};
    m.signature = ENCL_SLICE(random + 40, 64);
    assert_survives(&m, ENCL_TO_SERVER);
    m = (encl_msg){.type = ENCL_MSG_ATTESTATION, .payload = ENCL_SLICE(random, 5000)};
    memcpy(m.control_nonce, random, sizeof m.control_nonce);
    assert_survives(&m, ENCL_TO_CLIENT);
    m = (encl_msg){.type = ENCL_MSG_CONTROL_NONCE};
    memcpy(m.control_nonce, random, sizeof m.control_nonce);
    assert_survives(&m, ENCL_TO_CLIENT);
    m = (encl_msg){.type = ENCL_MSG_ERROR, .id = 3, .payload = ENCL_SLICE("caf\xc3\xa9", 5)};
    assert_survives(&m, ENCL_TO_CLIENT);
    m = (encl_msg){
        .type = ENCL_MSG_CONTROL_RESULT, .success = true, .payload = ENCL_SLICE("done", 4)};
    assert_survives(&m, ENCL_TO_CLIENT);
    m.success = false;
    assert_survives(&m, ENCL_TO_CLIENT);
    free(random);
}

static void the_bytes_are_those_of_serde(void **state) {
    static const uint8_t payload[] = {0, 23, 24, 255};
    static const uint8_t want[] = "\xa3\x64type\x6aStreamData\x62id\x18\x2a\x67payload"
                                  "\x84\x00\x17\x18\x18\x18\xff";
    encl_msg m = {.type = ENCL_MSG_STREAM_DATA, .id = 42, .payload = ENCL_SLICE(payload, 4)};
    encl_buf out;
    encl_error err;

    (void)state;
    encl_buf_init(&out, 100);
    assert_int_equal(encl_wire_encode(&m, ENCL_TO_SERVER, &out, &err), ENCL_OK);
    assert_slice(encl_buf_peek(&out), ENCL_SLICE(want, sizeof want - 1));
    encl_buf_clear(&out);
    m = (encl_msg){.type = ENCL_MSG_STREAM_CLOSE, .id = 1, .half = ENCL_HALF_BOTH};
    assert_int_equal(encl_wire_encode(&m, ENCL_TO_SERVER, &out, &err), ENCL_OK);
    assert_slice(encl_buf_peek(&out), ENCL_SLICE("\xa3\x64type\x6bStreamClose\x62id\x01\x64half\x64"
                                                 "Both",
                                                 32));
    encl_buf_free(&out);
}

static void encoding_refuses_what_does_not_go_there(void **state) {
    encl_msg m = {.type = ENCL_MSG_OPEN_STREAM, .id = 1};
    encl_buf out;
    encl_error err;

    (void)state;
    encl_buf_init(&out, 30);
    assert_int_equal(encl_wire_encode(&m, ENCL_TO_CLIENT, &out, &err), ENCL_E_INVALID);
    assert_non_null(strstr(err.message, "to the client, got OpenStream"));
    assert_int_equal(encl_wire_size(&m, ENCL_TO_CLIENT), 0);
    m = (encl_msg){.type = ENCL_MSG_STREAM_CLOSE, .id = 1};
    assert_int_equal(encl_wire_encode(&m, ENCL_TO_SERVER, &out, &err), ENCL_E_INVALID);
    m = (encl_msg){.type = ENCL_MSG_ERROR, .payload = ENCL_SLICE("\xff", 1)};
    assert_int_equal(encl_wire_encode(&m, ENCL_TO_CLIENT, &out, &err), ENCL_E_INVALID);
    m = (encl_msg){.type = ENCL_MSG_DATA, .payload = ENCL_SLICE("0123456789", 10)};
    assert_int_equal(encl_wire_encode(&m, ENCL_TO_CLIENT, &out, &err), ENCL_E_INVALID);
    m.type = (encl_msg_type)99;
    assert_int_equal(encl_wire_encode(&m, ENCL_TO_CLIENT, &out, &err), ENCL_E_INVALID);
    assert_int_equal(encl_buf_readable(&out), 0);
    encl_buf_free(&out);
}

/* The straightforward way, to compare the block-wise one with. */
static size_t plain_encode(uint8_t *out, const uint8_t *bytes, size_t n) {
    size_t o = 0;

    for (size_t i = 0; i < n; i++) {
        if (bytes[i] >= 24) {
            out[o++] = 0x18;
        }
        out[o++] = bytes[i];
    }
    return o;
}

/* Every room from none to enough, each a block of its own under AddressSanitizer. */
static void encoding_stays_within_the_room_it_is_given(void **state) {
    uint8_t bytes[70], want[140];

    (void)state;
    for (unsigned pattern = 0; pattern < 4; pattern++) {
        encl_msg m = {.type = ENCL_MSG_DATA, .id = 1, .payload = ENCL_SLICE(bytes, sizeof bytes)};
        size_t len, written;

        for (size_t i = 0; i < sizeof bytes; i++) {
            bytes[i] = (uint8_t)(pattern == 0   ? 1
                                 : pattern == 1 ? 0xff
                                 : pattern == 2 ? i % 2 * 0xff
                                                : i);
        }
        len = plain_encode(want, bytes, sizeof bytes);
        for (size_t cap = 0; cap <= sizeof want; cap++) {
            uint8_t *out = exact(want, cap);

            memset(out, 0xee, cap);
            assert_int_equal(encl_bytes_encode(ENCL_SLICE(bytes, sizeof bytes), out, cap, &written),
                             cap >= len);
            assert_true(written <= cap);
            assert_memory_equal(out, want, written);
            free(out);
        }
        len = encl_wire_size(&m, ENCL_TO_SERVER);
        assert_true(len <= encl_wire_bound(&m));
        for (size_t cap = 0; cap <= len; cap++) {
            encl_buf out;
            encl_error err;
            encl_code rc;

            encl_buf_init(&out, cap);
            rc = encl_wire_encode(&m, ENCL_TO_SERVER, &out, &err);
            assert_int_equal(rc, cap == len ? ENCL_OK : ENCL_E_INVALID);
            assert_int_equal(encl_buf_readable(&out), cap == len ? len : 0);
            encl_buf_free(&out);
        }
    }
}

static void the_bound_of_what_has_no_size_is_the_largest(void **state) {
    encl_msg m = {.type = ENCL_MSG_DATA};

    (void)state;
    m.payload.len = SIZE_MAX / 2;
    assert_true(encl_wire_bound(&m) == SIZE_MAX);
    m.payload.len = SIZE_MAX / 4;
    assert_true(encl_wire_bound(&m) != SIZE_MAX);
    m.signature.len = SIZE_MAX / 4;
    assert_true(encl_wire_bound(&m) == SIZE_MAX);
}

static void loops_agree_with_the_plain_way(void **state) {
    uint8_t bytes[600], want[1200];
    encl_error err;

    (void)state;
    for (size_t round = 0; round < 2000; round++) {
        size_t n = round % (sizeof bytes + 1), len, consumed, written;
        uint8_t *got, *back;

        assert_int_equal(encl_random(bytes, sizeof bytes, &err), ENCL_OK);
        /* Markers as values, alone and in runs, are what the block-wise decoder could get wrong. */
        for (size_t i = 0; i < n; i++) {
            uint8_t kind = bytes[i] & 7;
            bytes[i] = round % 3 == 0 ? bytes[i] : kind < 5 ? 0x18 : kind == 5 ? 0x05 : bytes[i];
        }
        len = plain_encode(want, bytes, n);
        got = exact(want, len); /* room for exactly the encoding */
        memset(got, 0xee, len);
        assert_true(encl_bytes_encode(ENCL_SLICE(bytes, n), got, len, &written));
        assert_int_equal(written, len);
        assert_slice(ENCL_SLICE(got, len), ENCL_SLICE(want, len));
        assert_int_equal(encl_wire_array_size(ENCL_SLICE(bytes, n)), len + (n < 24    ? 1
                                                                            : n < 256 ? 2
                                                                                      : 3));

        back = exact(bytes, n);
        memset(back, 0, n);
        assert_true(decode(got, len, n, back, &consumed));
        assert_int_equal(consumed, len);
        assert_slice(ENCL_SLICE(back, n), ENCL_SLICE(bytes, n));
        free(back);
        assert_true(decode(got, len, n, got, &consumed)); /* in place */
        assert_slice(ENCL_SLICE(got, n), ENCL_SLICE(bytes, n));
        free(got);
    }
}

static void one_bad_element_is_found_wherever_it_is(void **state) {
    uint8_t bytes[100], code[210];

    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)(i * 37);
    }
    for (size_t at = 0; at < sizeof bytes; at++) {
        size_t before = plain_encode(code, bytes, at), len, consumed;
        uint8_t *block;

        for (unsigned bad = 0x1c; bad <= 0xff; bad++) {
            code[before] = (uint8_t)bad;
            len = before + 1 + plain_encode(code + before + 1, bytes + at, sizeof bytes - at);
            block = exact(code, len);
            assert_false(decode(block, len, sizeof bytes + 1, block, &consumed));
            assert_int_equal(consumed, before);
            assert_int_equal(block[consumed], bad);
            assert_slice(ENCL_SLICE(block, at), ENCL_SLICE(bytes, at));
            free(block);
        }
    }
}

static void wide_integers_are_taken_when_small(void **state) {
    static const uint8_t in[] = {0x18, 5, 0x19, 0, 9, 0x1a, 0, 0, 0, 255,
                                 0x1b, 0, 0,    0, 0, 0,    0, 0, 7, 0x17};
    static const uint8_t want[] = {5, 9, 255, 7, 0x17};
    static const uint8_t big[][9] = {{0x19, 1, 0},
                                     {0x1a, 0, 0, 1, 0},
                                     {0x1a, 1, 0, 0, 0},
                                     {0x1b, 0, 0, 0, 0, 0, 0, 1, 0},
                                     {0x1b, 1, 0},
                                     {0x20},
                                     {0x1c},
                                     {0xf4}};
    uint8_t block[sizeof in];
    size_t consumed;

    (void)state;
    memcpy(block, in, sizeof in);
    assert_true(decode(block, sizeof in, 5, block, &consumed));
    assert_memory_equal(block, want, sizeof want);
    assert_int_equal(consumed, sizeof in);
    for (size_t i = 0; i < sizeof big / sizeof *big; i++) {
        assert_false(decode(big[i], sizeof big[i], 1, block, &consumed));
        assert_int_equal(consumed, 0);
    }
    for (size_t len = 0; len < 9; len++) { /* cut short */
        static const uint8_t wide[] = {0x1b, 0, 0, 0, 0, 0, 0, 0, 1};
        uint8_t *cut = exact(wide, len);

        assert_false(decode(cut, len, 1, cut, &consumed));
        free(cut);
    }
}

typedef struct sample {
    const char *bytes;
    size_t len;
    const char *says; /* NULL: accepted */
} sample;

#define S(literal, says)                                                                           \
    { literal, sizeof(literal) - 1, says }

static void assert_sample(const sample *s) {
    uint8_t *block = exact(s->bytes, s->len);
    encl_error err;
    encl_msg m;
    encl_code rc = encl_wire_decode(block, s->len, ENCL_TO_CLIENT, &m, &err);

    if (s->says == NULL) {
        if (rc != ENCL_OK) {
            fail_msg("expected to be accepted, came: %s", err.message);
        }
        assert_int_equal(m.type, ENCL_MSG_DATA);
        assert_int_equal(m.id, 5);
        assert_slice(m.payload, ENCL_SLICE("\x01\xff", 2));
    } else {
        assert_int_equal(rc, ENCL_E_PROTOCOL);
        if (strstr(err.message, s->says) == NULL) {
            fail_msg("expected \"%s\" in: %s", s->says, err.message);
        }
    }
    free(block);
}

#define TYPE                                                                                       \
    "\x64type\x64"                                                                                 \
    "Data"
#define ID      "\x62id\x05"
#define PAYLOAD "\x67payload\x82\x01\x18\xff"

static void forms_that_mean_the_same(void **state) {
    static const sample samples[] = {
        S("\xa3" TYPE ID PAYLOAD, NULL),
        S("\xa3" PAYLOAD ID TYPE, NULL),
        S("\xa3" ID TYPE PAYLOAD, NULL),
        S("\xbf" TYPE ID PAYLOAD "\xff", NULL),
        S("\xbf" PAYLOAD TYPE ID "\xff", NULL),
        S("\xa3" TYPE ID "\x67payload\x9f\x01\x18\xff\xff", NULL),
        S("\xa3"
          "\x67payload\x9f\x01\x18\xff\xff" ID TYPE,
          NULL),
        S("\xa3" TYPE ID "\x67payload\x42\x01\xff", NULL),
        S("\xa3" TYPE ID "\x67payload\x5f\x41\x01\x40\x41\xff\xff", NULL),
        S("\xa3"
          "\x67payload\x5f\x41\x01\x40\x41\xff\xff" TYPE ID,
          NULL),
        S("\xa3" TYPE ID "\x7f\x63pay\x64load\xff\x82\x01\x18\xff", NULL),
        S("\xa3"
          "\x64type\x7f\x61"
          "D\x60\x63"
          "ata\xff" ID PAYLOAD,
          NULL),
        S("\xa3" TYPE "\x62id\x18\x05" PAYLOAD, NULL),
        S("\xa3" TYPE "\x62id\x1b\0\0\0\0\0\0\0\x05" PAYLOAD, NULL),
        S("\xa3" TYPE ID "\x67payload\x9b\0\0\0\0\0\0\0\x02\x19\0\x01\x1a\0\0\0\xff", NULL),
        /* Unknown keys, and keys of other messages, mean nothing, whatever they hold. */
        S("\xa5" TYPE "\x61x\xa1\x01\x82\xf6\xc1\xfb\0\0\0\0\0\0\0\0" ID "\x67message\x20" PAYLOAD,
          NULL),
        S("\xa6\x67message\x20\x67message\x20\x61x\xbf\x61y\x9f\xff\xff" TYPE ID PAYLOAD, NULL),
        S("\xa4" TYPE ID PAYLOAD "\x60\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81"
          "\x80",
          NULL),
        S("\xa4" TYPE ID PAYLOAD "\x60\xd8\x20\xd9\x01\x02\x7f\x61"
          "a\xff",
          NULL),
    };

    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        assert_sample(&samples[i]);
    }
}

static void refused_and_why(void **state) {
    static const sample samples[] = {
        S("", "expected the message, got the end"),
        S("\x80", "the message: expected a map, got an array"),
        S("\xd9\xd9\xf7\xa0", "got a tag"),
        S("\xa0", "expected a key \"type\", got none"),
        S("\xa1" TYPE, "Data: expected a key \"id\", got none"),
        S("\xa2" TYPE ID, "Data: expected a key \"payload\", got none"),
        S("\xa4" TYPE ID PAYLOAD TYPE, "got \"type\" twice"),
        S("\xa4" TYPE ID PAYLOAD ID, "got \"id\" twice"),
        S("\xa4" ID ID TYPE PAYLOAD, "got \"id\" twice"),
        S("\xa4" PAYLOAD ID TYPE PAYLOAD, "got \"payload\" twice"),
        S("\xa3" TYPE ID PAYLOAD "\0", "got 1 more bytes"),
        S("\xa4" TYPE ID PAYLOAD, "expected key, got the end"),
        S("\xbf" TYPE ID PAYLOAD, "expected key, got the end"),
        S("\xbf" TYPE ID "\x67payload\xff", "got a break"),
        S("\xa1\x64type\x64"
          "data",
          "expected a message to the client, got \"data\""),
        S("\xa1\x64type\x6aOpenStream", "got \"OpenStream\""),
        S("\xa1\x64type\x63\x1b[m", "got \"\\x1b[m\""),
        S("\xa1\x64type\x44"
          "Data",
          "type: expected a text, got a byte string"),
        S("\xa1\x64type\x18\x01", "type: expected a text, got an unsigned integer"),
        S("\xa1\x64type\x62\xc3\x28", "type: expected UTF-8"),
        S("\xa1\x01\x01", "key: expected a text, got an unsigned integer"),
        S("\xa1\x42id\x01", "key: expected a text, got a byte string"),
        S("\xa1\x62\xed\xa0\x01", "key: expected UTF-8"),
        S("\xa3" TYPE "\x62id\x20" PAYLOAD, "id: expected an unsigned integer, got a negative"),
        S("\xa3" TYPE "\x62id\xf9\x45\0" PAYLOAD, "got a floating-point number"),
        S("\xa3" TYPE "\x62id\xc2\x05" PAYLOAD, "got a tag"),
        S("\xa3" TYPE "\x62id\xf6" PAYLOAD, "got null"),
        S("\xa3" TYPE ID "\x67payload\x61"
          "a",
          "byte string, got a text"),
        S("\xa3" TYPE ID "\x67payload\x81\x20", "element 0, got something else (0x20"),
        S("\xa3" TYPE ID "\x67payload\x81\x19\x01\x00", "element 0, got a greater one (0x19"),
        S("\xa3" TYPE ID "\x67payload\x82\x01\x18", "got the end of the message after 1"),
        S("\xa3" TYPE ID "\x67payload\x9f\x01", "got the end of the message after 1"),
        S("\xa3" TYPE ID "\x67payload\x9f\x01\x61"
          "a",
          "element 1, got something else (0x61"),
        S("\xa3" TYPE ID "\x67payload\x5f\x61"
          "a\xff",
          "a chunk: expected a byte string, got a te"),
        S("\xa3" TYPE ID "\x67payload\x5f\x5f\xff\xff", "got a byte string of indefinite"),
        S("\xa3" TYPE ID "\x67payload\x9b\x80\0\0\0\0\0\0\0", "declared length of 92233720368547"),
        S("\xa3" TYPE ID "\x67payload\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "length of 184467440"),
        S("\xa3" TYPE ID "\x67payload\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "does not end within"),
        S("\xa3" TYPE ID "\x67payload\x5b\x7f\xff\xff\xff\xff\xff\xff\xff", "does not end within"),
        S("\xbb\x80\0\0\0\0\0\0\0", "declared length of 9223372036854775808"),
        S("\xbb\xff\xff\xff\xff\xff\xff\xff\xff", "declared length of 18446744073709551615"),
        S("\xbb", "does not end within the 1 bytes left"),
        S("\xa1\x60\x90", "declared length of 16"),
        S("\xa1\x60\xbb\x80\0\0\0\0\0\0\x01", "declared length of 9223372036854775809"),
        S("\xa1\x60\xbf\x01\xff", "expected a key's value, got a break"),
        S("\xa1\x60\x81\xff", "got a break outside"),
        S("\xa1\x60\xff", "got a break outside"),
        S("\xa1\x60\x9f\xc1\xff", "expected a tagged value, got a break"),
        S("\xa1\x60\x1c", "begins no item"),
        S("\xa1\x60\x7f\x41"
          "a\xff",
          "a chunk: expected a text, got a byte string"),
        S("\xa1\x60\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f",
          "at most 16 nested"),
        S("\xa2\x64type\x6c"
          "ControlNonce\x65nonce\x83\x01\x02\x03",
          "expected 32 bytes, got 3"),
        S("\xa2\x64type\x6c"
          "ControlNonce\x65nonce\x80",
          "expected 32 bytes, got 0"),
        S("\xa3\x64type\x6d"
          "ControlResult\x67success\x01\x67message\x60",
          "expected a boolean"),
        S("\xa3\x64type\x65"
          "Error\x62id\x01\x67message\x61\xff",
          "message: expected UTF-8"),
        S("\xa3\x64type\x65"
          "Error\x62id\x01\x67message\x7f\x61\xc3\x61\xa9\xff",
          "a chunk or a break: expected UTF-8"),
        S("\xa3\x64type\x65"
          "Error\x62id\x01\x67message\x42hi",
          "expected a text, got a byte"),
    };

    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        assert_sample(&samples[i]);
    }
}

static void half_is_write_or_both(void **state) {
    static const char bad[] = "\xa3\x64type\x6bStreamClose\x62id\x01\x64half\x64Read";
    static const char none[] = "\xa2\x64type\x6bStreamClose\x62id\x01";
    uint8_t block[sizeof bad];
    encl_error err;
    encl_msg m;

    (void)state;
    memcpy(block, bad, sizeof bad);
    assert_int_equal(encl_wire_decode(block, sizeof bad - 1, ENCL_TO_SERVER, &m, &err),
                     ENCL_E_PROTOCOL);
    assert_string_equal(err.message, "half: expected \"Write\" or \"Both\", got \"Read\"");
    memcpy(block, none, sizeof none);
    assert_int_equal(encl_wire_decode(block, sizeof none - 1, ENCL_TO_SERVER, &m, &err),
                     ENCL_E_PROTOCOL);
    memcpy(block, none, sizeof none);
    assert_int_equal(encl_wire_decode(block, sizeof none - 1, ENCL_TO_CLIENT, &m, &err), ENCL_OK);
}

static void nesting_costs_no_stack(void **state) {
    size_t len = 65519;
    uint8_t *block = malloc(len);
    static const uint8_t fills[] = {0x81, 0x9f, 0xa1, 0xbf, 0xc1, 0x7f, 0x5f};
    encl_error err;
    encl_msg m;

    (void)state;
    assert_non_null(block);
    for (size_t i = 0; i < sizeof fills; i++) {
        memset(block, fills[i], len);
        memcpy(block, "\xa1\x60", 2);
        assert_int_equal(encl_wire_decode(block, len, ENCL_TO_CLIENT, &m, &err), ENCL_E_PROTOCOL);
    }
    free(block);
}

static void utf8_is_what_rfc_3629_says(void **state) {
    static const char *const good[] = {"",
                                       "a",
                                       "\x7f",
                                       "\xc2\x80",
                                       "\xdf\xbf",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xef\xbf\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xc2\x41",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xe1\x80",
                                      "\xe1\x80\x41",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xf1\x80\x80",
                                      "\xff"};
    char shown[ENCL_UTF8_SHOWN];

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(encl_utf8_valid(ENCL_SLICE(good[i], strlen(good[i]))));
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(encl_utf8_valid(ENCL_SLICE(bad[i], strlen(bad[i]))));
    }
    assert_int_equal(encl_utf8_cut(ENCL_SLICE("a\xe2\x82\xac", 4), 3), 1);
    assert_int_equal(encl_utf8_cut(ENCL_SLICE("a\xe2\x82\xac", 4), 4), 4);
    for (size_t n = 0; n < 100; n++) {
        uint8_t text[100];

        memset(text, 0xe2, sizeof text);
        assert_true(strlen(encl_utf8_show(ENCL_SLICE(text, n), shown)) < sizeof shown);
        assert_int_equal(shown[0], n == 0 ? '\0' : '\\');
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_survives_both_ways),
        cmocka_unit_test(the_bytes_are_those_of_serde),
        cmocka_unit_test(encoding_refuses_what_does_not_go_there),
        cmocka_unit_test(encoding_stays_within_the_room_it_is_given),
        cmocka_unit_test(the_bound_of_what_has_no_size_is_the_largest),
        cmocka_unit_test(loops_agree_with_the_plain_way),
        cmocka_unit_test(one_bad_element_is_found_wherever_it_is),
        cmocka_unit_test(wide_integers_are_taken_when_small),
        cmocka_unit_test(forms_that_mean_the_same),
        cmocka_unit_test(refused_and_why),
        cmocka_unit_test(half_is_write_or_both),
        cmocka_unit_test(nesting_costs_no_stack),
        cmocka_unit_test(utf8_is_what_rfc_3629_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
