/* channel: one verified connection as a thread-safe handle. Blocking calls with a deadline, the
 * same without waiting for event loops, cancel and close from any thread. Knows nothing of Python.
 *
 * Locks: every channel has one (channel->lock), which guards the channel, its session and all its
 * streams, slots and requests. Order: channel lock, then the connection's own. No call here is made
 * with the lock held into anything that waits. */
#ifndef ENCL_CHANNEL_CHANNEL_H
#define ENCL_CHANNEL_CHANNEL_H

#include "attest/attest.h"
#include "base/buf.h"
#include "net/net.h"
#include "platform/platform.h"

/* Bytes held for readers. The protocol has no flow control per stream, so above HIGH of one stream
 * nothing more is read from the connection until its reader has brought it below LOW, unless others
 * wait for what comes behind: then it is read on, up to UNREAD_MAX of all streams together. Where
 * that is not enough and they have waited for ENCL_STALL_NS, the stream that holds them up is ended
 * with ENCL_E_SLOW_READER. */
#define ENCL_STREAM_HIGH_WATER  ((size_t)1024 * 1024)
#define ENCL_STREAM_LOW_WATER   ((size_t)512 * 1024)
#define ENCL_CHANNEL_UNREAD_MAX ((size_t)15 * 1024 * 1024)

/* Deadlines are points of encl_now_ns. */
#define ENCL_POLL    ((int64_t)0)
#define ENCL_FOREVER INT64_MAX

/* ---- announcements for event loops: a descriptor and a list of tokens ---- */
typedef struct encl_notifier encl_notifier;
encl_result encl_notifier_new(encl_notifier **out, encl_error *err);
/* One without a descriptor: calls where that would become readable. call may take the locks of
 * net's loops alone, as the channel's lock is held meanwhile. */
encl_result encl_notifier_new_calling(void (*call)(void *arg), void *arg, encl_notifier **out,
                                      encl_error *err);
void encl_notifier_retain(encl_notifier *n);
void encl_notifier_release(encl_notifier *n);
int encl_notifier_fd(const encl_notifier *n); /* -1 where there is none */
/* For event loops that have no descriptors. Once for the process: call() is called whenever a
 * notifier's descriptor becomes readable, by any thread and with locks held, so it notes that and
 * calls nothing of this project. */
void encl_notifier_on_wake(void (*call)(void));
/* Whether that has happened to this one since this was asked last. */
bool encl_notifier_was_woken(encl_notifier *n);
/* A place for one token, taken before it is needed: announcing it then cannot fail. Each place is
 * used up by one post or given back. */
encl_result encl_notifier_reserve(encl_notifier *n, encl_error *err);
void encl_notifier_unreserve(encl_notifier *n);
void encl_notifier_post(encl_notifier *n, uint64_t token);
void encl_notifier_wake(encl_notifier *n);
/* Takes up to max tokens; the descriptor stays readable while there are more. In a forked child
 * there are none, and nothing is reserved or posted: it needs a notifier of its own. */
size_t encl_notifier_drain(encl_notifier *n, uint64_t *tokens, size_t max);

/* ---- channels ---- */
typedef struct encl_channel encl_channel;
typedef struct encl_slot encl_slot;
typedef struct encl_stream encl_stream;
typedef struct encl_request encl_request;

typedef enum encl_channel_state {
    ENCL_CHANNEL_CONNECTING,
    ENCL_CHANNEL_OPEN,
    ENCL_CHANNEL_CLOSED,
} encl_channel_state;

/* How far it came on its way to being open. */
typedef enum encl_channel_stage {
    ENCL_STAGE_RESOLVED,  /* the host's name, or the proxy's */
    ENCL_STAGE_CONNECTED, /* TCP, by way of the proxy where there is one */
    ENCL_STAGE_SECURED,   /* TLS; never reached where there is none */
    ENCL_STAGE_UPGRADED,  /* the WebSocket is open */
    ENCL_STAGE_HANDSHAKE, /* the Noise handshake is complete, and the document was asked for */
    ENCL_STAGE_VERIFIED,  /* the document: the channel is open */
    ENCL_STAGES
} encl_channel_stage;

/* A verified document, shared. */
typedef struct encl_doc encl_doc;
const encl_attestation *encl_doc_get(const encl_doc *doc);
void encl_doc_release(encl_doc *doc);

typedef struct encl_channel_config {
    encl_ws_target target;
    const encl_policy *policy; /* copied */
    size_t max_in_flight;      /* 1..64 */
} encl_channel_config;

/* Starts connecting; gives one reference. */
encl_result encl_channel_new(const encl_channel_config *config, encl_channel **out,
                             encl_error *err);
/* The last reference closes. */
void encl_channel_release(encl_channel *ch);
encl_channel_state encl_channel_get_state(encl_channel *ch);
bool encl_channel_is_forked(const encl_channel *ch);
/* False while it is not closed. */
bool encl_channel_why(encl_channel *ch, encl_error *why);
/* ENCL_E_CONNECT_TIMEOUT at the deadline (nothing is closed by that), or why it closed. */
encl_result encl_channel_wait_open(encl_channel *ch, int64_t until, encl_error *err);
/* Token is announced once, to everybody who asked, when it is open or closed. Whoever asks
 * withdraws, told or not. */
