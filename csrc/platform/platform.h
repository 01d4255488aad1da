/* platform: the calls that are not the same on every operating system, and only those. linux.c and
 * macos.c define the same functions; the compiler's target decides which of them counts. The layers
 * net, channel and enclave name no such call themselves (tests/python/house/test_layers.py).
 * No lock. */
#ifndef ENCL_PLATFORM_PLATFORM_H
#define ENCL_PLATFORM_PLATFORM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- time and threads ---- */

/* Nanoseconds of a clock that only goes forward and stands still while the machine sleeps.
 * Deadlines are points of it. */
int64_t encl_now_ns(void);

/* Under sync/lock.h: condition variables whose deadlines are points of encl_now_ns. Never fails. */
void encl_platform_cond_init(pthread_cond_t *cond);
/* lock is held. Returns when the condition is signalled, at `until`, or before for no reason. */
void encl_platform_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t until);

/* How many processors this process may run on, at least 1. */
size_t encl_processors(void);

/* What debuggers show for the calling thread; at most 15 bytes. */
void encl_thread_name(const char *name);

/* Has fn called when the calling thread ends, where the system can before the destructors of other
 * libraries' keys; those that were made before this was first called come first elsewhere. fn is
 * the same in each call; what it is given means nothing. */
void encl_thread_at_exit(void (*fn)(void *unused));

/* ---- a descriptor that poll() finds readable when somebody says so ---- */

typedef struct encl_wakeup {
    int fd;     /* the one to poll */
    int sender; /* the one to write to; may be the same */
} encl_wakeup;

/* False with errno where there is no descriptor. */
bool encl_wakeup_open(encl_wakeup *w);
void encl_wakeup_close(encl_wakeup *w);
/* Any thread. Setting it twice is the same as setting it once. */
void encl_wakeup_set(const encl_wakeup *w);
void encl_wakeup_clear(const encl_wakeup *w);

/* ---- a descriptor that poll() finds readable from a given time on ---- */

/* -1 with errno where there is none. It is closed by close(). */
int encl_alarm_open(void);
/* at: of encl_now_ns. Takes the place of what was set before, and makes it unreadable until then.
 */
void encl_alarm_set(int fd, int64_t at);
/* Makes it unreadable after the time has come. */
void encl_alarm_clear(int fd);

/* ---- sockets and files ---- */

/* A descriptor that poll() says has hung up, and nothing else. Closed by exec. -1 with errno. */
int encl_hung_up_open(void);
/* From now on fd means what by means: what it meant before is closed. Closed by exec, like by. */
void encl_descriptor_replace(int fd, int by);

/* A TCP socket that does not block and is closed by exec. -1 with errno. */
int encl_socket_tcp(int family);
/* To be called once for every socket that encl_socket_send is given. */
void encl_socket_prepare(int fd);
/* send() that raises no SIGPIPE where the peer is gone: what that signal does is for the program to
 * decide, in whose threads this is called. */
ssize_t encl_socket_send(int fd, const void *bytes, size_t len);
/* The peer of a TCP connection learns by a RST that it has ended, at the latest when fd is closed.
 */
void encl_socket_reset(int fd);

/* What the kernel knows of the other end of a TCP connection. */
typedef struct encl_socket_progress {
    uint64_t acknowledged; /* a count of bytes that grows as the peer acknowledges */
    bool backlog;          /* something was sent, or waits in the kernel, unacknowledged */
    bool stalled;          /* the peer's window is shut, and it answers the probes */
} encl_socket_progress;
/* False for what is no TCP connection. */
bool encl_socket_get_progress(int fd, encl_socket_progress *out);

/* The first of this process's descriptors that is_it agrees to, -1 where there is none. */
int encl_descriptor_find(bool (*is_it)(int fd, void *arg), void *arg);

/* Tells whether a file is still the one that was looked at. */
typedef struct encl_file_id {
    uintmax_t inode;
    intmax_t size, seconds, nanoseconds;
} encl_file_id;
/* False with errno where the file cannot be looked at. */
bool encl_file_identify(const char *path, encl_file_id *out);

#endif
