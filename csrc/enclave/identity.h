/* identity: what a local enclave attests. */
#ifndef ENCL_ENCLAVE_IDENTITY_H
#define ENCL_ENCLAVE_IDENTITY_H

#include "enclave/state.h"

/* Copies everything, reads the key in PRODUCTION, and signs once to see whether that works. */
encl_result encl_identity_copy(const encl_doc_template *document, encl_slice leaf_key,
                               encl_enclave_mode mode, encl_identity *out, encl_error *err);
void encl_identity_free(encl_identity *identity);
/* Appends a document for this handshake hash, with the faults that are switched on. */
encl_result encl_identity_document(encl_enclave *e, encl_slice handshake_hash, encl_buf *out,
                                   encl_error *err) ENCL_EXCLUDES(e->lock);

#endif
