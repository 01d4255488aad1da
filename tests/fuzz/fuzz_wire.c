/* Messages from either side, and the payload loops against the plain way.
 * Input: what to do, then bytes. The mutator changes messages by their items. What was understood
 * is read a second time, from a tree of another reader, and must be the same. */
#include "cbor_tree.h"
#include "wire/bytes.h"
#include "wire/wire.h"

#define CHOICES 5 /* of what to do: the first two are messages */

static void same(encl_slice a, encl_slice b) {
    REQUIRE(a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0));
}

/* ---- the message a second time ---- */

/* Bytes are an array of small integers, or a byte string of either form. */
static encl_slice tree_bytes(const cbor_node *n) {
    size_t len = 0;
    uint8_t *bytes;

    if (n->major == CBOR_BYTES) {
        return cbor_bytes(n);
    }
    REQUIRE(n->major == CBOR_ARRAY);
    bytes = fuzz_arena_take(cbor_count(n));
    REQUIRE(bytes != NULL);
    for (const cbor_node *c = n->child; c != NULL; c = c->next) {
        REQUIRE(c->major == CBOR_UINT && c->value <= 255);
        bytes[len++] = (uint8_t)c->value;
    }
    return ENCL_SLICE(bytes, len);
}

static const cbor_node *only(const cbor_node *map, const char *key) {
    cbor_node *value;

    REQUIRE(cbor_lookup(map, key, &value) == 1);
    return value;
}

static void require_bytes(const cbor_node *map, const char *key, encl_slice understood) {
    same(tree_bytes(only(map, key)), understood);
}

static void require_text(const cbor_node *map, const char *key, encl_slice understood) {
    const cbor_node *value = only(map, key);

    REQUIRE(value->major == CBOR_TEXT);
    same(cbor_bytes(value), understood);
}

static void require_id(const cbor_node *map, const encl_msg *m) {
    const cbor_node *id = only(map, "id");

    REQUIRE(id->major == CBOR_UINT && id->value == m->id);
}

static void require_nonce(const cbor_node *map, const char *key, const encl_msg *m) {
    require_bytes(map, key, ENCL_SLICE(m->control_nonce, sizeof m->control_nonce));
}

static void require_success(const cbor_node *map, const encl_msg *m) {
    const cbor_node *success = only(map, "success");

    REQUIRE(success->major == CBOR_SIMPLE && success->width == 0);
    REQUIRE(success->value == (m->success ? 21 : 20));
}

static void require_fields(const cbor_node *map, const encl_msg *m, encl_direction direction) {
    switch (m->type) {
    case ENCL_MSG_DATA:
    case ENCL_MSG_OPEN_STREAM:
    case ENCL_MSG_STREAM_DATA:
        require_id(map, m);
        require_bytes(map, "payload", m->payload);
        return;
    case ENCL_MSG_STREAM_CLOSE:
        require_id(map, m);
        REQUIRE((m->half == ENCL_HALF_NONE) == (direction == ENCL_TO_CLIENT));
        REQUIRE(m->half == ENCL_HALF_NONE ||
                cbor_is_text(only(map, "half"), m->half == ENCL_HALF_BOTH ? "Both" : "Write"));
        return;
    case ENCL_MSG_CONTROL:
        require_bytes(map, "payload", m->payload);
        require_bytes(map, "signature", m->signature);
        return;
    case ENCL_MSG_ATTESTATION:
        require_bytes(map, "data", m->payload);
        require_nonce(map, "control_nonce", m);
        return;
    case ENCL_MSG_ERROR:
        require_id(map, m);
        require_text(map, "message", m->payload);
        return;
    case ENCL_MSG_CONTROL_RESULT:
        require_success(map, m);
        require_text(map, "message", m->payload);
        return;
    case ENCL_MSG_CONTROL_NONCE:
        require_nonce(map, "nonce", m);
        return;
    default:
        return;
    }
}

static void require_understood(encl_slice bytes, encl_direction direction, const encl_msg *m) {
    static const bool to_server[ENCL_MSG_COUNT_] = {[ENCL_MSG_REQUEST_ATTESTATION] = true,
                                                    [ENCL_MSG_DATA] = true,
                                                    [ENCL_MSG_OPEN_STREAM] = true,
                                                    [ENCL_MSG_STREAM_DATA] = true,
                                                    [ENCL_MSG_STREAM_CLOSE] = true,
                                                    [ENCL_MSG_GET_CONTROL_NONCE] = true,
                                                    [ENCL_MSG_CONTROL] = true};
    static const bool to_client[ENCL_MSG_COUNT_] = {
        [ENCL_MSG_ATTESTATION] = true,  [ENCL_MSG_DATA] = true,
        [ENCL_MSG_ERROR] = true,        [ENCL_MSG_STREAM_DATA] = true,
        [ENCL_MSG_STREAM_CLOSE] = true, [ENCL_MSG_CONTROL_RESULT] = true,
        [ENCL_MSG_CONTROL_NONCE] = true};
    const cbor_node *map = cbor_parse_all(bytes);

    REQUIRE(map != NULL && map->major == CBOR_MAP);
    REQUIRE((direction == ENCL_TO_SERVER ? to_server : to_client)[m->type]);
    REQUIRE(cbor_is_text(only(map, "type"), encl_msg_type_name(m->type)));
    require_fields(map, m, direction);
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
    require_understood(bytes, direction, &m);
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
    ok = encl_bytes_decode_run(block, in.len, count, out, &consumed) == count;
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
    REQUIRE(encl_bytes_encode(bytes, out, size, &n));
    REQUIRE(n < size);
    memset(back, 0, bytes.len);
    REQUIRE(encl_bytes_decode_run(out, n, bytes.len, back, &consumed) == bytes.len &&
            consumed == n);
    same(ENCL_SLICE(back, bytes.len), bytes);
    free(out);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    uint8_t what = fuzz_u8(&in);

    fuzz_arena_reset();
    switch (what % CHOICES) {
    case 0:
        fuzz_message(ENCL_SLICE(in.data, in.len), ENCL_TO_CLIENT);
        break;
    case 1:
        fuzz_message(ENCL_SLICE(in.data, in.len), ENCL_TO_SERVER);
        break;
    case 2:
    case 3: {
        size_t count = (size_t)fuzz_u8(&in) * (what >= 128 ? 8 : 1);

        fuzz_elements(ENCL_SLICE(in.data, in.len), count, what % CHOICES == 2);
        break;
    }
    default:
        fuzz_loops(ENCL_SLICE(in.data, in.len));
    }
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    fuzz_random r = fuzz_random_from(seed);

    fuzz_arena_reset();
    if (size < 2 || data[0] % CHOICES > 1 || fuzz_one_in(&r, 16)) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    return 1 + fuzz_mutate_cbor(data + 1, size - 1, max_size - 1, &r);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t max_size, unsigned int seed) {
    fuzz_random r = fuzz_random_from(seed);
    size_t n;

    fuzz_arena_reset();
    if (a_size < 2 || b_size < 2 || a[0] % CHOICES > 1 || b[0] % CHOICES > 1) {
        return 0;
    }
    out[0] = a[0];
    n = fuzz_cross_cbor(ENCL_SLICE(a + 1, a_size - 1), ENCL_SLICE(b + 1, b_size - 1), out + 1,
                        max_size - 1, &r);
    return n == 0 ? 0 : n + 1;
}
