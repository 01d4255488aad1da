/* Decides which verified links of certificate chains are remembered, and for how long. Calls
 * libsodium's SHA-256, and OpenSSL to hold certificates. Takes no lock: whoever owns a cache uses
 * it in one thread or holds a lock around each call. */
#include <stdlib.h>
#include <string.h>

#include <openssl/x509.h>
#include <sodium.h>

#include "attest/internal.h"

#define ENTRIES_LIMIT 4096

typedef struct entry {
    uint8_t key[crypto_hash_sha256_BYTES];
    int64_t expires;
    X509 *cert; /* the child's */
} entry;

struct encl_link_cache {
    entry *entries;
    size_t count, max;
    size_t hits; /* for tests: that a link was remembered, not verified once more */
};

encl_result encl_link_cache_new(size_t max_entries, encl_link_cache **out, encl_error *err) {
    encl_link_cache *cache;

    *out = NULL;
    ENCL_ENSURE(max_entries >= 1 && max_entries <= ENTRIES_LIMIT, err, ENCL_E_INVALID,
                "link cache: expected 1 to %d entries, got %zu", ENTRIES_LIMIT, max_entries);
    cache = calloc(1, sizeof *cache);
    ENCL_ENSURE(cache != NULL, err, ENCL_E_NOMEM, "out of memory for a link cache");
    cache->entries = calloc(max_entries, sizeof *cache->entries);
    if (cache->entries == NULL) {
        free(cache);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory for %zu cached links", max_entries);
    }
    cache->max = max_entries;
    *out = cache;
    return ENCL_OK;
}

void encl_link_cache_free(encl_link_cache *cache) {
    if (cache != NULL) {
        for (size_t i = 0; i < cache->count; i++) {
            X509_free(cache->entries[i].cert);
        }
        free(cache->entries);
        free(cache);
    }
}

#ifdef ENCL_TESTING
size_t encl_link_cache_hits(const encl_link_cache *cache) {
    return cache->hits;
}
#endif

static void hash_with_length(crypto_hash_sha256_state *hash, encl_slice bytes) {
    uint8_t length[8] = {0};

    for (size_t i = 0; i < sizeof length; i++) {
        length[i] = (uint8_t)((uint64_t)bytes.len >> (8 * i));
    }
    crypto_hash_sha256_update(hash, length, sizeof length);
    crypto_hash_sha256_update(hash, bytes.data, bytes.len);
}

/* The lengths keep one pair's bytes from being read as another pair's. */
static void link_key(encl_slice child, encl_slice issuer, uint8_t key[crypto_hash_sha256_BYTES]) {
    crypto_hash_sha256_state hash;

    crypto_hash_sha256_init(&hash);
    hash_with_length(&hash, child);
    hash_with_length(&hash, issuer);
    crypto_hash_sha256_final(&hash, key);
}

static entry *find(encl_link_cache *cache, const uint8_t key[crypto_hash_sha256_BYTES]) {
    for (size_t i = 0; i < cache->count; i++) {
        if (memcmp(cache->entries[i].key, key, crypto_hash_sha256_BYTES) == 0) {
            return &cache->entries[i];
        }
    }
    return NULL;
}

static void drop(encl_link_cache *cache, entry *e) {
    X509_free(e->cert);
    *e = cache->entries[--cache->count];
}

X509 *encl_link_cache_find(encl_link_cache *cache, encl_slice child, encl_slice issuer,
                           int64_t now) {
    uint8_t key[crypto_hash_sha256_BYTES];
    entry *found;

    link_key(child, issuer, key);
    found = find(cache, key);
    if (found == NULL) {
        return NULL;
    }
    if (now >= found->expires) {
        drop(cache, found);
        return NULL;
    }
    if (X509_up_ref(found->cert) != 1) {
        return NULL;
    }
    cache->hits++;
    return found->cert;
}

static entry *ending_first(encl_link_cache *cache) {
    entry *first = cache->entries;

    for (size_t i = 1; i < cache->count; i++) {
        if (cache->entries[i].expires < first->expires) {
            first = &cache->entries[i];
        }
    }
    return first;
}

/* In a full cache the one that would end first makes room: what has expired goes before what is in
 * use. */
void encl_link_cache_put(encl_link_cache *cache, encl_slice child, encl_slice issuer, X509 *cert,
                         int64_t expires) {
    entry made = {.expires = expires, .cert = cert};
    entry *same;

    if (X509_up_ref(cert) != 1) {
        return;
    }
    link_key(child, issuer, made.key);
    same = find(cache, made.key);
    if (same != NULL) {
        drop(cache, same);
    } else if (cache->count == cache->max) {
        drop(cache, ending_first(cache));
    }
    cache->entries[cache->count++] = made;
}
