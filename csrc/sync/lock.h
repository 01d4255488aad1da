/* sync: the one kind of lock, and condition variables that go with it. A header alone.
 *
 * What a lock guards and which functions need it held is written beside the declarations, and clang
 * reads it: `make lint` compiles csrc with -Wthread-safety, and fails on a call without the lock
 * that it needs and on a path that leaves a lock held. For other compilers the macros are empty. */
#ifndef ENCL_SYNC_LOCK_H
#define ENCL_SYNC_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "platform/platform.h"

#if defined(__clang__)
#define ENCL_LOCK_ATTRIBUTE(attribute) __attribute__((attribute))
/* They stand behind a definition's parameters, since they name them. */
#pragma clang diagnostic ignored "-Wgcc-compat"
#else
#define ENCL_LOCK_ATTRIBUTE(attribute)
#endif

/* Behind a variable: read and written with the lock held only. Not for members: in C, clang up to
 * 18 cannot name one member beside another. What a struct's lock guards is said where the lock is
 * declared, and functions that touch it have ENCL_REQUIRES. */
#define ENCL_GUARDED_BY(lock) ENCL_LOCK_ATTRIBUTE(guarded_by(lock))
/* Behind a function's parameters. The caller holds the lock, and still holds it afterwards. */
#define ENCL_REQUIRES(...) ENCL_LOCK_ATTRIBUTE(requires_capability(__VA_ARGS__))
/* The caller does not hold the lock: the function takes it itself, or waits. */
#define ENCL_EXCLUDES(...) ENCL_LOCK_ATTRIBUTE(locks_excluded(__VA_ARGS__))
#define ENCL_ACQUIRES(...) ENCL_LOCK_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define ENCL_RELEASES(...) ENCL_LOCK_ATTRIBUTE(release_capability(__VA_ARGS__))
/* Holds the lock where the function returned result (true or false). */
#define ENCL_TRY_ACQUIRES(result, ...)                                                             \
    ENCL_LOCK_ATTRIBUTE(try_acquire_capability(result, __VA_ARGS__))
/* Left out by the analysis, with a comment that says why. */
#define ENCL_LOCK_UNCHECKED ENCL_LOCK_ATTRIBUTE(no_thread_safety_analysis)

typedef struct ENCL_LOCK_ATTRIBUTE(capability("mutex")) encl_mutex {
    pthread_mutex_t handle;
} encl_mutex;

#define ENCL_MUTEX_INITIALIZER                                                                     \
    { PTHREAD_MUTEX_INITIALIZER }

/* The bodies are not checked: what pthread_mutex_lock does is what they declare. */

/* False: the system has no memory for it. */
static inline bool encl_mutex_init(encl_mutex *mutex) {
    return pthread_mutex_init(&mutex->handle, NULL) == 0;
}

static inline void encl_mutex_destroy(encl_mutex *mutex) {
    (void)pthread_mutex_destroy(&mutex->handle);
}

static inline void encl_lock(encl_mutex *mutex) ENCL_ACQUIRES(*mutex);
static inline bool encl_trylock(encl_mutex *mutex) ENCL_TRY_ACQUIRES(true, *mutex);
static inline void encl_unlock(encl_mutex *mutex) ENCL_RELEASES(*mutex);

ENCL_LOCK_UNCHECKED static inline void encl_lock(encl_mutex *mutex) {
    (void)pthread_mutex_lock(&mutex->handle);
}

ENCL_LOCK_UNCHECKED static inline bool encl_trylock(encl_mutex *mutex) {
    return pthread_mutex_trylock(&mutex->handle) == 0;
}

ENCL_LOCK_UNCHECKED static inline void encl_unlock(encl_mutex *mutex) {
    (void)pthread_mutex_unlock(&mutex->handle);
}

/* ---- conditions ---- */

/* Its deadlines are points of encl_now_ns. */
static inline void encl_cond_init(pthread_cond_t *cond) {
    encl_platform_cond_init(cond);
}

/* Both let the lock go while they wait, and may return before anybody has signalled: the caller
 * looks again at what it waits for. */
static inline void encl_cond_wait(pthread_cond_t *cond, encl_mutex *mutex) ENCL_REQUIRES(*mutex);
static inline void encl_cond_wait_until(pthread_cond_t *cond, encl_mutex *mutex, int64_t until)
    ENCL_REQUIRES(*mutex);

static inline void encl_cond_wait(pthread_cond_t *cond, encl_mutex *mutex) {
    (void)pthread_cond_wait(cond, &mutex->handle);
}

static inline void encl_cond_wait_until(pthread_cond_t *cond, encl_mutex *mutex, int64_t until) {
    encl_platform_cond_wait(cond, &mutex->handle, until);
}

#endif
