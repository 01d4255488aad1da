/* RFC 6455's frames. Decides what a peer may send and with which close code a violation ends the
 * connection. Calls base alone; reading and writing are its callers'. */
#include "ws/ws.h"

#include <string.h>

#include "base/utf8.h"

#define FIN             0x80u
#define RESERVED        0x70u
#define OPCODE          0x0fu
#define CONTROL_BIT     0x08u
#define MASKED          0x80u
#define LENGTH          0x7fu
#define LENGTH_16       126u
#define LENGTH_64       127u

#define IDLE_TEXT       1024u /* bytes of text that count like one frame that carries nothing */

#define CLOSE_PROTOCOL  1002
#define CLOSE_NO_CODE   1005 /* reported where a close frame has no code; never sent in one */
#define CLOSE_BAD_TEXT  1007
#define CLOSE_TOO_LARGE 1009

void encl_ws_decoder_init(encl_ws_decoder *d, encl_ws_side side, uint64_t max_frame) {
    memset(d, 0, sizeof *d);
    d->side = side;
    d->max_frame = max_frame;
}

void encl_ws_mask(uint8_t *block, size_t len, const uint8_t mask[4], uint64_t offset) {
    uint8_t turned[8];
    uint64_t pattern;
    size_t i = 0;

    for (size_t k = 0; k < sizeof turned; k++) {
        turned[k] = mask[(offset + k) & 3];
    }
    memcpy(&pattern, turned, sizeof pattern);
    for (; len - i >= 32; i += 32) {
        uint64_t w[4];

        memcpy(w, block + i, sizeof w);
        w[0] ^= pattern;
        w[1] ^= pattern;
        w[2] ^= pattern;
        w[3] ^= pattern;
        memcpy(block + i, w, sizeof w);
    }
    for (; i < len; i++) {
        block[i] ^= turned[i & 7];
    }
}

/* Sets the close code that the other side is owed, then reports like ENCL_ENSURE. */
#define WS_ENSURE(cond, d, close_code, err, ...)                                                   \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            (d)->fail_code = (close_code);                                                         \
            return encl_fail((err), ENCL_E_PROTOCOL, "WebSocket: " __VA_ARGS__);                   \
        }                                                                                          \
    } while (0)

static const char *side_rule(const encl_ws_decoder *d) {
    return d->side == ENCL_WS_SERVER ? "a masked frame from a client"
                                     : "an unmasked frame from a server";
}

static size_t length_bytes(uint8_t second) {
    return (second & LENGTH) == LENGTH_64 ? 8 : (second & LENGTH) == LENGTH_16 ? 2 : 0;
}

static encl_result check_opcode(encl_ws_decoder *d, uint8_t opcode, bool fin, uint8_t second,
                                encl_error *err) {
    switch (opcode) {
    case ENCL_WS_CONTINUATION:
        WS_ENSURE(d->message_opcode != 0, d, CLOSE_PROTOCOL, err,
                  "expected a new message, got a continuation frame");
        return ENCL_OK;
    case ENCL_WS_TEXT:
    case ENCL_WS_BINARY:
        WS_ENSURE(d->message_opcode == 0, d, CLOSE_PROTOCOL, err,
                  "expected a continuation frame, got a new message (opcode 0x%x)", opcode);
        return ENCL_OK;
    case ENCL_WS_CLOSE:
    case ENCL_WS_PING:
    case ENCL_WS_PONG:
        WS_ENSURE(fin, d, CLOSE_PROTOCOL, err,
                  "expected an unfragmented control frame, got opcode 0x%x without FIN", opcode);
        WS_ENSURE((second & LENGTH) <= ENCL_WS_MAX_CONTROL, d, CLOSE_PROTOCOL, err,
                  "expected a control frame of at most %d bytes, got opcode 0x%x with an "
                  "extended length",
                  ENCL_WS_MAX_CONTROL, opcode);
        return ENCL_OK;
    default:
        WS_ENSURE(false, d, CLOSE_PROTOCOL, err, "expected a known opcode, got 0x%x", opcode);
    }
}

/* The first two bytes are checked at once: a bad frame is refused before the rest of it arrives. */
static encl_result check_start(encl_ws_decoder *d, encl_error *err) {
    uint8_t first = d->header[0], second = d->header[1];

    WS_ENSURE((first & RESERVED) == 0, d, CLOSE_PROTOCOL, err,
              "expected reserved bits of zero (no extension was agreed on), got 0x%02x", first);
    WS_ENSURE(((second & MASKED) != 0) == (d->side == ENCL_WS_SERVER), d, CLOSE_PROTOCOL, err,
              "expected %s, got the opposite", side_rule(d));
    return check_opcode(d, first & OPCODE, (first & FIN) != 0, second, err);
}

