/* What instructions.py counts: count WHAT TIMES. Each time is one payload of a stream, as random as
 * real ones are to the codec. */
#include "noise/noise.h"
#include "session/record.h"
#include "wire/bytes.h"
#include "wire/wire.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAYLOAD 16320
#define BLOCK   65536

#define NEED(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "count.c:%d: expected %s\n", __LINE__, #condition);                    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const uint8_t keys[2][ENCL_NOISE_KEY_BYTES] = {{1, 2, 3}, {4, 5, 6}};
static uint8_t payload[PAYLOAD], block[BLOCK];
static encl_noise_transport *client, *server;

static void say(encl_noise_handshake *from, encl_noise_handshake *to) {
    encl_buf message, nothing;
    encl_error err;

    encl_buf_init(&message, BLOCK);
    encl_buf_init(&nothing, BLOCK);
    NEED(encl_noise_handshake_write(from, ENCL_SLICE_NONE, &message, &err) == ENCL_OK);
    NEED(encl_noise_handshake_read(to, encl_buf_peek(&message), &nothing, &err) == ENCL_OK);
    encl_buf_free(&message);
    encl_buf_free(&nothing);
}

static void shake_hands(void) {
    encl_noise_handshake *a, *b;
    uint8_t hash[ENCL_NOISE_HASH_BYTES];
    encl_error err;

    NEED(encl_noise_handshake_new(ENCL_INITIATOR, ENCL_SLICE_NONE, keys[0], &a, &err) == ENCL_OK);
    NEED(encl_noise_handshake_new(ENCL_RESPONDER, ENCL_SLICE_NONE, keys[1], &b, &err) == ENCL_OK);
    say(a, b);
    say(b, a);
    NEED(encl_noise_handshake_split(a, &client, hash, &err) == ENCL_OK);
    NEED(encl_noise_handshake_split(b, &server, hash, &err) == ENCL_OK);
    encl_noise_handshake_free(a);
    encl_noise_handshake_free(b);
}

static void encode(void) {
    size_t size;

    NEED(encl_bytes_encode(ENCL_SLICE(payload, PAYLOAD), block, sizeof block, &size));
}

static void decode(void) {
    static uint8_t wire[BLOCK], out[PAYLOAD];
    static size_t size;
    size_t consumed;

    if (size == 0) {
        NEED(encl_bytes_encode(ENCL_SLICE(payload, PAYLOAD), wire, sizeof wire, &size));
    }
    NEED(encl_bytes_decode_run(wire, size, PAYLOAD, out, &consumed) == PAYLOAD);
}

static void seal(encl_buf *out) {
    encl_msg m = {.type = ENCL_MSG_STREAM_DATA, .id = 7, .payload = ENCL_SLICE(payload, PAYLOAD)};
    encl_error err;

    encl_buf_clear(out);
    NEED(encl_record_seal(client, &m, ENCL_TO_SERVER, out, &err) == ENCL_OK);
}

/* One record there: encoded, sealed, opened, decoded. */
static void record(void) {
    static encl_buf out;
    encl_error err;
    encl_slice sealed;
    encl_msg m;
    size_t len;

    if (out.limit == 0) {
        encl_buf_init(&out, BLOCK);
    }
    seal(&out);
    NEED(encl_buf_skip(&out, 4, &err) == ENCL_OK);
    sealed = encl_buf_peek(&out);
    memcpy(block, sealed.data, sealed.len);
    NEED(encl_noise_open(server, block, sealed.len, &len, &err) == ENCL_OK);
    NEED(encl_wire_decode(block, len, ENCL_TO_SERVER, &m, &err) == ENCL_OK);
    NEED(m.payload.len == PAYLOAD && memcmp(m.payload.data, payload, PAYLOAD) == 0);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*once)(void);
    } all[] = {{"encode", encode}, {"decode", decode}, {"record", record}};
    static const uint8_t seed[randombytes_SEEDBYTES] = {7};

    NEED(argc == 3 && sodium_init() >= 0);
    randombytes_buf_deterministic(payload, sizeof payload, seed);
    shake_hands();
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (strcmp(argv[1], all[i].name) == 0) {
            for (long n = atol(argv[2]); n > 0; n--) {
                all[i].once();
            }
            return 0;
        }
    }
    fprintf(stderr, "expected encode, decode or record, got %s\n", argv[1]);
    return 2;
}
