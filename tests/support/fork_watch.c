/* Preloaded, this calls fork() in another thread while OpenSSL, called by the extension, holds one
 * of its locks; once for each way that leads to a lock. A fork() that comes back meanwhile has made
 * a child in which that lock is held for ever: the way is printed and counted.
 *
 * It also calls fork() where the extension registers handlers of fork(): that has to come back
 * meanwhile. Registering takes a lock that some C libraries hold while they call the handlers, and
 * these would wait for who registers.
 *
 * How a call came to the lock is known by its return addresses. A thread that ends has OpenSSL
 * clean up behind it: where it had worked for the extension, that counts as the extension's as
 * well. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FRAMES    60
#define WAYS      4096
#define ADDRESSES 16384
#define WAIT_MS   10 /* for fork() to come back, where FORK_WATCH_MS does not say how long */
#define STEP_NS   200000
#define LONG_MS   20000 /* for a fork() that has to come back */
#define FOUND_MAX 20

typedef int (*register_call)(void (*)(void), void (*)(void), void (*)(void), void *);
typedef int (*mutex_call)(pthread_mutex_t *);
typedef int (*rwlock_call)(pthread_rwlock_t *);

static mutex_call real_mutex;
static rwlock_call real_read, real_write;

static pthread_mutex_t ways_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t ways[WAYS];
static unsigned way_count;
static atomic_int found;
static atomic_uint asked, came_back; /* how many calls of fork(); asked is written under `turn` */
static atomic_int registered, stuck; /* how often handlers were, and fork() did not come back */
static int wait_ms = WAIT_MS;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool worked_for_us, inside;

int fork_watch_ways(void);
int fork_watch_found(void);
int fork_watch_registered(void);
int fork_watch_stuck(void);
int __register_atfork(void (*before)(void), void (*parent)(void), void (*child)(void),
                      void *library);

static void nap(void) {
    struct timespec step = {.tv_nsec = STEP_NS};

    nanosleep(&step, NULL);
}

static void *forker(void *unused) {
    inside = true;
    for (;;) {
        if (came_back != asked) {
            pid_t child = fork();

            if (child == 0) {
                _exit(0);
            }
            atomic_fetch_add(&came_back, 1);
            waitpid(child, NULL, 0);
        }
        nap();
    }
    return unused;
}

__attribute__((constructor)) static void look_up(void) {
    const char *asked_for = getenv("FORK_WATCH_MS");
    void *frames[2];
    pthread_t thread;

    if (asked_for != NULL) {
        wait_ms = atoi(asked_for);
    }
    real_mutex = (mutex_call)dlsym(RTLD_NEXT, "pthread_mutex_lock");
    real_read = (rwlock_call)dlsym(RTLD_NEXT, "pthread_rwlock_rdlock");
    real_write = (rwlock_call)dlsym(RTLD_NEXT, "pthread_rwlock_wrlock");
    (void)backtrace(frames, 2); /* it loads a library the first time */
    pthread_create(&thread, NULL, forker, NULL);
}

/* ---- whose code an address is ---- */

typedef enum owner { UNKNOWN, OPENSSL, OURS, PYTHON, OTHERS } owner;

static owner find_owner(const void *address) {
    Dl_info info;
    const char *file = dladdr(address, &info) != 0 && info.dli_fname != NULL ? info.dli_fname : "";

    if (strstr(file, "libcrypto") != NULL || strstr(file, "libssl") != NULL) {
        return OPENSSL;
    }
    if (strstr(file, "/_core.") != NULL) {
        return OURS;
    }
    return strstr(file, "python") != NULL ? PYTHON : OTHERS;
}

/* OpenSSL takes thousands of locks, always from the same places: each is looked up once. */
static owner owner_of(const void *address) {
    static struct {
        _Atomic(const void *) address;
        atomic_int owner;
    } known[ADDRESSES];
    size_t at = ((uintptr_t)address >> 2) % ADDRESSES;
    owner found;

    if (known[at].address == address) {
        found = (owner)known[at].owner;
        if (known[at].address == address && found != UNKNOWN) {
            return found;
        }
    }
    found = find_owner(address);
    known[at].owner = UNKNOWN;
    known[at].address = address;
    known[at].owner = (int)found;
    return found;
}

/* ---- ways ---- */

/* Whether the extension is behind this call, or was this ending thread's user. *way: where OpenSSL
 * was called from, and which of its locks it took; not what it did in between. */