static encl_result parse_length(encl_ws_decoder *d, uint64_t *length, encl_error *err) {
    size_t width = length_bytes(d->header[1]);
    uint64_t value = d->header[1] & LENGTH;

    if (width != 0) {
        value = 0;
        for (size_t i = 0; i < width; i++) {
            value = value << 8 | d->header[2 + i];
        }
        WS_ENSURE(value >> 63 == 0, d, CLOSE_PROTOCOL, err,
                  "expected a length below 2^63, got 0x%llx", (unsigned long long)value);
        WS_ENSURE(value > (width == 8 ? 0xffffu : LENGTH_16 - 1), d, CLOSE_PROTOCOL, err,
                  "expected the shortest form of a length, got %llu in %zu bytes",
                  (unsigned long long)value, width);
    }
    WS_ENSURE(value <= d->max_frame, d, CLOSE_TOO_LARGE, err,
              "expected a frame of at most %llu bytes, got %llu", (unsigned long long)d->max_frame,
              (unsigned long long)value);
    *length = value;
    return ENCL_OK;
}

static encl_result begin_frame(encl_ws_decoder *d, encl_error *err) {
    uint8_t opcode = d->header[0] & OPCODE;

    ENCL_TRY(parse_length(d, &d->remaining, err));
    if (d->side == ENCL_WS_SERVER) {
        memcpy(d->mask, d->header + d->header_len - sizeof d->mask, sizeof d->mask);
    }
    d->fin = (d->header[0] & FIN) != 0;
    if ((opcode & CONTROL_BIT) != 0) {
        d->control_len = 0;
        d->idle++;
    } else {
        opcode = opcode == ENCL_WS_CONTINUATION ? d->message_opcode : opcode;
        d->message_opcode = d->fin ? 0 : opcode;
        d->idle += d->remaining == 0 || opcode == ENCL_WS_TEXT;
    }
    d->opcode = opcode;
    d->offset = 0;
    d->header_len = 0;
    d->in_frame = true;
    return ENCL_OK;
}

static size_t header_size(const encl_ws_decoder *d) {
    if (d->header_len < 2) {
        return 2;
    }
    return 2 + length_bytes(d->header[1]) + (d->side == ENCL_WS_SERVER ? sizeof d->mask : 0);
}

/* Takes header bytes from block; d->in_frame says whether that completed the header. */
static encl_result take_header(encl_ws_decoder *d, const uint8_t *block, size_t len, size_t *at,
                               encl_error *err) {
    while (*at < len && d->header_len < header_size(d)) {
        d->header[d->header_len++] = block[(*at)++];
        if (d->header_len == 2) {
            ENCL_TRY(check_start(d, err));
        }
    }
    return d->header_len == header_size(d) ? begin_frame(d, err) : ENCL_OK;
}

