/* library: names and versions of what is linked. Calls libwebsockets and OpenSSL, takes no lock. */
#include "net/library.h"

#include <libwebsockets.h>
#include <openssl/x509.h>

const char *encl_net_lws_compiled(void) {
    return LWS_LIBRARY_VERSION;
}

const char *encl_net_lws_running(void) {
    return lws_get_library_version();
}

const char *encl_net_default_ca_file(void) {
    return X509_get_default_cert_file();
}

const char *encl_net_default_ca_dir(void) {
    return X509_get_default_cert_dir();
}
