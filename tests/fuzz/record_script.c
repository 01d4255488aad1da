/* Scripts are changed step by step, and what the peer says by its CBOR items. */
#include "record_script.h"

#include "cbor_tree.h"

#define STEPS_MAX 256
#define PLAIN_MAX 4096
#define PIECES    36
#define TYPES     ENCL_MSG_COUNT_

static uint16_t u16(fuzz_input *in) {
    uint16_t high = fuzz_u8(in);

    return (uint16_t)(high << 8 | fuzz_u8(in));
}

static bool has_delivery(step_kind kind) {
    return kind != STEP_ACT && kind != STEP_ACT_LARGE;
}

step script_next(fuzz_input *in) {
    step s = {.kind = (step_kind)(fuzz_u8(in) % STEP_COUNT)};

    s.delivery = has_delivery(s.kind) ? u16(in) : 0;
    switch (s.kind) {
    case STEP_SAY:
        s.bytes = fuzz_take(in, u16(in));
        break;
    case STEP_RAW:
        s.bytes = fuzz_take(in, fuzz_u8(in));
        break;
    case STEP_DOCUMENT:
        s.what = fuzz_u8(in);
        break;
    default:
        s.what = fuzz_u8(in);
        s.id = fuzz_u8(in);
        if (s.kind == STEP_LARGE || s.kind == STEP_ACT_LARGE) {
            s.size = u16(in);
        } else {
            s.bytes = fuzz_take(in, fuzz_u8(in));
        }
    }
    return s;
}

/* ---- writing ---- */

typedef struct script {
    uint8_t begin;
    step steps[STEPS_MAX];
    size_t count;
} script;

static void read_script(script *s, const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};

    s->begin = fuzz_u8(&in);
    s->count = 0;
    while (in.len != 0 && s->count < STEPS_MAX) {
        s->steps[s->count++] = script_next(&in);
    }
}

typedef struct writer {
    uint8_t *out;
    size_t at, room;
} writer;

static void put(writer *w, size_t byte) {
    if (w->at < w->room) {
        w->out[w->at++] = (uint8_t)byte;
    }
}

static void put_u16(writer *w, size_t v) {
    put(w, v >> 8);
    put(w, v & 255);
}

static void put_bytes(writer *w, encl_slice bytes) {
    for (size_t i = 0; i < bytes.len; i++) {
        put(w, bytes.data[i]);
    }
}

static encl_slice cut(encl_slice bytes, size_t max) {
    return ENCL_SLICE(bytes.data, bytes.len < max ? bytes.len : max);
}

static void put_step(writer *w, const step *s) {
    encl_slice bytes = cut(s->bytes, s->kind == STEP_SAY ? PLAIN_MAX : 255);

    put(w, s->kind);
    if (has_delivery(s->kind)) {
        put_u16(w, s->delivery);
    }
    switch (s->kind) {
    case STEP_SAY:
        put_u16(w, bytes.len);
        put_bytes(w, bytes);
        return;
    case STEP_RAW:
        put(w, bytes.len);
        put_bytes(w, bytes);
        return;
    case STEP_DOCUMENT:
        put(w, s->what);
        return;
    default:
        put(w, s->what);
        put(w, s->id);
        if (s->kind == STEP_LARGE || s->kind == STEP_ACT_LARGE) {
            put_u16(w, s->size);
        } else {
            put(w, bytes.len);
            put_bytes(w, bytes);
        }
    }
}

static size_t write_script(const script *s, uint8_t *out, size_t max) {
    size_t room;
    writer w = {.out = fuzz_arena_rest(&room), .room = max < room ? max : room};

    put(&w, s->begin);
    for (size_t i = 0; i < s->count; i++) {
        put_step(&w, &s->steps[i]);
    }
    memcpy(out, w.out, w.at);
    return w.at;
}

/* ---- new steps ---- */

/* Mostly an id that is likely to be open. */
static uint8_t any_id(fuzz_random *r) {
    return (uint8_t)(fuzz_one_in(r, 4) ? fuzz_below(r, 256) : fuzz_below(r, 6));
}

static uint16_t any_delivery(fuzz_random *r) {
    switch (fuzz_below(r, 4)) {
    case 0:
        return 1;
    case 1:
        return (uint16_t)(2 + fuzz_below(r, 40));
    default:
        return 0;
    }
}

static uint16_t any_size(fuzz_random *r) {
    static const uint16_t sizes[] = {0,     1,     255,   256,   16320, 16384, 32600, 32700,
                                     32735, 34000, 62000, 65000, 65400, 65519, 65535};

    return fuzz_one_in(r, 2) ? sizes[fuzz_below(r, sizeof sizes / sizeof *sizes)]
                             : (uint16_t)fuzz_below(r, 65536);
}

