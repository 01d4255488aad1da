/* Decides whether bytes are a COSE_Sign1 (RFC 9052) around an attestation document's map, and where
 * its fields lie. Strings of indefinite length, duplicate keys and trailing bytes are refused;
 * unknown keys are skipped. Calls cbor; nothing here verifies anything. */
#include <stdlib.h>
#include <string.h>

#include "attest/internal.h"
#include "attest/keys.h"
#include "base/slice.h"

#define COSE_SIGN1_TAG      18
#define COSE_LABEL_ALG      1
#define COSE_LABEL_CRIT     2
#define COSE_ES384_ARGUMENT 34 /* -35 = -1 - 34 */

/* AWS's specification says 512 for user_data and nonce, its later text 1024: take the larger. */
#define OPTIONAL_MAX_BYTES 1024

void encl_attestation_free(encl_attestation *a) {
    if (a != NULL) {
        free(a->raw);
        free(a);
    }
}

static encl_cursor cursor_over(encl_slice bytes) {
    return (encl_cursor){
        .block = bytes.data, .len = bytes.len, .code = ENCL_E_DOCUMENT, .no_chunks = true};
}

static encl_result ensure_end(const encl_cursor *in, const char *what, encl_error *err) {
    ENCL_ENSURE(encl_cursor_left(in) == 0, err, ENCL_E_DOCUMENT,
                "%s: expected its end, got %zu more bytes", what, encl_cursor_left(in));
    return ENCL_OK;
}

static bool is_label(const encl_key *key, uint64_t label) {
    return key->kind == ENCL_TOK_UINT && key->value == label;
}

static encl_result take_alg(encl_cursor *in, bool *es384, encl_error *err) {
    encl_token value;

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_NEGATIVE, "COSE alg", &value, err));
    *es384 = value.value == COSE_ES384_ARGUMENT;
    ENCL_ENSURE(*es384, err, ENCL_E_DOCUMENT, "COSE alg: expected -35 (ES384), got another number");
    return ENCL_OK;
}

/* One map of header parameters. Both of a message share keys: RFC 9052 section 3 forbids a label
 * that is in both. */
static encl_result parse_header_map(encl_cursor *in, const char *what, encl_keys *keys, bool *es384,
                                    encl_error *err) {
    encl_token map;
    encl_entries entries;
    encl_key key;

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_MAP, what, &map, err));
    entries = encl_entries_of(&map);
    while (encl_entries_next(in, &entries)) {
        ENCL_TRY(encl_keys_next(in, keys, &key, err));
        ENCL_ENSURE(!is_label(&key, COSE_LABEL_CRIT), err, ENCL_E_DOCUMENT,
                    "%s: expected no 'crit', got one: it lists extensions that are not understood "
                    "here",
                    what);
        if (is_label(&key, COSE_LABEL_ALG)) {
            ENCL_TRY(take_alg(in, es384, err));
        } else {
            ENCL_TRY(encl_cursor_skip(in, err));
        }
    }
    return ENCL_OK;
}

static encl_result parse_protected(encl_slice header, encl_keys *keys, encl_error *err) {
    encl_cursor in = cursor_over(header);
    bool es384 = false;

    ENCL_TRY(parse_header_map(&in, "COSE protected header", keys, &es384, err));
    ENCL_ENSURE(es384, err, ENCL_E_DOCUMENT,
                "COSE protected header: expected alg -35 (ES384), got none");
    return ensure_end(&in, "COSE protected header", err);
}

static encl_result parse_sign1_array(encl_cursor *in, encl_entries *entries, encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_next(in, "a COSE_Sign1", &t, err));
    if (t.kind == ENCL_TOK_TAG) {
        ENCL_ENSURE(t.value == COSE_SIGN1_TAG, err, ENCL_E_DOCUMENT,
                    "COSE_Sign1: expected tag 18 or none, got tag %llu",
                    (unsigned long long)t.value);
        ENCL_TRY(encl_token_next(in, "a COSE_Sign1", &t, err));
    }
    ENCL_TRY(encl_token_ensure(in, &t, ENCL_TOK_ARRAY, "COSE_Sign1", err));
    *entries = encl_entries_of(&t);
    ENCL_ENSURE(entries->open_end || entries->left == 4, err, ENCL_E_DOCUMENT,
                "COSE_Sign1: expected 4 entries, got %llu", (unsigned long long)t.value);
    return ENCL_OK;
}

