/* Decides where secrets lie and how they are wiped and compared, and notices a fork. Calls
 * libsodium; pthread_once and pthread_atfork are the only threading, and nothing here waits. */
#include "base/secmem.h"

#include <pthread.h>
#include <sodium.h>
#include <stdatomic.h>
#include <string.h>
#ifdef __EMSCRIPTEN__
#include <unistd.h>
#endif

/* Written only in a forked child, by its only thread, before fork() returns there. */
static _Atomic uint64_t fork_generation = 1;

/* init_rc is written under init_once and only read after it. */
static pthread_once_t init_once = PTHREAD_ONCE_INIT;
static int init_rc = -1;

static void after_fork_in_child(void) {
    atomic_fetch_add_explicit(&fork_generation, 1, memory_order_relaxed);
}

#ifdef __EMSCRIPTEN__
/* The browser's crypto.getRandomValues, as libsodium asks it there too; but where that fails,
 * libsodium ends the program and says nothing. */
static bool fill(uint8_t *out, size_t n) {
    while (n != 0) {
        size_t part = n < 256 ? n : 256; /* the most that getentropy gives */

        if (getentropy(out, part) != 0) {
            return false;
        }
        out += part;
        n -= part;
    }
    return true;
}
#else
static bool fill(uint8_t *out, size_t n) {
    randombytes_buf(out, n); /* ends the program where the system has none */
    return true;
}
#endif

static bool sodium_is_ready(void) {
#ifdef __EMSCRIPTEN__
    uint8_t byte;

    if (!fill(&byte, 1)) {
        return false;
    }
#endif
    return sodium_init() >= 0;
}

static void init(void) {
    if (!sodium_is_ready()) {
        return;
    }
    init_rc = pthread_atfork(NULL, NULL, after_fork_in_child);
}

encl_result encl_base_init(encl_error *err) {
    ENCL_ENSURE(pthread_once(&init_once, init) == 0 && init_rc == 0, err, ENCL_E_INTERNAL,
                "libsodium or the fork handler could not be set up");
    return ENCL_OK;
}

void *encl_secret_alloc(size_t size) {
    void *secret = sodium_malloc(size);

    if (secret != NULL) {
        sodium_memzero(secret, size);
    }
    return secret;
}

void encl_secret_free(void *secret, size_t size) {
    encl_wipe(secret, size); /* sodium_free does not where its platform has no aligned memory */
    sodium_free(secret);
}

void encl_wipe(void *memory, size_t size) {
    if (memory != NULL && size != 0) {
        sodium_memzero(memory, size);
    }
}

bool encl_equal_ct(encl_slice a, encl_slice b) {
    return a.len == b.len && (a.len == 0 || sodium_memcmp(a.data, b.data, a.len) == 0);
}

encl_result encl_random(uint8_t *out, size_t n, encl_error *err) {
    ENCL_TRY(encl_base_init(err));
    ENCL_ENSURE(fill(out, n), err, ENCL_E_INTERNAL,
                "expected %zu random bytes from the system, got none", n);
    return ENCL_OK;
}

uint64_t encl_fork_generation(void) {
    return atomic_load_explicit(&fork_generation, memory_order_relaxed);
}
