#include <errno.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "net/net_internal.h"

#define NS_PER_S  ((int64_t)1000000000)
#define NS_PER_MS ((int64_t)1000000)

/* libwebsockets has timers too, but its loop hands poll() whole milliseconds, rounded down: for the
 * last fraction of one it would call poll() again and again without sleeping. A descriptor of the
 * kernel's becomes readable at the time itself, and any thread can set it without waking the loop.
 */

/* lock is held. The descriptor may be set for an earlier time than needed: then it becomes readable
 * too early once, finds nothing due, and is set again. */
static void aim(net_timers *timers) {
    struct itimerspec at = {.it_interval = {0, 0}};
    const encl_timer *first = timers->first;

    if (first == NULL || timers->fd < 0 ||
        (timers->aimed_at != 0 && timers->aimed_at <= first->at)) {
        return;
    }
    at.it_value.tv_sec = (time_t)(first->at / NS_PER_S);
    at.it_value.tv_nsec = (long)(first->at % NS_PER_S);
    timers->aimed_at = first->at;
    (void)timerfd_settime(timers->fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/* lock is held. */
static void unlink_timer(encl_timer *timer) {
    if (timer->link == NULL) {
        return;
    }
    *timer->link = timer->next;
    if (timer->next != NULL) {
        timer->next->link = timer->link;
    }
    timer->next = NULL;
    timer->link = NULL;
}

/* lock is held. In the order of their times; there are a few for each connection. */
static void link_timer(encl_timer *timer) {
    encl_timer **at = &timer->loop->timers.first;

    while (*at != NULL && (*at)->at <= timer->at) {
        at = &(*at)->next;
    }
    timer->next = *at;
    timer->link = at;
    if (timer->next != NULL) {
        timer->next->link = &timer->next;
    }
    *at = timer;
}

/* The first timer that is due, taken out; NULL where there is none. */
static encl_timer *take_due(net_timers *timers) {
    int64_t now = net_now_ns();
    encl_timer *first;

    pthread_mutex_lock(&timers->lock);
    first = timers->first;
    if (first != NULL && first->at <= now) {
        unlink_timer(first);
    } else {
        first = NULL;
    }
    pthread_mutex_unlock(&timers->lock);
    return first;
}

void net_timers_fire(encl_loop *loop) {
    net_timers *timers = &loop->timers;
    uint64_t expirations;
    encl_timer *due;

    pthread_mutex_lock(&timers->lock);
    timers->aimed_at = 0;
    pthread_mutex_unlock(&timers->lock);
    while ((due = take_due(timers)) != NULL) {
        due->task(due->arg); /* may free the timer, and set any */
    }
    pthread_mutex_lock(&timers->lock);
    aim(timers);
    if (timers->aimed_at == 0 && read(timers->fd, &expirations, sizeof expirations) < 0) {
        /* Setting the descriptor makes it unreadable as well; reading does where nothing is set. */
    }
    pthread_mutex_unlock(&timers->lock);
}

encl_result net_timers_open(encl_loop *loop, encl_error *err) {
    lws_adopt_desc_t info = {
        .vh = loop->raw_vhost,
        .type = LWS_ADOPT_RAW_FILE_DESC,
        .vh_prot_name = NET_PROTOCOL,
    };
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

    ENCL_ENSURE(fd >= 0, err, ENCL_E_NOMEM, "no descriptor for timers");
    info.fd.filefd = fd;
    loop->timers.wsi = lws_adopt_descriptor_vhost_via_info(&info);
    if (loop->timers.wsi == NULL) {
        (void)close(fd);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    pthread_mutex_lock(&loop->timers.lock);
    loop->timers.fd = fd;
    aim(&loop->timers);
    pthread_mutex_unlock(&loop->timers.lock);
    return ENCL_OK;
}

void net_timers_closed(encl_loop *loop) {
    pthread_mutex_lock(&loop->timers.lock);
    loop->timers.fd = -1;
    loop->timers.wsi = NULL;
    pthread_mutex_unlock(&loop->timers.lock);
}

void net_timer_init(encl_timer *timer, encl_loop *loop, encl_task task, void *arg) {
    *timer = (encl_timer){.loop = loop, .task = task, .arg = arg};
}

encl_result encl_timer_new(encl_loop *loop, encl_task task, void *arg, encl_timer **out,
                           encl_error *err) {
    encl_timer *timer = malloc(sizeof *timer);

    *out = timer;
    ENCL_ENSURE(timer != NULL, err, ENCL_E_NOMEM, "out of memory");
    net_timer_init(timer, loop, task, arg);
    return ENCL_OK;
}

void encl_timer_set(encl_timer *timer, uint64_t after_ms) {
    net_timers *timers = &timer->loop->timers;
    int64_t now = net_now_ns();
    uint64_t longest = (uint64_t)((INT64_MAX - now) / NS_PER_MS);

    pthread_mutex_lock(&timers->lock);
    unlink_timer(timer);
    timer->at = after_ms < longest ? now + (int64_t)after_ms * NS_PER_MS : INT64_MAX;
    link_timer(timer);
    aim(timers);
    pthread_mutex_unlock(&timers->lock);
}

void encl_timer_stop(encl_timer *timer) {
    net_timers *timers = &timer->loop->timers;

    pthread_mutex_lock(&timers->lock);
    unlink_timer(timer);
    pthread_mutex_unlock(&timers->lock);
}

void encl_timer_free(encl_timer *timer) {
    if (timer != NULL) {
        encl_timer_stop(timer);
        free(timer);
    }
}
