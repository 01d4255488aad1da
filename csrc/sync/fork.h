/* fork: makes fork() wait while another thread works with state that a child could not use. OpenSSL
 * keeps locks of its own, and fork() copies a lock that is held as one that is held for ever: its
 * owner is not in the child. libwebsockets' and our own tables would be copied half changed.
 *
 * A thread that calls such a library holds fork() back meanwhile. Nothing that waits for a peer, a
 * user or a callback is done in between, so fork() waits for computation alone. fork() holds back
 * whoever comes after it, so it does not wait for ever where there is always somebody.
 *
 * Rules, without which there would be circles:
 *   - A thread that holds fork() back may take any lock whose owners never wait for fork() with it
 *     held, and no thread waits for another that is only about to hold fork() back.
 *   - Workers, who hold fork() back for as long as they run, may take any lock. So threads that
 *     hold one may call encl_fork_hold: while there is a worker that has not paused, it does not
 *     wait.
 *   - The GIL is not held: the thread that calls fork() has it.
 *   - No handler of fork() is registered meanwhile: pthread_atfork takes a lock that musl, macOS
 *     and glibc before 2.36 hold while they call the handlers. */
#ifndef ENCL_SYNC_FORK_H
#define ENCL_SYNC_FORK_H

#include <stdbool.h>

/* Registers the handlers of fork(), once for the process; needed before anything else here. False:
 * the system has no memory for them. */
bool encl_fork_init(void);

/* From here to encl_fork_let_go no child is made by another thread. Pairs may stand in each other.
 * Waits while another thread is in fork(). */
void encl_fork_hold(void);
void encl_fork_let_go(void);

/* The same for what may wait for somebody: fork() waits for it ENCL_FORK_PATIENCE_MS at most. For
 * getaddrinfo, of which glibc has locks that fork() would copy: it has done what it does under them
 * when it asks a name server, or is over by then. Nothing else here is called in between. */
#define ENCL_FORK_PATIENCE_MS 100
void encl_fork_hold_briefly(void);
void encl_fork_let_go_briefly(void);

/* Once for the process: what is to be called, with fork() held back, when a thread ends that has
 * held it back before; not of workers, which do so themselves. */
void encl_fork_at_thread_end(void (*clean_up)(void));

/* Once for the process: what a child is to do before fork() returns there. */
void encl_fork_in_child(void (*call)(void));

/* ---- workers: threads that hold fork() back all the time, but for pauses of their choice ---- */

/* One that sleeps within a library and has to be woken so that it pauses. */
typedef struct encl_fork_worker {
    void (*wake)(void *arg); /* called by fork()'s thread, with a lock held: calls nothing here */
    void *arg;
    struct encl_fork_worker *next;
} encl_fork_worker;

/* By who makes the thread, before that, and holding fork() back. */
void encl_fork_worker_expect(void);
/* In place of begin and end: there is no such thread after all. */
void encl_fork_worker_forgo(void);
/* The thread's first and last call here. */
void encl_fork_worker_begin(void);
void encl_fork_worker_end(void);
/* From now on, and until it is unlisted, it can be woken. worker is the caller's meanwhile. */
void encl_fork_worker_list(encl_fork_worker *worker);
void encl_fork_worker_unlist(encl_fork_worker *worker);
/* Lets a fork() that waits go first. Called whenever it has woken up, and before it sleeps; costs a
 * load where there is none. */
void encl_fork_worker_pause(void);

#endif
