/* Decides what a message may be sent as, and how large that is. Writes it once, within the room
 * that its caller's buffer leaves. Calls cbor and the payload loops of bytes.c. */
#include "wire/wire.h"

#include <string.h>

#include "base/utf8.h"
#include "cbor/writer.h"
#include "wire/bytes.h"
#include "wire/schema.h"

static const encl_slice type_key = {(const uint8_t *)"type", 4};

static encl_slice type_name(encl_msg_type type) {
    const char *name = encl_msg_type_name(type);

    return ENCL_SLICE(name, strlen(name));
}

static size_t text_size(encl_slice text) {
    return encl_head_size(text.len) + text.len;
}

static encl_slice nonce_of(const encl_msg *m) {
    return ENCL_SLICE(m->control_nonce, sizeof m->control_nonce);
}

size_t encl_wire_array_size(encl_slice bytes) {
    return encl_head_size(bytes.len) + encl_bytes_encoded_size(bytes);
}

static size_t value_size(const encl_msg *m, encl_field field) {
    switch (field) {
    case ENCL_F_ID:
        return encl_head_size(m->id);
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

static void put_elements(encl_writer *w, encl_slice bytes) {
    size_t written = 0;

    encl_put_array(w, bytes.len);
    w->ok = w->ok && encl_bytes_encode(bytes, w->out + w->at, w->cap - w->at, &written);
    w->at += written;
}

static void put_value(encl_writer *w, const encl_msg *m, encl_field field) {
    switch (field) {
    case ENCL_F_ID:
        encl_put_uint(w, m->id);
        return;
    case ENCL_F_PAYLOAD:
    case ENCL_F_DATA:
        put_elements(w, m->payload);
        return;
    case ENCL_F_SIGNATURE:
        put_elements(w, m->signature);
        return;
    case ENCL_F_CONTROL_NONCE:
    case ENCL_F_NONCE:
        put_elements(w, nonce_of(m));
        return;
    case ENCL_F_HALF:
        encl_put_text(w, encl_half_name(m->half));
        return;
    case ENCL_F_MESSAGE:
        encl_put_text(w, m->payload);
        return;
    case ENCL_F_SUCCESS:
        encl_put_bool(w, m->success);
        return;
    case ENCL_F_COUNT_:
        break;
    }
    w->ok = false;
}

static encl_result check(const encl_msg *m, const encl_layout *layout, encl_direction direction,
                         encl_error *err) {
    ENCL_ENSURE(layout != NULL, err, ENCL_E_INVALID, "expected a message to %s, got %s",
                encl_direction_name(direction), encl_msg_type_name(m->type));
    ENCL_ENSURE(!encl_layout_has(layout, ENCL_F_HALF) || encl_half_name(m->half).len != 0, err,
                ENCL_E_INVALID, "StreamClose to the server: expected half Write or Both, got %d",
                (int)m->half);
    ENCL_ENSURE(!encl_layout_has(layout, ENCL_F_MESSAGE) || encl_utf8_valid(m->payload), err,
                ENCL_E_INVALID, "%s: expected a message in UTF-8, got other bytes",
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
    size_t room = encl_buf_room(out);
    encl_writer w;

    ENCL_TRY(check(m, layout, direction, err));
    if (m->payload.len > room) {
        return does_not_fit(m, direction, room, err);
    }
    ENCL_TRY(encl_writer_begin(&w, out, encl_wire_bound(m), err));
    encl_put_map(&w, 1 + layout->count);
    encl_put_text(&w, type_key);
    encl_put_text(&w, type_name(m->type));
    for (size_t i = 0; i < layout->count; i++) {
        encl_put_text(&w, encl_field_name(layout->fields[i]));
        put_value(&w, m, layout->fields[i]);
    }
    return w.ok ? encl_writer_end(&w, out, "a message", err)
                : does_not_fit(m, direction, w.cap, err);
}
