/* A root, an intermediate and a leaf, and what a document signed with them says. */
#ifndef ENCL_TORTURE_MINT_H
#define ENCL_TORTURE_MINT_H

#include "attest/attest.h"

typedef struct minted {
    uint8_t der[3][ENCL_CERT_MAX_BYTES], key[512];
    encl_slice cert[3], leaf_key;
    encl_pins pins;
    encl_doc_template document; /* without nonce and time */
} minted;

void mint(minted *m);
encl_policy production_policy(const minted *m);

/* Ends the program with what failed. */
void must(bool ok, const char *what);

#endif
