/* greeting: what a local enclave answers before a client may use it, and to questions for a fresh
 * document. A failure says that the connection must end, and why. Service thread only. */
#ifndef ENCL_ENCLAVE_GREETING_H
#define ENCL_ENCLAVE_GREETING_H

#include "enclave/answers.h"

/* Sends the answer to the handshake, which session left in a->made, with the faults that are
 * switched on. */
encl_result encl_greeting_handshake(encl_answers *a, encl_error *err);
/* Sends a document or what a fault sends instead. *attested: whether one was sent before on this
 * connection; set where one is now. */
encl_result encl_greeting_attest(encl_answers *a, bool *attested, encl_error *err);

#endif
