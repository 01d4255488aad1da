#include "attest_oracle.h"

#include <openssl/ecdsa.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "attest_sign.h"

#define LABEL_ALG    1
#define LABEL_CRIT   2
#define ES384        34 /* -35 = -1 - 34 */
#define CHAIN_MAX    (ENCL_CABUNDLE_MAX + 2)
#define SIGN1_TAG    18
#define SCALAR_BYTES 48

static bool same(encl_slice a, encl_slice b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* ---- CBOR ---- */

static void require_single_keys(const cbor_node *map) {
    for (const cbor_node *a = map->child; a != NULL; a = a->next->next) {
        for (const cbor_node *b = a->next->next; b != NULL; b = b->next->next) {
            REQUIRE(!cbor_same(a, b));
        }
    }
}

static const cbor_node *header_value(const cbor_node *map, uint64_t label) {
    for (const cbor_node *k = map->child; k != NULL; k = k->next->next) {
        if (k->major == CBOR_UINT && k->value == label) {
            return k->next;
        }
    }
    return NULL;
}

static void require_headers(const cose_parts *parts, bool debug) {
    const cbor_node *outer = parts->unprotected, *inner, *alg;

    REQUIRE(outer->major == CBOR_MAP && header_value(outer, LABEL_CRIT) == NULL);
    require_single_keys(outer);
    if (debug) {
        return;
    }
    inner = cbor_parse_all(parts->protected_header->bytes);
    REQUIRE(inner != NULL && inner->major == CBOR_MAP);
    require_single_keys(inner);
    alg = header_value(inner, LABEL_ALG);
    REQUIRE(alg != NULL && alg->major == CBOR_NEGINT && alg->value == ES384);
    REQUIRE(header_value(inner, LABEL_CRIT) == NULL);
    for (const cbor_node *k = inner->child; k != NULL; k = k->next->next) {
        for (const cbor_node *o = outer->child; o != NULL; o = o->next->next) {
            REQUIRE(!cbor_same(k, o));
        }
    }
}

/* NULL where the key is missing; a type other than wanted ends the run. */
static const cbor_node *field(const cbor_node *payload, const char *key, uint8_t major) {
    cbor_node *value;

    REQUIRE(cbor_lookup(payload, key, &value) <= 1);
    if (value != NULL && major == CBOR_BYTES && value->major == CBOR_SIMPLE && value->width == 0 &&
        value->value == 22) {
        return NULL; /* null counts as absent */
    }
    REQUIRE(value == NULL || value->major == major);
    REQUIRE(value == NULL || (major != CBOR_BYTES && major != CBOR_TEXT) || !value->indefinite);
    return value;
}

static void require_length(const cbor_node *string, size_t min, size_t max) {
    REQUIRE(string->bytes.len >= min && string->bytes.len <= max);
}

static const cbor_node *pcr_of(const cbor_node *pcrs, uint64_t index) {
    return pcrs == NULL ? NULL : header_value(pcrs, index);
}

static void require_pcr_forms(const cbor_node *pcrs) {
    require_single_keys(pcrs);
    for (const cbor_node *k = pcrs->child; k != NULL; k = k->next->next) {
        size_t len = k->next->bytes.len;

        REQUIRE(k->major == CBOR_UINT && k->value < 32);
        REQUIRE(k->next->major == CBOR_BYTES && !k->next->indefinite);
        REQUIRE(len == 32 || len == 48 || len == 64);
    }
}

static bool all_zero(encl_slice bytes) {
    for (size_t i = 0; i < bytes.len; i++) {
        if (bytes.data[i] != 0) {
            return false;
        }
    }
    return true;
}

static void require_pcrs(const cbor_node *pcrs, const attest_rules *rules) {
    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        const cbor_node *pcr = pcr_of(pcrs, i);

        REQUIRE(pcr != NULL || rules->debug);
        if (rules->pins != NULL && pcr != NULL) {
            const encl_pcr *pin = &rules->pins->pcr[i];

            REQUIRE(same(pcr->bytes, ENCL_SLICE(pin->value, pin->len)));
        }
        REQUIRE(rules->debug || !all_zero(pcr->bytes));
    }
    for (size_t i = ENCL_PINNED_PCRS; rules->pins != NULL && i < ENCL_PCR_SLOTS; i++) {
        const encl_pcr *pin = &rules->pins->pcr[i];
        const cbor_node *pcr = pcr_of(pcrs, i);

        REQUIRE(pin->len == 0 || pcr != NULL || rules->debug);
        REQUIRE(pin->len == 0 || pcr == NULL || same(pcr->bytes, ENCL_SLICE(pin->value, pin->len)));
    }
}