static encl_result end_sign1(encl_cursor *in, encl_entries *entries, encl_error *err) {
    ENCL_ENSURE(!entries->open_end || !encl_entries_next(in, entries), err, ENCL_E_DOCUMENT,
                "COSE_Sign1: expected 4 entries, got more");
    return ensure_end(in, "the document", err);
}

static encl_result parse_bytes(encl_cursor *in, const char *what, encl_slice *out,
                               encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_BYTES, what, &t, err));
    *out = encl_token_bytes(in, &t);
    return ENCL_OK;
}

/* Stand-ins sign nothing and fill the protected header as they like, so debug does not look. */
static encl_result parse_sign1(encl_cursor *in, bool debug, encl_cose *cose, encl_error *err) {
    encl_entries entries;
    encl_keys keys = {.count = 0};
    bool ignored;

    ENCL_TRY(parse_sign1_array(in, &entries, err));
    ENCL_TRY(parse_bytes(in, "COSE protected header", &cose->protected_header, err));
    if (!debug) {
        ENCL_TRY(parse_protected(cose->protected_header, &keys, err));
    }
    ENCL_TRY(parse_header_map(in, "COSE unprotected header", &keys, &ignored, err));
    ENCL_TRY(parse_bytes(in, "COSE payload", &cose->payload, err));
    ENCL_TRY(parse_bytes(in, "COSE signature", &cose->signature, err));
    ENCL_ENSURE(debug || cose->signature.len == ENCL_ES384_SIGNATURE_BYTES, err, ENCL_E_DOCUMENT,
                "COSE signature: expected %d bytes, got %zu", ENCL_ES384_SIGNATURE_BYTES,
                cose->signature.len);
    return end_sign1(in, &entries, err);
}

static encl_result check_size(encl_slice bytes, const char *what, size_t min, size_t max,
                              encl_error *err) {
    ENCL_ENSURE(bytes.len >= min && bytes.len <= max, err, ENCL_E_DOCUMENT,
                "%s: expected %zu to %zu bytes, got %zu", what, min, max, bytes.len);
    return ENCL_OK;
}

static encl_result parse_sized(encl_cursor *in, const char *what, size_t min, size_t max,
                               encl_slice *out, encl_error *err) {
    ENCL_TRY(parse_bytes(in, what, out, err));
    return check_size(*out, what, min, max, err);
}

/* Null stands for none: *out stays as it was. */
static encl_result parse_optional(encl_cursor *in, const char *what, size_t min, encl_slice *out,
                                  encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_next(in, what, &t, err));
    if (t.kind == ENCL_TOK_NULL) {
        return ENCL_OK;
    }
    ENCL_TRY(encl_token_ensure(in, &t, ENCL_TOK_BYTES, what, err));
    *out = encl_token_bytes(in, &t);
    return check_size(*out, what, min, OPTIONAL_MAX_BYTES, err);
}

static encl_result parse_module_id(encl_cursor *in, bool debug, encl_attestation *a,
                                   encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_TEXT, "module_id", &t, err));
    ENCL_ENSURE(debug || t.len != 0, err, ENCL_E_DOCUMENT,
                "module_id: expected a text, got an empty one");
    a->module_id = encl_token_bytes(in, &t);
    return ENCL_OK;
}

static encl_result parse_digest(encl_cursor *in, bool debug, encl_attestation *a, encl_error *err) {
    encl_token t;

    (void)a;
    ENCL_TRY(encl_token_expect(in, ENCL_TOK_TEXT, "digest", &t, err));
    ENCL_ENSURE(debug || encl_slice_equal(encl_token_bytes(in, &t), ENCL_SLICE("SHA384", 6)), err,
                ENCL_E_DOCUMENT, "digest: expected SHA384, got another text");
    return ENCL_OK;
}

