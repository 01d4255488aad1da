/* target: where a connection leads: checks what it is given and keeps a copy. Calls the C library
 * alone; no lock. */
#include <arpa/inet.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "net/internal.h"

/* libwebsockets cuts the name it checks certificates for at 127 bytes. */
#define HOST_MAX 127
/* libwebsockets 4.1 also cuts the request line of the upgrade at 2047 bytes, its Host line at 127,
 * and what it says to a proxy at 255, which has the host and the port twice. What is longer would
 * reach the server as something else. */
#define PATH_MAX_LEN     2032
#define AUTHORITY_MAX    119
#define PROXIED_HOST_MAX 99
#define HEADERS_MAX      ((size_t)16 * 1024)
/* Its room for them, in base64. */
#define PROXY_AUTH_MAX 93

static void wipe_free(char *text) {
    if (text != NULL) {
        encl_wipe(text, strlen(text));
        free(text);
    }
}

void net_target_free(net_target *target) {
    if (target == NULL) {
        return;
    }
    for (size_t i = 0; i < target->header_count; i++) {
        free((char *)(uintptr_t)target->headers[i].name);
        wipe_free((char *)(uintptr_t)target->headers[i].value);
    }
    free(target->headers);
    free(target->host);
    free(target->path);
    free(target->authority);
    free(target->ca_file);
    free(target->proxy_host);
    wipe_free(target->proxy_auth);
    free(target);
}

static bool is_token(const char *text) {
    if (*text == '\0') {
        return false;
    }
    for (; *text != '\0'; text++) {
        if (!isalnum((unsigned char)*text) && strchr("!#$%&'*+-.^_`|~", *text) == NULL) {
            return false;
        }
    }
    return true;
}

static bool is_printable(const char *text, bool with_blanks) {
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        bool is_blank = c == ' ' || c == '\t';

        if (is_blank ? !with_blanks : c < 0x20 || c == 0x7f) {
            return false;
        }
    }
    return true;
}

static bool is_numeric_v6(const char *host) {
    struct in6_addr address;

    return inet_pton(AF_INET6, host, &address) == 1;
}

static encl_result check_lengths(const encl_ws_target *t, encl_error *err) {
    ENCL_ENSURE(strlen(t->path) <= PATH_MAX_LEN, err, ENCL_E_INVALID_URL,
                "expected a path and query of at most %d bytes, got %zu", PATH_MAX_LEN,
                strlen(t->path));
    ENCL_ENSURE(strlen(t->authority) <= AUTHORITY_MAX, err, ENCL_E_INVALID_URL,
                "expected a host and port of at most %d bytes, got %zu", AUTHORITY_MAX,
                strlen(t->authority));
    ENCL_ENSURE(t->proxy_host == NULL || strlen(t->host) <= PROXIED_HOST_MAX, err,
                ENCL_E_INVALID_URL,
                "expected a host name of at most %d bytes through a proxy, got %zu",
                PROXIED_HOST_MAX, strlen(t->host));
    return ENCL_OK;
}

static encl_result check(const encl_ws_target *t, encl_error *err) {
    size_t total = 0;

    ENCL_ENSURE(t->host != NULL && *t->host != '\0' && strlen(t->host) <= HOST_MAX &&
                    is_printable(t->host, false),
                err, ENCL_E_INVALID_URL, "expected a host name of 1 to %d bytes", HOST_MAX);
    ENCL_ENSURE(!t->tls || !t->verify || !is_numeric_v6(t->host), err, ENCL_E_INVALID_URL,
                "wss:// to an IPv6 address is not possible: its certificate cannot be checked; "
                "use a host name");
    ENCL_ENSURE(t->path != NULL && t->path[0] == '/' && is_printable(t->path, false), err,
                ENCL_E_INVALID_URL, "expected a path that begins with '/'");
    ENCL_ENSURE(t->authority != NULL && is_printable(t->authority, false), err, ENCL_E_INVALID_URL,
                "expected a Host header without blanks");
    ENCL_TRY(check_lengths(t, err));
    ENCL_ENSURE(t->proxy_host == NULL ||
                    (*t->proxy_host != '\0' && strlen(t->proxy_host) <= HOST_MAX),
                err, ENCL_E_INVALID, "proxy: expected a host name of 1 to %d bytes", HOST_MAX);
    ENCL_ENSURE(t->proxy_auth == NULL || strlen(t->proxy_auth) <= PROXY_AUTH_MAX, err,
                ENCL_E_INVALID, "proxy: expected a user name and password of at most %d bytes",
                PROXY_AUTH_MAX);
    for (size_t i = 0; i < t->header_count; i++) {
        ENCL_ENSURE(is_token(t->headers[i].name), err, ENCL_E_INVALID,
                    "upgrade header %zu: expected a header name (RFC 9110 token)", i + 1);
        ENCL_ENSURE(is_printable(t->headers[i].value, true), err, ENCL_E_INVALID,
                    "upgrade header '%s': its value has control characters", t->headers[i].name);
        total += strlen(t->headers[i].name) + strlen(t->headers[i].value) + 4;
    }
    ENCL_ENSURE(total <= HEADERS_MAX, err, ENCL_E_INVALID,
                "upgrade headers: expected at most %zu bytes, got %zu", HEADERS_MAX, total);
    return ENCL_OK;
}

static char *copy(const char *text, bool *ok) {
    char *made = text == NULL ? NULL : strdup(text);

    *ok = *ok && (text == NULL || made != NULL);
    return made;
}

encl_result net_target_new(const encl_ws_target *t, net_target **out, encl_error *err) {
    net_target *made;
    bool ok = true;

    *out = NULL;
    ENCL_TRY(check(t, err));
    made = calloc(1, sizeof *made);
    ENCL_ENSURE(made != NULL, err, ENCL_E_NOMEM, "out of memory");
    made->host = copy(t->host, &ok);
    made->path = copy(t->path, &ok);
    made->authority = copy(t->authority, &ok);
    made->ca_file = copy(t->ca_file, &ok);
    made->proxy_host = copy(t->proxy_host, &ok);
    made->proxy_auth = copy(t->proxy_auth, &ok);
    made->port = t->port;
    made->proxy_port = t->proxy_port;
    made->keepalive_ms = t->keepalive_ms;
    made->tls = t->tls;
    made->verify = t->verify;
    made->headers = calloc(t->header_count + 1, sizeof *made->headers);
    ok = ok && made->headers != NULL;
    for (size_t i = 0; ok && i < t->header_count; i++) {
        made->headers[i].name = copy(t->headers[i].name, &ok);
        made->headers[i].value = copy(t->headers[i].value, &ok);
        made->header_count = i + 1;
    }
    if (!ok) {
        net_target_free(made);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    *out = made;
    return ENCL_OK;
}

encl_result net_target_new_tcp(const char *address, uint16_t port, net_target **out,
                               encl_error *err) {
    net_target *made = calloc(1, sizeof *made);

    *out = NULL;
    ENCL_ENSURE(made != NULL, err, ENCL_E_NOMEM, "out of memory");
    made->host = strdup(address);
    made->port = port;
    if (made->host == NULL) {
        net_target_free(made);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    *out = made;
    return ENCL_OK;
}
