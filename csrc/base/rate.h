/* How often something may happen: so many a second, and so many at once after a quiet time. Pure:
 * the time is a parameter. */
#ifndef ENCL_BASE_RATE_H
#define ENCL_BASE_RATE_H

#include <stdbool.h>
#include <stdint.h>

/* What a peer may send that carries nothing. Honest peers send a ping now and then; what piled up
 * while a connection was not read comes at once. */
#define ENCL_IDLE_PER_SECOND 1000
#define ENCL_IDLE_AT_ONCE    10000

typedef struct encl_rate {
    int64_t paid_until; /* 0 at first */
} encl_rate;

/* n more of them at now; false where that is too often. */
bool encl_rate_take(encl_rate *rate, uint64_t n, int64_t now);

/* A rate for what somebody else counts. All zero at first. */
typedef struct encl_charge {
    encl_rate rate;
    uint64_t charged, forgiven; /* of the two counts below */
} encl_charge;

bool encl_charge_more(encl_charge *charge, uint64_t count, uint64_t allowance, int64_t now);

/* Charges what count has grown by since the last call. allowance counts what excuses one each; it
 * is kept until it is needed. The clock is only asked where there is something to charge. */
static inline bool encl_charge_for(encl_charge *charge, uint64_t count, uint64_t allowance,
                                   int64_t (*clock)(void)) {
    return count == charge->charged || encl_charge_more(charge, count, allowance, clock());
}

#endif