/* 9999-12-31T23:59:59.999Z: a time that every reader of a document can hold. */
#define TIMESTAMP_MAX_MS UINT64_C(253402300799999)

static encl_result parse_timestamp(encl_cursor *in, bool debug, encl_attestation *a,
                                   encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_UINT, "timestamp", &t, err));
    ENCL_ENSURE(debug || t.value != 0, err, ENCL_E_DOCUMENT,
                "timestamp: expected milliseconds above 0, got 0");
    ENCL_ENSURE(t.value <= TIMESTAMP_MAX_MS, err, ENCL_E_DOCUMENT,
                "timestamp: expected milliseconds up to the end of the year 9999, got %llu",
                (unsigned long long)t.value);
    a->timestamp_ms = t.value;
    return ENCL_OK;
}

static encl_result parse_pcr(encl_cursor *in, encl_keys *keys, encl_attestation *a,
                             encl_error *err) {
    encl_key key;
    encl_slice value;

    ENCL_TRY(encl_keys_next(in, keys, &key, err));
    ENCL_ENSURE(key.kind == ENCL_TOK_UINT && key.value < ENCL_PCR_SLOTS, err, ENCL_E_DOCUMENT,
                "pcrs: expected an index from 0 to %d, got another key", ENCL_PCR_SLOTS - 1);
    ENCL_TRY(parse_bytes(in, "a PCR", &value, err));
    ENCL_ENSURE(value.len == 32 || value.len == 48 || value.len == 64, err, ENCL_E_DOCUMENT,
                "PCR%llu: expected 32, 48 or 64 bytes, got %zu", (unsigned long long)key.value,
                value.len);
    a->pcrs[key.value].len = (uint8_t)value.len;
    memcpy(a->pcrs[key.value].value, value.data, value.len);
    return ENCL_OK;
}

static encl_result parse_pcrs(encl_cursor *in, bool debug, encl_attestation *a, encl_error *err) {
    encl_token map;
    encl_entries entries;
    encl_keys keys = {.count = 0};

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_MAP, "pcrs", &map, err));
    entries = encl_entries_of(&map);
    while (encl_entries_next(in, &entries)) {
        ENCL_TRY(parse_pcr(in, &keys, a, err));
    }
    ENCL_ENSURE(debug || keys.count != 0, err, ENCL_E_DOCUMENT,
                "pcrs: expected 1 to %d entries, got none", ENCL_PCR_SLOTS);
    return ENCL_OK;
}

static encl_result parse_certificate(encl_cursor *in, bool debug, encl_attestation *a,
                                     encl_error *err) {
    return parse_sized(in, "certificate", debug ? 0 : 1, ENCL_CERT_MAX_BYTES, &a->certificate, err);
}

static encl_result parse_cabundle(encl_cursor *in, bool debug, encl_attestation *a,
                                  encl_error *err) {
    encl_token array;
    encl_entries entries;

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_ARRAY, "cabundle", &array, err));
    entries = encl_entries_of(&array);
    while (encl_entries_next(in, &entries)) {
        ENCL_ENSURE(a->cabundle_len < ENCL_CABUNDLE_MAX, err, ENCL_E_DOCUMENT,
                    "cabundle: expected at most %d certificates, got more", ENCL_CABUNDLE_MAX);
        ENCL_TRY(parse_sized(in, "a certificate of the cabundle", debug ? 0 : 1,
                             ENCL_CERT_MAX_BYTES, &a->cabundle[a->cabundle_len++], err));
    }
    ENCL_ENSURE(debug || a->cabundle_len != 0, err, ENCL_E_DOCUMENT,
                "cabundle: expected at least one certificate, got none");
    return ENCL_OK;
}

static encl_result parse_public_key(encl_cursor *in, bool debug, encl_attestation *a,
                                    encl_error *err) {
    return parse_optional(in, "public_key", debug ? 0 : 1, &a->public_key, err);
}

