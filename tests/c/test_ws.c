/* ws: RFC 6455 framing, both sides, at every split. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ws/ws.h"

#define MAX_FRAME 1000000

static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};

/* All events of one run written down as text; pieces of data are joined, as their borders mean
 * nothing. */
typedef struct story {
    char text[4096];
    size_t len;
    bool in_data;
    encl_code rc;
    uint16_t fail_code;
} story;

static void tell(story *s, const encl_ws_event *event) {
    static const char *const names[] = {"none", "data", "ping", "pong", "close"};

    if (event->type == ENCL_WS_EV_NONE) {
        return;
    }
    if (event->type != ENCL_WS_EV_DATA || !s->in_data) {
        s->len += (size_t)snprintf(s->text + s->len, sizeof s->text - s->len,
                                   "|%s%u:", names[event->type], event->code);
    }
    s->in_data = event->type == ENCL_WS_EV_DATA;
    assert_true(s->len + event->len < sizeof s->text);
    if (event->len != 0) {
        memcpy(s->text + s->len, event->payload, event->len);
    }
    s->len += event->len;
}

static bool feed(story *s, encl_ws_decoder *d, const uint8_t *bytes, size_t len) {
    uint8_t *block = malloc(len == 0 ? 1 : len);
    size_t at = 0;

    assert_non_null(block);
    memcpy(block, bytes, len);
    while (at < len && s->rc == ENCL_OK) {
        size_t consumed;
        encl_ws_event event;
        encl_error err;

        s->rc = encl_ws_decode(d, block + at, len - at, &consumed, &event, &err);
        assert_true(consumed <= len - at);
        if (s->rc == ENCL_OK) {
            assert_true(consumed != 0);
            tell(s, &event);
        } else {
            assert_int_equal(event.type, ENCL_WS_EV_NONE);
            assert_non_null(strstr(err.message, "WebSocket: expected "));
        }
        at += consumed;
    }
    free(block);
    s->fail_code = d->fail_code;
    return s->rc == ENCL_OK;
}

static story run(encl_ws_side side, const uint8_t *bytes, size_t len, size_t first, size_t step) {
    story s = {.rc = ENCL_OK};
    encl_ws_decoder d;

    encl_ws_decoder_init(&d, side, MAX_FRAME);
    if (feed(&s, &d, bytes, first)) {
        for (size_t at = first; at < len && s.rc == ENCL_OK; at += step) {
            (void)feed(&s, &d, bytes + at, len - at < step ? len - at : step);
        }
    }
    return s;
}

static void assert_same(const story *a, const story *b) {
    assert_int_equal(a->rc, b->rc);
    assert_int_equal(a->fail_code, b->fail_code);
    assert_int_equal(a->len, b->len);
    assert_memory_equal(a->text, b->text, a->len);
}

static story at_every_split(encl_ws_side side, const uint8_t *bytes, size_t len) {
    story whole = run(side, bytes, len, len, len), other;

    for (size_t first = 0; first < len; first++) {
        other = run(side, bytes, len, first, len);
        assert_same(&whole, &other);
    }
    other = run(side, bytes, len, 0, 1);
    assert_same(&whole, &other);
    other = run(side, bytes, len, 0, 3);
    assert_same(&whole, &other);
    return whole;
}

#define ASSERT_STORY(side, literal, want)                                                          \
    do {                                                                                           \
        story got_ = at_every_split((side), (const uint8_t *)(literal), sizeof(literal) - 1);      \
        assert_int_equal(got_.rc, ENCL_OK);                                                        \
        assert_int_equal(got_.len, sizeof(want) - 1);                                              \
        assert_memory_equal(got_.text, (want), got_.len);                                          \
    } while (0)

#define ASSERT_FAILS(side, literal, code)                                                          \
    do {                                                                                           \
        story got_ = at_every_split((side), (const uint8_t *)(literal), sizeof(literal) - 1);      \
        assert_int_equal(got_.rc, ENCL_E_PROTOCOL);                                                \
        assert_int_equal(got_.fail_code, (code));                                                  \
    } while (0)

