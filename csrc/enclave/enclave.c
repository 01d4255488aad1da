/* enclave: starts and stops a local enclave and carries out what other threads ask of one. Calls
 * everything in this folder, directly or through client. The enclave's lock is held for as long as
 * faults, identity or stats are exchanged or read; whether this process is the one that started the
 * enclave is looked at first, because a forked child has a copy of the lock, perhaps taken. */
#include "enclave/enclave.h"

#include <stdlib.h>
#include <string.h>

#include "base/secmem.h"
#include "enclave/client.h"
#include "enclave/faults.h"
#include "enclave/identity.h"

static encl_result check(const encl_enclave_config *config, encl_error *err) {
    ENCL_ENSURE(config->mode <= ENCL_ENCLAVE_STUB, err, ENCL_E_INVALID,
                "expected production, debug or stub mode, got %d", (int)config->mode);
    ENCL_ENSURE(config->workload_host != NULL && config->workload_host[0] != '\0', err,
                ENCL_E_INVALID, "expected the workload's address, got none");
    ENCL_ENSURE(config->workload_port != 0, err, ENCL_E_INVALID,
                "expected the workload's port, got 0");
    ENCL_ENSURE(config->max_connections != 0, err, ENCL_E_INVALID,
                "max_connections: expected at least 1, got 0");
    ENCL_ENSURE((config->tls_cert_file == NULL) == (config->tls_key_file == NULL), err,
                ENCL_E_INVALID, "TLS: expected a certificate and its key, got one of them");
    return ENCL_OK;
}

/* What the listener, which knows no faults, does of them. */
static void apply_to_listener(encl_enclave *e, uint32_t mask) {
    encl_listener_refuse(e->listener, (mask & ENCL_FAULT_UPGRADE_503) != 0 ? 503 : 0);
}

static void accepted(void *user, encl_conn *conn) {
    encl_client_accept(user, conn);
}

static encl_result copy_config(encl_enclave *e, const encl_enclave_config *config,
                               encl_error *err) {
    encl_list_init(&e->clients);
    e->generation = encl_fork_generation();
    e->mode = config->mode;
    e->workload_port = config->workload_port;
    e->idle_timeout_ms = config->idle_timeout_ms;
    e->grace_ms = config->grace_ms;
    e->one_shot_timeout_ms = config->one_shot_timeout_ms;
    e->max_connections = config->max_connections;
    e->workload_host = strdup(config->workload_host);
    ENCL_ENSURE(e->workload_host != NULL, err, ENCL_E_NOMEM, "out of memory for an enclave");
    ENCL_TRY(encl_random(e->control_nonce, sizeof e->control_nonce, err));
    ENCL_TRY(encl_faults_copy(&config->faults, &e->faults, err));
    return encl_identity_copy(&config->document, config->leaf_key, config->mode, &e->identity, err);
}

encl_result encl_enclave_start(const encl_enclave_config *config, encl_enclave **out,
                               encl_error *err) {
    encl_enclave *e;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(check(config, err));
    ENCL_TRY(encl_base_init(err));
    e = calloc(1, sizeof *e);
    ENCL_ENSURE(e != NULL, err, ENCL_E_NOMEM, "out of memory for an enclave");
    if (!encl_mutex_init(&e->lock)) {
        free(e);
        return encl_fail(err, ENCL_E_INTERNAL, "no mutex could be made");
    }
    ENCL_TRY_GOTO(copy_config(e, config, err), fail);
    ENCL_TRY_GOTO(encl_loop_new(&e->loop, err), fail);
    ENCL_TRY_GOTO(encl_listen(e->loop, config->port, config->tls_cert_file, config->tls_key_file,
                              accepted, e, &e->listener, err),
                  fail);
    apply_to_listener(e, config->faults.mask);
    *out = e;
    return ENCL_OK;
fail:
    encl_enclave_stop(e);
    return rc;
}

uint16_t encl_enclave_port(const encl_enclave *enclave) {
    return encl_listener_port(enclave->listener);
}

static bool is_ours(const encl_enclave *enclave) {
    return enclave->generation == encl_fork_generation();
}

static encl_result check_ours(const encl_enclave *enclave, encl_error *err) {
    ENCL_ENSURE(is_ours(enclave), err, ENCL_E_FORKED, "this enclave runs in the parent process");
    return ENCL_OK;
}

/* In the service thread. */
static void run_delay_anew(void *enclave) {
    encl_clients_delay_anew(enclave);
}

encl_result encl_enclave_set_faults(encl_enclave *enclave, const encl_enclave_faults *faults,
                                    encl_error *err) {
    encl_enclave_faults fresh, old;

    ENCL_TRY(check_ours(enclave, err));
    ENCL_TRY(encl_faults_copy(faults, &fresh, err));
    encl_lock(&enclave->lock);
    old = enclave->faults;
    enclave->faults = fresh;
    /* With the lock held, so that the listener has the faults of the same thread that set ours. */
    apply_to_listener(enclave, fresh.mask);
    encl_unlock(&enclave->lock);
    if ((old.mask & ENCL_FAULT_SLOW) != 0) {
        (void)encl_loop_run(enclave->loop, run_delay_anew, enclave);
    }
    encl_faults_free(&old);
    return ENCL_OK;
}

encl_result encl_enclave_set_document(encl_enclave *enclave, const encl_doc_template *document,
                                      encl_slice leaf_key, encl_error *err) {
    encl_identity fresh, old;

    ENCL_TRY(check_ours(enclave, err));
    ENCL_TRY(encl_identity_copy(document, leaf_key, enclave->mode, &fresh, err));
    encl_lock(&enclave->lock);
    old = enclave->identity;
    enclave->identity = fresh;
    encl_unlock(&enclave->lock);
    encl_identity_free(&old);
    return ENCL_OK;
}

void encl_enclave_get_stats(encl_enclave *enclave, encl_enclave_stats *stats) {
    if (!is_ours(enclave)) {
        memset(stats, 0, sizeof *stats);
        return;
    }
    encl_lock(&enclave->lock);
    *stats = enclave->stats;
    encl_unlock(&enclave->lock);
}

/* ---- dropping connections: done in the service thread, waited for here */

typedef struct drop {
    encl_enclave *enclave;
    bool reset;
} drop;

static void run_drop(void *arg) {
    const drop *task = arg;

    encl_clients_abort(task->enclave, task->reset);
}

void encl_enclave_drop_connections(encl_enclave *enclave, bool reset) {
    drop task = {.enclave = enclave, .reset = reset};

    (void)encl_loop_run(enclave->loop, run_drop, &task);
}

void encl_enclave_stop(encl_enclave *enclave) {
    if (enclave == NULL || !is_ours(enclave)) {
        return;
    }
    encl_listener_free(enclave->listener);
    if (enclave->loop != NULL) {
        /* First: clients are not to be told of workloads that end because we do. */
        encl_enclave_drop_connections(enclave, false);
        encl_loop_free(enclave->loop);
    }
    encl_identity_free(&enclave->identity);
    encl_faults_free(&enclave->faults);
    free(enclave->workload_host);
    encl_mutex_destroy(&enclave->lock);
    free(enclave);
}
