#include "attest_sign.h"

#include <openssl/ecdsa.h>
#include <openssl/x509.h>

#include "attest_root.h"
#include "der_tree.h"

#define CHAIN_MAX     32
#define SCALAR_BYTES  48
#define SIGNATURE_MAX 512

bool cose_take_apart(encl_slice document, cose_parts *parts) {
    cbor_node *array = cbor_parse_all(document);

    memset(parts, 0, sizeof *parts);
    parts->root = array;
    if (array != NULL && array->major == CBOR_TAG) {
        array = array->child;
    }
    if (array == NULL || array->major != CBOR_ARRAY || cbor_count(array) != 4) {
        return false;
    }
    parts->protected_header = cbor_at(array, 0);
    parts->unprotected = cbor_at(array, 1);
    parts->payload = cbor_at(array, 2);
    parts->signature = cbor_at(array, 3);
    return parts->protected_header->major == CBOR_BYTES && parts->payload->major == CBOR_BYTES &&
           parts->signature->major == CBOR_BYTES;
}

encl_slice cose_signed_bytes(encl_slice protected_header, encl_slice payload) {
    cbor_node *all = cbor_new(CBOR_ARRAY, 0);
    cbor_node *context = cbor_new_string(CBOR_TEXT, ENCL_SLICE("Signature1", 10));
    cbor_node *header = cbor_new_string(CBOR_BYTES, protected_header);
    cbor_node *external = cbor_new_string(CBOR_BYTES, ENCL_SLICE_NONE);
    cbor_node *body = cbor_new_string(CBOR_BYTES, payload);

    REQUIRE(all != NULL && context != NULL && header != NULL && external != NULL && body != NULL);
    all->child = context;
    context->next = header;
    header->next = external;
    external->next = body;
    return cbor_write(all);
}

/* ---- keys ---- */

static EVP_PKEY *private_key(size_t i) {
    static EVP_PKEY *keys[ATTEST_KEYS];
    const uint8_t *at = attest_keys[i].secret.data;

    if (keys[i] == NULL) {
        keys[i] = d2i_AutoPrivateKey(NULL, &at, (long)attest_keys[i].secret.len);
        REQUIRE(keys[i] != NULL);
    }
    return keys[i];
}

void attest_offer_keys(void) {
    static encl_slice offered[ATTEST_KEYS];

    for (size_t i = 0; i < ATTEST_KEYS; i++) {
        offered[i] = attest_keys[i].spki;
    }
    fuzz_der_offer_keys(offered, ATTEST_KEYS);
}

/* Whose public key a certificate carries, however broken the rest of it is. */
static EVP_PKEY *key_of(encl_slice certificate) {
    for (size_t i = 0; i < ATTEST_KEYS; i++) {
        encl_slice spki = attest_keys[i].spki;

        if (certificate.len >= spki.len &&
            memmem(certificate.data, certificate.len, spki.data, spki.len) != NULL) {
            return private_key(i);
        }
    }
    return NULL;
}

static encl_slice sign(EVP_PKEY *key, const EVP_MD *digest, encl_slice message) {
    size_t len = SIGNATURE_MAX;
    uint8_t *out = fuzz_arena_take(len);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool good = out != NULL && ctx != NULL &&
                EVP_DigestSignInit(ctx, NULL, digest, NULL, key) == 1 &&
                EVP_DigestSign(ctx, out, &len, message.data, message.len) == 1;

    EVP_MD_CTX_free(ctx);
    return good ? ENCL_SLICE(out, len) : ENCL_SLICE_NONE;
}

/* ---- certificates ---- */

/* ecdsa-with-SHA256, -384 or -512 by the last arc: a weak algorithm is then used as announced. */
static const EVP_MD *digest_of(const der_node *certificate) {
    const der_node *oid = der_at(der_at(certificate, 1), 0);
    uint8_t arc = oid == NULL || oid->bytes.len == 0 ? 0 : oid->bytes.data[oid->bytes.len - 1];

    return arc == 2 ? EVP_sha256() : arc == 4 ? EVP_sha512() : EVP_sha384();
}

static void take_name(const der_node *child, encl_slice issuer) {
    const der_node *from = der_part_of(der_parse(issuer), DER_SUBJECT);
    der_node *to = der_part_of(child, DER_ISSUER), *copy = from == NULL ? NULL : der_copy(from);

    if (to != NULL && copy != NULL) {
        copy->next = to->next;
        *to = *copy;
    }
}

