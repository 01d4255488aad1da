/* attest: documents of a chain made here, under sanitizers; the link cache from the inside. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "attest/internal.h"

#define NOW   1800000000
#define HOUR  3600
#define BYTES ENCL_SLICE

static const uint8_t nonce_bytes[32] = {1, 2, 3, 4, 5};
#define NONCE BYTES(nonce_bytes, sizeof nonce_bytes)

/* A root, one CA and a leaf, and what a good document from them says. */
typedef struct fixture {
    uint8_t der[3][ENCL_CERT_MAX_BYTES], key[512], document[4096];
    encl_slice cert[3], leaf_key, good;
    encl_pins pins;
    encl_policy policy;
    encl_doc_template doc;
} fixture;

static void extend(X509 *cert, int nid, const char *value) {
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    assert_non_null(extension);
    assert_int_equal(X509_add_ext(cert, extension, -1), 1);
    X509_EXTENSION_free(extension);
}

static void name(X509_NAME *n, const char *common) {
    assert_int_equal(
        X509_NAME_add_entry_by_txt(n, "CN", MBSTRING_ASC, (const uint8_t *)common, -1, -1, 0), 1);
}

static void issue(fixture *f, size_t i, EVP_PKEY *key, EVP_PKEY *issuer) {
    static const char *const names[] = {"root", "ca", "leaf"};
    static const int hours[] = {2, 1, 3}; /* the CA's is the shorter one of both links */
    X509 *cert = X509_new();
    uint8_t *to = f->der[i];
    int n;

    assert_int_equal(X509_set_version(cert, X509_VERSION_3), 1);
    assert_int_equal(ASN1_INTEGER_set(X509_get_serialNumber(cert), (long)i + 1), 1);
    assert_non_null(ASN1_TIME_set(X509_getm_notBefore(cert), NOW - HOUR));
    assert_non_null(ASN1_TIME_set(X509_getm_notAfter(cert), NOW + hours[i] * HOUR));
    name(X509_get_subject_name(cert), names[i]);
    name(X509_get_issuer_name(cert), names[i == 0 ? 0 : i - 1]);
    assert_int_equal(X509_set_pubkey(cert, key), 1);
    extend(cert, NID_basic_constraints, i == 2 ? "critical,CA:FALSE" : "critical,CA:TRUE");
    extend(cert, NID_key_usage, i == 2 ? "critical,digitalSignature" : "critical,keyCertSign");
    assert_true(X509_sign(cert, issuer, EVP_sha384()) > 0);
    n = i2d_X509(cert, NULL);
    assert_in_range(n, 1, ENCL_CERT_MAX_BYTES);
    assert_int_equal(i2d_X509(cert, &to), n);
    f->cert[i] = BYTES(f->der[i], (size_t)n);
    X509_free(cert);
}

static void keep_key(fixture *f, const EVP_PKEY *key) {
    PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(key);
    uint8_t *to = f->key;
    int n = i2d_PKCS8_PRIV_KEY_INFO(info, &to);

    assert_in_range(n, 1, sizeof f->key);
    f->leaf_key = BYTES(f->key, (size_t)n);
    PKCS8_PRIV_KEY_INFO_free(info);
}

static encl_slice sign_into(fixture *f, encl_slice key, uint8_t *block, size_t cap) {
    encl_buf out;
    encl_error err;

    encl_buf_wrap(&out, block, cap);
    assert_int_equal(encl_attest_sign(&f->doc, key, &out, &err), ENCL_OK);
    return encl_buf_peek(&out);
}

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    EVP_PKEY *keys[3];
    encl_error err;

    assert_non_null(f);
    for (size_t i = 0; i < 3; i++) {
        keys[i] = EVP_EC_gen("P-384");
        assert_non_null(keys[i]);
        issue(f, i, keys[i], keys[i == 0 ? 0 : i - 1]);
    }
    keep_key(f, keys[2]);
    for (size_t i = 0; i < 3; i++) {
        EVP_PKEY_free(keys[i]);
        f->pins.pcr[i].len = 48;
        memset(f->pins.pcr[i].value, (int)i + 1, 48);
        f->doc.pcrs[i] = f->pins.pcr[i];
    }
    f->doc.module_id = BYTES("module", 6);
    f->doc.timestamp_ms = (uint64_t)NOW * 1000;
    f->doc.certificate = f->cert[2];
    f->doc.cabundle[0] = f->cert[0];
    f->doc.cabundle[1] = f->cert[1];
    f->doc.cabundle_len = 2;
    f->doc.nonce = NONCE;
    f->good = sign_into(f, f->leaf_key, f->document, sizeof f->document);
    assert_int_equal(encl_policy_init(&f->policy, &f->pins, 1, f->cert[0], false, true, &err),
                     ENCL_OK);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;

    encl_policy_free(&f->policy);
    free(f);
    return 0;
}

