#include "alloc.h"

#include <errno.h>
#include <libwebsockets.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const alloc_names[FROM_COUNT_] = {
    [FROM_OURS] = "ours",
    [FROM_OPENSSL] = "openssl",
    [FROM_LWS] = "lws",
    [FROM_SODIUM] = "sodium",
};

int alloc_phase;

static alloc_place *place;
static atomic_int armed = FROM_COUNT_; /* whose; FROM_COUNT_: nobody's */
static atomic_long target, seen, failed;
static atomic_bool forever_on;

void alloc_arm(alloc_from from, long n, bool forever) {
    atomic_store(&seen, 0);
    atomic_store(&failed, 0);
    atomic_store(&target, n);
    atomic_store(&forever_on, forever);
    atomic_store(&armed, (int)from);
}

long alloc_disarm(void) {
    atomic_store(&armed, FROM_COUNT_);
    return atomic_load(&failed);
}

long alloc_counted(void) {
    return atomic_load(&seen);
}

/* libwebsockets 4.1.6 (Debian 12) does not survive these; each name is its own.
 *   lws_create_vhost leaks the vhost without its plugin table, and writes through the list of equal
 *   vhosts that it could not allocate.
 *   lws_client_connect_via_info leaks its connection where there is no room for what it stashes.
 *   lws_header_table_attach lets a connection wait for a header table that somebody gives back, and
 *   nobody does: it ends at the connect deadline. */
static const char *const withheld[] = {
    "vhost-specific plugin table",
    "same vh list",
    "client stash",
    "ah struct",
    "ah data",
    /* OpenSSL 3.0.19: namemap_add_name leaks the entry that its hash table has no room for. */
    "../crypto/core_namemap.c",
};

static bool is_withheld(const char *reason) {
    for (size_t i = 0; i < sizeof withheld / sizeof *withheld; i++) {
        if (strcmp(reason, withheld[i]) == 0) {
            return true;
        }
    }
    return false;
}

static bool fails(alloc_from from, const char *reason) {
    long n, at;

    if (atomic_load(&armed) != (int)from || is_withheld(reason)) {
        return false;
    }
    n = atomic_fetch_add(&seen, 1) + 1;
    at = atomic_load(&target);
    if (at == 0 || n < at || (n > at && !atomic_load(&forever_on))) {
        return false;
    }
    if (atomic_fetch_add(&failed, 1) == 0) {
        place->phase = alloc_phase;
        (void)snprintf(place->reason, sizeof place->reason, "%s", reason);
    }
    return true;
}

/* ---- csrc: what --wrap leads here */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
char *__real_strdup(const char *text);
void *__real_sodium_malloc(size_t size);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
char *__wrap_strdup(const char *text);
int __wrap_asprintf(char **out, const char *format, ...);
void *__wrap_sodium_malloc(size_t size);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);

void *__wrap_malloc(size_t size) {
    return fails(FROM_OURS, "") ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size) {
    return fails(FROM_OURS, "") ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *block, size_t size) {
    return fails(FROM_OURS, "") ? NULL : __real_realloc(block, size);
}

char *__wrap_strdup(const char *text) {
    return fails(FROM_OURS, "") ? NULL : __real_strdup(text);
}

int __wrap_asprintf(char **out, const char *format, ...) {
    va_list args;
    int n = -1;

    *out = NULL;
    if (!fails(FROM_OURS, "")) {
        va_start(args, format);
        n = vasprintf(out, format, args);
        va_end(args);
    }
    return n;
}

void *__wrap_sodium_malloc(size_t size) {
    return fails(FROM_SODIUM, "") ? NULL : __real_sodium_malloc(size);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg) {
    return fails(FROM_OURS, "") ? EAGAIN : __real_pthread_create(thread, attr, run, arg);
}

/* ---- the libraries' own hooks */

static void *openssl_malloc(size_t size, const char *file, int line) {
    (void)line;
    return fails(FROM_OPENSSL, file) ? NULL : __real_malloc(size);
}

static void *openssl_realloc(void *block, size_t size, const char *file, int line) {
    (void)line;
    if (size == 0) {
        free(block);
        return NULL;
    }
    return fails(FROM_OPENSSL, file) ? NULL : __real_realloc(block, size);
}

static void openssl_free(void *block, const char *file, int line) {
    (void)file;
    (void)line;
    free(block);
}

static void *lws_hook(void *block, size_t size, const char *reason) {
    if (size == 0) {
        free(block);
        return NULL;
    }
    return fails(FROM_LWS, reason == NULL ? "" : reason) ? NULL : __real_realloc(block, size);
}

void alloc_init(alloc_place *shared) {
    place = shared;
    if (CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free) != 1) {
        (void)fprintf(stderr, "OpenSSL has allocated before\n");
        exit(2);
    }
    lws_set_allocator(lws_hook);
}
