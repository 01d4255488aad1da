/* What emulated.py counts: codec WHAT TIMES. It needs the array codec alone, so that it can be
 * built for another processor without any library. */
#include "wire/bytes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAYLOAD 16320

static uint8_t payload[PAYLOAD], wire[2 * PAYLOAD], out[PAYLOAD];
static size_t size;

/* Any random bytes will do: what counts is how many of them are below 24. */
static void fill(void) {
    uint64_t state = 7;

    for (size_t i = 0; i < PAYLOAD; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        payload[i] = (uint8_t)(state >> 56);
    }
}

static void encode(void) {
    if (!encl_bytes_encode((encl_slice){payload, PAYLOAD}, wire, sizeof wire, &size)) {
        abort();
    }
}

static void decode(void) {
    size_t consumed;

    if (encl_bytes_decode_run(wire, size, PAYLOAD, out, &consumed) != PAYLOAD || consumed != size ||
        memcmp(out, payload, PAYLOAD) != 0) {
        abort();
    }
}

/* What decode does beside decoding. */
static void compare(void) {
    if (memcmp(out, payload, PAYLOAD) != 0) {
        abort();
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*once)(void);
    } all[] = {{"encode", encode}, {"decode", decode}, {"compare", compare}};

    fill();
    encode();
    decode();
    for (size_t i = 0; argc == 3 && i < sizeof all / sizeof all[0]; i++) {
        if (strcmp(argv[1], all[i].name) == 0) {
            for (long n = atol(argv[2]); n > 0; n--) {
                all[i].once();
            }
            puts(encl_bytes_codec());
            return 0;
        }
    }
    fprintf(stderr, "expected encode, decode or compare, and how often\n");
    return 2;
}
