/* Documents and chains signed anew after a change, with keys that are in attest_root.h. */
#ifndef ENCL_FUZZ_ATTEST_SIGN_H
#define ENCL_FUZZ_ATTEST_SIGN_H

#include <openssl/evp.h>

#include "cbor_tree.h"

/* The parts of a document's tree; false where it has not the shape of one. */
typedef struct cose_parts {
    cbor_node *root, *protected_header, *unprotected, *payload, *signature;
} cose_parts;
bool cose_take_apart(encl_slice document, cose_parts *parts);
/* What a signature covers (RFC 9052 section 4.4). */
encl_slice cose_signed_bytes(encl_slice protected_header, encl_slice payload);

/* The chain of document up to the fuzzer's root, then the document itself. Certificates that were
 * in before, below an issuer that was, keep their signatures. Empty where nothing can be signed. */
encl_slice attest_sign_anew(encl_slice document, encl_slice before, fuzz_random *r);
/* Has the keys of attest_root.h put into certificates by fuzz_mutate_der. */
void attest_offer_keys(void);

#endif
