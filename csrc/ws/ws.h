/* ws: RFC 6455 framing as a pure codec, both sides. The tunnel uses binary messages as a byte
 * stream: message boundaries mean nothing, so data is handed on as it comes, without assembling. */
#ifndef ENCL_WS_WS_H
#define ENCL_WS_WS_H

#include "base/buf.h"

#define ENCL_WS_MAX_HEADER  14
#define ENCL_WS_MAX_CONTROL 125

typedef enum encl_ws_side { ENCL_WS_CLIENT, ENCL_WS_SERVER } encl_ws_side;

typedef enum encl_ws_opcode {
    ENCL_WS_CONTINUATION = 0x0,
    ENCL_WS_TEXT = 0x1,
    ENCL_WS_BINARY = 0x2,
    ENCL_WS_CLOSE = 0x8,
    ENCL_WS_PING = 0x9,
    ENCL_WS_PONG = 0xA,
} encl_ws_opcode;

typedef enum encl_ws_event_type {
    ENCL_WS_EV_NONE, /* all input taken, nothing to report */
    ENCL_WS_EV_DATA, /* payload: bytes of a binary message, unmasked in place */
    ENCL_WS_EV_PING, /* payload: to be sent back in a pong */
    ENCL_WS_EV_PONG,
    ENCL_WS_EV_CLOSE, /* code (1005: the frame had none), payload: reason; the last event */
} encl_ws_event_type;

typedef struct encl_ws_event {
    encl_ws_event_type type;
    uint8_t *payload; /* into the input block, or into the decoder for control frames */
    size_t len;
    uint16_t code;
} encl_ws_event;

/* Decoder state. Plain data: no allocation, nothing to free. */
typedef struct encl_ws_decoder {
    encl_ws_side side;
    uint64_t max_frame;    /* a longer frame is refused with close code 1009 */
    uint64_t text_skipped; /* bytes of text messages that were dropped */
    uint64_t idle;         /* frames that carried nothing: pings, pongs, empty ones, KiB of text */
    uint8_t header[ENCL_WS_MAX_HEADER];
    size_t header_len;
    uint8_t mask[4];
    uint64_t remaining, offset; /* of the present frame */
    uint8_t opcode;             /* of the present frame */
    uint8_t message_opcode;     /* TEXT or BINARY while fragments are expected, else 0 */
    bool fin, in_frame, closed;
    uint8_t control[ENCL_WS_MAX_CONTROL];
    size_t control_len;
    uint16_t fail_code; /* the close code to send after a failure: 1002, 1007 or 1009 */
} encl_ws_decoder;

void encl_ws_decoder_init(encl_ws_decoder *d, encl_ws_side side, uint64_t max_frame);

/* Takes bytes from block[0..len) until one event is there or all are taken; *consumed says how
 * many. Unmasks in place. Any violation of RFC 6455 (reserved bits, unknown opcodes, fragmented or
 * overlong control frames, lengths not in the shortest form, wrong masking for the side, a
 * continuation out of place, a bad close code or reason) is ENCL_E_PROTOCOL; d->fail_code is set
 * and every later call fails too. */
encl_result encl_ws_decode(encl_ws_decoder *d, uint8_t *block, size_t len, size_t *consumed,
                           encl_ws_event *event, encl_error *err);

/* Writes a frame header (FIN set) into out[ENCL_WS_MAX_HEADER]; returns its length. mask is NULL
 * on the server side. */
size_t encl_ws_header(uint8_t out[ENCL_WS_MAX_HEADER], encl_ws_opcode opcode, uint64_t payload_len,
                      const uint8_t *mask);
/* XORs block with mask, starting at position offset of the payload. */
void encl_ws_mask(uint8_t *block, size_t len, const uint8_t mask[4], uint64_t offset);
/* A whole control frame, appended to out; at most 125 bytes of payload. */
encl_result encl_ws_control(encl_ws_opcode opcode, encl_slice payload, const uint8_t *mask,
                            encl_buf *out, encl_error *err);
/* A close frame's payload: code and reason (cut to fit at a UTF-8 boundary; left out where it is no
 * UTF-8). Returns its length: 0, for an empty frame, where code may not be sent (1005, 1006). */
size_t encl_ws_close_payload(uint8_t out[ENCL_WS_MAX_CONTROL], uint16_t code, const char *reason);

#endif