encl_result encl_channel_notify_open(encl_channel *ch, encl_notifier *n, uint64_t token,
                                     encl_error *err);
/* When each stage was reached first, as encl_now_ns says it; 0 where it was not. Takes no lock. */
void encl_channel_get_stages(const encl_channel *ch, int64_t at[ENCL_STAGES]);
/* As encl_channel_notify_open, when more than `seen` stages are reached. */
encl_result encl_channel_notify_stage(encl_channel *ch, int seen, encl_notifier *n, uint64_t token,
                                      encl_error *err);
void encl_channel_withdraw(encl_channel *ch, const encl_notifier *n, uint64_t token);
encl_result encl_channel_attestation(encl_channel *ch, encl_doc **out, encl_error *err);
encl_result encl_channel_handshake_hash(encl_channel *ch, uint8_t hash[32], encl_error *err);
/* Fails what is under way with code ENCL_E_CLOSED (or why, when given), then ends in good order. */
void encl_channel_close(encl_channel *ch, const encl_error *why);
/* Whether the connection is gone by the deadline. */
bool encl_channel_wait_closed(encl_channel *ch, int64_t until);

/* For whoever has its WebSocket (web/web.h). As long as the channel lives. */
encl_conn *encl_channel_connection(const encl_channel *ch);

typedef struct encl_channel_stats {
    uint64_t bytes_in, bytes_out, records_in, records_out;
    uint64_t streams_open, streams_total, slots_in_use, slots_waiting;
} encl_channel_stats;
void encl_channel_get_stats(encl_channel *ch, encl_channel_stats *stats);

/* A fresh document: asked for, then collected by its number. ENCL_E_READ_TIMEOUT at the deadline.
 */
encl_result encl_channel_start_attest(encl_channel *ch, encl_notifier *n, uint64_t token,
                                      uint64_t *number, encl_error *err);
encl_result encl_channel_finish_attest(encl_channel *ch, uint64_t number, int64_t until,
                                       encl_doc **out, encl_error *err);
/* Nobody will collect it. */
void encl_channel_abandon_attest(encl_channel *ch, uint64_t number);

/* A place among max_in_flight, granted in the order asked for. n may be NULL. */
encl_result encl_channel_reserve(encl_channel *ch, encl_notifier *n, uint64_t token,
                                 encl_slot **out, encl_error *err);
bool encl_slot_granted(encl_slot *slot);
encl_result encl_slot_wait(encl_slot *slot, int64_t until, encl_error *err); /* POOL_TIMEOUT */
void encl_slot_give_up(encl_slot *slot);
void encl_slot_release(encl_slot *slot); /* the reference; gives up what was not used */

/* Uses the slot up. The payload, at most ENCL_STREAM_CHUNK bytes, goes with the opening record. */
encl_result encl_stream_open(encl_slot *slot, encl_slice payload, encl_stream **out,
                             encl_error *err);
void encl_stream_release(encl_stream *st); /* closes */
uint64_t encl_stream_id(const encl_stream *st);
bool encl_stream_is_closed(encl_stream *st);
bool encl_stream_at_eof(encl_stream *st);
bool encl_stream_readable(encl_stream *st);
size_t encl_stream_buffered(encl_stream *st);
/* 1..cap bytes; *got 0 is the end of the stream. ENCL_E_READ_TIMEOUT at the deadline. */
encl_result encl_stream_read(encl_stream *st, uint8_t *out, size_t cap, int64_t until, size_t *got,
                             encl_error *err);
/* As much as could be sent by the deadline; ENCL_E_WRITE_TIMEOUT when that is not all (*put says
 * how much was). */
encl_result encl_stream_write(encl_stream *st, encl_slice bytes, int64_t until, size_t *put,
                              encl_error *err);
encl_result encl_stream_write_eof(encl_stream *st, encl_error *err);
void encl_stream_close(encl_stream *st);
/* What is there at once, for a caller that may wait for nothing, not even for a lock. False where
 * that is nothing, or where only encl_stream_read can tell. */
bool encl_stream_read_now(encl_stream *st, uint8_t *out, size_t cap, size_t *got);
#define ENCL_READABLE 1
#define ENCL_WRITABLE 2
/* Token is announced once each, to everybody who asked; what 0 takes all of them back. Whoever asks
 * counts as waiting until it withdraws, which it has to do on every path, told or not. */
encl_result encl_stream_notify(encl_stream *st, int what, encl_notifier *n, uint64_t token,
                               encl_error *err);
void encl_stream_withdraw(encl_stream *st, const encl_notifier *n, uint64_t token);

/* A one-shot request. */
encl_result encl_request_start(encl_slot *slot, encl_slice payload, encl_request **out,
                               encl_error *err);
void encl_request_release(encl_request *rq); /* abandons */
/* Its answer will not be kept; whoever waits for it is told. */
void encl_request_abandon(encl_request *rq);
/* The answer stays the request's. ENCL_E_READ_TIMEOUT at the deadline. */
encl_result encl_request_result(encl_request *rq, int64_t until, encl_slice *answer,
                                encl_error *err);
encl_result encl_request_notify(encl_request *rq, encl_notifier *n, uint64_t token,
                                encl_error *err);
void encl_request_withdraw(encl_request *rq, const encl_notifier *n, uint64_t token);

#endif