static encl_result parse_user_data(encl_cursor *in, bool debug, encl_attestation *a,
                                   encl_error *err) {
    (void)debug;
    return parse_optional(in, "user_data", 0, &a->user_data, err);
}

static encl_result parse_nonce(encl_cursor *in, bool debug, encl_attestation *a, encl_error *err) {
    (void)debug;
    return parse_optional(in, "nonce", 0, &a->nonce, err);
}

typedef encl_code (*field_parser)(encl_cursor *in, bool debug, encl_attestation *a,
                                  encl_error *err);

static const struct field {
    const char *name;
    field_parser parse;
    bool required;
} fields[] = {
    {"module_id", parse_module_id, true},
    {"digest", parse_digest, true},
    {"timestamp", parse_timestamp, true},
    {"pcrs", parse_pcrs, true},
    {"certificate", parse_certificate, true},
    {"cabundle", parse_cabundle, true},
    {"public_key", parse_public_key, false},
    {"user_data", parse_user_data, false},
    {"nonce", parse_nonce, false},
};
#define FIELD_COUNT (sizeof fields / sizeof *fields)

/* FIELD_COUNT where the key is none of ours. A number as a key has no text, and no field has an
 * empty name. */
static size_t find_field(const encl_key *key) {
    size_t i = 0;

    while (i < FIELD_COUNT &&
           !encl_slice_equal(key->text, ENCL_SLICE(fields[i].name, strlen(fields[i].name)))) {
        i++;
    }
    return i;
}

static encl_result parse_fields(encl_cursor *in, bool debug, encl_attestation *a,
                                bool seen[FIELD_COUNT], encl_error *err) {
    encl_token map;
    encl_entries entries;
    encl_keys keys = {.count = 0};

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_MAP, "the document", &map, err));
    entries = encl_entries_of(&map);
    while (encl_entries_next(in, &entries)) {
        encl_key key;
        size_t i;

        ENCL_TRY(encl_keys_next(in, &keys, &key, err));
        i = find_field(&key);
        if (i == FIELD_COUNT) {
            ENCL_TRY(encl_cursor_skip(in, err));
        } else {
            seen[i] = true;
            ENCL_TRY(fields[i].parse(in, debug, a, err));
        }
    }
    return ENCL_OK;
}

static encl_result parse_payload(encl_slice payload, bool debug, encl_attestation *a,
                                 encl_error *err) {
    bool seen[FIELD_COUNT] = {false};
    encl_cursor in = cursor_over(payload);

    ENCL_TRY(parse_fields(&in, debug, a, seen, err));
    ENCL_TRY(ensure_end(&in, "the payload", err));
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        ENCL_ENSURE(debug || seen[i] || !fields[i].required, err, ENCL_E_DOCUMENT,
                    "the document: expected a field %s, got none", fields[i].name);
    }
    return ENCL_OK;
}

static encl_result own_copy(encl_slice document, encl_attestation *a, encl_error *err) {
    ENCL_ENSURE(document.len != 0, err, ENCL_E_DOCUMENT, "the document is empty");
    ENCL_ENSURE(document.len <= ENCL_DOCUMENT_MAX_BYTES, err, ENCL_E_DOCUMENT,
                "the document: expected at most %d bytes, got %zu", ENCL_DOCUMENT_MAX_BYTES,
                document.len);
    a->raw = malloc(document.len);
    ENCL_ENSURE(a->raw != NULL, err, ENCL_E_NOMEM, "out of memory for a document");
    memcpy(a->raw, document.data, document.len);
    a->raw_len = document.len;
    return ENCL_OK;
}

encl_result encl_document_parse(encl_slice document, bool debug, encl_attestation *a,
                                encl_cose *cose, encl_error *err) {
    encl_cursor in;

    ENCL_TRY(own_copy(document, a, err));
    in = cursor_over(ENCL_SLICE(a->raw, a->raw_len));
    ENCL_TRY(parse_sign1(&in, debug, cose, err));
    return parse_payload(cose->payload, debug, a, err);
}
