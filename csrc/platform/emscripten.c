/* platform in a browser (Emscripten): what web, channel and sync ask for. There is one thread and
 * no descriptor, and fork() does not exist. platform.h says what each function promises. Decides
 * nothing; calls the C library; no lock. */
#ifdef __EMSCRIPTEN__

#include <time.h>

#include "platform/platform.h"

#define NS_PER_S INT64_C(1000000000)

int64_t encl_now_ns(void) {
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

void encl_platform_cond_init(pthread_cond_t *cond) {
    (void)pthread_cond_init(cond, NULL);
}

/* Nobody else could signal meanwhile: this is a return for no reason, which callers allow for. The
 * binding lets no call get here. */
void encl_platform_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t until) {
    (void)cond;
    (void)lock;
    (void)until;
}

/* The one thread ends with the page. */
void encl_thread_at_exit(void (*fn)(void *unused)) {
    (void)fn;
}

/* Event loops are told by encl_notifier_on_wake. */
bool encl_wakeup_open(encl_wakeup *w) {
    w->fd = w->sender = -1;
    return true;
}

void encl_wakeup_close(encl_wakeup *w) {
    (void)w;
}

void encl_wakeup_set(const encl_wakeup *w) {
    (void)w;
}

void encl_wakeup_clear(const encl_wakeup *w) {
    (void)w;
}

#endif
