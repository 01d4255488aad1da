/* The payload arrays: the only hot part of the codec. Decides what is an element of one and how
 * many bytes it takes; calls nothing.
 *
 * An array of small unsigned integers is a run of elements of one byte (0..23) or two (0x18, then
 * the value). Going from element to element makes every load wait for the one before it, or for a
 * mispredicted branch: 0.5 GB/s on random bytes. So the decoder goes by blocks of 16 input bytes
 * instead, finds all markers of a block at once, and squeezes them out with byte shuffles. */
#include "wire/wire.h"

#include <string.h>

#include "wire/bytes.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdatomic.h>
#include <tmmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && defined(__AARCH64EL__)
#include <arm_neon.h>
#endif

#define WIDE 0x18u /* head of an unsigned integer whose value is in the next byte */

/* Encoded element in the low 16 bits, first byte lowest; its length above. */
#define E1(b)                                                                                      \
    (uint32_t)((b) < WIDE ? (uint32_t)(b) | 1u << 16 : WIDE | (uint32_t)(b) << 8 | 2u << 16)
#define E4(b)  E1(b), E1((b) + 1), E1((b) + 2), E1((b) + 3)
#define E16(b) E4(b), E4((b) + 4), E4((b) + 8), E4((b) + 12)
#define E64(b) E16(b), E16((b) + 16), E16((b) + 32), E16((b) + 48)
static const uint32_t encoded[256] = {E64(0u), E64(64u), E64(128u), E64(192u)};

/* A constant length and a sum that fits one byte let the compiler count many bytes at a time. */
#define COUNT_STRETCH 240

static size_t count_stretch(const uint8_t *bytes) {
    uint8_t wide = 0;

    for (size_t i = 0; i < COUNT_STRETCH; i++) {
        wide = (uint8_t)(wide + (bytes[i] >= WIDE));
    }
    return wide;
}

size_t encl_bytes_encoded_size(encl_slice bytes) {
    size_t wide = 0, i = 0;

    for (; bytes.len - i >= COUNT_STRETCH; i += COUNT_STRETCH) {
        wide += count_stretch(bytes.data + i);
    }
    for (; i < bytes.len; i++) {
        wide += bytes.data[i] >= WIDE;
    }
    return bytes.len + wide;
}

/* Where a decoder is. value_due: the byte at i is the value of a marker already taken; the marker
 * itself may be overwritten by then, decoding in place. */
typedef struct run {
    const uint8_t *in;
    size_t in_len, i;
    uint8_t *out;
    size_t max, o;
    bool value_due;
} run;

/* ---- blocks of 16: what differs between processors ---- */

#if defined(__x86_64__)

#define HAVE_BLOCKS "ssse3"
#define IN_BLOCKS   __attribute__((target("ssse3,popcnt")))

typedef __m128i block16;

IN_BLOCKS static inline block16 load_block(const uint8_t *in) {
    return _mm_loadu_si128((const void *)in);
}

/* One bit for each byte of the block. */
IN_BLOCKS static inline uint32_t which_equal(block16 block, uint8_t value) {
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(block, _mm_set1_epi8((char)value)));
}

IN_BLOCKS static inline uint32_t which_above(block16 block, uint8_t value) {
    const block16 next = _mm_set1_epi8((char)(value + 1));

    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(block, next), block));
}

/* The low or high eight bytes of the block, in the order that the eight indexes say. */
IN_BLOCKS static inline void store_low(uint8_t *out, block16 block, const uint64_t *indexes) {
    _mm_storel_epi64((void *)out, _mm_shuffle_epi8(block, _mm_loadl_epi64((const void *)indexes)));
}

IN_BLOCKS static inline void store_high(uint8_t *out, block16 block, const uint64_t *indexes) {
    store_low(out, _mm_srli_si128(block, 8), indexes);
}

/* Of eight bytes, read once: a marker before each, and of these sixteen those that the mask of wide
 * ones says. Returns how many bytes of the sixteen stored ones are meant. */
IN_BLOCKS static inline size_t encode_eight(const uint8_t *in, uint8_t *out,
                                            const uint64_t (*spread)[2]) {
    const __m128i marker = _mm_set1_epi8((char)WIDE);
    __m128i eight = _mm_loadl_epi64((const void *)in);
    uint32_t wide = (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(eight, marker), eight));
    __m128i indexes = _mm_loadu_si128((const void *)spread[wide]);

    _mm_storeu_si128((void *)out, _mm_shuffle_epi8(_mm_unpacklo_epi8(marker, eight), indexes));
    return 8 + (size_t)__builtin_popcount(wide);
}

