/* COSE_Sign1 and the attestation document's map. Chunked strings, duplicate keys and trailing bytes
 * are refused; unknown keys are skipped. */
#include <stdlib.h>
#include <string.h>

#include "attest/internal.h"
#include "attest/reader.h"

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

static bool is_label(const encl_item *key, uint64_t label) {
    return key->type == ENCL_ITEM_UINT && key->value == label;
}

/* One map of header parameters; both of a message share keys, since RFC 9052 section 3 forbids a
 * label in both. */
static encl_result parse_header_map(encl_buf *in, const char *what, encl_keys *keys, bool *es384,
                                    encl_error *err) {
    encl_item map, key, value;
    encl_entries entries;
    bool more;

    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_MAP, what, &map, err));
    entries = encl_entries_of(&map);
    for (;;) {
        ENCL_TRY(encl_entries_next(in, &entries, &more, err));
        if (!more) {
            return ENCL_OK;
        }
        ENCL_TRY(encl_keys_next(in, keys, &key, err));
        ENCL_ENSURE(!is_label(&key, COSE_LABEL_CRIT), err, ENCL_E_DOCUMENT,
                    "%s: 'crit' lists extensions that are not understood here", what);
        if (is_label(&key, COSE_LABEL_ALG)) {
            ENCL_TRY(encl_item_expect(in, ENCL_ITEM_NEGINT, "COSE alg", &value, err));
            *es384 = value.value == COSE_ES384_ARGUMENT;
            ENCL_ENSURE(*es384, err, ENCL_E_DOCUMENT,
                        "COSE alg: expected -35 (ES384), came another number");
        } else {
            ENCL_TRY(encl_item_skip(in, err));
        }
    }
}

static encl_result parse_protected(encl_slice header, encl_keys *keys, encl_error *err) {
    encl_buf in;
    bool es384 = false;

    encl_buf_wrap_read(&in, header);
    ENCL_TRY(parse_header_map(&in, "COSE protected header", keys, &es384, err));
    ENCL_ENSURE(es384, err, ENCL_E_DOCUMENT,
                "COSE protected header: expected alg -35 (ES384), came none");
    ENCL_ENSURE(encl_buf_readable(&in) == 0, err, ENCL_E_DOCUMENT,
                "COSE protected header: %zu bytes after its end", encl_buf_readable(&in));
    return ENCL_OK;
}

static encl_result parse_sign1_array(encl_buf *in, encl_entries *entries, encl_error *err) {
    encl_item item;

    ENCL_TRY(encl_item_next(in, &item, err));
    if (item.type == ENCL_ITEM_TAG) {
        ENCL_ENSURE(item.value == COSE_SIGN1_TAG, err, ENCL_E_DOCUMENT,
                    "COSE_Sign1: expected tag 18 or none, came tag %llu",
                    (unsigned long long)item.value);
        ENCL_TRY(encl_item_next(in, &item, err));
    }
    ENCL_ENSURE(item.type == ENCL_ITEM_ARRAY, err, ENCL_E_DOCUMENT,
                "COSE_Sign1: expected an array, came something else");
    ENCL_ENSURE(item.indefinite || item.value == 4, err, ENCL_E_DOCUMENT,
                "COSE_Sign1: expected 4 entries, came %llu", (unsigned long long)item.value);
    *entries = encl_entries_of(&item);
    return ENCL_OK;
}

static encl_result end_sign1(encl_buf *in, encl_entries *entries, encl_error *err) {
    bool more = false;

    if (entries->indefinite) {
        ENCL_TRY(encl_entries_next(in, entries, &more, err));
    }
    ENCL_ENSURE(!more, err, ENCL_E_DOCUMENT, "COSE_Sign1: expected 4 entries, came more");
    ENCL_ENSURE(encl_buf_readable(in) == 0, err, ENCL_E_DOCUMENT,
                "the document has %zu bytes after its end", encl_buf_readable(in));
    return ENCL_OK;
}

/* Stand-ins sign nothing and fill the protected header as they like, so debug does not look. */
static encl_result parse_sign1(encl_buf *in, bool debug, encl_cose *cose, encl_error *err) {
    encl_entries entries;
    encl_item item;
    encl_keys keys = {.count = 0};
    bool ignored;

    ENCL_TRY(parse_sign1_array(in, &entries, err));
    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_BYTES, "COSE protected header", &item, err));
    cose->protected_header = item.bytes;
    if (!debug) {
        ENCL_TRY(parse_protected(item.bytes, &keys, err));
    }
    ENCL_TRY(parse_header_map(in, "COSE unprotected header", &keys, &ignored, err));
    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_BYTES, "COSE payload", &item, err));
    cose->payload = item.bytes;
    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_BYTES, "COSE signature", &item, err));
    cose->signature = item.bytes;
    ENCL_ENSURE(debug || item.bytes.len == ENCL_ES384_SIGNATURE_BYTES, err, ENCL_E_DOCUMENT,
                "COSE signature: expected %d bytes, came %zu", ENCL_ES384_SIGNATURE_BYTES,
                item.bytes.len);
    return end_sign1(in, &entries, err);
}