/* In a block of exactly its size, so that a sanitizer sees any step beyond. */
static encl_code verify(const fixture *f, encl_slice document, encl_link_cache *cache,
                        encl_error *err) {
    uint8_t *exact = malloc(document.len == 0 ? 1 : document.len);
    encl_attestation *a = NULL;
    encl_code rc;

    memcpy(exact, document.data, document.len);
    rc = encl_attest_verify(BYTES(exact, document.len), &f->policy, NONCE, NOW, cache, &a, err);
    free(exact);
    assert_true((rc == ENCL_OK) == (a != NULL));
    if (a != NULL) {
        assert_int_equal(a->nonce.len, 32);
        assert_memory_equal(a->nonce.data, nonce_bytes, 32);
    }
    encl_attestation_free(a);
    return rc;
}

static void a_good_document_verifies_and_owns_its_bytes(void **state) {
    fixture *f = *state;
    encl_error err;

    assert_int_equal(verify(f, f->good, NULL, &err), ENCL_OK);
}

static void every_prefix_is_refused(void **state) {
    fixture *f = *state;
    encl_error err;

    for (size_t n = 0; n < f->good.len; n++) {
        assert_int_equal(verify(f, BYTES(f->good.data, n), NULL, &err), ENCL_E_DOCUMENT);
    }
}

/* No byte of a document is free: whatever changes, some check must notice. */
static void every_flipped_byte_is_refused(void **state) {
    fixture *f = *state;
    encl_link_cache *cache;
    encl_error err;
    uint8_t changed[4096];

    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_OK);
    memcpy(changed, f->good.data, f->good.len);
    for (size_t i = 0; i < f->good.len; i++) {
        changed[i] ^= (uint8_t)(1u << (i % 8));
        if (verify(f, BYTES(changed, f->good.len), cache, &err) == ENCL_OK) {
            fail_msg("byte %zu does not matter", i);
        }
        changed[i] = f->good.data[i];
    }
    assert_int_equal(verify(f, BYTES(changed, f->good.len), cache, &err), ENCL_OK);
    encl_link_cache_free(cache);
}

/* Debug documents carry no signature, so that all of the parser is open to whoever sends one. */
static void debug_documents_of_random_damage_do_no_harm(void **state) {
    fixture *f = *state;
    encl_policy debug;
    encl_error err;
    encl_attestation *a;
    uint8_t changed[4096];
    uint32_t seed = 12345;

    assert_int_equal(encl_policy_init(&debug, &f->pins, 1, ENCL_SLICE_NONE, true, true, &err),
                     ENCL_OK);
    for (int round = 0; round < 20000; round++) {
        size_t n = f->good.len;

        memcpy(changed, f->good.data, n);
        for (int i = 0; i < 3; i++) {
            seed = seed * 1664525 + 1013904223;
            changed[(seed >> 8) % (i == 0 ? 64 : n)] = (uint8_t)(seed >> 24);
        }
        if (encl_attest_verify(BYTES(changed, n), &debug, NONCE, NOW, NULL, &a, &err) == ENCL_OK) {
            assert_int_equal(a->form, ENCL_DOC_DEBUG);
            encl_attestation_free(a);
        } else {
            assert_null(a);
        }
    }
    encl_policy_free(&debug);
}

static void debug_takes_the_stub_and_unsigned_documents(void **state) {
    fixture *f = *state;
    encl_policy debug;
    encl_error err;
    encl_attestation *a;
    uint8_t block[4096], other[32] = {9};
    encl_slice unsigned_document = sign_into(f, ENCL_SLICE_NONE, block, sizeof block);

    assert_int_equal(encl_policy_init(&debug, NULL, 0, ENCL_SLICE_NONE, true, true, &err), ENCL_OK);
    assert_int_equal(encl_attest_verify(NONCE, &debug, NONCE, NOW, NULL, &a, &err), ENCL_OK);
    assert_int_equal(a->form, ENCL_DOC_STUB);
    encl_attestation_free(a);
    assert_int_equal(encl_attest_verify(BYTES(other, 32), &debug, NONCE, NOW, NULL, &a, &err),
                     ENCL_E_NONCE);
    assert_int_equal(encl_attest_verify(unsigned_document, &debug, NONCE, NOW, NULL, &a, &err),
                     ENCL_OK);
    assert_int_equal(a->form, ENCL_DOC_DEBUG);
    encl_attestation_free(a);
    encl_policy_free(&debug);
    assert_int_equal(verify(f, NONCE, NULL, &err), ENCL_E_DOCUMENT);
    assert_non_null(strstr(err.message, "debug enclave"));
    assert_int_equal(verify(f, unsigned_document, NULL, &err), ENCL_E_SIGNATURE);
}

