/* Transfers: streams and one-shot requests. Inside channel/ only; the channel's lock is held,
 * unless said otherwise. */
#ifndef ENCL_CHANNEL_TRANSFER_H
#define ENCL_CHANNEL_TRANSFER_H

#include "channel/state.h"

/* Zeroed memory becomes a transfer with one reference, its user's. Without the lock. */
void transfer_init(transfer *t, encl_channel *ch, bool is_stream);
/* A reference for another one who uses it. Without the lock. */
void transfer_hold(transfer *t);
/* A user's reference; the last one frees. Without the lock. */
void transfer_release(transfer *t);
/* Wakes the threads that wait for data, and gives back the reference of ch->to_wake. With the lock
 * or without. */
void transfer_wake(transfer *t);

/* Its id has been opened. The channel has a reference until transfer_forget. */
void transfer_add(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
transfer *transfer_find(encl_channel *ch, uint64_t id) ENCL_REQUIRES(ch->lock);
/* Out of the table, its place is free. May free t, where its user has released it. */
void transfer_forget(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);

/* ---- what was received for it; whoever waits is told ---- */
void transfer_received(encl_channel *ch, transfer *t, encl_slice bytes) ENCL_REQUIRES(ch->lock);
/* The answer of a one-shot request, which ends it: may free t. */
void transfer_answered(encl_channel *ch, transfer *t, encl_slice bytes) ENCL_REQUIRES(ch->lock);
void transfer_ended(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
void transfer_fail(encl_channel *ch, transfer *t, const encl_error *why) ENCL_REQUIRES(ch->lock);

/* ---- what its user does ---- */
/* Up to cap bytes of what was received. */
size_t transfer_read(encl_channel *ch, transfer *t, uint8_t *out, size_t cap)
    ENCL_REQUIRES(ch->lock);
/* A record of it has been sent. */
void transfer_sent(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
/* A stream that its user closes. The record that says so is sent when its turn comes. */
void transfer_close(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
/* A stream whose reader holds up others: ended, and what was not read is dropped. */
void transfer_give_up(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
/* What keeps its user from going on, as an error; ENCL_OK where nothing does. */
encl_result transfer_check(const transfer *t, encl_error *err);
/* Whether a reader would return at once. Without the lock. */
bool transfer_is_readable(transfer *t);

/* ---- who waits to send ---- */
void transfer_set_expecting(encl_channel *ch, transfer *t, bool expecting) ENCL_REQUIRES(ch->lock);
/* It waits behind those that do already. Looked at again before the lock is let go. */
void transfer_set_waiting(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
/* One of those who waited does not any more. */
void transfer_stopped_waiting(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
/* Of those who wait and have not been told, the first whose turn is after that one (0: of all). */
transfer *transfer_next_writer(encl_channel *ch, uint64_t turn) ENCL_REQUIRES(ch->lock);
void transfer_tell_writer(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock);
/* The next one whose end has not been sent; NULL where there is none. */
transfer *transfer_next_closing(encl_channel *ch) ENCL_REQUIRES(ch->lock);

#endif
