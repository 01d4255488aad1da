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

bool encl_charge_more(encl_charge *charge, uint64_t count, uint64_t allowance, int64_t now) {
    uint64_t n = count - charge->charged, left = allowance - charge->forgiven;
    uint64_t forgiven = left < n ? left : n;

    charge->charged = count;
    charge->forgiven += forgiven;
    return encl_rate_take(&charge->rate, n - forgiven, now);
}
