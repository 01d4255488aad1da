/* Decides what may be a key of a document's map, and that none is there twice: of two values for
 * one name a reader and the signer could mean different ones. Calls cbor. */
#include "attest/keys.h"

#include "base/slice.h"

static bool same_key(const encl_key *a, const encl_key *b) {
    return a->kind == b->kind && a->value == b->value && encl_slice_equal(a->text, b->text);
}

encl_result encl_keys_next(encl_cursor *c, encl_keys *keys, encl_key *key, encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_next(c, "a map key", &t, err));
    ENCL_ENSURE(t.kind == ENCL_TOK_UINT || t.kind == ENCL_TOK_NEGATIVE || t.kind == ENCL_TOK_TEXT,
                err, c->code, "a map key: expected an integer or a text, got %s",
                encl_token_name(t.kind));
    *key = (encl_key){t.kind, t.value, encl_token_bytes(c, &t)};
    for (size_t i = 0; i < keys->count; i++) {
        ENCL_ENSURE(!same_key(key, &keys->key[i]), err, c->code,
                    "expected each key of a map once, got the same key twice (its %zuth and %zuth)",
                    i + 1, keys->count + 1);
    }
    ENCL_ENSURE(keys->count < ENCL_KEYS_MAX, err, c->code,
                "expected a map of at most %d keys, got more", ENCL_KEYS_MAX);
    keys->key[keys->count++] = *key;
    return ENCL_OK;
}
