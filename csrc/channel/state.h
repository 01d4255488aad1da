/* What a channel consists of, and who may do what with it. Inside channel/ only.
 *
 * The files of this folder stand above each other, and each calls only those that stand before it
 * in this list:
 *
 *   leaves    ring, pace, stall, notifier, watch, process      know no channel
 *   keepers   documents, state, queue, sending, unread, transfer
 *             change the state and answer questions; they never send on their own account, never
 *             grant, and never end anything
 *   settle    the one file that acts on what the state has become: grants slots, sends the closes
 *             that are due, tells writers that they may go on, pauses and resumes the connection,
 *             and tells everybody when the channel has ended
 *   doors     slot, waits, stream, pump, request, attestation, events, channel
 *             enter (take the lock), change, leave (settle, let the lock go)
 *
 * To announce something to whoever waits (a condition variable, a token on a notifier) is a change
 * like any other: it calls nobody back. tests/python/house/test_circles.py fails where two files
 * call each other, directly or through others. */
#ifndef ENCL_CHANNEL_STATE_H
#define ENCL_CHANNEL_STATE_H

#include <stdatomic.h>

#include "base/list.h"
#include "base/rate.h"
#include "channel/channel.h"
#include "channel/pace.h"
#include "channel/ring.h"
#include "channel/stall.h"
#include "channel/watch.h"
#include "session/session.h"
#include "sync/lock.h"

#define DOCUMENTS_ASKED_MAX 16
/* Of so many transfers the readers are woken after the lock was let go; of further ones, before. */
#define WOKEN_LATER_MAX 8

/* A number that is changed with the channel's lock held and read without it, by those who must not
 * wait for it. Nothing else is concluded from it, so no order with other memory is asked for. */
typedef atomic_size_t counter;

static inline size_t counted(const counter *c) {
    return atomic_load_explicit(c, memory_order_relaxed);
}

/* With the lock held there is one writer, so that reading and writing need not be one step. */
static inline void count_up(counter *c) {
    atomic_store_explicit(c, counted(c) + 1, memory_order_relaxed);
}

static inline void count_down(counter *c) {
    atomic_store_explicit(c, counted(c) - 1, memory_order_relaxed);
}

/* A place among max_in_flight, or in the queue for one. */
typedef enum slot_state { SLOT_WAITING, SLOT_GRANTED, SLOT_USED, SLOT_GIVEN_UP } slot_state;

struct encl_slot {
    encl_channel *ch;         /* a reference */
    _Atomic slot_state state; /* changed with the lock held, read without */
    watch granted;
    pthread_cond_t changed;
    encl_link link; /* ch->queue, while SLOT_WAITING */
};

/* A question for a fresh document. */
typedef struct document_asked {
    uint64_t number;
    encl_doc *doc;  /* NULL until the answer has been received */
    bool abandoned; /* its answer still arrives, before those of later questions */
    watch answered;
} document_asked;

/* What an open id belongs to: a stream or a one-shot request. Referenced by its user; by a pump; by
 * the channel while the id is open, and while its readers are to be woken. What has no other remark
 * is guarded by ch->lock. */
typedef struct transfer {
    encl_channel *ch; /* a reference */
    atomic_uint refs;
    uint64_t id;
    bool is_stream;
    bool abandoned; /* a request whose answer nobody will take */
    bool done;      /* no longer among ch->transfers; its place is free */
    bool closing;   /* closed by its user; the record that says so waits for its turn */
    bool expecting; /* something was sent, and nothing has been received since */
    bool write_ended, over_high_water;
    encl_ring ring;   /* streams: bytes for the reader */
    encl_buf answer;  /* requests */
    encl_error error; /* where failed */
    /* Changed with the lock held, read without: bytes are published before the end that follows. */
    atomic_size_t unread; /* ring.len */
    atomic_bool eof, failed, closed;

    /* ---- who waits ---- */
    pthread_cond_t readable;
    watch_list on_readable, on_writable;
    unsigned readers; /* threads that wait for data or for the answer */
    unsigned writers; /* threads that wait to send, for ch->changed */
    bool ask_threads; /* they have not been told that there is room since they looked last */
    uint64_t turn;    /* when it began to wait to send, in order; 0 where it does not wait */
} transfer;

