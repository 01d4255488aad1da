/* Decides whether something happens too often: a budget that fills with time (a token bucket), kept
 * as the moment up to which it is paid for. Calls nothing. */
#include "base/rate.h"

#define SECOND_NS ((int64_t)1000000000)
#define EACH_NS   (SECOND_NS / ENCL_IDLE_PER_SECOND)
#define AHEAD_NS  (EACH_NS * ENCL_IDLE_AT_ONCE)

bool encl_rate_take(encl_rate *rate, uint64_t n, int64_t now) {
    if (rate->paid_until < now) {
        rate->paid_until = now;
    }
    if (n > ENCL_IDLE_AT_ONCE) {
        n = ENCL_IDLE_AT_ONCE + 1; /* too many by itself; and no overflow */
    }
    rate->paid_until += (int64_t)n * EACH_NS;
    return rate->paid_until - now <= AHEAD_NS;
}