enum { NOT_ASKED, HAS_BLOCKS, HAS_NONE };

/* The processor is asked itself: __builtin_cpu_supports needs the compiler's start-up code, which
 * does not run in a library that was linked without it, and then answers "no". Asking is slow where
 * a hypervisor answers, so the answer is kept. No lock: every thread finds the same answer. */
static bool have_blocks(void) {
    static atomic_int answer = NOT_ASKED;
    int known = atomic_load_explicit(&answer, memory_order_relaxed);

    if (known == NOT_ASKED) {
        unsigned a, b, c = 0, d;
        const unsigned wanted = bit_SSSE3 | bit_POPCNT;

        known = __get_cpuid(1, &a, &b, &c, &d) && (c & wanted) == wanted ? HAS_BLOCKS : HAS_NONE;
        atomic_store_explicit(&answer, known, memory_order_relaxed);
    }
    return known == HAS_BLOCKS;
}

#elif defined(__aarch64__) && defined(__ARM_NEON) && defined(__AARCH64EL__)

#define HAVE_BLOCKS "neon"
#define IN_BLOCKS

typedef uint8x16_t block16;

static inline block16 load_block(const uint8_t *in) {
    return vld1q_u8(in);
}

/* Lanes that are all ones or all zeros, as one bit each: every lane keeps its own bit of eight, and
 * the sum of eight lanes is their mask. */
static inline uint32_t mask_of(uint8x16_t lanes) {
    static const uint8_t bits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t kept = vandq_u8(lanes, vld1q_u8(bits));

    return (uint32_t)vaddv_u8(vget_low_u8(kept)) | (uint32_t)vaddv_u8(vget_high_u8(kept)) << 8;
}

static inline uint32_t which_equal(block16 block, uint8_t value) {
    return mask_of(vceqq_u8(block, vdupq_n_u8(value)));
}

static inline uint32_t which_above(block16 block, uint8_t value) {
    return mask_of(vcgtq_u8(block, vdupq_n_u8(value)));
}

static inline void store_low(uint8_t *out, block16 block, const uint64_t *indexes) {
    vst1_u8(out, vtbl1_u8(vget_low_u8(block), vcreate_u8(*indexes)));
}

static inline void store_high(uint8_t *out, block16 block, const uint64_t *indexes) {
    vst1_u8(out, vtbl1_u8(vget_high_u8(block), vcreate_u8(*indexes)));
}

/* Of eight bytes, read once: a marker before each, and of these sixteen those that the mask of wide
 * ones says. Returns how many bytes of the sixteen stored ones are meant. */
static inline size_t encode_eight(const uint8_t *in, uint8_t *out, const uint64_t (*spread)[2]) {
    static const uint8_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x8_t marker = vdup_n_u8(WIDE);
    uint8x8_t eight = vld1_u8(in), lanes = vcge_u8(eight, marker);
    uint8_t wide = vaddv_u8(vand_u8(lanes, vld1_u8(bits)));
    uint8x16_t pairs = vcombine_u8(vzip1_u8(marker, eight), vzip2_u8(marker, eight));

    vst1q_u8(out, vqtbl1q_u8(pairs, vreinterpretq_u8_u64(vld1q_u64(spread[wide]))));
    return 8 + (size_t) - (int8_t)vaddv_u8(lanes); /* a lane of a wide byte is -1 */
}

/* Every processor of this architecture has these instructions. */
static bool have_blocks(void) {
    return true;
}

#endif

/* ---- blocks of 16: what does not ---- */

#if defined(HAVE_BLOCKS)

/* For each mask of markers among eight bytes: the indexes of the other bytes, in order. */
#define KEEP(m, j)       (1u - ((m) >> (j)&1u))
#define STEP(m, j, rest) ((uint64_t)(rest) << (8u * KEEP(m, j)) | (uint64_t)((j)*KEEP(m, j)))
#define HALF(m, rest)    STEP(m, 0u, STEP(m, 1u, STEP(m, 2u, STEP(m, 3u, rest))))
#define S1(m)            HALF(m, STEP(m, 4u, STEP(m, 5u, STEP(m, 6u, STEP(m, 7u, 0u)))))
#define S4(m)            S1(m), S1((m) + 1), S1((m) + 2), S1((m) + 3)
#define S16(m)           S4(m), S4((m) + 4), S4((m) + 8), S4((m) + 12)
#define S64(m)           S16(m), S16((m) + 16), S16((m) + 32), S16((m) + 48)
static const uint64_t squeeze[256] = {S64(0u), S64(64u), S64(128u), S64(192u)};

