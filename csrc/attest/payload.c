/* Decides whether bytes are the payload of a link of an upgrade chain: one CBOR map with the fields
 * of its kind, each once, and no others. Nothing here verifies anything. Calls cbor. */
#include <stdio.h>
#include <string.h>

#include "attest/internal.h"
#include "attest/keys.h"
#include "base/slice.h"

#define TIME_MAX_BYTES  64
#define NONCE_MAX_BYTES 64
#define NAME_BYTES      48

typedef struct field {
    const char *name;
    encl_code (*parse)(encl_cursor *in, const struct field *field, encl_link_payload *out,
                       encl_error *err);
    size_t at; /* where in an encl_link_payload */
} field;

static encl_slice *slice_of(encl_link_payload *out, const field *f) {
    return (encl_slice *)(void *)((uint8_t *)out + f->at);
}

static encl_result take(encl_cursor *in, const char *name, encl_token_kind kind, size_t least,
                        size_t most, encl_slice *out, encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_expect(in, kind, name, &t, err));
    ENCL_ENSURE(t.len >= least && t.len <= most, err, ENCL_E_DOCUMENT,
                "%s: expected %zu to %zu bytes, got %zu", name, least, most, t.len);
    *out = encl_token_bytes(in, &t);
    return ENCL_OK;
}

static encl_result parse_uuid(encl_cursor *in, const field *f, encl_link_payload *out,
                              encl_error *err) {
    return take(in, f->name, ENCL_TOK_BYTES, ENCL_UUID_BYTES, ENCL_UUID_BYTES, slice_of(out, f),
                err);
}

static encl_result parse_nonce(encl_cursor *in, const field *f, encl_link_payload *out,
                               encl_error *err) {
    return take(in, f->name, ENCL_TOK_BYTES, 1, NONCE_MAX_BYTES, slice_of(out, f), err);
}

static encl_result parse_digest(encl_cursor *in, const field *f, encl_link_payload *out,
                                encl_error *err) {
    return take(in, f->name, ENCL_TOK_TEXT, 1, ENCL_IMAGE_DIGEST_MAX_BYTES, slice_of(out, f), err);
}

static encl_result parse_time(encl_cursor *in, const field *f, encl_link_payload *out,
                              encl_error *err) {
    return take(in, f->name, ENCL_TOK_TEXT, 1, TIME_MAX_BYTES, slice_of(out, f), err);
}

static int digit_of(uint8_t c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20; /* lower case, of letters */
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool bytes_of_hex(encl_slice hex, encl_pcr *pcr) {
    for (size_t i = 0; i < hex.len / 2; i++) {
        int high = digit_of(hex.data[2 * i]), low = digit_of(hex.data[2 * i + 1]);

        if (high < 0 || low < 0) {
            return false;
        }
        pcr->value[i] = (uint8_t)(high << 4 | low);
    }
    pcr->len = (uint8_t)(hex.len / 2);
    return true;
}

static encl_result parse_pcr(encl_cursor *in, const char *name, encl_pcr *pcr, encl_error *err) {
    encl_slice hex;

    ENCL_TRY(take(in, name, ENCL_TOK_TEXT, 64, 128, &hex, err));
    ENCL_ENSURE(hex.len == 64 || hex.len == 96 || hex.len == 128, err, ENCL_E_DOCUMENT,
                "%s: expected PCRs of 64, 96 or 128 hex digits, got %zu", name, hex.len);
    ENCL_ENSURE(bytes_of_hex(hex, pcr), err, ENCL_E_DOCUMENT,
                "%s: expected PCRs of hex digits, got other characters", name);
    return ENCL_OK;
}

static void shown_key(const encl_key *key, char out[NAME_BYTES]) {
    if (key->kind == ENCL_TOK_TEXT) {
        (void)snprintf(out, NAME_BYTES, "%.*s", (int)(key->text.len < 32 ? key->text.len : 32),
                       (const char *)key->text.data);
    } else {
        (void)snprintf(out, NAME_BYTES, "a number");
    }
}

static encl_result unknown(const char *what, const encl_key *key, encl_error *err) {
    char name[NAME_BYTES];

    shown_key(key, name);
    return encl_fail(err, ENCL_E_DOCUMENT,
                     "%s: expected no other fields than those known here, got %s: a payload of a "
                     "newer version, which a newer enclavia may read",
                     what, name);
}

/* The index of PCR0 to PCR2 (or in lower case), ENCL_PINNED_PCRS for any other key. */
static size_t pcr_index(const encl_key *key) {
    static const char *const names[ENCL_PINNED_PCRS][2] = {
        {"PCR0", "pcr0"}, {"PCR1", "pcr1"}, {"PCR2", "pcr2"}};
    size_t i = 0;

    while (i < ENCL_PINNED_PCRS && !encl_slice_equal(key->text, ENCL_SLICE(names[i][0], 4)) &&
           !encl_slice_equal(key->text, ENCL_SLICE(names[i][1], 4))) {
        i++;
    }
    return i;
}

static encl_result check_pcrs(const char *name, const encl_pins *pins, encl_error *err) {
    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        ENCL_ENSURE(pins->pcr[i].len != 0, err, ENCL_E_DOCUMENT, "%s: expected PCR%zu, got none",
                    name, i);
        ENCL_ENSURE(pins->pcr[i].len == pins->pcr[0].len, err, ENCL_E_DOCUMENT,
                    "%s: expected PCRs of one length, got %u and %u bytes", name,
                    (unsigned)pins->pcr[0].len, (unsigned)pins->pcr[i].len);
    }
    return ENCL_OK;
}