static bool close_code_valid(uint16_t code) {
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

static encl_result close_event(encl_ws_decoder *d, encl_ws_event *event, encl_error *err) {
    encl_slice reason;

    d->closed = true;
    *event =
        (encl_ws_event){.type = ENCL_WS_EV_CLOSE, .code = CLOSE_NO_CODE, .payload = d->control};
    if (d->control_len == 0) {
        return ENCL_OK;
    }
    WS_ENSURE(d->control_len >= 2, d, CLOSE_PROTOCOL, err,
              "expected a close frame with a code of 2 bytes, got 1 byte");
    event->code = (uint16_t)(d->control[0] << 8 | d->control[1]);
    WS_ENSURE(close_code_valid(event->code), d, CLOSE_PROTOCOL, err,
              "expected a close code that may be sent, got %u", event->code);
    event->payload = d->control + 2;
    event->len = d->control_len - 2;
    reason = ENCL_SLICE(event->payload, event->len);
    WS_ENSURE(encl_utf8_valid(reason), d, CLOSE_BAD_TEXT, err,
              "expected a close reason in UTF-8, got other bytes (code %u)", event->code);
    return ENCL_OK;
}

static encl_result control_event(encl_ws_decoder *d, encl_ws_event *event, encl_error *err) {
    if (d->opcode == ENCL_WS_CLOSE) {
        return close_event(d, event, err);
    }
    event->type = d->opcode == ENCL_WS_PING ? ENCL_WS_EV_PING : ENCL_WS_EV_PONG;
    event->payload = d->control;
    event->len = d->control_len;
    return ENCL_OK;
}

/* Takes what is there of the present frame's payload, possibly nothing. */
static encl_result take_payload(encl_ws_decoder *d, uint8_t *payload, size_t n,
                                encl_ws_event *event, encl_error *err) {
    bool control = (d->opcode & CONTROL_BIT) != 0;

    if (d->side == ENCL_WS_SERVER && d->opcode != ENCL_WS_TEXT) {
        encl_ws_mask(payload, n, d->mask, d->offset);
    }
    d->offset += n;
    d->remaining -= n;
    d->in_frame = d->remaining != 0;
    if (control) {
        if (n != 0) {
            memcpy(d->control + d->control_len, payload, n);
        }
        d->control_len += n;
        return d->in_frame ? ENCL_OK : control_event(d, event, err);
    }
    if (d->opcode == ENCL_WS_TEXT) {
        /* Counted over all text so far: how it is split into pieces is the peer's choice. */
        d->idle += (d->text_skipped + n) / IDLE_TEXT - d->text_skipped / IDLE_TEXT;
        d->text_skipped += n;
    } else if (n != 0) {
        *event = (encl_ws_event){.type = ENCL_WS_EV_DATA, .payload = payload, .len = n};
    }
    return ENCL_OK;
}

static encl_result take_some(encl_ws_decoder *d, uint8_t *block, size_t len, size_t *at,
                             encl_ws_event *event, encl_error *err) {
    uint8_t *payload;
    size_t n;

    if (!d->in_frame) {
        ENCL_TRY(take_header(d, block, len, at, err));
        if (!d->in_frame) {
            return ENCL_OK;
        }
    }
    payload = block + *at;
    n = d->remaining < len - *at ? (size_t)d->remaining : len - *at;
    *at += n;
    return take_payload(d, payload, n, event, err);
}

encl_result encl_ws_decode(encl_ws_decoder *d, uint8_t *block, size_t len, size_t *consumed,
                           encl_ws_event *event, encl_error *err) {
    size_t at = 0;

    *event = (encl_ws_event){.type = ENCL_WS_EV_NONE};
    *consumed = 0;
    ENCL_ENSURE(d->fail_code == 0, err, ENCL_E_PROTOCOL,
                "WebSocket: expected no more bytes after a violation (close code %u), got %zu",
                d->fail_code, len);
    if (d->closed) {
        *consumed = len;
        return ENCL_OK;
    }
    while (at < len && event->type == ENCL_WS_EV_NONE) {
        encl_code rc = take_some(d, block, len, &at, event, err);

        if (rc != ENCL_OK) {
            *event = (encl_ws_event){.type = ENCL_WS_EV_NONE};
            return rc;
        }
    }
    *consumed = at;
    return ENCL_OK;
}

size_t encl_ws_header(uint8_t out[ENCL_WS_MAX_HEADER], encl_ws_opcode opcode, uint64_t payload_len,
                      const uint8_t *mask) {
    size_t width = payload_len > 0xffff ? 8 : payload_len >= LENGTH_16 ? 2 : 0;
    uint8_t marker = (uint8_t)(width == 8 ? LENGTH_64 : width == 2 ? LENGTH_16 : payload_len);

    out[0] = (uint8_t)(FIN | ((uint8_t)opcode & OPCODE));
    out[1] = (uint8_t)(marker | (mask != NULL ? MASKED : 0));
    for (size_t i = 0; i < width; i++) {
        out[2 + i] = (uint8_t)(payload_len >> (8 * (width - 1 - i)));
    }
    if (mask != NULL) {
        memcpy(out + 2 + width, mask, 4);
        return 2 + width + 4;
    }
    return 2 + width;
}

encl_result encl_ws_control(encl_ws_opcode opcode, encl_slice payload, const uint8_t *mask,
                            encl_buf *out, encl_error *err) {
    uint8_t header[ENCL_WS_MAX_HEADER], *room;
    size_t n;

    ENCL_ENSURE(opcode == ENCL_WS_CLOSE || opcode == ENCL_WS_PING || opcode == ENCL_WS_PONG, err,
                ENCL_E_INVALID, "WebSocket: expected a control opcode, got 0x%x", (unsigned)opcode);
    ENCL_ENSURE(payload.len <= ENCL_WS_MAX_CONTROL, err, ENCL_E_INVALID,
                "WebSocket: expected at most %d bytes in a control frame, got %zu",
                ENCL_WS_MAX_CONTROL, payload.len);
    n = encl_ws_header(header, opcode, payload.len, mask);
    ENCL_TRY(encl_buf_reserve(out, n + payload.len, &room, err));
    memcpy(room, header, n);
    if (payload.len != 0) {
        memcpy(room + n, payload.data, payload.len);
    }
    if (mask != NULL) {
        encl_ws_mask(room + n, payload.len, mask, 0);
    }
    return encl_buf_commit(out, n + payload.len, err);
}

size_t encl_ws_close_payload(uint8_t out[ENCL_WS_MAX_CONTROL], uint16_t code, const char *reason) {
    encl_slice text = reason == NULL ? ENCL_SLICE_NONE : ENCL_SLICE(reason, strlen(reason));
    size_t n;

    if (!close_code_valid(code)) {
        return 0; /* an empty close frame is legal, one with such a code is not */
    }
    out[0] = (uint8_t)(code >> 8);
    out[1] = (uint8_t)code;
    n = encl_utf8_valid(text) ? encl_utf8_cut(text, ENCL_WS_MAX_CONTROL - 2) : 0;
    if (n != 0) {
        memcpy(out + 2, text.data, n);
    }
    return 2 + n;
}
