/* When another record may be sent to a server that can lose half of one. Pure: the time is a
 * parameter.
 *
 * The server waits for the next record and for the next answer at once. Whenever it has read a part
 * of a record, cannot go on at once, and an answer is ready, it forgets the part, and the
 * connection is lost. With every record in one write, what stops it in the middle is its runtime:
 * a task that has done 128 steps in a row has to let others go first, and a record read or an
 * answer sent takes three or four. Its steps begin at 0 when it had nothing to do; tasks that wake
 * each other can share one count. So the rule is that there is never enough to do in a row: few
 * records unread, and few answers that they can bring; docs/reliability.md has the measurements.
 *
 * What the server has read cannot be seen, only told from signs. It takes records in order, so an
 * answer for an id says that the oldest unread record of that id, and all before it, were read.
 * Where no sign comes (uploads, requests that take long) a record counts as read when a server much
 * slower than measured would have read it. While answers keep coming that server is a slower one
 * still: signs come too then, and it is then that something can be lost. */
#ifndef ENCL_CHANNEL_PACE_H
#define ENCL_CHANNEL_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENCL_PACE_TURNS   16 /* records and answers in a row */
#define ENCL_PACE_ANSWERS 2  /* expected from each unread record */
/* What is under way must fit the sockets on the path (208 KiB is Linux's default), or a write is
 * split. */
#define ENCL_PACE_BYTES   ((size_t)128 * 1024) /* on the wire */
#define ENCL_PACE_PROMISE ((size_t)16 * 1024)  /* the size of a record about to be sent */
/* The slow server: four times what the published crate was measured to need for random bytes. */
#define ENCL_PACE_RECORD_NS ((int64_t)100000)
#define ENCL_PACE_BYTE_NS   200
#define ENCL_PACE_CAREFUL   4                       /* times slower while answers keep coming */
#define ENCL_PACE_SLACK_NS  ((int64_t)10 * 1000000) /* on top, for a machine that was busy */
#define ENCL_PACE_QUIET_NS  ((int64_t)100 * 1000000)
#define ENCL_PACE_ENTRIES   64

typedef struct encl_pace_entry {
    uint64_t id;
    int64_t read_at; /* when it counts as read without a sign */
    uint32_t bytes;
} encl_pace_entry;

typedef struct encl_pace {
    encl_pace_entry unread[ENCL_PACE_ENTRIES]; /* a ring, oldest at head */
    size_t head, count, bytes;
    size_t turns;       /* records and answers since the server last had nothing to do */
    int64_t busy_until; /* when the slow server would be through */
    uint64_t heard_id;  /* what something came for last */
    int64_t heard_at, others_heard_at; /* when, and when for any other id; 0: never */
} encl_pace;

/* A record for id was handed to the socket. Alone: no answer was expected that could become ready
 * meanwhile; it only takes time. The oldest entry is given up when the ring is full. */
void encl_pace_sent(encl_pace *pace, uint64_t id, size_t bytes, bool alone, int64_t now);
/* Something came for id. True when that freed anything. */
bool encl_pace_heard(encl_pace *pace, uint64_t id, int64_t now);
/* Nothing has come for any other id for a while. */
bool encl_pace_is_quiet(const encl_pace *pace, uint64_t id, int64_t now);
/* Whether another record for id may be sent, when promised more are about to be. An id with an
 * unread record leaves room for one of another id: a long body must not lock the others out. */
bool encl_pace_may_send(encl_pace *pace, uint64_t id, size_t promised, int64_t now);
/* When the oldest unread record will count as read; INT64_MAX where there is none. */
int64_t encl_pace_next(const encl_pace *pace);

#endif
