/* Inside channel only. */
#ifndef ENCL_CHANNEL_INTERNAL_H
#define ENCL_CHANNEL_INTERNAL_H

#include <stdatomic.h>

#include "base/rate.h"
#include "base/secmem.h"
#include "channel/channel.h"
#include "channel/hold.h"
#include "channel/pace.h"
#include "channel/ring.h"
#include "session/session.h"
#include "sync/lock.h"

/* All that a channel may hold, and the block on top that was read when it was reached. */
#define STREAM_BUFFER_LIMIT (ENCL_CHANNEL_UNREAD_MAX + (size_t)1024 * 1024)
#define ATTESTS_MAX         16

_Static_assert(ENCL_STREAM_FIRST_MAX == ENCL_STREAM_CHUNK, "one record");

/* Someone in an event loop who wants to be told once. Guarded by the channel's lock. This one is
 * part of what is waited for (a slot, a question for a document) and ends with it. */
typedef struct watch {
    encl_notifier *notifier;
    uint64_t token;
} watch;

/* All who want to be told about one thing. An entry is its owner's, known by notifier and token: it
 * stays, told or not, until the owner withdraws it. Guarded by the channel's lock. */
typedef struct watch_entry {
    encl_notifier *notifier; /* a reference */
    uint64_t token;
    bool armed; /* not told yet; a place is reserved with the notifier */
} watch_entry;

typedef struct watch_list {
    watch_entry *entries;
    size_t count, cap;
} watch_list;

typedef enum slot_state { SLOT_WAITING, SLOT_GRANTED, SLOT_USED, SLOT_GIVEN_UP } slot_state;

struct encl_slot {
    encl_channel *ch;         /* a reference */
    _Atomic slot_state state; /* changed with the lock held, read without */
    watch granted;
    pthread_cond_t changed;
    encl_slot *next, *prev; /* ch->waiting_*, while SLOT_WAITING */
};

/* What an open id belongs to: a stream or a one-shot request. Two references at most: the user's
 * and, while the id is open, the channel's. */
typedef struct flow {
    encl_channel *ch; /* a reference */
    atomic_uint refs;
    uint64_t id;
    bool is_stream;
    bool user_gone;
    bool done; /* out of ch->flows; its slot is free */
    pthread_cond_t readable;
    watch_list on_readable, on_writable;
    encl_ring ring;   /* streams */
    unsigned readers; /* threads that wait for data or the answer */
    unsigned writers; /* threads that wait to send */
    encl_buf answer;  /* requests */
    /* Changed with the lock held, read without: what has come is published before its end. */
    atomic_size_t unread; /* ring.len */
    atomic_bool eof, failed, closed;
    bool over_high_water, write_ended;
    bool expects;     /* something was sent, and nothing has come since */
    uint64_t wants;   /* since when it waits to send, in order; 0 where it does not */
    bool closing;     /* closed by its user; the record that says so waits for its turn */
    encl_error error; /* where failed */
} flow;

struct encl_stream {
    flow f;
};
struct encl_request {
    flow f;
};

struct encl_doc {
    atomic_uint refs;
    encl_attestation *attestation;
};

typedef struct attest_ask {
    uint64_t number;
    encl_doc *doc;  /* NULL while it has not come */
    bool abandoned; /* its answer still comes, before those of later questions */
    watch came;
} attest_ask;

/* A number that is changed with the channel's lock held and read without it, by those who must not
 * wait for it. Nothing else is told from it, so no order with other memory is asked for. */
typedef atomic_size_t counter;

static inline size_t counted(counter *c) {
    return atomic_load_explicit(c, memory_order_relaxed);
}

/* With the lock held there is one writer, so that reading and writing need not be one step. */
static inline void count_up(counter *c) {
    atomic_store_explicit(c, counted(c) + 1, memory_order_relaxed);
}

static inline void count_down(counter *c) {
    atomic_store_explicit(c, counted(c) - 1, memory_order_relaxed);
}

struct encl_channel {
    atomic_uint refs;
    uint64_t generation;
    encl_mutex lock;                  /* guards everything below */
    pthread_cond_t changed;           /* state, gone, attests, room to write */
    _Atomic encl_channel_state state; /* changed with the lock held, read without */
    bool gone;                        /* the connection's last callback has been made */
    encl_error why;
    encl_policy policy;
    encl_session *session;
    encl_app *app;   /* NULL until verified: nothing of the application can be encoded before */
    encl_conn *conn; /* set before anybody else has the channel, and never after */
    uint8_t handshake_hash[32];
    encl_doc *verified;
    watch_list opened;