static void require_nonce(const cbor_node *payload, const attest_rules *rules) {
    const cbor_node *nonce = field(payload, "nonce", CBOR_BYTES);

    if (rules->nonce.data != NULL) {
        REQUIRE(nonce != NULL && same(nonce->bytes, rules->nonce));
    }
}

static void require_production_fields(const cbor_node *payload) {
    const cbor_node *module = field(payload, "module_id", CBOR_TEXT);
    const cbor_node *digest = field(payload, "digest", CBOR_TEXT);
    const cbor_node *timestamp = field(payload, "timestamp", CBOR_UINT);
    const cbor_node *certificate = field(payload, "certificate", CBOR_BYTES);
    const cbor_node *bundle = field(payload, "cabundle", CBOR_ARRAY);
    const cbor_node *key = field(payload, "public_key", CBOR_BYTES);
    const cbor_node *data = field(payload, "user_data", CBOR_BYTES);

    REQUIRE(module != NULL && module->bytes.len != 0);
    REQUIRE(digest != NULL && cbor_is_text(digest, "SHA384"));
    REQUIRE(timestamp != NULL && timestamp->value != 0 &&
            timestamp->value <= UINT64_C(253402300799999));
    REQUIRE(certificate != NULL && bundle != NULL && bundle->child != NULL);
    require_length(certificate, 1, ENCL_CERT_MAX_BYTES);
    for (const cbor_node *c = bundle->child; c != NULL; c = c->next) {
        REQUIRE(c->major == CBOR_BYTES && !c->indefinite);
        require_length(c, 1, ENCL_CERT_MAX_BYTES);
    }
    REQUIRE(key == NULL || (key->bytes.len >= 1 && key->bytes.len <= 1024));
    REQUIRE(data == NULL || data->bytes.len <= 1024);
}

/* ---- certificates ---- */

static X509 *read_certificate(encl_slice der) {
    const uint8_t *at = der.data;
    X509 *cert = d2i_X509(NULL, &at, (long)der.len);

    REQUIRE(cert != NULL && at == der.data + der.len);
    return cert;
}

/* The one encoding of a P-384 key: the named curve, an uncompressed point. */
static void require_key(const X509 *cert) {
    static const uint8_t head[] = {0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86,
                                   0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
                                   0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04};
    uint8_t *spki = NULL;
    int len = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(cert), &spki);

    REQUIRE(len == 120 && memcmp(spki, head, sizeof head) == 0);
    OPENSSL_free(spki);
}

static void require_algorithm(const X509 *cert) {
    REQUIRE(X509_get_signature_nid(cert) == NID_ecdsa_with_SHA384);
    REQUIRE(X509_get_version(cert) == X509_VERSION_3);
}

static void require_known_extensions(const X509 *cert) {
    for (int i = 0; i < X509_get_ext_count(cert); i++) {
        X509_EXTENSION *extension = X509_get_ext(cert, i);
        int nid = OBJ_obj2nid(X509_EXTENSION_get_object(extension));

        REQUIRE(X509_EXTENSION_get_critical(extension) == 0 || nid == NID_basic_constraints ||
                nid == NID_key_usage);
    }
}

/* X509_cmp_time takes the two forms of RFC 5280 alone, and says -1 where both are equal. */
static void require_valid_at(const X509 *cert, int64_t now) {
    time_t at = now, before = now - 1;

    REQUIRE(X509_cmp_time(X509_get0_notBefore(cert), &at) < 0);
    REQUIRE(X509_cmp_time(X509_get0_notAfter(cert), &before) > 0);
}

static void require_usage(const X509 *cert, int bit) {
    int found = 0;
    ASN1_BIT_STRING *usage = X509_get_ext_d2i(cert, NID_key_usage, &found, NULL);

    REQUIRE(usage != NULL && ASN1_BIT_STRING_get_bit(usage, bit) == 1);
    ASN1_BIT_STRING_free(usage);
}

/* cas_below: how many CAs come between it and the leaf; -1 for the leaf itself. */
static void require_constraints(const X509 *cert, long cas_below) {
    int found = 0;
    BASIC_CONSTRAINTS *limits = X509_get_ext_d2i(cert, NID_basic_constraints, &found, NULL);

    REQUIRE(limits != NULL || found == -1); /* neither twice nor unreadable */
    if (cas_below < 0) {
        REQUIRE(limits == NULL || limits->ca == 0);
    } else {
        REQUIRE(limits != NULL && limits->ca != 0);
        REQUIRE(limits->pathlen == NULL || ASN1_INTEGER_get(limits->pathlen) >= cas_below);
    }
    BASIC_CONSTRAINTS_free(limits);
}

