/* Preloaded, this stops the process where the extension waits for a lock while its thread holds the
 * GIL. Only calls that come from the extension are looked at: what Python and other libraries do
 * with locks of their own is their matter. To try a lock is not to wait for it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int (*gil_check)(void);
typedef int (*lock_call)(pthread_mutex_t *);
typedef int (*wait_call)(pthread_cond_t *, pthread_mutex_t *);
typedef int (*timed_call)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);

static gil_check holds_the_gil;
static lock_call real_lock;
static wait_call real_wait;
static timed_call real_timedwait;

__attribute__((constructor)) static void look_up(void) {
    holds_the_gil = (gil_check)dlsym(RTLD_DEFAULT, "PyGILState_Check");
    real_lock = (lock_call)dlsym(RTLD_NEXT, "pthread_mutex_lock");
    /* The version that programs are linked with today, not the first of that name. */
    real_wait = (wait_call)dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");
    real_timedwait = (timed_call)dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (real_wait == NULL || real_timedwait == NULL) {
        real_wait = (wait_call)dlsym(RTLD_NEXT, "pthread_cond_wait");
        real_timedwait = (timed_call)dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    }
}

static void check(const void *caller, const char *what) {
    void *frames[32];
    Dl_info info;

    if (holds_the_gil == NULL || dladdr(caller, &info) == 0 || info.dli_fname == NULL ||
        strstr(info.dli_fname, "/_core.") == NULL || !holds_the_gil()) {
        return;
    }
    fprintf(stderr, "%s with the GIL held, by %s+0x%zx\n", what, info.dli_fname,
            (size_t)((const char *)caller - (const char *)info.dli_fbase));
    backtrace_symbols_fd(frames, backtrace(frames, 32), 2);
    abort();
}

int pthread_mutex_lock(pthread_mutex_t *mutex) {
    check(__builtin_return_address(0), "pthread_mutex_lock");
    return real_lock(mutex);
}

int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex) {
    check(__builtin_return_address(0), "pthread_cond_wait");
    return real_wait(cond, mutex);
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                           const struct timespec *until) {
    check(__builtin_return_address(0), "pthread_cond_timedwait");
    return real_timedwait(cond, mutex, until);
}
