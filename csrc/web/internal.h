/* What a connection and a loop consist of. Inside web/ only.
 *
 * The files, from the top, each of which calls only those below it:
 *   conn      a connection's life, and what its owner says and asks
 *   sender    its queue of messages
 *   loop      timers, and who is told that there is something to do
 *
 * Locks: conn->io, then loop->lock. */
#ifndef ENCL_WEB_INTERNAL_H
#define ENCL_WEB_INTERNAL_H

#include <stdatomic.h>

#include "base/list.h"
#include "base/rate.h"
#include "sync/lock.h"
#include "web/web.h"

/* As much as a connection with sockets keeps. */
#define WEB_TX_LIMIT       ((size_t)8 * 1024 * 1024)

#define WEB_CLOSE_NORMAL   1000
#define WEB_CLOSE_ABNORMAL 1006
#define WEB_CLOSE_POLICY   1008
#define WEB_CLOSE_TOO_BIG  1009
#define WEB_CLOSE_INTERNAL 1011

/* A close frame's reason, RFC 6455 section 5.5. */
#define WEB_REASON_MAX 123

struct encl_loop {
    encl_mutex lock; /* guards everything below */
    encl_list due;   /* of timers, the first one first */
    encl_list conns; /* that are not finished */
};

struct encl_timer {
    encl_loop *loop;
    encl_task task;
    void *arg;
    encl_link link; /* loop->due, while it is set */
    int64_t at;
};

typedef enum web_state {
    WEB_CONNECTING,
    WEB_OPEN,
    WEB_CLOSING,  /* nothing is received any more; what was sent before is still to be taken */
    WEB_FINISHED, /* the last callback was made */
} web_state;

struct encl_conn {
    atomic_uint refs;
    encl_loop *loop;
    encl_conn_events events;
    void *user;
    char *name; /* scheme, host and port, for messages */
    atomic_uint_fast64_t bytes_in, bytes_out;

    atomic_bool work;
    encl_link link; /* guarded by loop->lock */

    encl_mutex io; /* guards everything below */
    web_state state;
    bool paused;
    uint16_t close_code; /* 0: nobody here has asked for the end */
    char close_reason[WEB_REASON_MAX + 1];
    encl_buf queue;       /* messages, each behind its length */
    size_t message_start; /* between begin and end: counted from the queue's unread end */
    bool above_low_water;

    /* ---- the owner's calls only ---- */
    uint64_t idle_messages;
    encl_charge idle;
};

/* ---- loop ---- */
void web_loop_add(encl_conn *conn);
void web_loop_remove(encl_conn *conn);
/* Tells the owner that there may be something to do. */
void web_note(encl_conn *conn);

#endif