/* Which of the bytes equal to WIDE (wide, 16 bits) are markers and not values: those at even
 * distance from the start of their run. value_due shifts the first run by one. Subtracting the
 * runs from a mask of odd positions carries through each run and leaves its parity behind. */
static inline uint32_t find_markers(uint32_t wide, uint32_t value_due) {
    const uint32_t odd = 0xaaaaaaaau;
    uint32_t candidates = wide & ~value_due;

    return (((candidates << 1 | odd) - candidates) ^ odd) & wide;
}

/* Decodes whole blocks while they hold nothing but canonical elements. Stores run ahead of the
 * output by up to 16 bytes, which is why 16 elements must be wanted, but never beyond the block
 * just read. A block can end in a marker whose value comes after it, so one more byte must be
 * there: otherwise the marker would be taken without its value, and could not be given back,
 * because decoding in place may have overwritten it. (Such a block holds 15 elements at most, so
 * its value is always wanted.) */
IN_BLOCKS static void run_blocks(run *r) {
    uint32_t due = r->value_due;
    size_t i = r->i, o = r->o;

    while (r->max - o >= 16 && r->in_len - i > 16) {
        block16 block = load_block(r->in + i);
        uint32_t markers = find_markers(which_equal(block, WIDE), due);
        uint32_t values = markers << 1 | due;

        if ((which_above(block, WIDE) & ~values) != 0) {
            break;
        }
        store_low(r->out + o, block, &squeeze[markers & 0xff]);
        o += 8 - (size_t)__builtin_popcount(markers & 0xff);
        store_high(r->out + o, block, &squeeze[markers >> 8 & 0xff]);
        o += 8 - (size_t)__builtin_popcount(markers >> 8 & 0xff);
        due = markers >> 15 & 1;
        i += 16;
    }
    r->i = i;
    r->o = o;
    r->value_due = due != 0;
}

/* For each mask of wide bytes among eight: which of sixteen bytes (a marker and a byte, a marker
 * and a byte, ...) the encoded ones are, in order. The first may follow them; it is not meant. */
