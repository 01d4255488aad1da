/* What net knows about the libraries under it: for messages and reports, not for decisions. */
#ifndef ENCL_NET_LIBRARY_H
#define ENCL_NET_LIBRARY_H

/* As compiled against, and as it says of itself at run time. */
const char *encl_net_lws_compiled(void);
const char *encl_net_lws_running(void);

/* Where OpenSSL looks for certificate authorities where nobody says so. */
const char *encl_net_default_ca_file(void);
const char *encl_net_default_ca_dir(void);

#endif
