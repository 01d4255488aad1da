/* Documents, under a production policy with a root made for this and under a debug policy.
 * Input: which checks, then the document. Nobody has the keys of the seeds any more: a document
 * that verifies is one of them in what is signed. */
#include "attest/attest.h"
#include "attest_root.h"
#include "fuzz.h"

#define USE_DEBUG    1
#define LEAVE_NONCE  2
#define USE_NO_CACHE 4
#define LEAVE_PINS   8

static encl_link_cache *cache; /* libFuzzer runs one input at a time */

static void make_policy(encl_policy *policy, bool debug, bool pinned) {
    encl_pins pins;
    encl_error err;

    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        pins.pcr[i].len = 48;
        memset(pins.pcr[i].value, (int)(0x10 + i), sizeof pins.pcr[i].value);
    }
    REQUIRE(encl_policy_init(policy, &pins, pinned ? 1 : 0,
                             ENCL_SLICE(attest_root, sizeof attest_root), debug, false,
                             &err) == ENCL_OK);
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

static void check_accepted(const encl_attestation *a, uint8_t flags, encl_slice nonce) {
    check_slices(a);
    if ((flags & USE_DEBUG) != 0) {
        REQUIRE(a->form != ENCL_DOC_NITRO);
    } else {
        REQUIRE(a->form == ENCL_DOC_NITRO);
        REQUIRE(a->timestamp_ms == (uint64_t)ATTEST_NOW * 1000);
        REQUIRE(a->pcrs[0].len == 48 && ((flags & LEAVE_PINS) != 0 || a->pcrs[0].value[0] == 0x10));
    }
    if (nonce.data != NULL && a->form != ENCL_DOC_STUB) {
        REQUIRE(a->nonce.len == nonce.len && memcmp(a->nonce.data, nonce.data, nonce.len) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    uint8_t flags = fuzz_u8(&in), expected[32];
    encl_slice nonce = ENCL_SLICE_NONE;
    encl_attestation *a = NULL;
    encl_policy policy;
    encl_error err;
    uint8_t *document;
    encl_code rc;

    for (size_t i = 0; i < sizeof expected; i++) {
        expected[i] = (uint8_t)i;
    }
    if ((flags & LEAVE_NONCE) == 0) {
        nonce = ENCL_SLICE(expected, sizeof expected);
    }
    if (cache == NULL) {
        REQUIRE(encl_link_cache_new(16, &cache, &err) == ENCL_OK);
    }
    make_policy(&policy, (flags & USE_DEBUG) != 0, (flags & LEAVE_PINS) == 0);
    document = fuzz_copy(ENCL_SLICE(in.data, in.len));
    rc = encl_attest_verify(ENCL_SLICE(document, in.len), &policy, nonce, ATTEST_NOW,
                            (flags & USE_NO_CACHE) != 0 ? NULL : cache, &a, &err);
    free(document); /* what was accepted must own its bytes */
    if (rc == ENCL_OK) {
        check_accepted(a, flags, nonce);
    } else {
        REQUIRE(a == NULL);
        fuzz_check_error(rc, &err);
    }
    encl_attestation_free(a);
    encl_policy_free(&policy);
    return 0;
}