static void require_certificate(const X509 *cert, long cas_below) {
    require_key(cert);
    require_algorithm(cert);
    require_known_extensions(cert);
    require_constraints(cert, cas_below);
    require_usage(cert, cas_below < 0 ? 0 : 5);
}

static void require_issued(X509 *child, const X509 *issuer) {
    const X509_ALGOR *outer = NULL;

    X509_get0_signature(NULL, &outer, child);
    REQUIRE(X509_ALGOR_cmp(outer, X509_get0_tbs_sigalg(child)) == 0);
    REQUIRE(X509_NAME_cmp(X509_get_issuer_name(child), X509_get_subject_name(issuer)) == 0);
    REQUIRE(X509_verify(child, X509_get0_pubkey(issuer)) == 1);
}

static size_t gather(const cbor_node *payload, encl_slice root, X509 *chain[CHAIN_MAX]) {
    const cbor_node *c = field(payload, "cabundle", CBOR_ARRAY)->child;
    size_t n = 0;

    chain[n++] = read_certificate(root);
    if (same(c->bytes, root)) {
        c = c->next;
    }
    for (; c != NULL; c = c->next) {
        REQUIRE(n < CHAIN_MAX - 1);
        chain[n++] = read_certificate(c->bytes);
    }
    chain[n++] = read_certificate(field(payload, "certificate", CBOR_BYTES)->bytes);
    return n;
}

static void require_signature(const cose_parts *parts, X509 *leaf) {
    encl_slice message = cose_signed_bytes(parts->protected_header->bytes, parts->payload->bytes);
    const uint8_t *raw = parts->signature->bytes.data;
    ECDSA_SIG *sig = ECDSA_SIG_new();
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    uint8_t *der = NULL;
    int len;

    REQUIRE(parts->signature->bytes.len == (size_t)2 * SCALAR_BYTES && sig != NULL && ctx != NULL);
    REQUIRE(ECDSA_SIG_set0(sig, BN_bin2bn(raw, SCALAR_BYTES, NULL),
                           BN_bin2bn(raw + SCALAR_BYTES, SCALAR_BYTES, NULL)) == 1);
    len = i2d_ECDSA_SIG(sig, &der);
    REQUIRE(len > 0);
    REQUIRE(EVP_DigestVerifyInit(ctx, NULL, EVP_sha384(), NULL, X509_get0_pubkey(leaf)) == 1);
    REQUIRE(EVP_DigestVerify(ctx, der, (size_t)len, message.data, message.len) == 1);
    OPENSSL_free(der);
    EVP_MD_CTX_free(ctx);
    ECDSA_SIG_free(sig);
}

static void require_chain(const cose_parts *parts, const cbor_node *payload,
                          const attest_rules *rules) {
    X509 *chain[CHAIN_MAX];
    size_t n = gather(payload, rules->root, chain);

    for (size_t i = 0; i < n; i++) {
        require_certificate(chain[i], (long)n - 2 - (long)i);
        require_valid_at(chain[i], rules->now);
        if (i != 0) {
            require_issued(chain[i], chain[i - 1]);
        }
    }
    require_signature(parts, chain[n - 1]);
    for (size_t i = 0; i < n; i++) {
        X509_free(chain[i]);
    }
}

/* ---- all of it ---- */

void attest_require(encl_slice document, const attest_rules *rules) {
    cose_parts parts;
    const cbor_node *payload, *pcrs;

    if (rules->debug && same(document, rules->nonce)) {
        return; /* the stub */
    }
    REQUIRE(cose_take_apart(document, &parts));
    REQUIRE(parts.root->major != CBOR_TAG || parts.root->value == SIGN1_TAG);
    REQUIRE(!parts.protected_header->indefinite && !parts.payload->indefinite);
    require_headers(&parts, rules->debug);
    payload = cbor_parse_all(parts.payload->bytes);
    REQUIRE(payload != NULL && payload->major == CBOR_MAP);
    require_single_keys(payload);
    pcrs = field(payload, "pcrs", CBOR_MAP);
    REQUIRE(pcrs != NULL || rules->debug);
    if (pcrs != NULL) {
        require_pcr_forms(pcrs);
    }
    require_pcrs(pcrs, rules);
    require_nonce(payload, rules);
    if (!rules->debug) {
        require_production_fields(payload);
        require_chain(&parts, payload, rules);
    }
}

void attest_require_root(encl_slice der) {
    X509 *cert = read_certificate(der);

    REQUIRE(der.len <= ENCL_CERT_MAX_BYTES);
    require_certificate(cert, 0);
    X509_free(cert);
}