static bool is_ours(void *const *frames, int n, const void *caller, uint64_t *way) {
    bool python = false, ours = false;

    *way = (uintptr_t)caller;
    for (int i = 0; i < n; i++) {
        owner whose = owner_of(frames[i]);

        ours = ours || whose == OURS;
        python = python || whose == PYTHON;
        if (whose != OPENSSL) {
            *way = (*way ^ (uintptr_t)frames[i]) * 1099511628211u;
        }
    }
    worked_for_us = worked_for_us || ours;
    return ours || (worked_for_us && !python);
}

static bool is_new_way(uint64_t way) {
    bool known = false;

    real_mutex(&ways_lock);
    for (unsigned i = 0; i < way_count && !known; i++) {
        known = ways[i] == way;
    }
    if (!known && way_count < WAYS) {
        ways[way_count++] = way;
    }
    pthread_mutex_unlock(&ways_lock);
    return !known;
}

static bool comes_back_within(int ms) {
    for (int i = 0; i < ms * (1000000 / STEP_NS) && came_back != asked; i++) {
        nap();
    }
    return came_back == asked;
}

static bool comes_back(void) {
    return comes_back_within(wait_ms);
}

/* The lock is held by this thread. A fork() that an earlier lock of the same call asked for may
 * still be held back, and this one with it; where it comes back now, it may have been made before.
 */
static void try_fork(void *const *frames, int n) {
    real_mutex(&turn);
    if (comes_back()) {
        atomic_fetch_add(&asked, 1);
        if (comes_back() && atomic_fetch_add(&found, 1) < FOUND_MAX) {
            fprintf(stderr, "fork() was not held back from a lock of OpenSSL's:\n");
            backtrace_symbols_fd(frames, n, 2);
        }
    }
    pthread_mutex_unlock(&turn);
}

/* Unwinding takes long: not done twice for one place in the code and in a stack. Two ways that have
 * both in common are taken for one. */
static bool is_new_place(const void *caller, const void *frame) {
    static _Atomic(uintptr_t) seen[ADDRESSES];
    uintptr_t place = ((uintptr_t)caller * 31) ^ (uintptr_t)frame;

    return atomic_exchange(&seen[(place >> 4) % ADDRESSES], place) != place;
}

static void look(const void *caller, const void *frame, bool rwlock) {
    owner whose = inside || real_write == NULL ? OTHERS : owner_of(caller);
    void *frames[FRAMES];
    uint64_t way;
    int n;

    /* Where it is linked into the extension: that has no such locks of its own. */
    if ((whose != OPENSSL && !(whose == OURS && rwlock)) || !is_new_place(caller, frame)) {
        return;
    }
    inside = true;
    n = backtrace(frames, FRAMES);
    if (is_ours(frames, n, caller, &way) && is_new_way(way)) {
        try_fork(frames, n);
    }
    inside = false;
}

int pthread_mutex_lock(pthread_mutex_t *mutex) {
    int rc = real_mutex(mutex);

    look(__builtin_return_address(0), __builtin_frame_address(0), false);
    return rc;
}

int pthread_rwlock_rdlock(pthread_rwlock_t *lock) {
    int rc = real_read(lock);

    look(__builtin_return_address(0), __builtin_frame_address(0), true);
    return rc;
}

int pthread_rwlock_wrlock(pthread_rwlock_t *lock) {
    int rc = real_write(lock);

    look(__builtin_return_address(0), __builtin_frame_address(0), true);
    return rc;
}

/* ---- handlers ---- */

static void fork_while_registering(void) {
    real_mutex(&turn);
    atomic_fetch_add(&asked, 1);
    if (!comes_back_within(LONG_MS)) {
        atomic_fetch_add(&stuck, 1);
    }
    pthread_mutex_unlock(&turn);
}

/* What pthread_atfork calls in glibc. */
int __register_atfork(void (*before)(void), void (*parent)(void), void (*child)(void),
                      void *library) {
    register_call real = (register_call)dlsym(RTLD_NEXT, "__register_atfork");

    if (real_write != NULL && owner_of(__builtin_return_address(0)) == OURS) {
        atomic_fetch_add(&registered, 1);
        fork_while_registering();
    }
    return real(before, parent, child, library);
}

int fork_watch_registered(void) {
    return atomic_load(&registered);
}

int fork_watch_stuck(void) {
    return atomic_load(&stuck);
}

int fork_watch_ways(void) {
    return (int)way_count;
}

int fork_watch_found(void) {
    return atomic_load(&found);
}
