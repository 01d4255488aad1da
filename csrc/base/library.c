/* library: which OpenSSL and libsodium this is. Calls them for their versions; no lock. */
#include "base/library.h"

#include <openssl/crypto.h>
#include <openssl/opensslv.h>
#include <sodium.h>

const char *encl_openssl_compiled(void) {
    return OPENSSL_VERSION_TEXT;
}

const char *encl_openssl_running(void) {
    return OpenSSL_version(OPENSSL_VERSION);
}

const char *encl_sodium_compiled(void) {
    return SODIUM_VERSION_STRING;
}

const char *encl_sodium_running(void) {
    return sodium_version_string();
}
