/* resolve: names to addresses. getaddrinfo may block for as long as it likes, which the service
 * thread must not, so a name that is no address is looked up in a thread of its own, which ends
 * with its answer. Decides which failures are worth another try. Calls loop.c, and the functions
 * that it is given; no lock. */
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "net/internal.h"

typedef struct resolution {
    encl_loop *loop; /* a reference: the loop may be freed while a name is looked up */
    net_asker asker;
    encl_job answer;
    char *name;
    int rc;
    net_addresses found;
} resolution;

static void end(resolution *r) {
    r->asker.let_go(r->asker.arg);
    net_loop_release(r->loop);
    free(r->name);
    free(r);
}

static void lookup(resolution *r, int flags) {
    struct addrinfo hints, *found = NULL;
    net_addresses *to = &r->found;

    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags;
    r->rc = getaddrinfo(r->name, NULL, &hints, &found);
    for (struct addrinfo *at = found; at != NULL && to->count < NET_ADDRESSES_MAX;
         at = at->ai_next) {
        if (getnameinfo(at->ai_addr, at->ai_addrlen, to->text[to->count], NET_ADDRESS_TEXT, NULL, 0,
                        NI_NUMERICHOST) == 0) {
            to->count++;
        }
    }
    if (found != NULL) {
        freeaddrinfo(found);
    }
}

static void tell(void *arg) {
    resolution *r = arg;
    encl_error why;

    if (r->found.count != 0) {
        r->asker.told(r->asker.arg, &r->found, NULL);
    } else {
        encl_fail(&why, ENCL_E_CONNECT, "no address for the host name '%s': %s", r->name,
                  r->rc == 0 ? "none found" : gai_strerror(r->rc));
        /* A name server that does not answer may do so later; one that knows of no such name will
         * not. */
        why.retryable = r->rc != EAI_NONAME;
        r->asker.told(r->asker.arg, NULL, &why);
    }
    end(r);
}

static void *run(void *arg) {
    resolution *r = arg;

    encl_fork_hold_briefly();
    lookup(r, AI_ADDRCONFIG);
    encl_fork_let_go_briefly();
    r->answer = (encl_job){.run = tell, .arg = r};
    if (!encl_loop_post(r->loop, &r->answer)) {
        end(r);
    }
    return NULL;
}

static bool start_thread(resolution *r) {
    pthread_attr_t attr;
    pthread_t thread;
    int rc;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    rc = pthread_create(&thread, &attr, run, r);
    pthread_attr_destroy(&attr);
    return rc == 0;
}

encl_result net_resolve(encl_loop *loop, const char *name, net_asker asker, encl_error *err) {
    resolution *r = calloc(1, sizeof *r);

    if (r == NULL) {
        asker.let_go(asker.arg);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    net_loop_retain(loop);
    r->loop = loop;
    r->asker = asker;
    r->name = strdup(name);
    if (r->name == NULL) {
        end(r);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    lookup(r, AI_NUMERICHOST);
    if (r->found.count != 0) {
        tell(r);
    } else if (!start_thread(r)) {
        end(r);
        return encl_fail(err, ENCL_E_NOMEM, "the resolver thread could not be started");
    }
    return ENCL_OK;
}
