/* A pump: bytes both ways between a stream and a connected socket of this machine, moved by the
 * service thread alone. It knows the one state in which both go on. Whatever else happens, an end
 * or a failure of either side, it stops: what it had taken from one side and the other had not
 * taken is its owner's, who goes on from there with both. So it decides nothing about ends. */
#ifndef ENCL_CHANNEL_PUMP_H
#define ENCL_CHANNEL_PUMP_H

#include "channel/channel.h"

typedef struct encl_pump encl_pump;

typedef enum encl_pump_state {
    ENCL_PUMP_MOVES,
    ENCL_PUMP_STOPPED, /* one side has ended, or the stream failed: who tries to go on sees which */
    ENCL_PUMP_GONE,    /* the socket was reset, or both its directions are shut */
    ENCL_PUMP_LOST,    /* some bytes were, for want of memory: neither side may go on */
} encl_pump_state;

/* fd stays the caller's, who neither reads nor writes it, nor the stream, while the pump moves. The
 * token is announced once, when the pump has stopped. Gives one reference. Any thread. */
encl_result encl_pump_start(encl_stream *st, int fd, encl_notifier *n, uint64_t token,
                            encl_pump **out, encl_error *err);
/* It stops soon after this has returned. */
void encl_pump_stop(encl_pump *p);
void encl_pump_release(encl_pump *p); /* stops */
encl_pump_state encl_pump_get_state(encl_pump *p);

/* What was taken from one side and not given to the other: for the owner, once it has stopped. */
encl_slice encl_pump_rest_in(encl_pump *p);  /* of the socket's, for the stream */
encl_slice encl_pump_rest_out(encl_pump *p); /* of the stream's, for the socket */

typedef struct encl_pump_stats {
    uint64_t bytes_in, bytes_out; /* that the stream has taken, and the socket */
    bool answered;                /* the last that was read was read from the stream */
    bool pending;                 /* some bytes were read and are not passed on */
    int64_t touched_at; /* when something was read or passed on, as encl_now_ns; 0: never */
    /* When the socket's side was read first with that many records received by the channel: since
     * then an answer is waited for. 0: it was not read. */
    int64_t asked_at;
    uint64_t asked_records;
} encl_pump_stats;
void encl_pump_get_stats(encl_pump *p, encl_pump_stats *stats);

#endif
