/* Decides whether a chain of X.509 certificates (RFC 5280) is valid, link by link from the pinned
 * root down to the leaf. It is read first, then signatures.c has its signatures verified, and then
 * it is settled. Explicit rather than X509_verify_cert, so that a verified link can be remembered
 * and every refusal has a name. The pinned root is trusted by its bytes: its own signature would
 * prove nothing. Calls OpenSSL and cache.c. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <openssl/ec.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "attest/internal.h"
#include "base/slice.h"
#include "base/utf8.h"

#define NAME_BYTES 80
#define TIME_BYTES 32

/* A certificate's name is whatever its maker wrote. */
static void common_name(const X509 *cert, char *out, size_t size) {
    char name[NAME_BYTES];
    int n = X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, name,
                                      (int)sizeof name);

    (void)encl_utf8_show_in(n < 0 ? ENCL_SLICE("?", 1) : ENCL_SLICE(name, strlen(name)), out, size);
}

static void set_label(encl_chain_cert *l, size_t number, size_t count) {
    char name[NAME_BYTES] = "?";

    if (l->cert != NULL) {
        common_name(l->cert, name, sizeof name);
    }
    (void)snprintf(l->label, sizeof l->label, "certificate %zu of %zu (CN=%s)", number, count,
                   name);
}

static encl_result parse(encl_chain_cert *l, encl_error *err) {
    const uint8_t *at = l->der.data;

    ENCL_ENSURE(l->der.len <= ENCL_CERT_MAX_BYTES, err, ENCL_E_CERTIFICATE,
                "%s: expected at most %d bytes, got %zu", l->label, ENCL_CERT_MAX_BYTES,
                l->der.len);
    l->cert = d2i_X509(NULL, &at, (long)l->der.len);
    ENCL_ENSURE(l->cert != NULL, err, ENCL_E_CERTIFICATE, "%s is not an X.509 certificate",
                l->label);
    ENCL_ENSURE(at == l->der.data + l->der.len, err, ENCL_E_CERTIFICATE,
                "%s has %zu bytes after its end", l->label,
                (size_t)(l->der.data + l->der.len - at));
    return ENCL_OK;
}

static encl_result check_form(const encl_chain_cert *l, encl_error *err) {
    uint32_t flags = X509_get_extension_flags(l->cert);

    ENCL_ENSURE(X509_get_version(l->cert) == X509_VERSION_3, err, ENCL_E_CERTIFICATE,
                "%s: expected X.509 version 3", l->label);
    ENCL_ENSURE((flags & EXFLAG_INVALID) == 0, err, ENCL_E_CERTIFICATE,
                "%s has malformed extensions", l->label);
    ENCL_ENSURE(X509_get_signature_nid(l->cert) == NID_ecdsa_with_SHA384, err, ENCL_E_CERTIFICATE,
                "%s: expected the signature algorithm ecdsa-with-SHA384, got %s", l->label,
                OBJ_nid2ln(X509_get_signature_nid(l->cert)));
    return ENCL_OK;
}

/* Only these two are judged here, and OpenSSL's own list holds more, such as name constraints. */
static encl_result check_extensions(const encl_chain_cert *l, encl_error *err) {
    for (int i = 0; i < X509_get_ext_count(l->cert); i++) {
        X509_EXTENSION *extension = X509_get_ext(l->cert, i);
        int nid = OBJ_obj2nid(X509_EXTENSION_get_object(extension));

        ENCL_ENSURE(X509_EXTENSION_get_critical(extension) == 0 || nid == NID_basic_constraints ||
                        nid == NID_key_usage,
                    err, ENCL_E_CERTIFICATE,
                    "%s has a critical extension that is not understood here", l->label);
    }
    return ENCL_OK;
}

