/* vhost: what libwebsockets keeps per TLS and proxy setting, made once and shared by connections
 * with the same. Decides which certificate authorities count. Calls libwebsockets and
 * OpenSSL. Service thread only; no lock. */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/internal.h"

#define CLIENT_VHOST "client" /* its user is a net_vhost */

struct net_vhost {
    char *key;
    struct lws_vhost *vhost;
    SSL_CTX *ctx;    /* libwebsockets', which shares it among vhosts of one CA file; NULL: no TLS */
    encl_file_id ca; /* the CA file as it was read, or the system's */
    char *places;    /* where the system's authorities were, owned; see trust_system */
    net_vhost *next; /* loop->vhosts */
};

/* libwebsockets' own liveness checks would see no reads on a socket that we read, and hang up. */
const lws_retry_bo_t net_no_idle_policy = {
    .secs_since_valid_ping = 0,
    .secs_since_valid_hangup = 0,
};

void net_vhost_note_ctx(struct lws_vhost *vhost, SSL_CTX *ctx) {
    if (strcmp(lws_get_vhost_name(vhost), CLIENT_VHOST) == 0) {
        net_vhost *entry = lws_vhost_user(vhost);

        entry->ctx = ctx;
    }
}

void net_vhost_info(encl_loop *loop, const char *name, struct lws_context_creation_info *info) {
    memset(info, 0, sizeof *info);
    info->port = CONTEXT_PORT_NO_LISTEN;
    info->vhost_name = name;
    info->protocols = loop->protocols;
    info->timeout_secs = 60;
    info->connect_timeout_secs = 60;
    info->retry_and_idle_policy = &net_no_idle_policy;
    /* "" and not NULL: NULL would make libwebsockets take the environment's http_proxy. */
    info->http_proxy_address = "";
#ifdef LWS_WITH_SOCKS5
    info->socks_proxy_address = ""; /* likewise: of the environment's socks_proxy */
#endif
#ifdef LWS_SERVER_OPTION_DISABLE_TLS_SESSION_CACHE
    /* From 4.2 on it resumes sessions, and a resumed one shows no certificate: what is trusted now
     * (verify, a CA file that was changed) would not be asked. */
    info->options |= LWS_SERVER_OPTION_DISABLE_TLS_SESSION_CACHE;
#endif
}

static void add_tls(struct lws_context_creation_info *info, const net_target *target) {
    if (!target->tls) {
        return;
    }
    info->options |= LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
    info->ssl_client_options_set = SSL_OP_NO_SSLv3 | SSL_OP_NO_TLSv1 | SSL_OP_NO_TLSv1_1;
    info->options |= LWS_SERVER_OPTION_DISABLE_OS_CA_CERTS; /* these are loaded here */
    info->client_ssl_ca_filepath = target->ca_file;
}

static struct lws_vhost *make(encl_loop *loop, const net_target *target, net_vhost *entry) {
    struct lws_context_creation_info info;

    net_vhost_info(loop, CLIENT_VHOST, &info);
    info.user = entry;
    add_tls(&info, target);
    return lws_create_vhost(loop->context, &info);
}

/* The parts that may hold any character come last or with their lengths, so that no two targets
 * have one key. */
static encl_result vhost_key(const net_target *target, char **key, encl_error *err) {
    const char *ca = target->ca_file == NULL ? "" : target->ca_file;
    const char *host = target->proxy_host == NULL ? "" : target->proxy_host;
    int n = asprintf(key, "%d|%d|%u|%zu|%zu|%s|%s|%s", target->tls, target->verify,
                     target->proxy_port, strlen(ca), strlen(host), ca, host,
                     target->proxy_auth == NULL ? "" : target->proxy_auth);

    ENCL_ENSURE(n >= 0, err, ENCL_E_NOMEM, "out of memory");
    return ENCL_OK;
}

static void free_key(char *key) {
    encl_wipe(key, strlen(key));
    free(key);
}

static encl_result identify(const char *path, encl_file_id *id, encl_error *err) {
    if (!encl_file_identify(path, id)) {
        (void)encl_fail(err, ENCL_E_CONNECT, "TLS: the CA file '%.300s' cannot be read: %s", path,
                        strerror(errno));
        err->retryable = false;
        return err->code;
    }
    return ENCL_OK;
}

static bool is_same_file(const encl_file_id *a, const encl_file_id *b) {
    return a->inode == b->inode && a->size == b->size && a->seconds == b->seconds &&
           a->nanoseconds == b->nanoseconds;
}

static encl_result load_store(const char *path, X509_STORE **out, encl_error *err) {
    *out = X509_STORE_new();
    ENCL_ENSURE(*out != NULL, err, ENCL_E_NOMEM, "out of memory");
    ERR_clear_error();
    if (X509_STORE_load_locations(*out, path, NULL) != 1) {
        ERR_clear_error();
        X509_STORE_free(*out);
        (void)encl_fail(err, ENCL_E_CONNECT,
                        "TLS: expected a PEM file of CA certificates, got '%.300s', which has none "
                        "that can be read",
                        path);
        err->retryable = false;
        return err->code;
    }
    return ENCL_OK;
}

/* For all that share it; what they remember of an earlier one is of no use any more. */
static void use_store(encl_loop *loop, const net_vhost *entry, X509_STORE *store,
                      const encl_file_id *id) {
    SSL_CTX_set_cert_store(entry->ctx, store);
    for (net_vhost *at = loop->vhosts; at != NULL; at = at->next) {
        if (at->ctx == entry->ctx) {
            at->ca = *id;
            free(at->places);
            at->places = NULL;
        }
    }
}

