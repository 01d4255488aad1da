/* keepalive: keepalive.h has the rules and the reasons. Calls nothing; no lock. */
#include "net/keepalive.h"

void encl_keepalive_start(encl_keepalive *k, int64_t interval, int64_t now) {
    *k = (encl_keepalive){.interval = interval, .quiet_since = now};
}

encl_keepalive_step encl_keepalive_look(encl_keepalive *k, int64_t heard_at, bool excused,
                                        int64_t now) {
    int64_t sign = excused ? now : heard_at;

    if (sign > k->quiet_since) {
        k->quiet_since = sign;
    }
    if (k->asked_at != 0 && k->quiet_since >= k->asked_at) {
        k->asked_at = 0;
    }
    if (k->asked_at != 0) {
        return now - k->asked_at >= k->interval ? ENCL_KEEPALIVE_DEAD : ENCL_KEEPALIVE_WAIT;
    }
    if (now - k->quiet_since < k->interval) {
        return ENCL_KEEPALIVE_WAIT;
    }
    k->asked_at = now;
    return ENCL_KEEPALIVE_PING;
}

int64_t encl_keepalive_next(const encl_keepalive *k) {
    return (k->asked_at != 0 ? k->asked_at : k->quiet_since) + k->interval;
}