/* Transfers whose readers have been told of something, and are woken when the lock has been let go.
 * With a reference to each. */
typedef struct told_readers {
    transfer *of[WOKEN_LATER_MAX];
    size_t count;
} told_readers;

/* The first member, so that whoever drops the last reference frees the whole by it. */
struct encl_stream {
    transfer t;
};
struct encl_request {
    transfer t;
};

struct encl_channel {
    /* ---- set before anybody else has the channel, and never after ---- */
    uint64_t generation; /* of the process: a forked child's is another one */
    size_t max_in_flight;
    encl_loop *loop;
    encl_conn *conn;
    encl_session *session; /* what it points to is guarded by lock */
    encl_policy policy;

    /* ---- changed with the lock held, read without ---- */
    atomic_uint refs; /* the only one that is changed without the lock as well */
    _Atomic encl_channel_state state;
    counter in_use, waiting; /* slots: granted or used; in the queue */
    counter records_in, records_out, streams_total, streams_open;
    atomic_int_fast64_t reached[ENCL_STAGES]; /* when, first; 0 while it was not */

    encl_mutex lock; /* guards everything below, and all slots, transfers and questions */

    /* ---- open or closed (state.c) ---- */
    pthread_cond_t changed; /* for state, gone, answers of documents, turns to send */
    bool gone;              /* the connection's last callback has been made */
    encl_error why;
    encl_app *app; /* NULL until verified: nothing of the application can be encoded before */
    uint8_t handshake_hash[32];
    watch_list opened, progressed;

    /* ---- what there is for settle.c to do ---- */
    bool look;     /* something has changed that may let a slot, a close or a writer go on */
    bool end_told; /* everybody has been told that the channel has ended */
    told_readers to_wake;

    /* ---- slots: queue.c ---- */
    encl_list queue; /* of slots; `waiting` counts them */
    size_t promised; /* granted, and the opening record has not been sent */

    /* ---- what is open: transfer.c ---- */
    transfer *transfers[ENCL_MAX_OPEN];
    size_t transfer_count;
    size_t expecting, closing;
    size_t writers_waiting;
    uint64_t last_turn; /* the number given to who began to wait last */

    /* ---- documents: documents.c ---- */
    encl_doc *verified; /* the one verified last */
    document_asked asked[DOCUMENTS_ASKED_MAX];
    size_t asked_count;
    uint64_t asked_last;

    /* ---- records: sending.c ---- */
    encl_pace pace;
    encl_buf *tx; /* between sending_begin and sending_end */
    size_t tx_mark;
    /* Freed by the service thread. NULL before the connection and after it. */
    encl_timer *pace_timer;
    bool pace_armed; /* somebody waits for the timer, or for an earlier sign */

    /* ---- bytes received and not read: unread.c ---- */
    size_t over_high_water; /* so many streams are */
    bool paused;
    encl_stall stall;
    encl_timer *stall_timer; /* like pace_timer */
    bool stall_armed;

    /* ---- records that carried nothing: events.c ---- */
    encl_charge idle;
};

void ch_retain(encl_channel *ch);
/* Without the fork check of encl_channel_release: for the service thread. */
void ch_release(encl_channel *ch);
/* The error of a forked child, which must not wait for the lock. */
encl_code ch_forked(encl_error *err);
/* Whether application bytes may be sent; else why not. */
encl_result ch_need_open(encl_channel *ch, encl_error *err) ENCL_REQUIRES(ch->lock);
/* Notes the time, where it is the first, and tells who wants to know. */
void ch_reached(encl_channel *ch, encl_channel_stage stage) ENCL_REQUIRES(ch->lock);
/* The channel is over: nothing is sent or received any more. settle.c tells everybody. */
void ch_end(encl_channel *ch, const encl_error *why) ENCL_REQUIRES(ch->lock);

#endif
