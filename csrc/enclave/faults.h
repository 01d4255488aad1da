/* faults: which faults of a local enclave are switched on, and the bytes of those that spoil the
 * handshake. Any thread: each call takes the enclave's lock for as long as it looks. */
#ifndef ENCL_ENCLAVE_FAULTS_H
#define ENCL_ENCLAVE_FAULTS_H

#include "enclave/state.h"

/* out owns copies of both plaintexts. */
encl_result encl_faults_copy(const encl_enclave_faults *faults, encl_enclave_faults *out,
                             encl_error *err);
void encl_faults_free(encl_enclave_faults *faults);
bool encl_fault_on(encl_enclave *e, encl_fault fault) ENCL_EXCLUDES(e->lock);
/* How long a message of an answer may be; 0 where nothing is split. */
size_t encl_fault_split(encl_enclave *e) ENCL_EXCLUDES(e->lock);
/* How late what a client sends is taken; 0: at once. */
uint64_t encl_fault_delay_ms(encl_enclave *e) ENCL_EXCLUDES(e->lock);
/* Whether answers are cut, and after how many bytes of their bodies. */
bool encl_fault_truncates(encl_enclave *e, size_t *after) ENCL_EXCLUDES(e->lock);
typedef enum encl_hostile { ENCL_INSTEAD_OF_ATTESTATION, ENCL_AFTER_ATTESTATION } encl_hostile;
/* Appends the plaintext to out; leaves it empty where none is set. */
encl_result encl_fault_plaintext(encl_enclave *e, encl_hostile which, encl_buf *out,
                                 encl_error *err) ENCL_EXCLUDES(e->lock);
/* Rewrites the answer to the handshake. *silent: it is not sent at all; *close: nothing follows. */
encl_result encl_fault_handshake(encl_enclave *e, encl_buf *answer, bool *silent, bool *close,
                                 encl_error *err) ENCL_EXCLUDES(e->lock);
/* Appends what follows the handshake at once: noise or a bare record head. */
encl_result encl_fault_after_handshake(encl_enclave *e, encl_buf *out, encl_error *err)
    ENCL_EXCLUDES(e->lock);

#endif
