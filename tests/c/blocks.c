/* Whether the payload codec's blocks say what a loop over single elements says: encoding random
 * bytes into rooms of any size, and decoding random arrays with and without damage. A program of
 * its own, without a test framework, so that it also runs under an emulator for another processor:
 *
 *   make -C tests/c blocks
 *   make -C tests/c blocks OUT=/tmp/arm CC='zig cc -target aarch64-linux-musl -static'
 * RUN=qemu-aarch64-static
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire/bytes.h"

#define MAX_ELEMENTS 300

static uint64_t seed;

static uint32_t pick(uint32_t below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % below;
}

/* One element as RFC 8949, 3.1 says: the value in the head, or in the 1, 2, 4 or 8 bytes after it.
 * Its length, or 0 where there is none that stands for a byte. */
static size_t element(const uint8_t *in, size_t len, uint8_t *value) {
    size_t width = 0;
    uint64_t read = 0;

    if (len == 0 || in[0] > 0x1b) {
        return 0;
    }
    if (in[0] >= 0x18) {
        width = (size_t)1 << (in[0] - 0x18);
    }
    if (width >= len) {
        return 0;
    }
    for (size_t i = 1; i <= width; i++) {
        read = read << 8 | in[i];
    }
    if (read > 255) {
        return 0;
    }
    *value = width == 0 ? in[0] : (uint8_t)read;
    return 1 + width;
}

static size_t one_by_one(const uint8_t *in, size_t len, size_t max, uint8_t *out,
                         size_t *consumed) {
    size_t o = 0, i = 0, n;

    while (o < max && (n = element(in + i, len - i, &out[o])) != 0) {
        i += n;
        o++;
    }
    *consumed = i;
    return o;
}

/* The shortest element for each byte; *done of them fit into the room. Their length together. */
static size_t write_one_by_one(const uint8_t *bytes, size_t n, uint8_t *out, size_t room,
                               size_t *done) {
    size_t o = 0, i = 0;

    for (; i < n && o + (bytes[i] < 0x18 ? 1 : 2) <= room; i++) {
        if (bytes[i] >= 0x18) {
            out[o++] = 0x18;
        }
        out[o++] = bytes[i];
    }
    *done = i;
    return o;
}

/* Wide and narrow ones in changing shares. */
static void make_bytes(uint8_t *bytes, size_t n) {
    uint32_t wide = pick(5);

    for (size_t i = 0; i < n; i++) {
        bytes[i] = (uint8_t)(pick(4) < wide ? pick(256) : pick(2) ? 0x18 - pick(2) : pick(24));
    }
}

/* Buffers of exactly the size, and behind the room bytes that must stay as they are: a sanitizer
 * does not see what is written there by an emulated processor. */
static bool encodes(const uint8_t *from, size_t n, size_t room) {
    enum { BEHIND = 32 };
    uint8_t *bytes = malloc(n + (n == 0)), *wanted = malloc(room + 1), *out = malloc(room + BEHIND);
    size_t done, expected, written = SIZE_MAX;
    bool same;

    if (bytes == NULL || wanted == NULL || out == NULL) {
        abort();
    }
    memcpy(bytes, from, n);
    memset(out, 0xa5, room + BEHIND);
    expected = write_one_by_one(bytes, n, wanted, room, &done);
    same = encl_bytes_encode((encl_slice){bytes, n}, out, room, &written) == (done == n) &&
           written == expected && memcmp(out, wanted, expected) == 0;
    for (size_t i = 0; i < BEHIND; i++) {
        same = same && out[room + i] == 0xa5;
    }
    free(bytes);
    free(wanted);
    free(out);
    return same;
}

/* Room for all of them, for exactly their elements, or for any part. */
static size_t pick_room(const uint8_t *bytes, size_t n) {
    size_t exact = encl_bytes_encoded_size((encl_slice){bytes, n});

    switch (pick(4)) {
    case 0:
        return 2 * n;
    case 1:
        return exact;
    case 2:
        return exact + pick(20);
    default:
        return pick((uint32_t)exact + 1);
    }
}

/* What the encoder makes of random bytes. */
static size_t make(uint8_t *in, size_t elements, size_t *count) {
    uint8_t bytes[MAX_ELEMENTS];
    size_t written;

    make_bytes(bytes, elements);
    written = write_one_by_one(bytes, elements, in, 2 * MAX_ELEMENTS, count);
    /* What follows an array is not the decoder's, even where it looks like one more element. */
    for (uint32_t n = pick(4); n != 0; n--) {
        in[written++] = (uint8_t)(pick(2) ? 0x18 : pick(256));
    }
    return written;
}

static void damage(uint8_t *in, size_t *len) {
    for (uint32_t n = pick(3); n != 0 && *len != 0; n--) {
        in[pick((uint32_t)*len)] = (uint8_t)(pick(2) ? 0x19 + pick(4) : pick(256));
    }
    if (pick(3) == 0) {
        *len = pick((uint32_t)*len + 1);
    }
}

/* Buffers of exactly the size, so that a sanitizer or an emulator's heap sees a byte too far. */
static bool agrees(const uint8_t *bytes, size_t len, size_t max) {
    uint8_t *in = malloc(len + 1), *place = malloc(len + 1), *out = malloc(max + 1);
    uint8_t *wanted = malloc(max + 1);
    size_t used, used_in_place, expected, n, m;
    bool same;

    if (in == NULL || place == NULL || out == NULL || wanted == NULL) {
        abort();
    }
    memcpy(in, bytes, len);
    memcpy(place, bytes, len);
    n = one_by_one(in, len, max, wanted, &expected);
    m = encl_bytes_decode_run(in, len, max, out, &used);
    same = m == n && used == expected && memcmp(out, wanted, n) == 0;
    m = encl_bytes_decode_run(place, len, max, place, &used_in_place);
    same = same && m == n && used_in_place == expected && memcmp(place, wanted, n) == 0;
    free(in);
    free(place);
    free(out);
    free(wanted);
    return same;
}

int main(int argc, char **argv) {
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 200000;
    uint8_t in[2 * MAX_ELEMENTS + 4], bytes[MAX_ELEMENTS];

    for (unsigned long i = 0; i < rounds; i++) {
        size_t count, len;

        seed = i;
        count = pick(MAX_ELEMENTS);
        make_bytes(bytes, count);
        if (!encodes(bytes, count, pick_room(bytes, count))) {
            printf("%s: round %lu is encoded differently\n", encl_bytes_codec(), i);
            return 1;
        }
        len = make(in, pick(MAX_ELEMENTS), &count);
        if (pick(2)) {
            damage(in, &len);
        }
        if (!agrees(in, len, pick(8) ? count : pick(MAX_ELEMENTS))) {
            printf("%s: round %lu is decoded differently\n", encl_bytes_codec(), i);
            return 1;
        }
    }
    printf("%s: %lu arrays, encoded and decoded as one by one\n", encl_bytes_codec(), rounds);
    return 0;
}