static void examples_of_section_5_7(void **state) {
    (void)state;
    /* "Hello", as binary where the section has text, which is skipped here. */
    ASSERT_STORY(ENCL_WS_CLIENT, "\x82\x05Hello", "|data0:Hello");
    ASSERT_STORY(ENCL_WS_SERVER, "\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "|data0:Hello");
    ASSERT_STORY(ENCL_WS_CLIENT, "\x02\x03Hel\x80\x02lo", "|data0:Hello");
    ASSERT_STORY(ENCL_WS_CLIENT, "\x89\x05Hello", "|ping0:Hello");
    ASSERT_STORY(ENCL_WS_SERVER, "\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "|pong0:Hello");
    ASSERT_STORY(ENCL_WS_CLIENT, "\x81\x05Hello", "");
}

static void control_frames_between_fragments(void **state) {
    (void)state;
    ASSERT_STORY(ENCL_WS_CLIENT, "\x02\x03Hel\x89\x00\x00\x00\x8a\x02ok\x80\x02lo\x82\x01!",
                 "|data0:Hel|ping0:|pong0:ok|data0:lo!");
    ASSERT_STORY(ENCL_WS_CLIENT, "\x01\x03Hel\x89\x01p\x00\x01l\x80\x01o\x82\x02ok",
                 "|ping0:p|data0:ok");
    ASSERT_STORY(ENCL_WS_CLIENT, "\x82\x00\x02\x00\x80\x00\x82\x01x", "|data0:x");
}

static void close_frames(void **state) {
    (void)state;
    ASSERT_STORY(ENCL_WS_CLIENT, "\x88\x00", "|close1005:");
    ASSERT_STORY(ENCL_WS_CLIENT, "\x88\x02\x03\xe8", "|close1000:");
    ASSERT_STORY(ENCL_WS_CLIENT,
                 "\x88\x05\x03\xe9"
                 "bye\x82\x01x\xff\xff",
                 "|close1001:bye");
    ASSERT_STORY(ENCL_WS_SERVER, "\x88\x82\x37\xfa\x21\x3d\x34\x12\xff\xff", "|close1000:");
    ASSERT_STORY(ENCL_WS_CLIENT, "\x02\x01x\x88\x02\x0f\xa0", "|data0:x|close4000:");
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x88\x01\x03", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x88\x03\x03\xe8\xff", 1007);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x88\x04\x03\xe8\xc3\x28", 1007);
}

static bool may_be_sent(unsigned code) {
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

static void close_codes(void **state) {
    (void)state;
    for (unsigned code = 0; code <= 0xffff; code++) {
        uint8_t frame[] = {0x88, 2, (uint8_t)(code >> 8), (uint8_t)code};
        uint8_t payload[ENCL_WS_MAX_CONTROL];
        story s = run(ENCL_WS_CLIENT, frame, sizeof frame, sizeof frame, 1);

        assert_int_equal(s.rc, may_be_sent(code) ? ENCL_OK : ENCL_E_PROTOCOL);
        assert_int_equal(s.fail_code, may_be_sent(code) ? 0 : 1002);
        assert_int_equal(encl_ws_close_payload(payload, (uint16_t)code, "no"),
                         may_be_sent(code) ? 4 : 0);
    }
}

static void violations(void **state) {
    (void)state;
    ASSERT_FAILS(ENCL_WS_CLIENT, "\xc2\x00", 1002); /* reserved bits */
    ASSERT_FAILS(ENCL_WS_CLIENT, "\xa2\x00", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x92\x00", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x82\x80", 1002); /* masked, to a client */
    ASSERT_FAILS(ENCL_WS_SERVER, "\x82\x00", 1002); /* not masked, to a server */
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x80\x00", 1002); /* nothing to continue */
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x82\x01x\x00\x00", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x02\x01x\x82\x00", 1002); /* a message in a message */
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x02\x01x\x81\x00", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x01\x01x\x02\x00", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x09\x00", 1002); /* fragmented control frames */
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x08\x00", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x89\x7e\x00\x7e", 1002); /* overlong control frames */
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x88\x7f", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x82\x7e\x00\x7d", 1002); /* not the shortest form */
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x82\x7e\x00\x00", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x82\x7f\0\0\0\0\0\0\xff\xff", 1002);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x82\x7f\x80\0\0\0\0\0\0\0", 1002); /* top bit */
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", 1009);
    ASSERT_FAILS(ENCL_WS_CLIENT, "\x81\x7f\0\0\0\0\0\x0f\x42\x41", 1009); /* MAX_FRAME + 1 */
    for (unsigned opcode = 0; opcode < 16; opcode++) {
        uint8_t frame[] = {(uint8_t)(0x80 | opcode), 0};
        bool known = opcode == 1 || opcode == 2 || (opcode >= 8 && opcode <= 10);
        story s = run(ENCL_WS_CLIENT, frame, 2, 2, 1);

        assert_int_equal(s.rc, known ? ENCL_OK : ENCL_E_PROTOCOL);
    }
}

