/* How many records may be under way that the server has perhaps not read yet. Pure: the time is a
 * parameter.
 *
 * The server waits for the next record and for the next answer at once. When an answer becomes
 * ready while a record has arrived in part, the part is forgotten and the connection is lost.
 * Records arrive in part when more bytes are under way than the sockets on the path hold, and when
 * so many records wait that the server's runtime makes it pause between two reads. So few are sent
 * ahead.
 *
 * What the server has read cannot be seen, only told from signs: it takes records in order, so an
 * answer on a stream says that the oldest unread record of that stream, and all before it, were
 * read; and what was sent a while ago has been read. */
#ifndef ENCL_CHANNEL_PACE_H
#define ENCL_CHANNEL_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENCL_PACE_MAX_WEIGHT 16                     /* a small record weighs 1, any other 2 */
#define ENCL_PACE_SMALL      1024                   /* bytes on the wire */
#define ENCL_PACE_MAX_BYTES  ((size_t)128 * 1024)   /* on the wire */
#define ENCL_PACE_READ_NS    ((int64_t)5 * 1000000) /* after which a record counts as read */
#define ENCL_PACE_ENTRIES    256

typedef struct encl_pace_entry {
    uint64_t id;
    int64_t sent_at;
    uint32_t bytes;
} encl_pace_entry;

typedef struct encl_pace {
    encl_pace_entry unread[ENCL_PACE_ENTRIES]; /* a ring, oldest at head */
    size_t head, count, weight, bytes;
} encl_pace;

/* A record for id was handed to the socket. Closing records may exceed the bound: they must not
 * wait. The oldest entry is given up when the ring is full. */
void encl_pace_sent(encl_pace *pace, uint64_t id, size_t bytes, int64_t now);
/* Something came for id. True when that freed anything. */
bool encl_pace_heard(encl_pace *pace, uint64_t id);
/* Whether another record may be sent, when promised more are about to be. */
bool encl_pace_may_send(encl_pace *pace, size_t promised, int64_t now);
/* When the oldest unread record will count as read; INT64_MAX where there is none. */
int64_t encl_pace_next(const encl_pace *pace);

#endif
