/* Versions of the libraries that carry the cryptography: as compiled against, and as they say of
 * themselves at run time. For reports; nothing is decided by them. */
#ifndef ENCL_BASE_LIBRARY_H
#define ENCL_BASE_LIBRARY_H

const char *encl_openssl_compiled(void);
const char *encl_openssl_running(void);
const char *encl_sodium_compiled(void);
const char *encl_sodium_running(void);

#endif