static void a_violation_is_final(void **state) {
    uint8_t bad[] = {0x80, 0}, good[] = {0x82, 1, 'x'};
    encl_ws_decoder d;
    encl_ws_event event;
    encl_error err;
    size_t consumed;

    (void)state;
    encl_ws_decoder_init(&d, ENCL_WS_CLIENT, MAX_FRAME);
    assert_int_equal(encl_ws_decode(&d, bad, 2, &consumed, &event, &err), ENCL_E_PROTOCOL);
    assert_int_equal(encl_ws_decode(&d, good, 3, &consumed, &event, &err), ENCL_E_PROTOCOL);
    assert_int_equal(encl_ws_decode(&d, good, 0, &consumed, &event, &err), ENCL_E_PROTOCOL);
    assert_int_equal(d.fail_code, 1002);
}

static void skipped_text_is_counted(void **state) {
    uint8_t frames[] = "\x01\x03Hel\x00\x00\x89\x02pi\x80\x02lo\x82\x02ok\x81\x01.";
    encl_ws_decoder d;
    story s = {.rc = ENCL_OK};

    (void)state;
    encl_ws_decoder_init(&d, ENCL_WS_CLIENT, MAX_FRAME);
    assert_true(feed(&s, &d, frames, sizeof frames - 1));
    assert_int_equal(d.text_skipped, 6);
}

/* What text costs a peer must not depend on how it is cut into frames' payloads and reads. */
static void text_counts_alike_however_it_is_read(void **state) {
    static const size_t pieces[] = {1, 7, 1000, 1023, 1024, 1025, 4096, 65536};
    static const uint8_t head[] = {0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0}; /* a frame of 64 KiB */
    static uint8_t text[65536];

    (void)state;
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        encl_ws_decoder d;
        story s = {.rc = ENCL_OK};

        encl_ws_decoder_init(&d, ENCL_WS_CLIENT, sizeof text);
        assert_true(feed(&s, &d, head, sizeof head));
        for (size_t at = 0; at < sizeof text; at += pieces[i]) {
            size_t left = sizeof text - at;

            assert_true(feed(&s, &d, text + at, left < pieces[i] ? left : pieces[i]));
        }
        assert_int_equal(d.text_skipped, sizeof text);
        assert_int_equal(d.idle, 1 + sizeof text / 1024);
    }
}

static void headers_of_every_length(void **state) {
    static const struct {
        uint64_t len;
        size_t header;
    } cases[] = {{0, 2},   {1, 2},     {125, 2},    {126, 4},
                 {127, 4}, {65535, 4}, {65536, 10}, {999999, 10}};

    (void)state;
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        uint64_t len = cases[i / 2].len;
        const uint8_t *key = i % 2 == 0 ? NULL : mask;
        size_t n, at = 0, got = 0, total;
        uint8_t *block = malloc(ENCL_WS_MAX_HEADER + len);
        encl_ws_decoder d;

        assert_non_null(block);
        n = encl_ws_header(block, ENCL_WS_BINARY, len, key);
        assert_int_equal(n, cases[i / 2].header + (key == NULL ? 0 : 4));
        total = n + len;
        for (size_t k = 0; k < len; k++) {
            block[n + k] = (uint8_t)(k * 7);
        }
        if (key != NULL) {
            encl_ws_mask(block + n, len, key, 0);
        }
        encl_ws_decoder_init(&d, key == NULL ? ENCL_WS_CLIENT : ENCL_WS_SERVER, MAX_FRAME);
        while (at < total) {
            size_t piece = total - at < 4093 ? total - at : 4093, consumed;
            encl_ws_event event;
            encl_error err;

            assert_int_equal(encl_ws_decode(&d, block + at, piece, &consumed, &event, &err),
                             ENCL_OK);
            for (size_t k = 0; k < event.len; k++) {
                assert_int_equal(event.payload[k], (uint8_t)(got++ * 7));
            }
            at += consumed;
        }
        assert_int_equal(got, len);
        assert_false(d.in_frame);
        free(block);
    }
}

