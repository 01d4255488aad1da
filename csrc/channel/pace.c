/* When another record may be sent: an account of what the server has been sent and has not shown to
 * have read. Decides that only, by the times that its caller passes in; it has no lock and calls
 * nothing. */
#include "channel/pace.h"

static encl_pace_entry *entry(encl_pace *pace, size_t i) {
    return &pace->unread[(pace->head + i) % ENCL_PACE_ENTRIES];
}

static void drop_oldest(encl_pace *pace) {
    pace->bytes -= entry(pace, 0)->bytes;
    pace->head = (pace->head + 1) % ENCL_PACE_ENTRIES;
    if (--pace->count == 0) {
        pace->turns = 0;
    }
}

static int64_t time_to_read(const encl_pace *pace, size_t bytes, int64_t now) {
    int64_t needed = ENCL_PACE_RECORD_NS + (int64_t)bytes * ENCL_PACE_BYTE_NS;
    bool careful = pace->heard_at != 0 && now < pace->heard_at + ENCL_PACE_QUIET_NS;

    return careful ? ENCL_PACE_CAREFUL * needed : needed;
}

void encl_pace_sent(encl_pace *pace, uint64_t id, size_t bytes, bool alone, int64_t now) {
    if (pace->busy_until < now) {
        pace->busy_until = now;
    }
    pace->busy_until += time_to_read(pace, bytes, now);
    if (alone) {
        return;
    }
    if (pace->count == ENCL_PACE_ENTRIES) {
        drop_oldest(pace);
    }
    *entry(pace, pace->count++) = (encl_pace_entry){
        .id = id,
        .read_at = pace->busy_until + ENCL_PACE_SLACK_NS,
        .bytes = (uint32_t)bytes,
    };
    pace->bytes += bytes;
    pace->turns++;
}

bool encl_pace_heard(encl_pace *pace, uint64_t id, int64_t now) {
    size_t i = 0;

    if (id != pace->heard_id) {
        pace->others_heard_at = pace->heard_at;
        pace->heard_id = id;
    }
    pace->heard_at = now;
    while (i < pace->count && entry(pace, i)->id != id) {
        i++;
    }
    if (i == pace->count) {
        pace->turns += pace->count != 0;
        return false;
    }
    pace->turns++;
    for (i++; i != 0; i--) {
        drop_oldest(pace);
    }
    if (pace->count == 0) {
        pace->busy_until = now;
    }
    return true;
}

bool encl_pace_is_quiet(const encl_pace *pace, uint64_t id, int64_t now) {
    int64_t heard = pace->heard_id == id ? pace->others_heard_at : pace->heard_at;

    return heard == 0 || heard + ENCL_PACE_QUIET_NS <= now;
}

static bool has_unread(encl_pace *pace, uint64_t id) {
    for (size_t i = 0; i < pace->count; i++) {
        if (entry(pace, i)->id == id) {
            return true;
        }
    }
    return false;
}

bool encl_pace_may_send(encl_pace *pace, uint64_t id, size_t promised, int64_t now) {
    size_t turns, bytes, quarters;

    while (pace->count != 0 && entry(pace, 0)->read_at <= now) {
        drop_oldest(pace);
    }
    turns = pace->turns + ENCL_PACE_ANSWERS * pace->count + (1 + ENCL_PACE_ANSWERS) * promised;
    bytes = pace->bytes + ENCL_PACE_PROMISE * promised;
    quarters = has_unread(pace, id) ? 3 : 4;
    return 4 * turns < quarters * ENCL_PACE_TURNS && 4 * bytes < quarters * ENCL_PACE_BYTES;
}

int64_t encl_pace_next(const encl_pace *pace) {
    return pace->count == 0 ? INT64_MAX : pace->unread[pace->head].read_at;
}
