#include "wire/wire.h"

#include <cbor.h>
#include <string.h>

#include "base/utf8.h"
#include "wire/bytes.h"
#include "wire/schema.h"

static const encl_slice type_key = {(const uint8_t *)"type", 4};

static encl_slice type_name(encl_msg_type type) {
    const char *name = encl_msg_type_name(type);

    return ENCL_SLICE(name, strlen(name));
}

static size_t head_size(uint64_t value) {
    return value < 24 ? 1 : value <= 0xff ? 2 : value <= 0xffff ? 3 : value <= 0xffffffff ? 5 : 9;
}

static size_t text_size(encl_slice text) {
    return head_size(text.len) + text.len;
}

static encl_slice nonce_of(const encl_msg *m) {
    return ENCL_SLICE(m->control_nonce, sizeof m->control_nonce);
}

size_t encl_wire_array_size(encl_slice bytes) {
    return head_size(bytes.len) + encl_bytes_encoded_size(bytes);
}

static size_t value_size(const encl_msg *m, encl_field field) {
    switch (field) {
    case ENCL_F_ID:
        return head_size(m->id);
    case ENCL_F_PAYLOAD:
    case ENCL_F_DATA:
        return encl_wire_array_size(m->payload);
    case ENCL_F_SIGNATURE:
        return encl_wire_array_size(m->signature);
    case ENCL_F_CONTROL_NONCE:
    case ENCL_F_NONCE:
        return encl_wire_array_size(nonce_of(m));
    case ENCL_F_HALF:
        return text_size(encl_half_name(m->half));
    case ENCL_F_MESSAGE:
        return text_size(m->payload);
    case ENCL_F_SUCCESS:
        return 1;
    case ENCL_F_COUNT_:
        break;
    }
    return 0;
}

size_t encl_wire_size(const encl_msg *m, encl_direction direction) {
    const encl_layout *layout = encl_layout_of(m->type, direction);
    size_t size;

    if (layout == NULL) {
        return 0;
    }
    size = 1 + text_size(type_key) + text_size(type_name(m->type));
    for (size_t i = 0; i < layout->count; i++) {
        size += text_size(encl_field_name(layout->fields[i])) + value_size(m, layout->fields[i]);
    }
    return size;
}

/* Names, keys, numbers and the heads of arrays of any message take less than this. */
#define OVERHEAD ((size_t)256)

size_t encl_wire_bound(const encl_msg *m) {
    size_t most = (SIZE_MAX - OVERHEAD) / 2;

    if (m->payload.len > most || m->signature.len > most - m->payload.len) {
        return SIZE_MAX;
    }
    return 2 * (m->payload.len + m->signature.len) + OVERHEAD;
}

/* What is being written, into cap bytes of room. A piece that does not fit leaves ok false and
 * everything after it unwritten. */
typedef struct sink {
    uint8_t *out;
    size_t cap, at;
    bool ok;
} sink;

static void took(sink *s, size_t written) {
    s->ok = s->ok && written != 0;
    s->at += written;
}

/* libcbor's encoders are alike but for what they put into the head. */
#define HEAD(s, encoder, value)                                                                    \
    took((s), encoder((value), (s)->out + (s)->at, (s)->ok ? (s)->cap - (s)->at : 0))

static void put_text(sink *s, encl_slice text) {
    HEAD(s, cbor_encode_string_start, text.len);
    if (!s->ok || text.len > s->cap - s->at) {
        s->ok = false;
        return;
    }
    if (text.len != 0) {
        memcpy(s->out + s->at, text.data, text.len);
    }
    s->at += text.len;
}

static void put_bytes(sink *s, encl_slice bytes) {
    size_t written = 0;

    HEAD(s, cbor_encode_array_start, bytes.len);
    s->ok = s->ok && encl_bytes_encode(bytes, s->out + s->at, s->cap - s->at, &written);
    s->at += written;
}

static void put_value(sink *s, const encl_msg *m, encl_field field) {
    switch (field) {
    case ENCL_F_ID:
        HEAD(s, cbor_encode_uint, m->id);
        return;
    case ENCL_F_PAYLOAD:
    case ENCL_F_DATA:
        put_bytes(s, m->payload);
        return;
    case ENCL_F_SIGNATURE:
        put_bytes(s, m->signature);
        return;
    case ENCL_F_CONTROL_NONCE:
    case ENCL_F_NONCE:
        put_bytes(s, nonce_of(m));
        return;
    case ENCL_F_HALF:
        put_text(s, encl_half_name(m->half));
        return;
    case ENCL_F_MESSAGE:
        put_text(s, m->payload);
        return;
    case ENCL_F_SUCCESS:
        HEAD(s, cbor_encode_bool, m->success);
        return;
    case ENCL_F_COUNT_:
        break;
    }
    s->ok = false;
}

static encl_result check(const encl_msg *m, const encl_layout *layout, encl_direction direction,
                         encl_error *err) {
    ENCL_ENSURE(layout != NULL, err, ENCL_E_INVALID, "expected a message to %s, came %s",
                encl_direction_name(direction), encl_msg_type_name(m->type));
    ENCL_ENSURE(!encl_layout_has(layout, ENCL_F_HALF) || encl_half_name(m->half).len != 0, err,
                ENCL_E_INVALID, "StreamClose to the server: expected half Write or Both, came %d",
                (int)m->half);
    ENCL_ENSURE(!encl_layout_has(layout, ENCL_F_MESSAGE) || encl_utf8_valid(m->payload), err,
                ENCL_E_INVALID, "%s: expected a message in UTF-8, came other bytes",
                encl_msg_type_name(m->type));
    return ENCL_OK;
}

static encl_result does_not_fit(const encl_msg *m, encl_direction direction, size_t cap,
                                encl_error *err) {
    /* Counting is a pass over the payload: not worth it where the length alone says enough. */
    bool longer = m->payload.len > cap;

    return encl_fail(err, ENCL_E_INVALID,
                     "a %s with %zu bytes of payload takes %s%zu bytes encoded: expected at most "
                     "%zu",
                     encl_msg_type_name(m->type), m->payload.len, longer ? "more than " : "",
                     longer ? m->payload.len : encl_wire_size(m, direction), cap);
}

encl_result encl_wire_encode(const encl_msg *m, encl_direction direction, encl_buf *out,
                             encl_error *err) {
    const encl_layout *layout = encl_layout_of(m->type, direction);
    sink s = {.ok = true};
    size_t bound = encl_wire_bound(m);

    ENCL_TRY(check(m, layout, direction, err));
    s.cap = encl_buf_room(out);
    if (m->payload.len > s.cap) {
        return does_not_fit(m, direction, s.cap, err);
    }
    s.cap = bound < s.cap ? bound : s.cap;
    ENCL_TRY(encl_buf_reserve(out, s.cap, &s.out, err));
    HEAD(&s, cbor_encode_map_start, 1 + layout->count);
    put_text(&s, type_key);
    put_text(&s, type_name(m->type));
    for (size_t i = 0; i < layout->count; i++) {
        put_text(&s, encl_field_name(layout->fields[i]));
        put_value(&s, m, layout->fields[i]);
    }
    return s.ok ? encl_buf_commit(out, s.at, err) : does_not_fit(m, direction, s.cap, err);
}
