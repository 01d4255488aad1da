#include "channel/pace.h"

static size_t weight_of(size_t bytes) {
    return bytes <= ENCL_PACE_SMALL ? 1 : 2;
}

static void drop_oldest(encl_pace *pace) {
    const encl_pace_entry *oldest = &pace->unread[pace->head];

    pace->bytes -= oldest->bytes;
    pace->weight -= weight_of(oldest->bytes);
    pace->head = (pace->head + 1) % ENCL_PACE_ENTRIES;
    pace->count--;
}

void encl_pace_sent(encl_pace *pace, uint64_t id, size_t bytes, int64_t now) {
    if (pace->count == ENCL_PACE_ENTRIES) {
        drop_oldest(pace);
    }
    pace->unread[(pace->head + pace->count) % ENCL_PACE_ENTRIES] =
        (encl_pace_entry){.id = id, .sent_at = now, .bytes = (uint32_t)bytes};
    pace->count++;
    pace->bytes += bytes;
    pace->weight += weight_of(bytes);
}

bool encl_pace_heard(encl_pace *pace, uint64_t id) {
    size_t at = 0;

    while (at < pace->count && pace->unread[(pace->head + at) % ENCL_PACE_ENTRIES].id != id) {
        at++;
    }
    if (at == pace->count) {
        return false;
    }
    for (size_t i = 0; i <= at; i++) {
        drop_oldest(pace);
    }
    return true;
}

bool encl_pace_may_send(encl_pace *pace, size_t promised, int64_t now) {
    while (pace->count != 0 && pace->unread[pace->head].sent_at + ENCL_PACE_READ_NS <= now) {
        drop_oldest(pace);
    }
    return pace->weight + 2 * promised < ENCL_PACE_MAX_WEIGHT && pace->bytes < ENCL_PACE_MAX_BYTES;
}

int64_t encl_pace_next(const encl_pace *pace) {
    return pace->count == 0 ? INT64_MAX : pace->unread[pace->head].sent_at + ENCL_PACE_READ_NS;
}