#define BIT(m, j)        ((m) >> (j)&1u)
#define AT0(m)           0u
#define AT1(m)           (AT0(m) + 1 + BIT(m, 0))
#define AT2(m)           (AT1(m) + 1 + BIT(m, 1))
#define AT3(m)           (AT2(m) + 1 + BIT(m, 2))
#define AT4(m)           (AT3(m) + 1 + BIT(m, 3))
#define AT5(m)           (AT4(m) + 1 + BIT(m, 4))
#define AT6(m)           (AT5(m) + 1 + BIT(m, 5))
#define AT7(m)           (AT6(m) + 1 + BIT(m, 6))
#define PUT(at, v, half) ((at) / 8 == (half) ? (uint64_t)(v) << (at) % 8 * 8 : 0)
#define PAIR(m, j, half)                                                                           \
    (PUT(AT##j(m) + BIT(m, j), 2 * (j) + 1, half) | BIT(m, j) * PUT(AT##j(m), 2 * (j), half))
#define SPREAD(m, half)                                                                            \
    (PAIR(m, 0, half) | PAIR(m, 1, half) | PAIR(m, 2, half) | PAIR(m, 3, half) |                   \
     PAIR(m, 4, half) | PAIR(m, 5, half) | PAIR(m, 6, half) | PAIR(m, 7, half))
#define P1(m)                                                                                      \
    { SPREAD(m, 0), SPREAD(m, 1) }
#define P4(m)  P1(m), P1((m) + 1), P1((m) + 2), P1((m) + 3)
#define P16(m) P4(m), P4((m) + 4), P4((m) + 8), P4((m) + 12)
#define P64(m) P16(m), P16((m) + 16), P16((m) + 32), P16((m) + 48)
static const uint64_t spread[256][2] = {P64(0u), P64(64u), P64(128u), P64(192u)};

/* As encode_stretch, eight elements at a time; returns how many it took. What it stores beyond the
 * elements' own bytes lies within 2 * n as well. */
IN_BLOCKS static size_t encode_blocks(const uint8_t *bytes, size_t n, uint8_t *out,
                                      size_t *written) {
    size_t i = 0, o = 0;

    for (; n - i >= 8; i += 8) {
        o += encode_eight(bytes + i, out + o, spread);
    }
    *written = o;
    return i;
}

const char *encl_bytes_codec(void) {
    return have_blocks() ? HAVE_BLOCKS : "plain";
}

#else

static void run_blocks(run *r) {
    (void)r;
}

static size_t encode_blocks(const uint8_t *bytes, size_t n, uint8_t *out, size_t *written) {
    (void)bytes, (void)n, (void)out;
    *written = 0;
    return 0;
}

static bool have_blocks(void) {
    return false;
}

const char *encl_bytes_codec(void) {
    return "plain";
}

#endif

/* ---- encoding ---- */

/* n elements into 2 * n bytes of room. Each element writes two bytes, and the next one overwrites
 * the second byte of a narrow one. */
static size_t encode_singly(const uint8_t *bytes, size_t n, uint8_t *out) {
    size_t o = 0;

    for (size_t i = 0; i < n; i++) {
        uint32_t e = encoded[bytes[i]];

        out[o] = (uint8_t)e;
        out[o + 1] = (uint8_t)(e >> 8);
        o += e >> 16;
    }
    return o;
}

static size_t encode_stretch(const uint8_t *bytes, size_t n, uint8_t *out) {
    size_t o = 0, i = 0;

    if (n == 0) { /* where there may be no memory to point into */
        return 0;
    }
    if (have_blocks()) {
        i = encode_blocks(bytes, n, out, &o);
    }
    return o + encode_singly(bytes + i, n - i, out + o);
}

/* An element takes two bytes at most, whatever its value. So half as many elements as there are
 * bytes of room always fit, and their values cannot lead beyond the room, not even where another
 * thread changes them meanwhile. The others are looked at one by one. */
bool encl_bytes_encode(encl_slice bytes, uint8_t *out, size_t cap, size_t *written) {
    size_t i = cap / 2 < bytes.len ? cap / 2 : bytes.len, o = encode_stretch(bytes.data, i, out);

    for (; i < bytes.len; i++) {
        uint8_t byte = bytes.data[i];

        if (byte < WIDE && o < cap) {
            out[o++] = byte;
        } else if (byte >= WIDE && o + 1 < cap) {
            out[o] = WIDE;
            out[o + 1] = byte;
            o += 2;
        } else {
            break;
        }
    }
    *written = o;
    return i == bytes.len;
}

/* ---- decoding, one by one ---- */

/* An integer in 2, 4 or 8 bytes: legal, though nobody should send it for a byte. */
static bool step_long(run *r, uint8_t head) {
    size_t width = (size_t)1 << (head - WIDE);

    if (width > r->in_len - r->i - 1) {
        return false;
    }
    for (size_t k = 1; k < width; k++) {
        if (r->in[r->i + k] != 0) {
            return false;
        }
    }
    r->out[r->o++] = r->in[r->i + width];
    r->i += 1 + width;
    return true;
}

/* Takes one element; false, and nothing taken, where there is none. */
static bool step(run *r) {
    uint8_t head;

    if (r->i == r->in_len) {
        return false;
    }
    head = r->in[r->i];
    if (r->value_due || head < WIDE) {
        r->value_due = false;
        r->out[r->o++] = head;
        r->i++;
        return true;
    }
    if (head == WIDE) {
        if (r->in_len - r->i < 2) {
            return false;
        }
        r->out[r->o++] = r->in[r->i + 1];
        r->i += 2;
        return true;
    }
    return head <= WIDE + 3 && step_long(r, head);
}

#define SLOW_STRETCH 32

size_t encl_bytes_decode_run(const uint8_t *in, size_t in_len, size_t max, uint8_t *out,
                             size_t *consumed) {
    run r = {.in = in, .in_len = in_len, .out = out, .max = max};
    bool blocks = have_blocks(), more = true;

    while (more && r.o < max) {
        size_t stretch_end = SIZE_MAX;

        if (blocks) {
            run_blocks(&r);
            stretch_end = r.o + SLOW_STRETCH;
        }
        while (more && r.o < max && r.o < stretch_end) {
            more = step(&r);
        }
    }
    *consumed = r.i;
    return r.o;
}
