/* Decides what a caller may pin and trust, and whether a document's PCRs are pinned ones. Calls
 * chain.c for the root, OpenSSL for PEM, and secmem.c for the comparison in constant time. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "attest/internal.h"
#include "base/secmem.h"
#include "base/slice.h"

#define PINS_MAX       1024
#define ROOT_PEM_BYTES 16384
#define HEX_BYTES      (2 * ENCL_PCR_MAX_BYTES + 8)

static encl_slice pcr_bytes(const encl_pcr *pcr) {
    return ENCL_SLICE(pcr->value, pcr->len);
}

/* True for an absent one too: it measures nothing either. */
static bool is_zero(const encl_pcr *pcr) {
    for (size_t i = 0; i < pcr->len; i++) {
        if (pcr->value[i] != 0) {
            return false;
        }
    }
    return true;
}

/* A further PCR may be left out, while the first three are always pinned. */
static bool is_pinned(const encl_pins *pins, size_t i) {
    return i < ENCL_PINNED_PCRS || pins->pcr[i].len != 0;
}

static encl_result check_pins(const encl_pins *pins, bool debug, encl_error *err) {
    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        const encl_pcr *pcr = &pins->pcr[i];

        if (!is_pinned(pins, i)) {
            continue;
        }
        ENCL_ENSURE(pcr->len == 32 || pcr->len == 48 || pcr->len == 64, err, ENCL_E_INVALID,
                    "pinned PCR%zu: expected 32, 48 or 64 bytes, got %d", i, pcr->len);
        ENCL_ENSURE(pcr->len == pins->pcr[0].len, err, ENCL_E_INVALID,
                    "pinned PCR%zu: expected %d bytes like PCR0, got %d", i, pins->pcr[0].len,
                    pcr->len);
        ENCL_ENSURE(debug || i >= ENCL_PINNED_PCRS || !is_zero(pcr), err, ENCL_E_INVALID,
                    "pinned PCR%zu is all zero: these are the PCRs of a debug enclave, which "
                    "proves nothing about its code; pin those of a production build",
                    i);
    }
    return ENCL_OK;
}

static encl_result copy_pins(encl_policy *policy, const encl_pins *pins, size_t count,
                             encl_error *err) {
    if (pins == NULL) {
        return ENCL_OK;
    }
    ENCL_ENSURE(count != 0, err, ENCL_E_INVALID,
                "pinned PCRs: expected at least one set, got an empty list");
    ENCL_ENSURE(count <= PINS_MAX, err, ENCL_E_INVALID,
                "pinned PCRs: expected at most %d sets, got %zu", PINS_MAX, count);
    for (size_t i = 0; i < count; i++) {
        ENCL_TRY(check_pins(&pins[i], policy->debug, err));
    }
    policy->pins = malloc(count * sizeof *pins);
    ENCL_ENSURE(policy->pins != NULL, err, ENCL_E_NOMEM, "out of memory for pinned PCRs");
    memcpy(policy->pins, pins, count * sizeof *pins);
    policy->pin_count = count;
    return ENCL_OK;
}

static encl_result copy_root(encl_policy *policy, encl_slice der, encl_error *err) {
    if (encl_chain_parse_root(der, &policy->root_cert, err) != ENCL_OK) {
        encl_error_prefix(err, "the root");
        err->code = ENCL_E_INVALID;
        return ENCL_E_INVALID;
    }
    policy->root = malloc(der.len);
    ENCL_ENSURE(policy->root != NULL, err, ENCL_E_NOMEM, "out of memory for a root certificate");
    memcpy(policy->root, der.data, der.len);
    policy->root_len = der.len;
    return ENCL_OK;
}

/* One PEM block of any kind; *der is freed with OPENSSL_free. False at the end of the text. */
static bool next_pem(BIO *text, bool *certificate, unsigned char **der, long *len) {
    char *name = NULL, *header = NULL;
    bool found = PEM_read_bio(text, &name, &header, der, len) == 1;

    *certificate = found && strcmp(name, PEM_STRING_X509) == 0;
    OPENSSL_free(name);
    OPENSSL_free(header);
    return found;
}

static encl_result copy_pem_root(encl_policy *policy, BIO *text, encl_error *err) {
    unsigned char *der = NULL, *second = NULL;
    long len = 0, second_len = 0;
    bool certificate, ignored;
    encl_code rc;

    ENCL_ENSURE(next_pem(text, &certificate, &der, &len), err, ENCL_E_INVALID,
                "the root: expected a certificate, DER or PEM, got neither");
    ENCL_ENSURE_GOTO(certificate, done, err, ENCL_E_INVALID,
                     "the root: expected a PEM CERTIFICATE, got another kind of PEM block");
    ENCL_ENSURE_GOTO(!next_pem(text, &ignored, &second, &second_len), done, err, ENCL_E_INVALID,
                     "the root: expected one PEM block, got more");
    rc = copy_root(policy, ENCL_SLICE(der, (size_t)len), err);
done:
    OPENSSL_free(der);
    OPENSSL_free(second);
    return rc;
}