static encl_slice sign_certificate(encl_slice der, encl_slice issuer, bool heal) {
    der_node *certificate = der_parse(der), *body = der_signed_part(certificate);
    der_node *signature = der_at(certificate, 2);
    EVP_PKEY *key = key_of(issuer);
    encl_slice raw;
    uint8_t *bits;

    if (body == NULL || signature == NULL || key == NULL) {
        return der;
    }
    if (heal) {
        take_name(certificate, issuer);
    }
    raw = sign(key, digest_of(certificate), der_write(body));
    bits = fuzz_arena_take(raw.len + 1);
    if (raw.len == 0 || bits == NULL) {
        return der;
    }
    bits[0] = 0;
    memcpy(bits + 1, raw.data, raw.len);
    signature->bytes = ENCL_SLICE(bits, raw.len + 1);
    signature->open = false;
    return der_write(certificate);
}

static bool was_in(encl_slice before, encl_slice bytes) {
    return bytes.len != 0 && before.len >= bytes.len &&
           memmem(before.data, before.len, bytes.data, bytes.len) != NULL;
}

/* Root first, the leaf last; only whole byte strings. */
static size_t chain_of(const cbor_node *payload, cbor_node *chain[CHAIN_MAX]) {
    cbor_node *bundle, *leaf;
    size_t n = 0;

    (void)cbor_lookup(payload, "cabundle", &bundle);
    (void)cbor_lookup(payload, "certificate", &leaf);
    if (bundle == NULL || leaf == NULL || bundle->major != CBOR_ARRAY) {
        return 0;
    }
    for (cbor_node *c = bundle->child; c != NULL && n < CHAIN_MAX - 1; c = c->next) {
        chain[n++] = c;
    }
    chain[n++] = leaf;
    return n;
}

static void sign_chain(const cbor_node *payload, encl_slice before, fuzz_random *r) {
    cbor_node *chain[CHAIN_MAX];
    size_t count = chain_of(payload, chain);
    encl_slice issuer = ENCL_SLICE(attest_root, sizeof attest_root);
    bool heal = fuzz_one_in(r, 2), issuer_known = true;

    for (size_t i = 0; i < count; i++) {
        encl_slice der = chain[i]->bytes;
        bool root = i == 0 && der.len == issuer.len && memcmp(der.data, issuer.data, der.len) == 0;
        bool known = was_in(before, der);

        if (!root && chain[i]->major == CBOR_BYTES && (!known || !issuer_known)) {
            chain[i]->bytes = sign_certificate(der, issuer, heal);
        }
        issuer = chain[i]->bytes;
        issuer_known = known;
    }
}

/* ---- the document ---- */

static encl_slice raw_signature(encl_slice der) {
    const uint8_t *at = der.data;
    ECDSA_SIG *sig = d2i_ECDSA_SIG(NULL, &at, (long)der.len);
    uint8_t *raw = fuzz_arena_take((size_t)2 * SCALAR_BYTES);
    bool good =
        sig != NULL && raw != NULL &&
        BN_bn2binpad(ECDSA_SIG_get0_r(sig), raw, SCALAR_BYTES) == SCALAR_BYTES &&
        BN_bn2binpad(ECDSA_SIG_get0_s(sig), raw + SCALAR_BYTES, SCALAR_BYTES) == SCALAR_BYTES;

    ECDSA_SIG_free(sig);
    return good ? ENCL_SLICE(raw, (size_t)2 * SCALAR_BYTES) : ENCL_SLICE_NONE;
}

static EVP_PKEY *leaf_key(const cbor_node *payload) {
    cbor_node *leaf = NULL;
    EVP_PKEY *key = NULL;

    if (cbor_lookup(payload, "certificate", &leaf) != 0 && leaf->major == CBOR_BYTES) {
        key = key_of(leaf->bytes);
    }
    if (key == NULL || EVP_PKEY_get_base_id(key) != EVP_PKEY_EC) {
        key = private_key(ATTEST_LEAF_KEY);
    }
    return key;
}

encl_slice attest_sign_anew(encl_slice document, encl_slice before, fuzz_random *r) {
    cose_parts parts;
    cbor_node *payload;
    encl_slice signature, body, header;

    if (!cose_take_apart(document, &parts)) {
        return ENCL_SLICE_NONE;
    }
    body = cbor_bytes(parts.payload);
    header = cbor_bytes(parts.protected_header);
    payload = cbor_parse_all(body);
    if (payload == NULL || payload->major != CBOR_MAP) {
        return ENCL_SLICE_NONE;
    }
    sign_chain(payload, before, r);
    body = cbor_write(payload);
    signature =
        raw_signature(sign(leaf_key(payload), EVP_sha384(), cose_signed_bytes(header, body)));
    if (body.len == 0 || signature.len == 0) {
        return ENCL_SLICE_NONE;
    }
    if (!parts.payload->indefinite) {
        parts.payload->bytes = body;
    }
    if (!parts.signature->indefinite && parts.signature->bytes.len == signature.len) {
        parts.signature->bytes = signature;
    }
    return cbor_write(parts.root);
}