/* libwebsockets reads a CA file once for each path, and only logs one that it cannot read. Here a
 * file that was changed counts from the next connection on. */
static encl_result trust_file(encl_loop *loop, net_vhost *entry, const char *path,
                              encl_error *err) {
    encl_file_id id;
    X509_STORE *store = NULL;

    ENCL_TRY(identify(path, &id, err));
    if (!is_same_file(&id, &entry->ca)) {
        ENCL_TRY(load_store(path, &store, err));
        use_store(loop, entry, store, &id);
    }
    return ENCL_OK;
}

static const char *environment_or(const char *name, const char *otherwise) {
    const char *value = getenv(name);

    return value == NULL ? otherwise : value;
}

static encl_result system_store(X509_STORE **out, encl_error *err) {
    *out = X509_STORE_new();
    ENCL_ENSURE(*out != NULL, err, ENCL_E_NOMEM, "out of memory");
    if (X509_STORE_set_default_paths(*out) != 1) {
        X509_STORE_free(*out);
        return encl_fail(err, ENCL_E_NOMEM, "TLS: the system's authorities could not be set up");
    }
    ERR_clear_error(); /* it queues one for a file that is not there */
    return ENCL_OK;
}

/* The system's authorities are one file and some folders, which the environment may name. What is
 * in a folder OpenSSL looks up when it needs it, and keeps; so without a file, which takes long to
 * read, there is a new store for each connection. */
static encl_result trust_system(encl_loop *loop, net_vhost *entry, encl_error *err) {
    const char *file =
        environment_or(X509_get_default_cert_file_env(), X509_get_default_cert_file());
    const char *folders =
        environment_or(X509_get_default_cert_dir_env(), X509_get_default_cert_dir());
    encl_file_id id = {0};
    bool there = encl_file_identify(file, &id);
    X509_STORE *store;
    char *places;
    encl_code rc;

    ENCL_ENSURE(asprintf(&places, "%zu|%s|%s", strlen(file), file, folders) >= 0, err, ENCL_E_NOMEM,
                "out of memory");
    if (there && entry->places != NULL && strcmp(entry->places, places) == 0 &&
        is_same_file(&id, &entry->ca)) {
        free(places);
        return ENCL_OK;
    }
    rc = system_store(&store, err);
    if (rc != ENCL_OK) {
        free(places);
        return rc;
    }
    use_store(loop, entry, store, &id);
    entry->places = places;
    return ENCL_OK;
}

/* Whom a connection trusts is what file and environment say when it is made. */
static encl_result trust(encl_loop *loop, net_vhost *entry, const net_target *target,
                         encl_error *err) {
    if (!target->tls) {
        return ENCL_OK;
    }
    ENCL_ENSURE(entry->ctx != NULL, err, ENCL_E_INTERNAL, "TLS settings without an SSL_CTX");
    return target->ca_file != NULL ? trust_file(loop, entry, target->ca_file, err)
                                   : trust_system(loop, entry, err);
}

static encl_result add_vhost(encl_loop *loop, const net_target *target, char *key, net_vhost **out,
                             encl_error *err) {
    net_vhost *entry = calloc(1, sizeof *entry);

    ENCL_ENSURE(entry != NULL, err, ENCL_E_NOMEM, "out of memory");
    entry->vhost = make(loop, target, entry);
    if (entry->vhost == NULL) {
        free(entry);
        return encl_fail(err, ENCL_E_CONNECT,
                         "the connection's TLS or proxy settings could not be set up");
    }
    entry->key = key;
    entry->next = loop->vhosts;
    loop->vhosts = entry;
    *out = entry;
    return ENCL_OK;
}

encl_result net_vhost_for(encl_loop *loop, const net_target *target, struct lws_vhost **out,
                          encl_error *err) {
    net_vhost *entry = loop->vhosts;
    char *key = NULL;
    encl_code rc;

    ENCL_TRY(vhost_key(target, &key, err));
    while (entry != NULL && strcmp(entry->key, key) != 0) {
        entry = entry->next;
    }
    if (entry != NULL) {
        free_key(key);
    } else {
        rc = add_vhost(loop, target, key, &entry, err);
        if (rc != ENCL_OK) {
            free_key(key);
            return rc;
        }
    }
    ENCL_TRY(trust(loop, entry, target, err));
    *out = entry->vhost;
    return ENCL_OK;
}

/* An IPv6 address needs its brackets: libwebsockets would take the first colon for the port's, find
 * port 0 behind it, and connect without the proxy. The scheme stands there because libwebsockets
 * drops one, which the credentials may begin with, too. */
bool net_vhost_use_proxy(struct lws_vhost *vhost, const net_target *target, const char *address) {
    const char *auth = target->proxy_auth == NULL ? "" : target->proxy_auth;
    bool v6 = strchr(address, ':') != NULL;
    char proxy[512];
    int n;
    bool ok;

#ifndef LWS_WITH_IPV6
    if (v6) {
        return false; /* it would not know what brackets are */
    }
#endif
    n = snprintf(proxy, sizeof proxy, "http://%s%s%s%s%s:%u", auth,
                 target->proxy_auth == NULL ? "" : "@", v6 ? "[" : "", address, v6 ? "]" : "",
                 target->proxy_port);
    ok = n >= 0 && (size_t)n < sizeof proxy && lws_set_proxy(vhost, proxy) == 0;
    encl_wipe(proxy, sizeof proxy);
    return ok;
}

void net_vhosts_free(encl_loop *loop) {
    while (loop->vhosts != NULL) {
        net_vhost *entry = loop->vhosts;

        loop->vhosts = entry->next;
        free_key(entry->key);
        free(entry->places);
        free(entry);
    }
}
