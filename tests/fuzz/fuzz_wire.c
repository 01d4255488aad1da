/* Messages from either side, and the payload loops against the plain way.
 * Input: what to do, then bytes. */
#include "fuzz.h"
#include "wire/wire.h"

static void same(encl_slice a, encl_slice b) {
    REQUIRE(a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0));
}

/* What was understood must survive being written and read again. */
static void fuzz_message(encl_slice bytes, encl_direction direction) {
    uint8_t *block = fuzz_copy(bytes), *again;
    encl_buf out;
    encl_error err;
    encl_msg m, back;
    encl_code rc = encl_wire_decode(block, bytes.len, direction, &m, &err);

    if (rc != ENCL_OK) {
        REQUIRE(rc == ENCL_E_PROTOCOL);
        fuzz_check_error(rc, &err);
        free(block);
        return;
    }
    encl_buf_init(&out, encl_wire_size(&m, direction));
    REQUIRE(encl_wire_encode(&m, direction, &out, &err) == ENCL_OK);
    again = fuzz_copy(encl_buf_peek(&out));
    REQUIRE(encl_wire_decode(again, out.w, direction, &back, &err) == ENCL_OK);
    REQUIRE(back.type == m.type && back.id == m.id && back.half == m.half &&
            back.success == m.success);
    same(back.payload, m.payload);
    same(back.signature, m.signature);
    REQUIRE(memcmp(back.control_nonce, m.control_nonce, sizeof m.control_nonce) == 0);
    free(again);
    free(block);
    encl_buf_free(&out);
}

/* One element the plain way; false where there is none. */
static bool plain_step(encl_slice in, size_t *at, uint8_t *value) {
    uint64_t v = 0;
    uint8_t head;
    size_t width;

    if (*at == in.len) {
        return false;
    }
    head = in.data[*at];
    if (head < 0x18) {
        *value = head;
        *at += 1;
        return true;
    }
    if (head > 0x1b) {
        return false;
    }
    width = (size_t)1 << (head - 0x18);
    if (in.len - *at - 1 < width) {
        return false;
    }
    for (size_t i = 0; i < width; i++) {
        v = v << 8 | in.data[*at + 1 + i];
    }
    if (v > 255) {
        return false;
    }
    *value = (uint8_t)v;
    *at += 1 + width;
    return true;
}

static void fuzz_elements(encl_slice in, size_t count, bool in_place) {
    uint8_t *block = fuzz_copy(in), *want = malloc(count + 1);
    uint8_t *out = in_place ? block : malloc(count + 1);
    size_t at = 0, n = 0, consumed = 0;
    bool ok;

    REQUIRE(want != NULL && out != NULL);
    count = in_place && count > in.len ? in.len : count;
    while (n < count && plain_step(in, &at, &want[n])) {
        n++;
    }
    ok = encl_bytes_decode(block, in.len, count, out, &consumed);
    REQUIRE(ok == (n == count));
    REQUIRE(memcmp(out, want, n) == 0);
    REQUIRE(!ok || consumed == at);
    if (!in_place) {
        free(out);
    }
    free(block);
    free(want);
}

static void fuzz_loops(encl_slice bytes) {
    size_t size = encl_wire_array_size(bytes), consumed;
    uint8_t *out = malloc(size), *back = fuzz_copy(bytes);
    size_t n;

    REQUIRE(out != NULL);
    n = encl_bytes_encode(out, bytes);
    REQUIRE(n < size);
    memset(back, 0, bytes.len);
    REQUIRE(encl_bytes_decode(out, n, bytes.len, back, &consumed) && consumed == n);
    same(ENCL_SLICE(back, bytes.len), bytes);
    free(out);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    uint8_t what = fuzz_u8(&in);

    switch (what % 5) {
    case 0:
        fuzz_message(ENCL_SLICE(in.data, in.len), ENCL_TO_CLIENT);
        break;
    case 1:
        fuzz_message(ENCL_SLICE(in.data, in.len), ENCL_TO_SERVER);
        break;
    case 2:
    case 3: {
        size_t count = (size_t)fuzz_u8(&in) * (what >= 128 ? 8 : 1);

        fuzz_elements(ENCL_SLICE(in.data, in.len), count, what % 5 == 2);
        break;
    }
    default:
        fuzz_loops(ENCL_SLICE(in.data, in.len));
    }
    return 0;
}