static encl_result parse_pcrs(encl_cursor *in, const field *f, encl_link_payload *out,
                              encl_error *err) {
    encl_pins *pins = (encl_pins *)(void *)((uint8_t *)out + f->at);
    encl_token map;
    encl_entries entries;
    encl_keys keys = {.count = 0};

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_MAP, f->name, &map, err));
    entries = encl_entries_of(&map);
    while (encl_entries_next(in, &entries)) {
        encl_key key;
        size_t i;

        ENCL_TRY(encl_keys_next(in, &keys, &key, err));
        i = pcr_index(&key);
        if (i == ENCL_PINNED_PCRS) {
            return unknown(f->name, &key, err);
        }
        /* The same in the other case is another key to encl_keys_next. */
        ENCL_ENSURE(pins->pcr[i].len == 0, err, ENCL_E_DOCUMENT,
                    "%s: expected PCR%zu once, got it twice", f->name, i);
        ENCL_TRY(parse_pcr(in, f->name, &pins->pcr[i], err));
    }
    return check_pcrs(f->name, pins, err);
}

#define FIELDS_MAX 8 /* of one kind, and the name NULL that ends each list */
#define AT(member) offsetof(encl_link_payload, member)

static const field fields[ENCL_LINK_KIND_COUNT_][FIELDS_MAX] = {
    [ENCL_LINK_BOOT] =
        {
            {"enclave_id", parse_uuid, AT(enclave_id)},
            {"image_digest", parse_digest, AT(image_digest)},
            {"pcrs", parse_pcrs, AT(pcrs)},
            {"booted_at", parse_time, AT(booted_at)},
            {"nonce", parse_nonce, AT(nonce)},
        },
    [ENCL_LINK_UPGRADE] =
        {
            {"enclave_id", parse_uuid, AT(enclave_id)},
            {"from_pcrs", parse_pcrs, AT(pcrs)},
            {"to_pcrs", parse_pcrs, AT(to_pcrs)},
            {"image_digest", parse_digest, AT(image_digest)},
            {"valid_from", parse_time, AT(valid_from)},
            {"issued_at", parse_time, AT(issued_at)},
            {"nonce", parse_nonce, AT(nonce)},
        },
    [ENCL_LINK_REVOCATION] =
        {
            {"enclave_id", parse_uuid, AT(enclave_id)},
            {"revokes", parse_uuid, AT(revokes)},
            {"issued_at", parse_time, AT(issued_at)},
            {"nonce", parse_nonce, AT(nonce)},
        },
};

/* FIELDS_MAX where the key is none of this kind's. */
static size_t find_field(const field *of_kind, const encl_key *key) {
    for (size_t i = 0; of_kind[i].name != NULL; i++) {
        if (encl_slice_equal(key->text, ENCL_SLICE(of_kind[i].name, strlen(of_kind[i].name)))) {
            return i;
        }
    }
    return FIELDS_MAX;
}

static encl_result parse_fields(encl_cursor *in, const field *of_kind, encl_link_payload *out,
                                bool seen[FIELDS_MAX], encl_error *err) {
    encl_token map;
    encl_entries entries;
    encl_keys keys = {.count = 0};

    ENCL_TRY(encl_token_expect(in, ENCL_TOK_MAP, "the payload", &map, err));
    entries = encl_entries_of(&map);
    while (encl_entries_next(in, &entries)) {
        encl_key key;
        size_t i;

        ENCL_TRY(encl_keys_next(in, &keys, &key, err));
        i = find_field(of_kind, &key);
        if (i == FIELDS_MAX) {
            return unknown("the payload", &key, err);
        }
        seen[i] = true;
        ENCL_TRY(of_kind[i].parse(in, &of_kind[i], out, err));
    }
    return ENCL_OK;
}

encl_result encl_link_payload_parse(encl_slice payload, encl_link_kind kind, encl_link_payload *out,
                                    encl_error *err) {
    encl_cursor in = {
        .block = payload.data, .len = payload.len, .code = ENCL_E_DOCUMENT, .no_chunks = true};
    const field *of_kind = fields[kind];
    bool seen[FIELDS_MAX] = {false};

    memset(out, 0, sizeof *out);
    ENCL_ENSURE(payload.len <= ENCL_LINK_PAYLOAD_MAX_BYTES, err, ENCL_E_DOCUMENT,
                "the payload: expected at most %d bytes, got %zu", ENCL_LINK_PAYLOAD_MAX_BYTES,
                payload.len);
    ENCL_TRY(parse_fields(&in, of_kind, out, seen, err));
    ENCL_ENSURE(encl_cursor_left(&in) == 0, err, ENCL_E_DOCUMENT,
                "the payload: expected its end, got %zu more bytes", encl_cursor_left(&in));
    for (size_t i = 0; of_kind[i].name != NULL; i++) {
        ENCL_ENSURE(seen[i], err, ENCL_E_DOCUMENT, "the payload: expected a field %s, got none",
                    of_kind[i].name);
    }
    return ENCL_OK;
}