static void masking_at_any_offset(void **state) {
    (void)state;
    for (size_t len = 0; len < 100; len++) {
        for (uint64_t offset = 0; offset < 9; offset++) {
            uint8_t *block = malloc(len + 1);
            uint64_t from = offset < 8 ? offset : UINT64_MAX - 2;

            assert_non_null(block);
            for (size_t k = 0; k <= len; k++) {
                block[k] = (uint8_t)(k * 11);
            }
            encl_ws_mask(block, len, mask, from);
            for (size_t k = 0; k < len; k++) {
                assert_int_equal(block[k], (uint8_t)(k * 11) ^ mask[(from + k) % 4]);
            }
            assert_int_equal(block[len], (uint8_t)(len * 11));
            free(block);
        }
    }
}

static void control_frames_are_built(void **state) {
    uint8_t payload[ENCL_WS_MAX_CONTROL + 1] = {0};
    encl_buf out;
    encl_error err;
    story s;

    (void)state;
    encl_buf_init(&out, 300);
    assert_int_equal(encl_ws_control(ENCL_WS_PONG, ENCL_SLICE("Hello", 5), mask, &out, &err),
                     ENCL_OK);
    assert_memory_equal(out.data, "\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", 11);
    assert_int_equal(encl_ws_control(ENCL_WS_PING, ENCL_SLICE(payload, 125), mask, &out, &err),
                     ENCL_OK);
    s = run(ENCL_WS_SERVER, out.data, out.w, out.w, 1);
    assert_memory_equal(s.text, "|pong0:Hello|ping0:\0\0", 21);
    assert_int_equal(encl_ws_control(ENCL_WS_PING, ENCL_SLICE(payload, 126), NULL, &out, &err),
                     ENCL_E_INVALID);
    assert_int_equal(encl_ws_control(ENCL_WS_BINARY, ENCL_SLICE(payload, 1), NULL, &out, &err),
                     ENCL_E_INVALID);
    assert_int_equal(encl_buf_readable(&out), 11 + 131);
    encl_buf_free(&out);
}

static void reasons_are_cut_between_characters(void **state) {
    uint8_t payload[ENCL_WS_MAX_CONTROL];
    char reason[200];

    (void)state;
    memset(reason, 'a', sizeof reason);
    memcpy(reason + 121, "\xe2\x82\xac", 3);
    reason[150] = '\0';
    assert_int_equal(encl_ws_close_payload(payload, 1002, reason), 2 + 121);
    reason[120] = '\xff';
    assert_int_equal(encl_ws_close_payload(payload, 1002, reason), 2);
    assert_int_equal(encl_ws_close_payload(payload, 1000, NULL), 2);
    assert_memory_equal(payload, "\x03\xe8", 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(examples_of_section_5_7),
        cmocka_unit_test(control_frames_between_fragments),
        cmocka_unit_test(close_frames),
        cmocka_unit_test(close_codes),
        cmocka_unit_test(violations),
        cmocka_unit_test(a_violation_is_final),
        cmocka_unit_test(skipped_text_is_counted),
        cmocka_unit_test(text_counts_alike_however_it_is_read),
        cmocka_unit_test(headers_of_every_length),
        cmocka_unit_test(masking_at_any_offset),
        cmocka_unit_test(control_frames_are_built),
        cmocka_unit_test(reasons_are_cut_between_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
