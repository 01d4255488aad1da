/* state: the counters of a local enclave, which the service thread changes and any thread may read.
 * Takes the enclave's lock for each change and calls nothing with it held. */
#include "enclave/state.h"

void encl_stat_add(encl_enclave *e, uint64_t *field, uint64_t n) {
    encl_lock(&e->lock);
    *field += n;
    encl_unlock(&e->lock);
}

void encl_stat_sub(encl_enclave *e, uint64_t *field, uint64_t n) {
    encl_lock(&e->lock);
    *field -= n;
    encl_unlock(&e->lock);
}
