/* Frames: any bytes, in up to PIECES pieces of up to PIECE bytes, to a decoder of either side; what
 * it reports is read. Frames of any length written. */
#include "proof.h"
#include "ws/ws.h"

#define PIECES 2
#define PIECE  3

static uint8_t block[PIECE], reason[ENCL_WS_MAX_CONTROL + 8];
static volatile uint8_t seen;

static void look_at(const encl_ws_event *event) {
    if (event->type != ENCL_WS_EV_NONE && event->len != 0) {
        seen = event->payload[0];
        seen = event->payload[event->len - 1];
    }
}

static void decodes(void) {
    encl_ws_decoder d;

    encl_ws_decoder_init(&d, any_bool() ? ENCL_WS_CLIENT : ENCL_WS_SERVER, any(0, UINT64_MAX));
    for (int piece = 0; piece < PIECES; piece++) {
        size_t len = any_split(0, PIECE), at = 0;

        Frama_C_make_unknown((char *)block, sizeof block);
        while (at < len) {
            encl_ws_event event;
            encl_error err;
            size_t taken;

            if (encl_ws_decode(&d, block + at, len - at, &taken, &event, &err) != ENCL_OK) {
                return;
            }
            //@ assert taken <= len - at;
            look_at(&event);
            //@ split taken;
            at += taken;
        }
    }
}

static void encodes(void) {
    uint8_t head[ENCL_WS_MAX_HEADER], payload[ENCL_WS_MAX_CONTROL], mask[4];
    encl_error err;
    encl_buf out;
    size_t n;

    Frama_C_make_unknown((char *)mask, sizeof mask);
    Frama_C_make_unknown((char *)reason, sizeof reason - 1);
    n = encl_ws_header(head, (encl_ws_opcode)any(0, UINT8_MAX), any(0, UINT64_MAX),
                       any_bool() ? mask : NULL);
    //@ assert n <= ENCL_WS_MAX_HEADER;
    n = encl_ws_close_payload(payload, (uint16_t)any(0, UINT16_MAX), (const char *)reason);
    //@ assert n <= ENCL_WS_MAX_CONTROL;
    encl_buf_init(&out, any_split(0, 3) * 64);
    (void)!encl_ws_control((encl_ws_opcode)any(0, UINT8_MAX),
                           ENCL_SLICE(reason, any_split(0, sizeof reason)),
                           any_bool() ? mask : NULL, &out, &err);
    encl_buf_free(&out);
}

int main(void) {
    if (any_bool()) {
        decodes();
    } else {
        encodes();
    }
    return 0;
}