static encl_result parse_pem_root(encl_policy *policy, encl_slice pem, encl_error *err) {
    BIO *text;
    encl_code rc;

    ENCL_ENSURE(pem.len <= ROOT_PEM_BYTES, err, ENCL_E_INVALID,
                "the root: expected at most %d bytes, got %zu", ROOT_PEM_BYTES, pem.len);
    text = BIO_new_mem_buf(pem.data, (int)pem.len);
    ENCL_ENSURE(text != NULL, err, ENCL_E_NOMEM, "out of memory for a root certificate");
    rc = copy_pem_root(policy, text, err);
    BIO_free(text);
    return rc;
}

static encl_result set_root(encl_policy *policy, encl_slice root, encl_error *err) {
    encl_code rc;

    if (root.data == NULL) {
        root = encl_aws_root_g1();
    }
    ENCL_ENSURE(root.len != 0, err, ENCL_E_INVALID,
                "the root: expected a certificate, DER or PEM, got nothing (0 bytes)");
    ERR_set_mark();
    /* DER starts with the tag of a SEQUENCE and a length of more than 127 bytes; PEM is text. */
    if (root.len >= 2 && root.data[0] == 0x30 && root.data[1] >= 0x80) {
        rc = copy_root(policy, root, err);
    } else {
        rc = parse_pem_root(policy, root, err);
    }
    ERR_pop_to_mark();
    return rc;
}

encl_result encl_policy_init(encl_policy *policy, const encl_pins *pins, size_t pin_count,
                             encl_slice root, bool debug, bool need_pins, encl_error *err) {
    encl_code rc;

    memset(policy, 0, sizeof *policy);
    policy->debug = debug;
    policy->need_pins = need_pins;
    ENCL_ENSURE(pins != NULL || debug || !need_pins, err, ENCL_E_INVALID,
                "no PCRs are pinned: without them any enclave of anyone would pass");
    ENCL_TRY_GOTO(copy_pins(policy, pins, pin_count, err), failed);
    ENCL_TRY_GOTO(set_root(policy, root, err), failed);
    return ENCL_OK;
failed:
    encl_policy_free(policy);
    return rc;
}

encl_result encl_policy_set_clock_leeway(encl_policy *policy, int64_t seconds, encl_error *err) {
    ENCL_ENSURE(seconds >= 0 && seconds <= ENCL_CLOCK_LEEWAY_MAX, err, ENCL_E_INVALID,
                "clock leeway: expected 0 to %d seconds, got %lld", ENCL_CLOCK_LEEWAY_MAX,
                (long long)seconds);
    policy->clock_leeway = seconds;
    return ENCL_OK;
}

encl_result encl_policy_copy(encl_policy *to, const encl_policy *from, encl_error *err) {
    *to = *from;
    to->pins = from->pins == NULL ? NULL : malloc(from->pin_count * sizeof *to->pins);
    to->root = malloc(from->root_len);
    to->root_cert = X509_up_ref(from->root_cert) == 1 ? from->root_cert : NULL;
    if ((from->pins != NULL && to->pins == NULL) || to->root == NULL || to->root_cert == NULL) {
        encl_policy_free(to);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory for a policy");
    }
    if (to->pins != NULL) {
        memcpy(to->pins, from->pins, from->pin_count * sizeof *to->pins);
    }
    memcpy(to->root, from->root, from->root_len);
    return ENCL_OK;
}

void encl_policy_free(encl_policy *policy) {
    free(policy->pins);
    free(policy->root);
    X509_free(policy->root_cert);
    memset(policy, 0, sizeof *policy);
}

static void hex(const encl_pcr *pcr, char out[HEX_BYTES]) {
    encl_slice_hex(pcr_bytes(pcr), out);
    (void)snprintf(out + (size_t)2 * pcr->len, 8, "%s", pcr->len == 0 ? "nothing" : "");
}

static bool same_pcr(const encl_pins *pins, const encl_attestation *a, size_t i) {
    return encl_equal_ct(pcr_bytes(&pins->pcr[i]), pcr_bytes(&a->pcrs[i]));
}

/* What AWS measures into the PCRs beyond the image's own; the image agrees where one of these is
 * what differs first. */
static const char *further_advice(size_t index) {
    switch (index) {
    case 3:
        return "the pinned image, started by an instance with another IAM role";
    case 4:
        return "the pinned image, on another EC2 instance";
    case 8:
        return "the pinned image, signed with another certificate, or not signed where it is zero";
    default:
        return "the pinned image; this PCR is extended by the enclave itself, while it runs";
    }
}

