#include "channel/hold.h"

encl_hold_state encl_hold_look(encl_hold *hold, bool held_up, int64_t now) {
    bool lapsed = hold->seen == 0 || now - hold->seen > ENCL_HOLD_LAPSE_NS;

    if (!held_up) {
        if (lapsed) {
            hold->seen = 0;
        }
        return hold->seen == 0 ? ENCL_HOLD_NONE : ENCL_HOLD_GOES_ON;
    }
    if (lapsed) {
        hold->since = now;
    }
    hold->seen = now;
    if (now - hold->since >= ENCL_HOLD_NS) {
        hold->seen = 0;
        return ENCL_HOLD_OVER;
    }
    return lapsed ? ENCL_HOLD_BEGUN : ENCL_HOLD_GOES_ON;
}
