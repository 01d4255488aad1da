/* A stream of frames, whole and cut into pieces: both must tell the same. What is sent back for a
 * ping or a close is read by the other side as what it is.
 * Input: side, size of the pieces, then the stream. */
#include "fuzz.h"
#include "ws/ws.h"

#define MAX_FRAME 4096

typedef struct told {
    encl_buf text;
    encl_ws_event_type last;
    encl_code rc;
    uint16_t fail_code;
    uint64_t text_skipped, idle;
} told;

static void tell(told *t, const encl_ws_event *event) {
    encl_error err;

    if (event->type != ENCL_WS_EV_DATA || t->last != ENCL_WS_EV_DATA) {
        REQUIRE(encl_buf_write_u8(&t->text, (uint8_t)event->type, &err) == ENCL_OK);
        REQUIRE(encl_buf_write_u32(&t->text, event->code, &err) == ENCL_OK);
    }
    REQUIRE(encl_buf_write(&t->text, ENCL_SLICE(event->payload, event->len), &err) == ENCL_OK);
    t->last = event->type;
}

static encl_ws_side other(encl_ws_side side) {
    return side == ENCL_WS_CLIENT ? ENCL_WS_SERVER : ENCL_WS_CLIENT;
}

/* One control frame of ours, as the peer decodes it. */
static void check_reply(encl_ws_side side, encl_ws_opcode opcode, encl_slice payload,
                        encl_ws_event_type type, uint16_t code) {
    static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    uint8_t block[ENCL_WS_MAX_HEADER + ENCL_WS_MAX_CONTROL];
    encl_ws_decoder peer;
    encl_ws_event event;
    encl_buf out;
    encl_error err;
    size_t consumed;

    encl_buf_wrap(&out, block, sizeof block);
    REQUIRE(encl_ws_control(opcode, payload, side == ENCL_WS_CLIENT ? mask : NULL, &out, &err) ==
            ENCL_OK);
    encl_ws_decoder_init(&peer, other(side), MAX_FRAME);
    REQUIRE(encl_ws_decode(&peer, block, out.w, &consumed, &event, &err) == ENCL_OK);
    REQUIRE(consumed == out.w && event.type == type && event.code == code);
}

static void reply(encl_ws_side side, const encl_ws_event *event) {
    uint8_t closing[ENCL_WS_MAX_CONTROL];
    char reason[ENCL_WS_MAX_CONTROL + 1] = "";

    if (event->type == ENCL_WS_EV_PING) {
        check_reply(side, ENCL_WS_PONG, ENCL_SLICE(event->payload, event->len), ENCL_WS_EV_PONG, 0);
    } else if (event->type == ENCL_WS_EV_CLOSE) {
        size_t len;

        memcpy(reason, event->payload == NULL ? closing : event->payload, event->len);
        len = encl_ws_close_payload(closing, event->code, reason);
        REQUIRE(len <= sizeof closing && (len == 0) == (event->code == 1005));
        check_reply(side, ENCL_WS_CLOSE, ENCL_SLICE(closing, len), ENCL_WS_EV_CLOSE, event->code);
    }
}

static void feed(told *t, encl_ws_decoder *d, encl_slice bytes) {
    uint8_t *block = fuzz_copy(bytes);
    size_t at = 0;

    while (at < bytes.len && t->rc == ENCL_OK) {
        encl_ws_event event;
        encl_error err;
        size_t consumed;

        t->rc = encl_ws_decode(d, block + at, bytes.len - at, &consumed, &event, &err);
        REQUIRE(consumed <= bytes.len - at);
        at += consumed;
        if (t->rc != ENCL_OK) {
            fuzz_check_error(t->rc, &err);
            REQUIRE(d->fail_code == 1002 || d->fail_code == 1007 || d->fail_code == 1009);
        } else if (event.type != ENCL_WS_EV_NONE) {
            REQUIRE(event.type == ENCL_WS_EV_DATA || event.len <= ENCL_WS_MAX_CONTROL);
            tell(t, &event);
            reply(d->side, &event);
        } else {
            REQUIRE(at == bytes.len);
        }
    }
    free(block);
}

static told run(encl_slice bytes, encl_ws_side side, size_t piece) {
    told t = {.rc = ENCL_OK};
    encl_ws_decoder d;

    encl_buf_init(&t.text, 16 * bytes.len + 64);
    encl_ws_decoder_init(&d, side, MAX_FRAME);
    while (bytes.len != 0 && t.rc == ENCL_OK) {
        size_t n = bytes.len < piece ? bytes.len : piece;

        feed(&t, &d, ENCL_SLICE(bytes.data, n));
        bytes = ENCL_SLICE(bytes.data + n, bytes.len - n);
    }
    t.fail_code = d.fail_code;
    t.text_skipped = d.text_skipped;
    t.idle = d.idle;
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    encl_ws_side side = fuzz_u8(&in) % 2 == 0 ? ENCL_WS_CLIENT : ENCL_WS_SERVER;
    size_t piece = (size_t)fuzz_u8(&in) % 32 + 1;
    encl_slice stream = {in.data, in.len};
    told whole = run(stream, side, in.len + 1), cut = run(stream, side, piece);

    REQUIRE(whole.rc == cut.rc && whole.fail_code == cut.fail_code);
    REQUIRE(whole.text_skipped == cut.text_skipped);
    REQUIRE(whole.idle == cut.idle);
    REQUIRE(whole.text.w == cut.text.w);
    REQUIRE(whole.text.w == 0 || memcmp(whole.text.data, cut.text.data, cut.text.w) == 0);
    encl_buf_free(&whole.text);
    encl_buf_free(&cut.text);
    return 0;
}