static void an_empty_nonce_never_matches(void **state) {
    fixture *f = *state;
    encl_attestation *a;
    encl_error err;
    uint8_t block[4096];
    encl_slice document;

    f->doc.nonce = ENCL_SLICE_NONE;
    document = sign_into(f, f->leaf_key, block, sizeof block);
    f->doc.nonce = NONCE;
    assert_int_equal(encl_attest_verify(document, &f->policy, BYTES("", 0), NOW, NULL, &a, &err),
                     ENCL_E_INVALID);
    assert_null(a);
    assert_int_equal(encl_attest_verify(document, &f->policy, NONCE, NOW, NULL, &a, &err),
                     ENCL_E_NONCE);
    assert_int_equal(encl_attest_verify(document, &f->policy, ENCL_SLICE_NONE, NOW, NULL, &a, &err),
                     ENCL_OK);
    encl_attestation_free(a);
}

/* TLS in the same thread reads the queue after its own calls. */
static void openssls_error_queue_is_left_as_it_was(void **state) {
    fixture *f = *state;
    encl_policy policy;
    encl_error err;
    uint8_t changed[4096], block[4096];
    encl_buf out;

    ERR_clear_error();
    ERR_raise(ERR_LIB_USER, 42);
    memcpy(changed, f->good.data, f->good.len);
    changed[f->good.len - 1] ^= 1;
    assert_int_equal(verify(f, BYTES(changed, f->good.len), NULL, &err), ENCL_E_SIGNATURE);
    memset(changed + f->good.len - 96, 0xff, 96);
    assert_int_equal(verify(f, BYTES(changed, f->good.len), NULL, &err), ENCL_E_SIGNATURE);
    assert_int_equal(encl_policy_init(&policy, NULL, 0, BYTES("no root", 7), true, true, &err),
                     ENCL_E_INVALID);
    encl_buf_wrap(&out, block, sizeof block);
    assert_int_equal(encl_attest_sign(&f->doc, BYTES("no key", 6), &out, &err), ENCL_E_INVALID);
    assert_int_equal(ERR_GET_REASON(ERR_get_error()), 42);
    assert_int_equal(ERR_get_error(), 0);
}

static void a_policy_owns_copies(void **state) {
    fixture *f = *state;
    encl_policy policy;
    encl_pins pins = f->pins;
    encl_error err;
    uint8_t *root = malloc(f->cert[0].len);
    encl_attestation *a;

    memcpy(root, f->cert[0].data, f->cert[0].len);
    assert_int_equal(
        encl_policy_init(&policy, &pins, 1, BYTES(root, f->cert[0].len), false, true, &err),
        ENCL_OK);
    memset(root, 0, f->cert[0].len);
    free(root);
    memset(&pins, 0, sizeof pins);
    assert_int_equal(encl_attest_verify(f->good, &policy, NONCE, NOW, NULL, &a, &err), ENCL_OK);
    encl_attestation_free(a);
    encl_policy_free(&policy);
    assert_null(policy.root);
    assert_null(policy.root_cert);
    assert_null(policy.pins);
    assert_int_equal(encl_attest_verify(f->good, &policy, NONCE, NOW, NULL, &a, &err),
                     ENCL_E_INVALID);
    encl_policy_free(&policy);
}

static void a_copied_policy_lives_on_its_own(void **state) {
    fixture *f = *state;
    encl_policy policy, copy, unpinned;
    encl_error err;
    encl_attestation *a;

    assert_int_equal(encl_policy_init(&policy, &f->pins, 1, f->cert[0], false, true, &err),
                     ENCL_OK);
    assert_int_equal(encl_policy_copy(&copy, &policy, &err), ENCL_OK);
    encl_policy_free(&policy);
    assert_int_equal(copy.pin_count, 1);
    assert_memory_equal(copy.pins, &f->pins, sizeof f->pins);
    assert_int_equal(encl_attest_verify(f->good, &copy, NONCE, NOW, NULL, &a, &err), ENCL_OK);
    encl_attestation_free(a);
    encl_policy_free(&copy);

    assert_int_equal(encl_policy_init(&policy, NULL, 0, f->cert[0], false, false, &err), ENCL_OK);
    assert_int_equal(encl_policy_copy(&unpinned, &policy, &err), ENCL_OK);
    assert_null(unpinned.pins);
    assert_int_equal(encl_attest_verify(f->good, &unpinned, NONCE, NOW, NULL, &a, &err), ENCL_OK);
    encl_attestation_free(a);
    encl_policy_free(&unpinned);
    encl_policy_free(&policy);
}

/* The document has PCR31 where `has` says so; value is what is pinned beside the three. */
static encl_code check_further(fixture *f, bool has, uint8_t value, bool debug,
                               encl_attestation **a, encl_error *err) {
    encl_pins pins = f->pins;
    uint8_t block[4096];
    encl_policy policy;
    encl_slice document;
    encl_code rc;

    pins.pcr[31].len = 48;
    memset(pins.pcr[31].value, value, 48);
    f->doc.pcrs[31] = pins.pcr[31];
    f->doc.pcrs[31].len = has ? 48 : 0;
    memset(f->doc.pcrs[31].value, 31, 48);
    document = sign_into(f, debug ? ENCL_SLICE_NONE : f->leaf_key, block, sizeof block);
    f->doc.pcrs[31].len = 0;
    assert_int_equal(encl_policy_init(&policy, &pins, 1, f->cert[0], debug, true, err), ENCL_OK);
    rc = encl_attest_verify(document, &policy, NONCE, NOW, NULL, a, err);
    encl_policy_free(&policy);
    return rc;
}