static encl_result parse_bytes(encl_buf *in, const char *what, size_t min, size_t max,
                               encl_slice *out, encl_error *err) {
    encl_item item;

    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_BYTES, what, &item, err));
    ENCL_ENSURE(item.bytes.len >= min && item.bytes.len <= max, err, ENCL_E_DOCUMENT,
                "%s: expected %zu to %zu bytes, came %zu", what, min, max, item.bytes.len);
    *out = item.bytes;
    return ENCL_OK;
}

static encl_result parse_optional(encl_buf *in, const char *what, size_t min, encl_slice *out,
                                  encl_error *err) {
    encl_slice rest = encl_buf_peek(in);

    if (rest.len != 0 && rest.data[0] == 0xf6) {
        return encl_buf_skip(in, 1, err);
    }
    return parse_bytes(in, what, min, OPTIONAL_MAX_BYTES, out, err);
}

static encl_result parse_module_id(encl_buf *in, bool debug, encl_attestation *a, encl_error *err) {
    encl_item item;

    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_TEXT, "module_id", &item, err));
    ENCL_ENSURE(debug || item.bytes.len != 0, err, ENCL_E_DOCUMENT,
                "module_id: expected a text, came an empty one");
    a->module_id = item.bytes;
    return ENCL_OK;
}

static encl_result parse_digest(encl_buf *in, bool debug, encl_attestation *a, encl_error *err) {
    encl_item item;

    (void)a;
    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_TEXT, "digest", &item, err));
    ENCL_ENSURE(debug || (item.bytes.len == 6 && memcmp(item.bytes.data, "SHA384", 6) == 0), err,
                ENCL_E_DOCUMENT, "digest: expected SHA384, came another text");
    return ENCL_OK;
}

/* 9999-12-31T23:59:59.999Z: a time that every reader of a document can hold. */
#define TIMESTAMP_MAX_MS UINT64_C(253402300799999)

static encl_result parse_timestamp(encl_buf *in, bool debug, encl_attestation *a, encl_error *err) {
    encl_item item;

    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_UINT, "timestamp", &item, err));
    ENCL_ENSURE(debug || item.value != 0, err, ENCL_E_DOCUMENT,
                "timestamp: expected milliseconds above 0, came 0");
    ENCL_ENSURE(item.value <= TIMESTAMP_MAX_MS, err, ENCL_E_DOCUMENT,
                "timestamp: expected milliseconds up to the end of the year 9999, got %llu",
                (unsigned long long)item.value);
    a->timestamp_ms = item.value;
    return ENCL_OK;
}

static encl_result parse_pcr(encl_buf *in, encl_keys *keys, encl_attestation *a, encl_error *err) {
    encl_item key, value;

    ENCL_TRY(encl_keys_next(in, keys, &key, err));
    ENCL_ENSURE(key.type == ENCL_ITEM_UINT && key.value < ENCL_PCR_SLOTS, err, ENCL_E_DOCUMENT,
                "pcrs: expected an index from 0 to %d", ENCL_PCR_SLOTS - 1);
    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_BYTES, "a PCR", &value, err));
    ENCL_ENSURE(value.bytes.len == 32 || value.bytes.len == 48 || value.bytes.len == 64, err,
                ENCL_E_DOCUMENT, "PCR%llu: expected 32, 48 or 64 bytes, came %zu",
                (unsigned long long)key.value, value.bytes.len);
    a->pcrs[key.value].len = (uint8_t)value.bytes.len;
    memcpy(a->pcrs[key.value].value, value.bytes.data, value.bytes.len);
    return ENCL_OK;
}

static encl_result parse_pcrs(encl_buf *in, bool debug, encl_attestation *a, encl_error *err) {
    encl_item map;
    encl_entries entries;
    encl_keys keys = {.count = 0};
    bool more;

    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_MAP, "pcrs", &map, err));
    entries = encl_entries_of(&map);
    for (;;) {
        ENCL_TRY(encl_entries_next(in, &entries, &more, err));
        if (!more) {
            break;
        }
        ENCL_TRY(parse_pcr(in, &keys, a, err));
    }
    ENCL_ENSURE(debug || keys.count != 0, err, ENCL_E_DOCUMENT,
                "pcrs: expected 1 to %d entries, came none", ENCL_PCR_SLOTS);
    return ENCL_OK;
}

static encl_result parse_certificate(encl_buf *in, bool debug, encl_attestation *a,
                                     encl_error *err) {
    return parse_bytes(in, "certificate", debug ? 0 : 1, ENCL_CERT_MAX_BYTES, &a->certificate, err);
}

