/* The door of a channel: enter, change, leave. Leaving settles what the change has led to. Inside
 * channel/ only. */
#ifndef ENCL_CHANNEL_SETTLE_H
#define ENCL_CHANNEL_SETTLE_H

#include "channel/state.h"

/* Takes the lock. False in a forked child, where it may be held for ever by a thread that is not
 * there: then nothing is locked. */
bool ch_enter(encl_channel *ch) ENCL_TRY_ACQUIRES(true, ch->lock);
/* Settles, and lets the lock go. */
void ch_leave(encl_channel *ch) ENCL_RELEASES(ch->lock);
/* Settles, and waits until cond is signalled or the deadline. False where that had passed before;
 * true in every other case, whatever the reason: the caller looks at what it waits for again. */
bool ch_wait(encl_channel *ch, pthread_cond_t *cond, int64_t until) ENCL_REQUIRES(ch->lock);

#endif