static void a_further_pcr_must_be_there_and_equal(void **state) {
    fixture *f = *state;
    encl_attestation *a;
    encl_error err;

    for (int debug = 0; debug < 2; debug++) {
        assert_int_equal(check_further(f, true, 31, debug, &a, &err), ENCL_OK);
        assert_int_equal(a->matched, 0);
        assert_int_equal(a->matched_pcrs, UINT32_C(0x80000007));
        encl_attestation_free(a);
        assert_int_equal(check_further(f, true, 32, debug, &a, &err), ENCL_E_PCR);
        assert_int_equal(err.detail.pcr.index, 31);
        assert_int_equal(err.detail.pcr.actual[47], 31);
        assert_int_equal(err.detail.pcr.expected[47], 32);
        assert_null(a);
    }
    assert_int_equal(check_further(f, false, 31, false, &a, &err), ENCL_E_PCR);
    assert_int_equal(err.detail.pcr.index, 31);
    assert_int_equal(err.detail.pcr.actual_len, 0);
    assert_int_equal(check_further(f, false, 31, true, &a, &err), ENCL_OK);
    assert_int_equal(a->matched, ENCL_MATCHED_NONE);
    assert_int_equal(a->matched_pcrs, 0);
    encl_attestation_free(a);
}

static void the_most_sets_of_pins_are_taken(void **state) {
    static encl_pins many[1024];
    fixture *f = *state;
    encl_policy policy;
    encl_error err;

    for (size_t i = 0; i < 1024; i++) {
        many[i] = f->pins;
    }
    assert_int_equal(encl_policy_init(&policy, many, 1024, f->cert[0], false, true, &err), ENCL_OK);
    assert_int_equal(policy.pin_count, 1024);
    encl_policy_free(&policy);
}

static void only_null_means_not_given(void **state) {
    static const encl_slice empty = {.data = (const uint8_t *)"", .len = 0};
    fixture *f = *state;
    encl_policy policy;
    encl_error err;

    for (int debug = 0; debug < 2; debug++) {
        assert_int_equal(encl_policy_init(&policy, &f->pins, 0, f->cert[0], debug, false, &err),
                         ENCL_E_INVALID);
        assert_non_null(strstr(err.message, "got an empty list"));
        assert_int_equal(encl_policy_init(&policy, &f->pins, 1, empty, debug, true, &err),
                         ENCL_E_INVALID);
        assert_non_null(strstr(err.message, "got nothing"));
        assert_null(policy.pins);
        assert_null(policy.root);
    }
}

static void clock_leeway_has_a_maximum(void **state) {
    fixture *f = *state;
    encl_policy copy;
    encl_error err;

    assert_int_equal(encl_policy_set_clock_leeway(&f->policy, -1, &err), ENCL_E_INVALID);
    assert_int_equal(encl_policy_set_clock_leeway(&f->policy, 301, &err), ENCL_E_INVALID);
    assert_int_equal(f->policy.clock_leeway, 0);
    assert_int_equal(encl_policy_set_clock_leeway(&f->policy, 300, &err), ENCL_OK);
    assert_int_equal(encl_policy_copy(&copy, &f->policy, &err), ENCL_OK);
    assert_int_equal(copy.clock_leeway, 300);
    encl_policy_free(&copy);
    assert_int_equal(encl_policy_set_clock_leeway(&f->policy, 0, &err), ENCL_OK);
}

static void a_policy_that_fails_holds_nothing(void **state) {
    fixture *f = *state;
    encl_policy policy;
    encl_error err;

    assert_int_equal(encl_policy_init(&policy, &f->pins, 1, BYTES("x", 1), false, true, &err),
                     ENCL_E_INVALID);
    assert_null(policy.pins);
    assert_int_equal(encl_policy_init(&policy, NULL, 0, ENCL_SLICE_NONE, false, true, &err),
                     ENCL_E_INVALID);
    assert_int_equal(encl_policy_init(&policy, &f->pins, 1025, ENCL_SLICE_NONE, false, true, &err),
                     ENCL_E_INVALID);
    assert_non_null(strstr(err.message, "at most 1024 sets, got 1025"));
}

static void a_pcr_beyond_its_slot_is_not_signed(void **state) {
    fixture *f = *state;
    encl_doc_template doc = f->doc;
    encl_buf out;
    encl_error err;
    uint8_t block[4096];

    doc.pcrs[31].len = 65;
    encl_buf_wrap(&out, block, sizeof block);
    assert_int_equal(encl_attest_sign(&doc, f->leaf_key, &out, &err), ENCL_E_INVALID);
    assert_int_equal(encl_buf_readable(&out), 0);
}