/* The named curve itself, not parameters that spell it out, and an uncompressed point. */
static encl_result check_key(const encl_chain_cert *l, encl_error *err) {
    ASN1_OBJECT *algorithm = NULL;
    const ASN1_OBJECT *curve = NULL;
    const void *parameter = NULL;
    const unsigned char *bytes = NULL;
    X509_ALGOR *full = NULL;
    int len = 0, type = V_ASN1_UNDEF;

    ENCL_ENSURE(
        X509_PUBKEY_get0_param(&algorithm, &bytes, &len, &full, X509_get_X509_PUBKEY(l->cert)) == 1,
        err, ENCL_E_CERTIFICATE, "%s has no readable public key", l->label);
    X509_ALGOR_get0(NULL, &type, &parameter, full);
    if (OBJ_obj2nid(algorithm) == NID_X9_62_id_ecPublicKey && type == V_ASN1_OBJECT) {
        curve = parameter;
    }
    ENCL_ENSURE(OBJ_obj2nid(curve) == NID_secp384r1, err, ENCL_E_CERTIFICATE,
                "%s: expected an ECDSA P-384 key, got another kind", l->label);
    ENCL_ENSURE(len == ENCL_ES384_POINT_BYTES && bytes[0] == 0x04, err, ENCL_E_CERTIFICATE,
                "%s: expected an uncompressed P-384 point of %d bytes, got %d", l->label,
                ENCL_ES384_POINT_BYTES, len);
    ENCL_ENSURE(X509_get0_pubkey(l->cert) != NULL, err, ENCL_E_CERTIFICATE,
                "%s: its public key is not a point of P-384", l->label);
    return ENCL_OK;
}

/* RFC 5280 section 4.1.2.5: digits down to the seconds, then Z. OpenSSL also reads times without
 * seconds, with fractions and with offsets, but none of those has this length. */
static bool has_strict_form(const ASN1_TIME *when) {
    size_t digits = ASN1_STRING_type(when) == V_ASN1_UTCTIME ? 12 : 14;

    return (size_t)ASN1_STRING_length(when) == digits + 1;
}

/* By OpenSSL's calendar, since timegm and time_t end in 2038 where time_t has 32 bits. */
static encl_result unix_time(const encl_chain_cert *l, const ASN1_TIME *when, int64_t *out,
                             encl_error *err) {
    const struct tm epoch = {.tm_year = 70, .tm_mday = 1};
    int days = 0, seconds = 0;
    struct tm parts;

    ENCL_ENSURE(has_strict_form(when) && ASN1_TIME_to_tm(when, &parts) == 1 &&
                    OPENSSL_gmtime_diff(&days, &seconds, &epoch, &parts) == 1,
                err, ENCL_E_CERTIFICATE, "%s has an unreadable validity time", l->label);
    *out = (int64_t)days * 86400 + seconds;
    return ENCL_OK;
}

static void time_text(int64_t seconds, char out[TIME_BYTES]) {
    time_t when = (time_t)seconds; /* which may be too narrow */
    struct tm parts;

    if (when != seconds || gmtime_r(&when, &parts) == NULL ||
        strftime(out, TIME_BYTES, "%FT%TZ", &parts) == 0) {
        (void)snprintf(out, TIME_BYTES, "%lld s", (long long)seconds);
    }
}

static encl_result not_valid(const encl_chain_cert *l, int64_t now, encl_error *err) {
    char from[TIME_BYTES], to[TIME_BYTES], at[TIME_BYTES];

    time_text(l->not_before, from);
    time_text(l->not_after, to);
    time_text(now, at);
    return encl_fail(err, ENCL_E_CERTIFICATE,
                     "%s %s: it is valid %s to %s, but the time is %s; is this machine's clock "
                     "right?",
                     l->label, now < l->not_before ? "is not yet valid" : "has expired", from, to,
                     at);
}

static encl_result read_validity(encl_chain_cert *l, encl_error *err) {
    ENCL_TRY(unix_time(l, X509_get0_notBefore(l->cert), &l->not_before, err));
    return unix_time(l, X509_get0_notAfter(l->cert), &l->not_after, err);
}

static encl_result check_validity(const encl_chain_cert *l, int64_t now, encl_error *err) {
    if (now >= l->not_before && now <= l->not_after) {
        return ENCL_OK;
    }
    return not_valid(l, now, err);
}

