/* Decides which thread takes which piece of work. Calls platform. No lock: pieces are handed out by
 * a counter, and join() shows the caller what the others wrote. */
#include "sync/together.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "platform/platform.h"

#define STACK_BYTES 262144

typedef struct work {
    void (*one)(void *arg, size_t i);
    void *arg;
    size_t count;
    _Atomic size_t next;
} work;

static void take_turns(work *w) {
    size_t i;

    while ((i = atomic_fetch_add(&w->next, 1)) < w->count) {
        w->one(w->arg, i);
    }
}

static void *run(void *arg) {
    encl_thread_name("enclavia-verify");
    take_turns(arg);
    return NULL;
}

static size_t helpers_wanted(size_t count) {
    size_t threads = encl_processors();

    if (threads > ENCL_TOGETHER_MAX) {
        threads = ENCL_TOGETHER_MAX;
    }
    if (threads > count) {
        threads = count;
    }
    return threads == 0 ? 0 : threads - 1;
}

/* A thread has the signal mask of the one that made it, from its first instruction on. */
static size_t start(work *w, pthread_t *helpers, size_t wanted) {
    sigset_t all, before;
    pthread_attr_t attr;
    size_t made = 0;

    if (pthread_attr_init(&attr) != 0) {
        return 0;
    }
    (void)pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    while (made < wanted && pthread_create(&helpers[made], &attr, run, w) == 0) {
        made++;
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attr);
    return made;
}

void encl_together(void (*one)(void *arg, size_t i), void *arg, size_t count) {
    pthread_t helpers[ENCL_TOGETHER_MAX];
    work w = {.one = one, .arg = arg, .count = count};
    size_t wanted = helpers_wanted(count);
    size_t made = wanted == 0 ? 0 : start(&w, helpers, wanted);

    take_turns(&w);
    for (size_t i = 0; i < made; i++) {
        (void)pthread_join(helpers[i], NULL);
    }
}