/* What does not fit is refused whole or not at all, at every size. */
static void signing_respects_the_buffer(void **state) {
    fixture *f = *state;
    encl_error err;

    for (size_t cap = 0; cap < f->good.len; cap += 7) {
        uint8_t *block = malloc(cap == 0 ? 1 : cap);
        encl_buf out;

        encl_buf_wrap(&out, block, cap);
        assert_int_equal(encl_attest_sign(&f->doc, ENCL_SLICE_NONE, &out, &err), ENCL_E_INVALID);
        free(block);
    }
}

static bool knows(encl_link_cache *cache, encl_slice child, encl_slice issuer, int64_t now) {
    X509 *cert = encl_link_cache_find(cache, child, issuer, now);

    X509_free(cert);
    return cert != NULL;
}

static bool has(encl_link_cache *cache, const char *child, const char *issuer, int64_t now) {
    return knows(cache, BYTES(child, strlen(child)), BYTES(issuer, strlen(issuer)), now);
}

/* With a certificate of its own, which the cache alone holds afterwards. */
static void put(encl_link_cache *cache, const char *child, const char *issuer, int64_t expires) {
    X509 *cert = X509_new();

    assert_non_null(cert);
    encl_link_cache_put(cache, BYTES(child, strlen(child)), BYTES(issuer, strlen(issuer)), cert,
                        expires);
    X509_free(cert);
}

static void the_cache_knows_exact_pairs_only(void **state) {
    encl_link_cache *cache;
    encl_error err;

    (void)state;
    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    assert_false(has(cache, "ab", "cd", 0));
    put(cache, "ab", "cd", 100);
    assert_true(has(cache, "ab", "cd", 0));
    assert_false(has(cache, "cd", "ab", 0));
    assert_false(has(cache, "abc", "d", 0));
    assert_false(has(cache, "a", "bcd", 0));
    assert_false(has(cache, "abcd", "", 0));
    assert_false(has(cache, "ab", "ce", 0));
    assert_false(has(cache, "ab", "", 0));
    assert_int_equal(encl_link_cache_hits(cache), 1);
    encl_link_cache_free(cache);
}

static void cached_links_end_with_their_validity(void **state) {
    encl_link_cache *cache;
    encl_error err;

    (void)state;
    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    put(cache, "a", "b", 100);
    put(cache, "c", "d", 200);
    assert_true(has(cache, "a", "b", 99));
    assert_false(has(cache, "a", "b", 100));
    assert_false(has(cache, "a", "b", 99)); /* dropped, not only hidden */
    assert_true(has(cache, "c", "d", 100));
    put(cache, "a", "b", 300);
    assert_true(has(cache, "a", "b", 299));
    encl_link_cache_free(cache);
}

static void a_full_cache_replaces_what_ends_first(void **state) {
    encl_link_cache *cache;
    encl_error err;

    (void)state;
    assert_int_equal(encl_link_cache_new(3, &cache, &err), ENCL_OK);
    put(cache, "a", "", 300);
    put(cache, "b", "", 100);
    put(cache, "c", "", 200);
    put(cache, "c", "", 200); /* again: takes no second slot */
    assert_true(has(cache, "b", "", 0));
    put(cache, "d", "", 400);
    assert_false(has(cache, "b", "", 0));
    assert_true(has(cache, "a", "", 0) && has(cache, "c", "", 0) && has(cache, "d", "", 0));
    for (int i = 0; i < 100; i++) {
        char child[2] = {(char)(i + 1), 0};

        put(cache, child, "x", 1000 + i);
    }
    assert_false(has(cache, "a", "", 0) || has(cache, "c", "", 0) || has(cache, "d", "", 0));
    assert_true(has(cache, "d", "x", 0)); /* the last one put: 'd' is 100 */
    encl_link_cache_free(cache);
}

/* The chain's own use: both ends bound the entry, whichever is shorter. */
/* The same bytes divided at another place are another pair. The zeros within them are what would
 * stand between the two if no lengths were hashed. */
static void the_cache_knows_where_a_pair_is_divided(void **state) {
    static const char bytes[] = "a\0\0\0\0\0\0\0\0b\0\0\0\0\0\0\0\0c";
    const size_t len = sizeof bytes - 1;
    encl_link_cache *cache;
    encl_error err;
    X509 *cert = X509_new();

    (void)state;
    assert_non_null(cert);
    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    encl_link_cache_put(cache, BYTES(bytes, 1), BYTES(bytes + 9, len - 9), cert, 100);
    assert_true(knows(cache, BYTES(bytes, 1), BYTES(bytes + 9, len - 9), 0));
    assert_false(knows(cache, BYTES(bytes, 10), BYTES(bytes + 18, len - 18), 0));
    put(cache, "ab", "c", 100);
    assert_false(has(cache, "a", "bc", 0) || has(cache, "abc", "", 0) || has(cache, "", "abc", 0));
    encl_link_cache_free(cache);
    X509_free(cert);
}