/* An enclave's leaf begins in the second it is made, so a clock that is a little behind AWS's meets
 * leaves from its future. The leeway moves the beginning alone; the end stays where it is. Beyond
 * it, but not far, waiting helps, so the failure is retryable. The leeway is taken from notBefore,
 * which is four digits of a year, and not added to a time of the caller's, which may be any. */
static encl_result check_leaf_validity(const encl_chain_cert *l, encl_clock clock,
                                       encl_error *err) {
    encl_code rc;

    if (clock.now < l->not_before && clock.now >= l->not_before - clock.leeway) {
        return check_validity(l, l->not_before, err);
    }
    rc = check_validity(l, clock.now, err);
    if (clock.now < l->not_before) {
        err->retryable = clock.now >= l->not_before - ENCL_CLOCK_LEEWAY_MAX;
    }
    return rc;
}

static bool may(const encl_chain_cert *l, uint32_t usage) {
    return (X509_get_extension_flags(l->cert) & EXFLAG_KUSAGE) != 0 &&
           (X509_get_key_usage(l->cert) & usage) != 0;
}

static encl_result check_ca(const encl_chain_cert *l, encl_error *err) {
    ENCL_ENSURE((X509_get_extension_flags(l->cert) & EXFLAG_CA) != 0, err, ENCL_E_CERTIFICATE,
                "%s: expected a CA, but its basicConstraints do not make it one", l->label);
    ENCL_ENSURE(may(l, KU_KEY_CERT_SIGN), err, ENCL_E_CERTIFICATE,
                "%s: expected keyUsage keyCertSign of a CA, got none", l->label);
    return ENCL_OK;
}

static encl_result check_leaf(const encl_chain_cert *l, encl_error *err) {
    ENCL_ENSURE((X509_get_extension_flags(l->cert) & EXFLAG_CA) == 0, err, ENCL_E_CERTIFICATE,
                "%s: expected a leaf, got a CA", l->label);
    ENCL_ENSURE(may(l, KU_DIGITAL_SIGNATURE), err, ENCL_E_CERTIFICATE,
                "%s: expected keyUsage digitalSignature of the leaf, got none", l->label);
    return ENCL_OK;
}

/* RFC 5280 lets self-issued certificates go uncounted; AWS has none, so all count. */
static encl_result check_path_length(const encl_chain *c, size_t i, encl_error *err) {
    long allowed = X509_get_pathlen(c->links[i].cert);
    size_t below = c->count - 2 - i;

    ENCL_ENSURE(allowed < 0 || below <= (size_t)allowed, err, ENCL_E_CERTIFICATE,
                "%s: its pathLen allows %ld CAs below it, got %zu", c->links[i].label, allowed,
                below);
    return ENCL_OK;
}

static encl_result check_one(encl_chain *c, size_t i, encl_clock clock, encl_error *err) {
    encl_chain_cert *l = &c->links[i];

    ENCL_TRY(check_form(l, err));
    ENCL_TRY(check_key(l, err));
    ENCL_TRY(check_extensions(l, err));
    ENCL_TRY(read_validity(l, err));
    if (i == c->count - 1) {
        ENCL_TRY(check_leaf_validity(l, clock, err));
        return check_leaf(l, err);
    }
    ENCL_TRY(check_validity(l, clock.now, err));
    ENCL_TRY(check_ca(l, err));
    return check_path_length(c, i, err);
}

