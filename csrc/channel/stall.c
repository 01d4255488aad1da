/* How long a connection may be held up by readers that do not read. Decides that only, by the times
 * that its caller passes in; it has no lock and calls nothing. */
#include "channel/stall.h"

bool encl_stall_look(encl_stall *stall, bool stalled, int64_t now) {
    if (!stalled) {
        return false;
    }
    if (stall->seen == 0 || now - stall->seen > ENCL_STALL_LAPSE_NS) {
        stall->since = now;
    }
    stall->seen = now;
    if (now - stall->since < ENCL_STALL_NS) {
        return false;
    }
    stall->seen = 0;
    return true;
}