/* A further PCR is zero in production as well, where nothing was measured into it. */
static bool is_of_debug_enclave(size_t index, const encl_pcr *actual) {
    return index < ENCL_PINNED_PCRS && actual->len != 0 && is_zero(actual);
}

/* Enclavia stamps an enclave's UUID into its image, which PCR0 and PCR2 measure and PCR1, the
 * kernel and what it boots with, does not. */
static const char *pcr_advice(size_t index, const encl_pins *pins, const encl_attestation *a) {
    const encl_pcr *actual = &a->pcrs[index];

    if (actual->len == 0) {
        return "the document does not have it";
    }
    if (index >= ENCL_PINNED_PCRS) {
        return further_advice(index);
    }
    if (is_of_debug_enclave(index, actual)) {
        return "all zero: this is a debug enclave, which proves nothing about its code";
    }
    if (pins != NULL && same_pcr(pins, a, 1)) {
        return "PCR1 agrees: the same boot parts, but another enclave or version. PCR0 and PCR2 "
               "are per enclave: two of one image differ, and a re-created one has new values";
    }
    if (pins != NULL && same_pcr(pins, a, 0) && same_pcr(pins, a, 2)) {
        return "only PCR1 differs: the same enclave with other boot parts (kernel, init)";
    }
    return "the enclave runs another image than the pinned one";
}

/* pins: the nearest ones, NULL where there are none. */
static encl_result pcr_failure(size_t index, const encl_pins *pins, const encl_attestation *a,
                               encl_error *err) {
    const encl_pcr *actual = &a->pcrs[index];
    const encl_pcr *expected = pins == NULL ? NULL : &pins->pcr[index];
    char got[HEX_BYTES], wanted[HEX_BYTES];
    encl_code rc;

    hex(actual, got);
    if (expected != NULL) {
        hex(expected, wanted);
    }
    rc = encl_fail(err, ENCL_E_PCR, "PCR%zu: expected %s, got %s (%s)", index,
                   expected == NULL ? "a measurement" : wanted, got, pcr_advice(index, pins, a));
    err->hint = is_of_debug_enclave(index, actual) ? ENCL_HINT_DEBUG_ENCLAVE : ENCL_HINT_NONE;
    err->detail.pcr.index = (int)index;
    err->detail.pcr.actual_len = actual->len;
    memcpy(err->detail.pcr.actual, actual->value, actual->len);
    if (expected != NULL) {
        err->detail.pcr.expected_len = expected->len;
        memcpy(err->detail.pcr.expected, expected->value, expected->len);
    }
    return rc;
}

/* excused: a PCR that the document does not have is passed over, which is for debug mode alone. */
static bool agrees(const encl_pins *pins, const encl_attestation *a, size_t i, bool excused) {
    return !is_pinned(pins, i) || (excused && a->pcrs[i].len == 0) || same_pcr(pins, a, i);
}

/* The first index where the document differs from the pins; ENCL_PCR_SLOTS where none does. */
static size_t first_difference(const encl_pins *pins, const encl_attestation *a, bool excused) {
    size_t i = 0;

    while (i < ENCL_PCR_SLOTS && agrees(pins, a, i, excused)) {
        i++;
    }
    return i;
}

/* How many PCRs differ: the set with the fewest is the one a message is about. */
static size_t differing(const encl_pins *pins, const encl_attestation *a) {
    size_t count = 0;

    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        count += agrees(pins, a, i, false) ? 0 : 1;
    }
    return count;
}

static encl_result check_unpinned(const encl_attestation *a, encl_error *err) {
    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        if (is_zero(&a->pcrs[i])) {
            return pcr_failure(i, NULL, a, err);
        }
    }
    return ENCL_OK;
}

static void note_match(const encl_policy *policy, size_t set, encl_attestation *a) {
    a->matched = (int)set;
    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        if (is_pinned(&policy->pins[set], i)) {
            a->matched_pcrs |= UINT32_C(1) << i;
        }
    }
}

encl_result encl_policy_check_pcrs(const encl_policy *policy, encl_attestation *a,
                                   encl_error *err) {
    size_t nearest = 0, fewest = ENCL_PCR_SLOTS + 1;

    if (policy->pin_count == 0) {
        return policy->debug ? ENCL_OK : check_unpinned(a, err);
    }
    for (size_t i = 0; i < policy->pin_count; i++) {
        size_t differ = differing(&policy->pins[i], a);

        if (first_difference(&policy->pins[i], a, policy->debug) == ENCL_PCR_SLOTS) {
            if (differ == 0) {
                note_match(policy, i, a);
            }
            return ENCL_OK;
        }
        if (differ < fewest) {
            nearest = i;
            fewest = differ;
        }
    }
    return pcr_failure(first_difference(&policy->pins[nearest], a, policy->debug),
                       &policy->pins[nearest], a, err);
}
