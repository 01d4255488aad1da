/* What streams and requests have in common for those who wait. Inside channel/ only. */
#ifndef ENCL_CHANNEL_WAITS_H
#define ENCL_CHANNEL_WAITS_H

#include "channel/state.h"

/* Waits for data or for the answer. False: the deadline. */
bool waits_for_data(encl_channel *ch, transfer *t, int64_t until) ENCL_REQUIRES(ch->lock);
/* Waits for a turn to send. False: the deadline. Who does not wait (ENCL_POLL) leaves nothing
 * behind. */
bool waits_to_send(encl_channel *ch, transfer *t, int64_t until) ENCL_REQUIRES(ch->lock);
/* Token is announced when t is what (ENCL_READABLE, ENCL_WRITABLE), at once where it is; 0 takes
 * back what everybody asked for. Takes the lock. */
encl_result waits_notify(transfer *t, int what, encl_notifier *n, uint64_t token, encl_error *err);
/* The owner of a registration takes it back. Takes the lock. */
void waits_withdraw(transfer *t, const encl_notifier *n, uint64_t token);

#endif