    size_t max_in_flight;
    counter in_use, waiting;
    encl_slot *waiting_head, *waiting_tail;
    flow *flows[ENCL_MAX_OPEN];
    size_t flow_count, over_high_water, expecting, wanting, closing;
    uint64_t want_next;

    attest_ask attests[ATTESTS_MAX];
    size_t attest_count;
    uint64_t attest_next;

    counter records_in, records_out, streams_total, streams_open;
    encl_charge idle; /* records that carried nothing */

    encl_loop *loop;
    encl_pace pace;
    size_t promised; /* slots granted whose opening record has not been sent */
    encl_timer
        *pace_timer; /* freed by the service thread; NULL before the connection and after it */
    bool pace_armed; /* somebody waits for it, or for a sign that comes sooner */
    encl_hold hold;
    encl_timer *hold_timer; /* like pace_timer; runs while a stream is over high water */
    encl_buf *tx;           /* between ch_tx_begin and ch_tx_end */
    size_t tx_mark;
};

/* With the channel's lock held, unless said otherwise. */
void ch_retain(encl_channel *ch);
void ch_fail(encl_channel *ch, const encl_error *why);
encl_result ch_check(encl_channel *ch, encl_error *err); /* without: the fork check */
encl_result ch_need_open(encl_channel *ch, encl_error *err);
bool ch_wait(encl_channel *ch, pthread_cond_t *cond, int64_t until)
    ENCL_REQUIRES(ch->lock); /* false: deadline */
/* Begin and end of one record to the connection, about f where that is not NULL. */
encl_result ch_tx_begin(encl_channel *ch, encl_buf **out, encl_error *err);
void ch_tx_end(encl_channel *ch, uint64_t id, const flow *f);
/* Whether another record may go now, of f or, where that is NULL, of a new id; where not, whoever
 * waits is woken when that may have changed. */
bool ch_may_send(encl_channel *ch, flow *f);
/* The same when promised more are about to be sent, and nobody is woken. */
bool ch_has_room(encl_channel *ch, const flow *f, size_t promised);
void ch_arm(encl_channel *ch); /* ch_room will be called, after a while at the latest */
void ch_room(encl_channel *ch);

/* watch.c. All that announcing needs is taken here. n may be NULL. */
encl_result watch_set(watch *w, encl_notifier *n, uint64_t token, encl_error *err);
void watch_fire(watch *w);
void watch_clear(watch *w);
/* Adds an entry, or arms the one that is there. */
encl_result watches_add(watch_list *list, encl_notifier *n, uint64_t token, encl_error *err);
void watches_fire(watch_list *list);
void watches_withdraw(watch_list *list, const encl_notifier *n, uint64_t token);
bool watches_armed(const watch_list *list);
void watches_clear(watch_list *list);

void slot_free_one(encl_channel *ch); /* somebody's slot is free again */
void slot_grant_more(encl_channel *ch);
void slot_fail_all(encl_channel *ch);

flow *flow_find(encl_channel *ch, uint64_t id);
void flow_forget(flow *f); /* out of the table, slot freed, the channel's reference dropped */
void flow_fail(flow *f, const encl_error *why);
void flow_received(flow *f, encl_slice bytes);
void flow_answered(flow *f, encl_slice bytes);
void flow_ended(flow *f);
void flow_expects(flow *f, bool expects);
void flow_wants(flow *f, bool wants);
void flow_stopped_waiting(flow *f); /* somebody who waited to send: was it the last? */
void flow_begin_close(flow *f);     /* says so to the server when its turn comes, frees the slot */
/* There is room: closes what waits for that, tells as many writers in event loops as may send. */
void flow_room(encl_channel *ch);

/* backlog.c: what has come and was not read. */
void backlog_grew(flow *f);
void backlog_shrank(flow *f);
void backlog_drop(flow *f);  /* nobody will read it */
void backlog_leave(flow *f); /* out of the table; what it holds is its user's */
void backlog_weigh(encl_channel *ch);
void backlog_somebody_waits(encl_channel *ch);
void backlog_look(encl_channel *ch, int64_t now);

#endif