static int64_t earlier(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static encl_result check_issuer(const encl_chain_cert *child, const encl_chain_cert *issuer,
                                encl_error *err) {
    int verdict = X509_check_issued(issuer->cert, child->cert);

    ENCL_ENSURE(verdict == X509_V_OK, err, ENCL_E_CERTIFICATE, "%s is not issued by %s: %s",
                child->label, issuer->label, X509_verify_cert_error_string(verdict));
    return ENCL_OK;
}

/* The bundle may repeat the pinned root; anything else in it must be issued from there. */
static void gather(encl_chain *c, const encl_attestation *a, encl_slice root) {
    size_t first = encl_slice_equal(a->cabundle[0], root) ? 1 : 0;

    c->links[c->count++].der = root;
    for (size_t i = first; i < a->cabundle_len; i++) {
        c->links[c->count++].der = a->cabundle[i];
    }
    c->links[c->count++].der = a->certificate;
}

/* Of a link that verified before, the certificate is there that these same bytes were parsed to. */
static encl_result take_child(encl_chain *c, size_t i, int64_t now, encl_link_cache *cache,
                              encl_error *err) {
    encl_chain_cert *l = &c->links[i];

    if (cache != NULL) {
        l->cert = encl_link_cache_find(cache, l->der, c->links[i - 1].der, now);
        l->known = l->verified = l->cert != NULL;
    }
    return l->known ? ENCL_OK : parse(l, err);
}

static encl_result take_root(encl_chain_cert *l, const encl_root *root, encl_error *err) {
    ENCL_ENSURE(X509_up_ref(root->cert) == 1, err, ENCL_E_INTERNAL,
                "OpenSSL could not share a root certificate");
    l->cert = root->cert;
    return ENCL_OK;
}

static encl_result read_link(encl_chain *c, size_t i, const encl_root *root, encl_clock clock,
                             encl_link_cache *cache, encl_error *err) {
    encl_chain_cert *l = &c->links[i];

    set_label(l, i + 1, c->count);
    ENCL_TRY(i == 0 ? take_root(l, root, err) : take_child(c, i, clock.now, cache, err));
    set_label(l, i + 1, c->count);
    ENCL_TRY(check_one(c, i, clock, err));
    c->until = earlier(c->until, l->not_after);
    return i == 0 ? ENCL_OK : check_issuer(l, &c->links[i - 1], err);
}

encl_result encl_chain_read(encl_chain *c, const encl_attestation *a, encl_root root,
                            encl_clock clock, encl_link_cache *cache, encl_error *err) {
    *c = (encl_chain){.until = INT64_MAX};
    gather(c, a, root.der);
    for (size_t i = 0; i < c->count; i++) {
        ENCL_TRY(read_link(c, i, &root, clock, cache, err));
    }
    return ENCL_OK;
}

/* Threads may do this for different links at once: it writes into its own link alone, and what it
 * reads does not change any more once the chain has been read. */
bool encl_chain_verify_link(encl_chain *c, size_t i) {
    encl_chain_cert *l = &c->links[i];

    l->verified = X509_verify(l->cert, X509_get0_pubkey(c->links[i - 1].cert)) == 1;
    return l->verified;
}

encl_result encl_chain_settle(const encl_chain *c, encl_link_cache *cache, encl_error *err) {
    for (size_t i = 1; i < c->count; i++) {
        const encl_chain_cert *l = &c->links[i], *issuer = &c->links[i - 1];

        ENCL_ENSURE(l->verified, err, ENCL_E_CERTIFICATE,
                    "%s: its signature does not verify with the key of %s", l->label,
                    issuer->label);
        if (cache != NULL && !l->known) {
            encl_link_cache_put(cache, l->der, issuer->der, l->cert,
                                earlier(l->not_after, issuer->not_after));
        }
    }
    return ENCL_OK;
}

EVP_PKEY *encl_chain_leaf_key(const encl_chain *c) {
    return X509_get0_pubkey(c->links[c->count - 1].cert);
}

void encl_chain_release(encl_chain *c) {
    for (size_t i = 0; i < c->count; i++) {
        X509_free(c->links[i].cert);
    }
}

encl_result encl_chain_parse_root(encl_slice root, X509 **cert, encl_error *err) {
    encl_chain_cert l = {.der = root};
    encl_code rc;

    *cert = NULL;
    set_label(&l, 1, 1);
    ENCL_TRY_GOTO(parse(&l, err), failed);
    set_label(&l, 1, 1);
    ENCL_TRY_GOTO(check_form(&l, err), failed);
    ENCL_TRY_GOTO(check_key(&l, err), failed);
    ENCL_TRY_GOTO(check_extensions(&l, err), failed);
    ENCL_TRY_GOTO(check_ca(&l, err), failed);
    *cert = l.cert;
    return ENCL_OK;
failed:
    X509_free(l.cert);
    return rc;
}
