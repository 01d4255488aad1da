/* Documents, under a production policy with a root made for this and under a debug policy; and
 * root certificates as a policy takes them.
 * Input: which checks, then the document. The mutator changes it by its structure (COSE, CBOR and
 * the certificates inside) and signs it and its chain anew, so that changes get past the
 * signatures. What is accepted must then keep every rule of attest_oracle.c. */
#include "attest/attest.h"
#include "attest_oracle.h"
#include "attest_root.h"
#include "attest_sign.h"

#define USE_DEBUG    1
#define LEAVE_NONCE  2
#define USE_NO_CACHE 4
#define LEAVE_PINS   8
#define AS_ROOT      16
#define PIN_FURTHER  32
#define FLAGS        (USE_DEBUG | LEAVE_NONCE | USE_NO_CACHE | LEAVE_PINS | AS_ROOT | PIN_FURTHER)

static const uint8_t expected_nonce[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                           11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                           22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
static encl_link_cache *cache; /* libFuzzer runs one input at a time */

static encl_pins the_pins(bool further) {
    encl_pins pins = {0};

    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        pins.pcr[i].len = 48;
        memset(pins.pcr[i].value, (int)(0x10 + i), sizeof pins.pcr[i].value);
    }
    if (further) {
        pins.pcr[8].len = 48; /* zero, as in documents of images that are not signed */
    }
    return pins;
}

static void check_slices(const encl_attestation *a) {
    fuzz_touch(a->module_id);
    fuzz_touch(a->certificate);
    for (size_t i = 0; i < a->cabundle_len; i++) {
        fuzz_touch(a->cabundle[i]);
    }
    fuzz_touch(a->public_key);
    fuzz_touch(a->user_data);
    fuzz_touch(a->nonce);
}

static encl_code verify(encl_slice bytes, const encl_policy *policy, encl_slice nonce,
                        encl_link_cache *links) {
    uint8_t *document = fuzz_copy(bytes);
    encl_attestation *a = NULL;
    encl_error err;
    encl_code rc = encl_attest_verify(ENCL_SLICE(document, bytes.len), policy, nonce, ATTEST_NOW,
                                      links, &a, &err);

    free(document); /* what was accepted must own its bytes */
    REQUIRE((rc == ENCL_OK) == (a != NULL));
    if (rc == ENCL_OK) {
        check_slices(a);
        REQUIRE((a->form == ENCL_DOC_NITRO) == !policy->debug);
    } else {
        fuzz_check_error(rc, &err);
    }
    encl_attestation_free(a);
    return rc;
}

static void fuzz_document(encl_slice document, uint8_t flags) {
    bool debug = (flags & USE_DEBUG) != 0, pinned = (flags & LEAVE_PINS) == 0;
    encl_pins pins = the_pins((flags & PIN_FURTHER) != 0);
    attest_rules rules = {.debug = debug,
                          .pins = pinned ? &pins : NULL,
                          .root = ENCL_SLICE(attest_root, sizeof attest_root),
                          .now = ATTEST_NOW};
    encl_policy policy;
    encl_error err;

    if ((flags & LEAVE_NONCE) == 0) {
        rules.nonce = ENCL_SLICE(expected_nonce, sizeof expected_nonce);
    }
    REQUIRE(encl_policy_init(&policy, rules.pins, pinned ? 1 : 0, rules.root, debug, false, &err) ==
            ENCL_OK);
    if (verify(document, &policy, rules.nonce, (flags & USE_NO_CACHE) != 0 ? NULL : cache) ==
        ENCL_OK) {
        attest_require(document, &rules);
        /* Nothing may pass only because something like it passed before. */
        REQUIRE(verify(document, &policy, rules.nonce, NULL) == ENCL_OK);
    }
    encl_policy_free(&policy);
}

static void fuzz_root(encl_slice bytes) {
    uint8_t *block = fuzz_copy(bytes);
    encl_policy policy;
    encl_error err;
    encl_code rc =
        encl_policy_init(&policy, NULL, 0, ENCL_SLICE(block, bytes.len), false, false, &err);

    free(block);
    if (rc == ENCL_OK) {
        attest_require_root(ENCL_SLICE(policy.root, policy.root_len));
        encl_policy_free(&policy);
    } else {
        fuzz_check_error(rc, &err);
    }
}

