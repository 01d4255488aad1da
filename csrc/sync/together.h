/* together: shares pieces of work that only compute among a few threads, for as long as they take.
 * No lock: the pieces are handed out by a counter. */
#ifndef ENCL_SYNC_TOGETHER_H
#define ENCL_SYNC_TOGETHER_H

#include <stddef.h>

/* How many threads work, the caller's among them. A piece is worth a thread where it takes much
 * longer than making one, which is about 20 us. */
#define ENCL_TOGETHER_MAX 4

/* Calls one(arg, i) once for each i below count, and returns when all the calls have. They begin in
 * the order of i, in the caller's thread and in as many others as this process has processors and
 * the system gives; where it gives none, all are made by the caller. The other threads get no
 * signals, have 256 KiB of stack, and are over when this returns: what holds fork() back in the
 * caller holds it back for them. */
void encl_together(void (*one)(void *arg, size_t i), void *arg, size_t count);

#endif
