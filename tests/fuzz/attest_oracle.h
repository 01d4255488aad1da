/* What a document must be like to be accepted, said a second time: by another CBOR reader, and by
 * OpenSSL's functions for extensions and times rather than by its summary of a certificate. */
#ifndef ENCL_FUZZ_ATTEST_ORACLE_H
#define ENCL_FUZZ_ATTEST_ORACLE_H

#include "attest/attest.h"

typedef struct attest_rules {
    bool debug;
    const encl_pins *pins; /* NULL: none */
    encl_slice nonce;      /* data NULL: not asked for */
    encl_slice root;
    int64_t now;
} attest_rules;

/* Ends the run where one of the rules is broken. */
void attest_require(encl_slice document, const attest_rules *rules);
/* A certificate that may be a root. */
void attest_require_root(encl_slice der);

#endif
