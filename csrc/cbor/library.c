/* library: which libcbor this is. Calls nothing; no lock. */
#include "cbor/library.h"

#include <cbor.h>

#define TEXT(x)  TEXT_(x)
#define TEXT_(x) #x

const char *encl_cbor_compiled(void) {
    return TEXT(CBOR_MAJOR_VERSION.CBOR_MINOR_VERSION.CBOR_PATCH_VERSION);
}
