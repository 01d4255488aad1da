/* platform on Linux: eventfd, timerfd, /proc/self/fd, TCP_INFO. platform.h says what each function
 * promises. Decides nothing; calls posix.c and the C library; no lock. */
#ifdef __linux__

#include "platform/posix.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h> /* <netinet/tcp.h> defines the same names with fewer fields */
#include <netinet/in.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

int64_t encl_now_ns(void) {
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

void encl_platform_cond_init(pthread_cond_t *cond) {
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

void encl_platform_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t until) {
    struct timespec at = encl_posix_timespec(until);

    (void)pthread_cond_timedwait(cond, lock, &at);
}

/* More processors than a cpu_set_t has room for make the call fail. */
size_t encl_processors(void) {
    cpu_set_t mine;
    int n = sched_getaffinity(0, sizeof mine, &mine) == 0 ? CPU_COUNT(&mine) : 1;

    return n > 1 ? (size_t)n : 1;
}

void encl_thread_name(const char *name) {
    (void)pthread_setname_np(pthread_self(), name);
}

/* How C++ has the objects of a thread destroyed (Itanium C++ ABI, section 3.3.5.2); glibc has it,
 * musl has not. */
extern int __cxa_thread_atexit_impl(void (*fn)(void *), void *arg, void *library)
    __attribute__((weak));
extern void *__dso_handle __attribute__((visibility("hidden")));

void encl_thread_at_exit(void (*fn)(void *unused)) {
    if (__cxa_thread_atexit_impl == NULL ||
        __cxa_thread_atexit_impl(fn, NULL, &__dso_handle) != 0) {
        encl_posix_thread_at_exit(fn);
    }
}

bool encl_wakeup_open(encl_wakeup *w) {
    w->fd = w->sender = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return w->fd >= 0;
}

void encl_wakeup_close(encl_wakeup *w) {
    (void)close(w->fd);
    w->fd = w->sender = -1;
}

void encl_wakeup_set(const encl_wakeup *w) {
    uint64_t one = 1;
    ssize_t rc;

    do {
        rc = write(w->sender, &one, sizeof one);
    } while (rc < 0 && errno == EINTR);
}

void encl_wakeup_clear(const encl_wakeup *w) {
    uint64_t count;

    if (read(w->fd, &count, sizeof count) < 0) {
        return; /* it was not set */
    }
}

int encl_alarm_open(void) {
    return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
}

void encl_alarm_set(int fd, int64_t at) {
    struct itimerspec when = {.it_value = encl_posix_timespec(at)};

    (void)timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL);
}

void encl_alarm_clear(int fd) {
    uint64_t expirations;

    if (read(fd, &expirations, sizeof expirations) < 0) {
        return; /* it was not readable */
    }
}

int encl_socket_tcp(int family) {
    return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

/* A pipe without anybody who writes. */
int encl_hung_up_open(void) {
    int ends[2];

    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        return -1;
    }
    (void)close(ends[1]);
    return ends[0];
}

void encl_descriptor_replace(int fd, int by) {
    (void)dup3(by, fd, O_CLOEXEC);
}

void encl_socket_prepare(int fd) {
    (void)fd; /* encl_socket_send says it for each call */
}

ssize_t encl_socket_send(int fd, const void *bytes, size_t len) {
    return send(fd, bytes, len, MSG_NOSIGNAL);
}

void encl_socket_reset(int fd) {
    struct sockaddr nowhere;

    /* Dissolves the association at once. */
    memset(&nowhere, 0, sizeof nowhere);
    nowhere.sa_family = AF_UNSPEC;
    (void)connect(fd, &nowhere, sizeof nowhere);
}

bool encl_socket_get_progress(int fd, encl_socket_progress *out) {
    struct tcp_info info;
    socklen_t size = sizeof info;

    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 ||
        size < offsetof(struct tcp_info, tcpi_notsent_bytes) + sizeof info.tcpi_notsent_bytes) {
        return false;
    }
    *out = (encl_socket_progress){
        .acknowledged = info.tcpi_bytes_acked,
        .backlog = info.tcpi_unacked != 0 || info.tcpi_notsent_bytes != 0,
        .stalled = info.tcpi_unacked == 0 && info.tcpi_notsent_bytes != 0 && info.tcpi_probes <= 1,
    };
    return true;
}

int encl_descriptor_find(bool (*is_it)(int fd, void *arg), void *arg) {
    return encl_posix_descriptor_find("/proc/self/fd", is_it, arg);
}

bool encl_file_identify(const char *path, encl_file_id *out) {
    struct stat file;

    if (stat(path, &file) != 0) {
        return false;
    }
    *out = encl_posix_file_id(&file, file.st_mtim);
    return true;
}

#endif