/* A message's plaintext with some of it changed. */
static encl_slice any_plaintext(fuzz_random *r) {
    encl_msg m = {.type = (encl_msg_type)fuzz_below(r, TYPES), .id = any_id(r)};
    encl_direction direction = fuzz_one_in(r, 3) ? ENCL_TO_SERVER : ENCL_TO_CLIENT;
    uint8_t *plain = fuzz_arena_take(PLAIN_MAX);
    encl_buf out;
    encl_error err;

    if (plain == NULL) {
        return ENCL_SLICE_NONE;
    }
    m.half = (encl_half)fuzz_below(r, 3);
    m.payload = ENCL_SLICE("HTTP/1.1 200 OK\r\n\r\n", fuzz_below(r, 20));
    encl_buf_wrap(&out, plain, PLAIN_MAX);
    if (encl_wire_encode(&m, direction, &out, &err) != ENCL_OK) {
        return ENCL_SLICE_NONE;
    }
    return ENCL_SLICE(plain, fuzz_mutate_cbor(plain, out.w, PLAIN_MAX, r));
}

static step any_step(fuzz_random *r) {
    step s = {.kind = fuzz_one_in(r, 2) ? fuzz_one_in(r, 2) ? STEP_ACT : STEP_MESSAGE
                                        : (step_kind)fuzz_below(r, STEP_COUNT)};

    s.delivery = any_delivery(r);
    s.what = (uint8_t)fuzz_below(r, TYPES);
    s.id = any_id(r);
    s.size = any_size(r);
    s.bytes = s.kind == STEP_SAY ? any_plaintext(r) : ENCL_SLICE("GET /", fuzz_below(r, 6));
    return s;
}

/* ---- changes ---- */

static encl_slice change_plaintext(encl_slice bytes, fuzz_random *r) {
    uint8_t *block = fuzz_arena_take(PLAIN_MAX);

    if (block == NULL) {
        return bytes;
    }
    bytes = cut(bytes, PLAIN_MAX);
    if (bytes.len != 0) {
        memcpy(block, bytes.data, bytes.len);
    }
    return ENCL_SLICE(block, fuzz_mutate_cbor(block, bytes.len, PLAIN_MAX, r));
}

static void change_step(step *s, fuzz_random *r) {
    switch (fuzz_below(r, 6)) {
    case 0:
        s->delivery = fuzz_one_in(r, 4) ? (uint16_t)fuzz_below(r, 65536) : any_delivery(r);
        return;
    case 1:
        s->id = any_id(r);
        return;
    case 2:
        s->what = (uint8_t)fuzz_below(r, TYPES);
        return;
    case 3:
        s->size = any_size(r);
        return;
    default:
        s->bytes =
            s->kind == STEP_SAY ? change_plaintext(s->bytes, r) : fuzz_mutate_bytes(s->bytes, r);
    }
}

static void insert(script *s, step new_step, size_t times, fuzz_random *r) {
    size_t at = fuzz_below(r, s->count + 1);

    for (size_t i = 0; i < times && s->count < STEPS_MAX; i++) {
        memmove(&s->steps[at + 1], &s->steps[at], (s->count - at) * sizeof *s->steps);
        s->steps[at] = new_step;
        s->count++;
    }
}

static void drop(script *s, size_t at) {
    s->count--;
    memmove(&s->steps[at], &s->steps[at + 1], (s->count - at) * sizeof *s->steps);
}

static void change(script *s, fuzz_random *r) {
    size_t at = fuzz_below(r, s->count), other = fuzz_below(r, s->count);
    step moved;

    switch (s->count == 0 ? 0 : fuzz_below(r, 10)) {
    case 0:
    case 1:
    case 2:
        insert(s, any_step(r), 1, r);
        return;
    case 3:
        /* Limits are met by doing the same thing often. */
        insert(s, fuzz_one_in(r, 2) ? s->steps[at] : any_step(r), fuzz_below(r, 80), r);
        return;
    case 4:
        drop(s, at);
        return;
    case 5:
        moved = s->steps[at];
        s->steps[at] = s->steps[other];
        s->steps[other] = moved;
        return;
    case 6:
        s->begin = (uint8_t)(fuzz_below(r, BEGIN_COUNT) + BEGIN_COUNT * fuzz_below(r, PIECES));
        return;
    default:
        change_step(&s->steps[at], r);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    static script s;
    fuzz_random r = fuzz_random_from(seed);
    size_t times = 1 + (fuzz_one_in(&r, 3) ? fuzz_below(&r, 4) : 0);

    fuzz_arena_reset();
    if (size == 0 || fuzz_one_in(&r, 16)) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    read_script(&s, data, size);
    for (size_t i = 0; i < times; i++) {
        change(&s, &r);
    }
    return write_script(&s, data, max_size);
}

/* The beginning of one script, the end of another. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t max_size, unsigned int seed) {
    static script first, second;
    fuzz_random r = fuzz_random_from(seed);

    fuzz_arena_reset();
    read_script(&first, a, a_size);
    read_script(&second, b, b_size);
    first.count = fuzz_below(&r, first.count + 1);
    for (size_t i = fuzz_below(&r, second.count + 1); i < second.count && first.count < STEPS_MAX;
         i++) {
        first.steps[first.count++] = second.steps[i];
    }
    return write_script(&first, out, max_size);
}