/* A document made here must verify: else all that follows would be refused for nothing. */
static void verify_good(void) {
    encl_doc_template doc = {.module_id = ENCL_SLICE("i-1", 3),
                             .timestamp_ms = 1000,
                             .certificate = ENCL_SLICE(attest_leaf, sizeof attest_leaf),
                             .cabundle = {ENCL_SLICE(attest_root, sizeof attest_root),
                                          ENCL_SLICE(attest_ca1, sizeof attest_ca1),
                                          ENCL_SLICE(attest_ca2, sizeof attest_ca2),
                                          ENCL_SLICE(attest_ca3, sizeof attest_ca3)},
                             .cabundle_len = 4,
                             .nonce = ENCL_SLICE(expected_nonce, sizeof expected_nonce)};
    encl_pins pins = the_pins(true);
    encl_policy policy;
    encl_buf out;
    encl_error err;

    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        doc.pcrs[i] = pins.pcr[i];
    }
    encl_buf_init(&out, ENCL_DOCUMENT_MAX_BYTES);
    REQUIRE(encl_attest_sign(&doc, attest_keys[ATTEST_LEAF_KEY].secret, &out, &err) == ENCL_OK);
    REQUIRE(encl_policy_init(&policy, &pins, 1, ENCL_SLICE(attest_root, sizeof attest_root), false,
                             true, &err) == ENCL_OK);
    REQUIRE(verify(encl_buf_peek(&out), &policy, doc.nonce, NULL) == ENCL_OK);
    encl_policy_free(&policy);
    encl_buf_free(&out);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    verify_good();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    uint8_t flags = fuzz_u8(&in);
    encl_error err;

    if (cache == NULL) {
        REQUIRE(encl_link_cache_new(16, &cache, &err) == ENCL_OK);
    }
    fuzz_arena_reset();
    if ((flags & AS_ROOT) != 0) {
        fuzz_root(ENCL_SLICE(in.data, in.len));
    } else {
        fuzz_document(ENCL_SLICE(in.data, in.len), flags);
    }
    return 0;
}

static size_t mutate_root(uint8_t *data, size_t size, size_t max, fuzz_random *r) {
    encl_slice changed = fuzz_mutate_der(ENCL_SLICE(data, size), r);

    if (changed.len == 0 || changed.len > max) {
        return LLVMFuzzerMutate(data, size, max);
    }
    memcpy(data, changed.data, changed.len);
    return changed.len;
}

static size_t sign_in_place(uint8_t *data, size_t size, size_t max, encl_slice before,
                            fuzz_random *r) {
    encl_slice made = attest_sign_anew(ENCL_SLICE(data, size), before, r);

    if (made.len == 0 || made.len > max) {
        return size;
    }
    memcpy(data, made.data, made.len);
    return made.len;
}

static encl_slice keep(encl_slice bytes) {
    uint8_t *copy = fuzz_arena_take(bytes.len);

    if (copy == NULL || bytes.len == 0) {
        return ENCL_SLICE_NONE;
    }
    memcpy(copy, bytes.data, bytes.len);
    return ENCL_SLICE(copy, bytes.len);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    fuzz_random r = fuzz_random_from(seed);
    encl_slice before;
    size_t n;

    fuzz_arena_reset();
    attest_offer_keys();
    if (size < 2 || fuzz_one_in(&r, 16)) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    if (fuzz_one_in(&r, 16)) {
        data[0] = (uint8_t)(data[0] ^ (1u << fuzz_below(&r, 5))) & FLAGS;
        return size;
    }
    if ((data[0] & AS_ROOT) != 0) {
        return 1 + mutate_root(data + 1, size - 1, max_size - 1, &r);
    }
    before = keep(ENCL_SLICE(data + 1, size - 1));
    n = fuzz_mutate_cbor(data + 1, size - 1, max_size - 1, &r);
    if ((data[0] & USE_DEBUG) == 0 && !fuzz_one_in(&r, 8)) {
        n = sign_in_place(data + 1, n, max_size - 1, before, &r);
    }
    return 1 + n;
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t max_size, unsigned int seed) {
    fuzz_random r = fuzz_random_from(seed);
    encl_slice before;
    size_t n;

    fuzz_arena_reset();
    if (a_size < 2 || b_size < 2) {
        return 0;
    }
    before = keep(ENCL_SLICE(a + 1, a_size - 1));
    out[0] = a[0];
    n = fuzz_cross_cbor(before, ENCL_SLICE(b + 1, b_size - 1), out + 1, max_size - 1, &r);
    if (n == 0) {
        return 0;
    }
    return 1 + ((a[0] & USE_DEBUG) == 0 ? sign_in_place(out + 1, n, max_size - 1, before, &r) : n);
}