/* Wherever it stands among the others. */
static void what_ends_first_goes_from_any_place(void **state) {
    static const char *const names[] = {"a", "b", "c"};
    encl_link_cache *cache;
    encl_error err;

    (void)state;
    for (size_t first = 0; first < 3; first++) {
        assert_int_equal(encl_link_cache_new(3, &cache, &err), ENCL_OK);
        for (size_t i = 0; i < 3; i++) {
            put(cache, names[i], "", i == first ? 100 : 300);
        }
        put(cache, "d", "", 200);
        for (size_t i = 0; i < 3; i++) {
            assert_int_equal(has(cache, names[i], "", 0), i != first);
        }
        assert_true(has(cache, "d", "", 0));
        encl_link_cache_free(cache);
    }
}

static void a_link_is_remembered_until_the_shorter_validity(void **state) {
    fixture *f = *state;
    encl_link_cache *cache;
    encl_error err;

    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_OK);
    assert_true(knows(cache, f->cert[2], f->cert[1], NOW + HOUR - 1));
    assert_true(knows(cache, f->cert[1], f->cert[0], NOW + HOUR - 1));
    assert_false(knows(cache, f->cert[2], f->cert[1], NOW + HOUR));
    assert_false(knows(cache, f->cert[1], f->cert[0], NOW + HOUR));
    assert_false(knows(cache, f->cert[2], f->cert[0], NOW));
    encl_link_cache_free(cache);
}

static void assert_is_certificate(const X509 *cert, encl_slice der) {
    uint8_t block[ENCL_CERT_MAX_BYTES], *to = block;

    assert_int_equal(i2d_X509(cert, NULL), der.len);
    assert_int_equal(i2d_X509(cert, &to), der.len);
    assert_memory_equal(block, der.data, der.len);
}

/* Parsed once, and what is given back is what those bytes say. */
static void a_known_link_has_its_childs_certificate(void **state) {
    fixture *f = *state;
    encl_link_cache *cache;
    encl_error err;
    X509 *first[2], *again;

    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_OK);
    for (size_t i = 0; i < 2; i++) {
        first[i] = encl_link_cache_find(cache, f->cert[i + 1], f->cert[i], NOW);
        assert_non_null(first[i]);
        assert_is_certificate(first[i], f->cert[i + 1]);
    }
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_OK);
    for (size_t i = 0; i < 2; i++) {
        again = encl_link_cache_find(cache, f->cert[i + 1], f->cert[i], NOW);
        assert_ptr_equal(again, first[i]);
        X509_free(again);
    }
    encl_link_cache_free(cache);
    for (size_t i = 0; i < 2; i++) {
        assert_is_certificate(first[i], f->cert[i + 1]); /* whoever found it still has it */
        X509_free(first[i]);
    }
}

/* Nothing is put there before its issuer's signature verified. */
static void a_refused_certificate_is_not_kept(void **state) {
    fixture *f = *state;
    encl_link_cache *cache;
    encl_error err;
    encl_doc_template doc = f->doc;
    uint8_t ca[ENCL_CERT_MAX_BYTES], block[4096];
    encl_slice document;

    memcpy(ca, f->cert[1].data, f->cert[1].len);
    ca[f->cert[1].len - 1] ^= 1;
    f->doc.cabundle[1] = BYTES(ca, f->cert[1].len);
    document = sign_into(f, f->leaf_key, block, sizeof block);
    f->doc = doc;
    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    assert_int_equal(verify(f, document, cache, &err), ENCL_E_CERTIFICATE);
    assert_false(knows(cache, BYTES(ca, f->cert[1].len), f->cert[0], NOW));
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_OK);
    assert_int_equal(verify(f, document, cache, &err), ENCL_E_CERTIFICATE);
    assert_false(knows(cache, BYTES(ca, f->cert[1].len), f->cert[0], NOW));
    encl_link_cache_free(cache);
}

/* What replaces or ends an entry lets its certificate go: AddressSanitizer sees one that stays, and
 * one that is let go twice. */
static void replaced_certificates_are_let_go(void **state) {
    encl_link_cache *cache;
    encl_error err;

    (void)state;
    assert_int_equal(encl_link_cache_new(2, &cache, &err), ENCL_OK);
    put(cache, "a", "b", 100);
    put(cache, "a", "b", 200);
    put(cache, "c", "d", 300);
    put(cache, "e", "f", 400);
    assert_false(has(cache, "a", "b", 0));
    assert_true(has(cache, "c", "d", 299));
    assert_false(has(cache, "c", "d", 300));
    assert_true(has(cache, "e", "f", 300));
    put(cache, "g", "h", 500);
    assert_true(has(cache, "e", "f", 300) && has(cache, "g", "h", 300));
    encl_link_cache_free(cache);
}

