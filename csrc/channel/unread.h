/* Bytes that were received and have not been read. Inside channel/ only; the channel's lock is
 * held. */
#ifndef ENCL_CHANNEL_UNREAD_H
#define ENCL_CHANNEL_UNREAD_H

#include "channel/state.h"

/* t's ring has more or less in it than before. */
void unread_grew(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
void unread_shrank(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
/* t is no longer the channel's: what its ring holds is its user's. */
void unread_leave(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);

/* Whether to stop reading from the connection. */
bool unread_should_pause(const encl_channel *ch) ENCL_REQUIRES(ch->lock);
/* Whether others wait behind as many unread bytes as a channel holds. */
bool unread_is_stalled(const encl_channel *ch) ENCL_REQUIRES(ch->lock);
/* The stream with the most unread bytes; NULL where none is over high water. */
transfer *unread_furthest_behind(const encl_channel *ch) ENCL_REQUIRES(ch->lock);

#endif
