/* The process's one client loop: made on first use and kept until the process ends; a forked child
 * makes its own. Calls net and attest. Guarded by shared_lock; whoever takes it holds fork() back,
 * so that the child finds it whole. */
#include "channel/process.h"

#include "base/secmem.h"
#include "sync/fork.h"
#include "sync/lock.h"

#define LINK_CACHE_ENTRIES 256

static encl_mutex shared_lock = ENCL_MUTEX_INITIALIZER;
static struct {
    uint64_t generation;
    encl_loop *loop;
    encl_link_cache *links; /* used by the service thread only: no lock */
} shared ENCL_GUARDED_BY(shared_lock);

static encl_result make(encl_error *err) ENCL_REQUIRES(shared_lock) {
    encl_link_cache *links = NULL;
    encl_loop *loop = NULL;
    encl_code rc;

    ENCL_TRY(encl_link_cache_new(LINK_CACHE_ENTRIES, &links, err));
    rc = encl_loop_new(&loop, err);
    if (rc != ENCL_OK) {
        encl_link_cache_free(links);
        return rc;
    }
    shared.loop = loop;
    shared.links = links;
    shared.generation = encl_fork_generation();
    return ENCL_OK;
}

encl_result process_shared(encl_loop **loop, encl_link_cache **links, encl_error *err) {
    encl_code rc = ENCL_OK;

    ENCL_TRY(encl_net_init(err));
    encl_fork_hold();
    encl_lock(&shared_lock);
    if (shared.loop == NULL || shared.generation != encl_fork_generation()) {
        rc = make(err);
    }
    *loop = shared.loop;
    *links = shared.links;
    encl_unlock(&shared_lock);
    encl_fork_let_go();
    return rc;
}