/* A policy's root certificate is parsed once and shared by all who verify under it. */
static void *verify_often(void *arg) {
    const fixture *f = arg;
    encl_link_cache *cache = NULL;
    encl_policy copy;
    encl_error err;
    void *failed = NULL;

    if (encl_policy_copy(&copy, &f->policy, &err) != ENCL_OK) {
        return arg;
    }
    if (encl_link_cache_new(8, &cache, &err) != ENCL_OK) {
        failed = arg;
    }
    for (int i = 0; i < 20 && failed == NULL; i++) {
        encl_attestation *a = NULL;

        if (encl_attest_verify(f->good, i % 2 == 0 ? &copy : &f->policy, NONCE, NOW,
                               i % 3 == 0 ? NULL : cache, &a, &err) != ENCL_OK) {
            failed = arg;
        }
        encl_attestation_free(a);
    }
    encl_link_cache_free(cache);
    encl_policy_free(&copy);
    return failed;
}

static void threads_share_a_policy(void **state) {
    pthread_t threads[4];
    void *failed;

    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, verify_often, *state), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
}

static void a_forked_child_verifies_with_what_it_finds(void **state) {
    fixture *f = *state;
    encl_link_cache *cache;
    encl_error err;
    int status = 1;
    pid_t child;

    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_OK);
    child = fork();
    if (child == 0) {
        encl_attestation *a = NULL;
        encl_code rc = encl_attest_verify(f->good, &f->policy, NONCE, NOW, cache, &a, &err);

        _exit(rc == ENCL_OK && encl_link_cache_hits(cache) == 2 ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(encl_link_cache_hits(cache), 0);
    encl_link_cache_free(cache);
}

static void cache_sizes_are_bounded(void **state) {
    encl_link_cache *cache;
    encl_error err;

    (void)state;
    assert_int_equal(encl_link_cache_new(0, &cache, &err), ENCL_E_INVALID);
    assert_null(cache);
    assert_int_equal(encl_link_cache_new(4097, &cache, &err), ENCL_E_INVALID);
    assert_int_equal(encl_link_cache_new(4096, &cache, &err), ENCL_OK);
    encl_link_cache_free(cache);
    assert_int_equal(encl_link_cache_new(1, &cache, &err), ENCL_OK);
    put(cache, "a", "b", 100);
    assert_true(has(cache, "a", "b", 0));
    encl_link_cache_free(cache);
    encl_link_cache_free(NULL);
}

/* ---- who runs the verifications ---- */

#define SIGNATURES 3 /* of the fixture's document: the CA's, the leaf's, its own */

/* With the last byte of some signatures changed; bit 0: the CA's, 1: the leaf's, 2: its own. */
static encl_slice document_with_bad(fixture *f, unsigned bad, uint8_t *block, size_t size) {
    uint8_t ca[ENCL_CERT_MAX_BYTES], leaf[ENCL_CERT_MAX_BYTES];
    encl_doc_template doc = f->doc;
    encl_slice document;

    memcpy(ca, f->cert[1].data, f->cert[1].len);
    memcpy(leaf, f->cert[2].data, f->cert[2].len);
    ca[f->cert[1].len - 1] ^= (uint8_t)(bad & 1);
    leaf[f->cert[2].len - 1] ^= (uint8_t)(bad >> 1 & 1);
    f->doc.cabundle[1] = BYTES(ca, f->cert[1].len);
    f->doc.certificate = BYTES(leaf, f->cert[2].len);
    document = sign_into(f, f->leaf_key, block, size);
    f->doc = doc;
    block[document.len - 1] ^= (uint8_t)(bad >> 2 & 1);
    return document;
}

static void backwards(void (*one)(void *arg, size_t i), void *arg, size_t count) {
    while (count-- > 0) {
        one(arg, count);
    }
}

typedef struct share {
    void (*one)(void *arg, size_t i);
    void *arg;
    size_t i;
} share;

static void *take(void *arg) {
    const share *mine = arg;

    mine->one(mine->arg, mine->i);
    return NULL;
}

static void at_once(void (*one)(void *arg, size_t i), void *arg, size_t count) {
    pthread_t threads[SIGNATURES];
    share shares[SIGNATURES];

    assert_true(count <= SIGNATURES);
    for (size_t i = 0; i < count; i++) {
        shares[i] = (share){one, arg, i};
        assert_int_equal(pthread_create(&threads[i], NULL, take, &shares[i]), 0);
    }
    for (size_t i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* Neither the order nor the threads decide what is refused, or what it is refused for. */
static void any_order_refuses_the_same(void **state) {
    static encl_each *const orders[] = {backwards, at_once};
    fixture *f = *state;
    encl_error err, other;
    uint8_t block[4096];

    for (unsigned bad = 0; bad < 1u << SIGNATURES; bad++) {
        encl_slice document = document_with_bad(f, bad, block, sizeof block);
        encl_code expected = verify(f, document, NULL, &err);

        assert_int_equal(expected, bad == 0         ? ENCL_OK
                                   : (bad & 3) == 0 ? ENCL_E_SIGNATURE
                                                    : ENCL_E_CERTIFICATE);
        for (size_t k = 0; k < sizeof orders / sizeof *orders; k++) {
            f->policy.each = orders[k];
            assert_int_equal(verify(f, document, NULL, &other), expected);
            if (bad != 0) {
                assert_string_equal(other.message, err.message);
            }
            f->policy.each = NULL;
        }
    }
}

static size_t left_out, asked_for;

static void all_but_one(void (*one)(void *arg, size_t i), void *arg, size_t count) {
    asked_for = count;
    for (size_t i = 0; i < count; i++) {
        if (i != left_out) {
            one(arg, i);
        }
    }
}

/* A signature counts because it was verified, not because nobody complained. */
static void what_nobody_has_verified_does_not_hold(void **state) {
    fixture *f = *state;
    encl_link_cache *cache;
    encl_error err;

    f->policy.each = all_but_one;
    assert_int_equal(encl_link_cache_new(8, &cache, &err), ENCL_OK);
    for (left_out = 0; left_out < SIGNATURES; left_out++) {
        assert_int_equal(verify(f, f->good, NULL, &err),
                         left_out == SIGNATURES - 1 ? ENCL_E_SIGNATURE : ENCL_E_CERTIFICATE);
        assert_int_equal(asked_for, SIGNATURES);
    }
    left_out = 1;
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_E_CERTIFICATE);
    assert_true(knows(cache, f->cert[1], f->cert[0], NOW));
    assert_false(knows(cache, f->cert[2], f->cert[1], NOW));
    left_out = SIGNATURES;
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_OK);
    assert_int_equal(asked_for, 2); /* the CA's link was known */
    assert_int_equal(verify(f, f->good, cache, &err), ENCL_OK);
    assert_int_equal(asked_for, 1);
    encl_link_cache_free(cache);
    f->policy.each = NULL;
}

static size_t counted;

static void count_verified(void (*one)(void *arg, size_t i), void *arg, size_t count) {
    counted = count;
    for (size_t i = 0; i < count; i++) {
        one(arg, i);
    }
}

/* Parsing and all the other checks come before any signature: a document that is refused for them
 * costs no verification. */
static void nothing_is_verified_of_a_chain_that_is_refused_anyway(void **state) {
    fixture *f = *state;
    encl_attestation *a;
    encl_error err;

    f->policy.each = count_verified;
    counted = 0;
    assert_int_equal(encl_attest_verify(f->good, &f->policy, NONCE, NOW + HOUR + 1, NULL, &a, &err),
                     ENCL_E_CERTIFICATE);
    assert_int_equal(counted, 0);
    f->policy.each = NULL;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_document_verifies_and_owns_its_bytes),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(every_flipped_byte_is_refused),
        cmocka_unit_test(debug_documents_of_random_damage_do_no_harm),
        cmocka_unit_test(debug_takes_the_stub_and_unsigned_documents),
        cmocka_unit_test(an_empty_nonce_never_matches),
        cmocka_unit_test(openssls_error_queue_is_left_as_it_was),
        cmocka_unit_test(a_policy_owns_copies),
        cmocka_unit_test(a_copied_policy_lives_on_its_own),
        cmocka_unit_test(a_further_pcr_must_be_there_and_equal),
        cmocka_unit_test(the_most_sets_of_pins_are_taken),
        cmocka_unit_test(only_null_means_not_given),
        cmocka_unit_test(clock_leeway_has_a_maximum),
        cmocka_unit_test(a_policy_that_fails_holds_nothing),
        cmocka_unit_test(a_pcr_beyond_its_slot_is_not_signed),
        cmocka_unit_test(signing_respects_the_buffer),
        cmocka_unit_test(the_cache_knows_exact_pairs_only),
        cmocka_unit_test(cached_links_end_with_their_validity),
        cmocka_unit_test(a_full_cache_replaces_what_ends_first),
        cmocka_unit_test(the_cache_knows_where_a_pair_is_divided),
        cmocka_unit_test(what_ends_first_goes_from_any_place),
        cmocka_unit_test(a_link_is_remembered_until_the_shorter_validity),
        cmocka_unit_test(a_known_link_has_its_childs_certificate),
        cmocka_unit_test(a_refused_certificate_is_not_kept),
        cmocka_unit_test(replaced_certificates_are_let_go),
        cmocka_unit_test(any_order_refuses_the_same),
        cmocka_unit_test(what_nobody_has_verified_does_not_hold),
        cmocka_unit_test(nothing_is_verified_of_a_chain_that_is_refused_anyway),
        cmocka_unit_test(threads_share_a_policy),
        cmocka_unit_test(a_forked_child_verifies_with_what_it_finds),
        cmocka_unit_test(cache_sizes_are_bounded),
    };

    return cmocka_run_group_tests_name("attest", tests, setup, teardown);
}
