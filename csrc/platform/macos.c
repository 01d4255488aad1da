/* platform on macOS: kqueue, a pipe, /dev/fd, TCP_CONNECTION_INFO. platform.h says what each
 * function promises. Compiled for its syntax only so far (`make lint`): the project has no such
 * machine. Decides nothing; calls posix.c and the C library; no lock. */
#ifdef __APPLE__

#include "platform/posix.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/event.h>
#include <sys/socket.h>
#include <unistd.h>

int64_t encl_now_ns(void) {
    return (int64_t)clock_gettime_nsec_np(CLOCK_UPTIME_RAW);
}

void encl_platform_cond_init(pthread_cond_t *cond) {
    (void)pthread_cond_init(cond, NULL);
}

/* There is no choice of a clock for condition variables: the time that is left is given instead. */
void encl_platform_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t until) {
    int64_t left = until - encl_now_ns();
    struct timespec wait = encl_posix_timespec(left < 0 ? 0 : left);

    (void)pthread_cond_timedwait_relative_np(cond, lock, &wait);
}

size_t encl_processors(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);

    return n > 1 ? (size_t)n : 1;
}

void encl_thread_name(const char *name) {
    (void)pthread_setname_np(name);
}

void encl_thread_at_exit(void (*fn)(void *unused)) {
    encl_posix_thread_at_exit(fn);
}

static bool set_quiet_flags(int fd) {
    return fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0;
}

bool encl_wakeup_open(encl_wakeup *w) {
    int ends[2];

    w->fd = w->sender = -1;
    if (pipe(ends) != 0) {
        return false;
    }
    if (!set_quiet_flags(ends[0]) || !set_quiet_flags(ends[1])) {
        (void)close(ends[0]);
        (void)close(ends[1]);
        return false;
    }
    w->fd = ends[0];
    w->sender = ends[1];
    return true;
}

void encl_wakeup_close(encl_wakeup *w) {
    (void)close(w->fd);
    (void)close(w->sender);
    w->fd = w->sender = -1;
}

/* A pipe that is full is readable, which is all that is asked for. */
void encl_wakeup_set(const encl_wakeup *w) {
    ssize_t rc;

    do {
        rc = write(w->sender, "", 1);
    } while (rc < 0 && errno == EINTR);
}

void encl_wakeup_clear(const encl_wakeup *w) {
    char ignored[64];
    ssize_t rc;

    do {
        rc = read(w->fd, ignored, sizeof ignored);
    } while (rc == (ssize_t)sizeof ignored || (rc < 0 && errno == EINTR));
}

/* A kqueue can be polled like any descriptor; it is readable while it has an event to give. */
int encl_alarm_open(void) {
    int fd = kqueue();

    if (fd >= 0) {
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    return fd;
}

void encl_alarm_set(int fd, int64_t at) {
    int64_t left = at - encl_now_ns();
    struct kevent change;

    EV_SET(&change, 1, EVFILT_TIMER, EV_ADD | EV_ONESHOT, NOTE_NSECONDS, left < 1 ? 1 : left, NULL);
    (void)kevent(fd, &change, 1, NULL, 0, NULL);
}

void encl_alarm_clear(int fd) {
    struct timespec at_once = {0, 0};
    struct kevent event;

    (void)kevent(fd, NULL, 0, &event, 1, &at_once);
}

int encl_socket_tcp(int family) {
    int fd = socket(family, SOCK_STREAM, 0);

    if (fd >= 0 && !set_quiet_flags(fd)) {
        (void)close(fd);
        return -1;
    }
    return fd;
}

/* A pipe without anybody who writes. */
int encl_hung_up_open(void) {
    int ends[2];

    if (pipe(ends) != 0) {
        return -1;
    }
    (void)close(ends[1]);
    if (!set_quiet_flags(ends[0])) {
        (void)close(ends[0]);
        return -1;
    }
    return ends[0];
}

/* There is no dup3. */
void encl_descriptor_replace(int fd, int by) {
    (void)dup2(by, fd);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
}

void encl_socket_prepare(int fd) {
    int on = 1;

    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
}

ssize_t encl_socket_send(int fd, const void *bytes, size_t len) {
    return send(fd, bytes, len, 0);
}

void encl_socket_reset(int fd) {
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};

    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

/* The kernel counts what it sent and what is left of that in the socket's buffer, not what was
 * acknowledged; what it sends without an acknowledgement is bounded by the window. */
bool encl_socket_get_progress(int fd, encl_socket_progress *out) {
    struct tcp_connection_info info;
    socklen_t size = sizeof info;

    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONNECTION_INFO, &info, &size) != 0) {
        return false;
    }
    *out = (encl_socket_progress){
        .acknowledged = info.tcpi_txbytes - info.tcpi_snd_sbbytes,
        .backlog = info.tcpi_snd_sbbytes != 0,
        .stalled = info.tcpi_snd_sbbytes != 0 && info.tcpi_snd_wnd == 0,
    };
    return true;
}

int encl_descriptor_find(bool (*is_it)(int fd, void *arg), void *arg) {
    return encl_posix_descriptor_find("/dev/fd", is_it, arg);
}

bool encl_file_identify(const char *path, encl_file_id *out) {
    struct stat file;

    if (stat(path, &file) != 0) {
        return false;
    }
    *out = encl_posix_file_id(&file, file.st_mtimespec);
    return true;
}

#endif