static encl_result parse_cabundle(encl_buf *in, bool debug, encl_attestation *a, encl_error *err) {
    encl_item array;
    encl_entries entries;
    bool more;

    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_ARRAY, "cabundle", &array, err));
    entries = encl_entries_of(&array);
    for (;;) {
        ENCL_TRY(encl_entries_next(in, &entries, &more, err));
        if (!more) {
            break;
        }
        ENCL_ENSURE(a->cabundle_len < ENCL_CABUNDLE_MAX, err, ENCL_E_DOCUMENT,
                    "cabundle: expected at most %d certificates, came more", ENCL_CABUNDLE_MAX);
        ENCL_TRY(parse_bytes(in, "a certificate of the cabundle", debug ? 0 : 1,
                             ENCL_CERT_MAX_BYTES, &a->cabundle[a->cabundle_len++], err));
    }
    ENCL_ENSURE(debug || a->cabundle_len != 0, err, ENCL_E_DOCUMENT,
                "cabundle: expected at least one certificate, came none");
    return ENCL_OK;
}

static encl_result parse_public_key(encl_buf *in, bool debug, encl_attestation *a,
                                    encl_error *err) {
    return parse_optional(in, "public_key", debug ? 0 : 1, &a->public_key, err);
}

static encl_result parse_user_data(encl_buf *in, bool debug, encl_attestation *a, encl_error *err) {
    (void)debug;
    return parse_optional(in, "user_data", 0, &a->user_data, err);
}

static encl_result parse_nonce(encl_buf *in, bool debug, encl_attestation *a, encl_error *err) {
    (void)debug;
    return parse_optional(in, "nonce", 0, &a->nonce, err);
}

typedef encl_code (*field_parser)(encl_buf *in, bool debug, encl_attestation *a, encl_error *err);

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

/* FIELD_COUNT where the key is none of ours. */
static size_t find_field(const encl_item *key) {
    size_t i = 0;

    while (i < FIELD_COUNT &&
           (key->type != ENCL_ITEM_TEXT || key->bytes.len != strlen(fields[i].name) ||
            memcmp(key->bytes.data, fields[i].name, key->bytes.len) != 0)) {
        i++;
    }
    return i;
}

static encl_result parse_fields(encl_buf *in, bool debug, encl_attestation *a,
                                bool seen[FIELD_COUNT], encl_error *err) {
    encl_item map, key;
    encl_entries entries;
    encl_keys keys = {.count = 0};
    bool more;

    ENCL_TRY(encl_item_expect(in, ENCL_ITEM_MAP, "the document", &map, err));
    entries = encl_entries_of(&map);
    for (;;) {
        size_t i;

        ENCL_TRY(encl_entries_next(in, &entries, &more, err));
        if (!more) {
            return ENCL_OK;
        }
        ENCL_TRY(encl_keys_next(in, &keys, &key, err));
        i = find_field(&key);
        if (i == FIELD_COUNT) {
            ENCL_TRY(encl_item_skip(in, err));
        } else {
            seen[i] = true;
            ENCL_TRY(fields[i].parse(in, debug, a, err));
        }
    }
}

static encl_result parse_payload(encl_slice payload, bool debug, encl_attestation *a,
                                 encl_error *err) {
    bool seen[FIELD_COUNT] = {false};
    encl_buf in;

    encl_buf_wrap_read(&in, payload);
    ENCL_TRY(parse_fields(&in, debug, a, seen, err));
    ENCL_ENSURE(encl_buf_readable(&in) == 0, err, ENCL_E_DOCUMENT,
                "the payload has %zu bytes after its end", encl_buf_readable(&in));
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        ENCL_ENSURE(debug || seen[i] || !fields[i].required, err, ENCL_E_DOCUMENT,
                    "the document has no %s", fields[i].name);
    }
    return ENCL_OK;
}

static encl_result own_copy(encl_slice document, encl_attestation *a, encl_error *err) {
    ENCL_ENSURE(document.len != 0, err, ENCL_E_DOCUMENT, "the document is empty");
    ENCL_ENSURE(document.len <= ENCL_DOCUMENT_MAX_BYTES, err, ENCL_E_DOCUMENT,
                "the document: expected at most %d bytes, came %zu", ENCL_DOCUMENT_MAX_BYTES,
                document.len);
    a->raw = malloc(document.len);
    ENCL_ENSURE(a->raw != NULL, err, ENCL_E_NOMEM, "out of memory for a document");
    memcpy(a->raw, document.data, document.len);
    a->raw_len = document.len;
    return ENCL_OK;
}

encl_result encl_document_parse(encl_slice document, bool debug, encl_attestation *a,
                                encl_cose *cose, encl_error *err) {
    encl_buf in;

    ENCL_TRY(own_copy(document, a, err));
    encl_buf_wrap_read(&in, ENCL_SLICE(a->raw, a->raw_len));
    ENCL_TRY(parse_sign1(&in, debug, cose, err));
    return parse_payload(cose->payload, debug, a, err);
}
