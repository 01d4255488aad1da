#include "channel/hold.h"

bool encl_hold_look(encl_hold *hold, bool held_up, int64_t now) {
    if (!held_up) {
        return false;
    }
    if (hold->seen == 0 || now - hold->seen > ENCL_HOLD_LAPSE_NS) {
        hold->since = now;
    }
    hold->seen = now;
    if (now - hold->since < ENCL_HOLD_NS) {
        return false;
    }
    hold->seen = 0;
    return true;
}
