/* Payloads of an upgrade chain's links. Input: the kind, then bytes. The mutator changes payloads
 * by their items. What was understood is read a second time, from a tree of another reader: it has
 * exactly the fields of its kind, each once, and they are what was understood. */
#include "attest/attest.h"
#include "cbor_tree.h"

static void same(encl_slice a, encl_slice b) {
    REQUIRE(a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0));
}

static const cbor_node *only(const cbor_node *map, const char *key) {
    cbor_node *value;

    REQUIRE(cbor_lookup(map, key, &value) == 1);
    return value;
}

static void require_string(const cbor_node *map, const char *key, uint8_t major,
                           encl_slice understood) {
    const cbor_node *value = only(map, key);

    REQUIRE(value->major == major && !value->indefinite);
    same(cbor_bytes(value), understood);
}

static void require_bytes(const cbor_node *map, const char *key, encl_slice understood) {
    require_string(map, key, CBOR_BYTES, understood);
}

static void require_text(const cbor_node *map, const char *key, encl_slice understood) {
    require_string(map, key, CBOR_TEXT, understood);
}

/* Hex, the plain way. */
static void require_pcr(encl_slice hex, const encl_pcr *pcr) {
    char digits[3] = {0};

    REQUIRE(hex.len == (size_t)2 * pcr->len);
    REQUIRE(pcr->len == 32 || pcr->len == 48 || pcr->len == 64);
    for (size_t i = 0; i < pcr->len; i++) {
        char *end;

        memcpy(digits, hex.data + 2 * i, 2);
        REQUIRE(strtoul(digits, &end, 16) == pcr->value[i] && end == digits + 2);
    }
}

static void require_pcrs(const cbor_node *map, const char *key, const encl_pins *pins) {
    static const char *const names[ENCL_PINNED_PCRS][2] = {
        {"PCR0", "pcr0"}, {"PCR1", "pcr1"}, {"PCR2", "pcr2"}};
    const cbor_node *pcrs = only(map, key);

    REQUIRE(pcrs->major == CBOR_MAP && cbor_count(pcrs) == (size_t)2 * ENCL_PINNED_PCRS);
    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        cbor_node *upper, *lower;

        REQUIRE(cbor_lookup(pcrs, names[i][0], &upper) + cbor_lookup(pcrs, names[i][1], &lower) ==
                1);
        require_pcr(cbor_bytes(upper != NULL ? upper : lower), &pins->pcr[i]);
        REQUIRE(pins->pcr[i].len == pins->pcr[0].len);
    }
}

static void require_understood(encl_slice bytes, encl_link_kind kind, const encl_link_payload *p) {
    static const size_t fields[ENCL_LINK_KIND_COUNT_] = {5, 7, 4};
    const cbor_node *map = cbor_parse_all(bytes);

    REQUIRE(map != NULL && map->major == CBOR_MAP && cbor_count(map) == 2 * fields[kind]);
    require_bytes(map, "enclave_id", p->enclave_id);
    require_bytes(map, "nonce", p->nonce);
    REQUIRE(p->enclave_id.len == ENCL_UUID_BYTES);
    if (kind == ENCL_LINK_REVOCATION) {
        require_bytes(map, "revokes", p->revokes);
        REQUIRE(p->revokes.len == ENCL_UUID_BYTES);
    } else {
        require_text(map, "image_digest", p->image_digest);
        require_pcrs(map, kind == ENCL_LINK_BOOT ? "pcrs" : "from_pcrs", &p->pcrs);
    }
    if (kind == ENCL_LINK_BOOT) {
        require_text(map, "booted_at", p->booted_at);
    } else {
        require_text(map, "issued_at", p->issued_at);
    }
    if (kind == ENCL_LINK_UPGRADE) {
        require_pcrs(map, "to_pcrs", &p->to_pcrs);
        require_text(map, "valid_from", p->valid_from);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    encl_link_kind kind = (encl_link_kind)(fuzz_u8(&in) % ENCL_LINK_KIND_COUNT_);
    encl_slice bytes = fuzz_take(&in, in.len);
    uint8_t *block = fuzz_copy(bytes);
    encl_link_payload payload;
    encl_error err;
    encl_code rc;

    fuzz_arena_reset();
    rc = encl_link_payload_parse(ENCL_SLICE(block, bytes.len), kind, &payload, &err);
    if (rc == ENCL_OK) {
        require_understood(bytes, kind, &payload);
    } else {
        REQUIRE(rc == ENCL_E_DOCUMENT);
        fuzz_check_error(rc, &err);
    }
    free(block);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    fuzz_random r = fuzz_random_from(seed);

    if (size < 2 || fuzz_one_in(&r, 16)) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    fuzz_arena_reset();
    return 1 + fuzz_mutate_cbor(data + 1, size - 1, max_size - 1, &r);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t max_size, unsigned int seed) {
    fuzz_random r = fuzz_random_from(seed);
    size_t n;

    fuzz_arena_reset();
    if (a_size < 2 || b_size < 2) {
        return 0;
    }
    out[0] = a[0];
    n = fuzz_cross_cbor(ENCL_SLICE(a + 1, a_size - 1), ENCL_SLICE(b + 1, b_size - 1), out + 1,
                        max_size - 1, &r);
    return n == 0 ? 0 : n + 1;
}
