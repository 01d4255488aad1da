/* The version of libcbor that this was compiled against; it does not tell the one that runs. */
#ifndef ENCL_CBOR_LIBRARY_H
#define ENCL_CBOR_LIBRARY_H

const char *encl_cbor_compiled(void);

#endif
