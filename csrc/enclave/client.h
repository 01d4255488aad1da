/* client: one client's connection, as the enclave sees it. Service thread only. */
#ifndef ENCL_ENCLAVE_CLIENT_H
#define ENCL_ENCLAVE_CLIENT_H

#include "enclave/state.h"

typedef struct encl_client encl_client;

/* Serves conn from now on; where it cannot, net drops the connection. */
void encl_client_accept(encl_enclave *e, encl_conn *conn);
/* Ends every client's connection at once (RST when reset). */
void encl_clients_abort(encl_enclave *e, bool reset);
/* The delay of the fault SLOW is another one, or none: what is held back is taken that late. */
void encl_clients_delay_anew(encl_enclave *e);

#endif
