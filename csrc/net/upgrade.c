/* upgrade: what is asked of a WebSocket server beside what libwebsockets asks: its answer to the
 * upgrade, its certificate with the whole name, and what a failure means in words. Says what was
 * wrong; ws_connect.c acts on it. Calls libwebsockets and OpenSSL. Service thread only; no lock. */
#include <arpa/inet.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/internal.h"

int net_upgrade_append_headers(const net_target *t, unsigned char **at, size_t room) {
    for (size_t i = 0; i < t->header_count; i++) {
        int n = snprintf((char *)*at, room, "%s: %s\r\n", t->headers[i].name, t->headers[i].value);

        if (n < 0 || (size_t)n >= room) {
            return -1;
        }
        *at += n;
        room -= (size_t)n;
    }
    return 0;
}

static bool worth_a_retry(int status) {
    return status == 408 || status == 429 || (status >= 500 && status <= 599);
}

/* libwebsockets has parsed the head and thrown its bytes away: written again from the parts. */
static void rebuild_head(struct lws *wsi, int status, encl_error *err) {
    uint8_t *head = err->detail.upgrade.head;
    size_t room = sizeof err->detail.upgrade.head, used;
    char value[ENCL_ERROR_HEAD_MAX];
    int n = snprintf((char *)head, room, "HTTP/1.1 %d\r\n", status);

    used = n > 0 ? (size_t)n : 0;
    for (int token = 0; token < WSI_TOKEN_COUNT; token++) {
        const char *name = (const char *)lws_token_to_string((enum lws_token_indexes)token);

        if (name == NULL || name[0] == '\0' || name[strlen(name) - 1] != ':' || name[0] == ':' ||
            lws_hdr_copy(wsi, value, sizeof value, (enum lws_token_indexes)token) <= 0) {
            continue;
        }
        n = snprintf((char *)head + used, room - used, "%s %s\r\n", name, value);
        if (n >= 0 && (size_t)n < room - used) { /* otherwise it has no room, but the next may */
            used += (size_t)n;
        }
    }
    err->detail.upgrade.head_len = used;
}

static encl_result refused(struct lws *wsi, int status, encl_error *err) {
    (void)encl_fail(err, ENCL_E_UPGRADE_REJECTED,
                    "the WebSocket upgrade was refused: expected HTTP status 101, got %d", status);
    err->retryable = worth_a_retry(status);
    err->detail.upgrade.status = status;
    rebuild_head(wsi, status, err);
    return err->code;
}

/* libwebsockets looks at the other lines of a 101, but not at this one. */
static bool upgrades_connection(struct lws *wsi) {
    char value[128];

    return lws_hdr_copy(wsi, value, sizeof value, WSI_TOKEN_CONNECTION) > 0 &&
           strcasestr(value, "upgrade") != NULL;
}

/* What the server sent together with its 101 sits in libwebsockets' buffer, where only this call
 * reaches it; it is given to us as RECEIVE_CLIENT_HTTP_READ. Once only: the buffer holds one block,
 * and a call that finds it empty would read the socket, and throw all away where that has ended. */
static encl_result drain_early(struct lws *wsi, encl_error *err) {
    char *at = NULL;
    int room = 0;

    ENCL_ENSURE(lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) <= 0 &&
                    lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) <= 0,
                err, ENCL_E_PROTOCOL,
                "the WebSocket upgrade was answered 101 with a body, which HTTP forbids");
    ENCL_ENSURE(lws_http_client_read(wsi, &at, &room) == 0, err, ENCL_E_CLOSED,
                "the peer ended the connection right after the WebSocket upgrade");
    return ENCL_OK;
}

encl_result net_upgrade_check_reply(struct lws *wsi, encl_error *err) {
    int status = (int)lws_http_client_http_response(wsi);

    if (status != 101) {
        return refused(wsi, status, err);
    }
    ENCL_ENSURE(upgrades_connection(wsi), err, ENCL_E_PROTOCOL,
                "the WebSocket upgrade was answered 101: expected the header 'Connection: "
                "Upgrade', got none or another");
    return drain_early(wsi, err);
}

/* A second look at what libwebsockets has checked, with the whole name. */
encl_result net_upgrade_check_certificate(const net_target *t, SSL *ssl, encl_error *err) {
    struct in_addr v4;
    X509 *certificate;
    bool matches;

    if (!t->tls || !t->verify) {
        return ENCL_OK;
    }
    certificate = ssl == NULL ? NULL : SSL_get1_peer_certificate(ssl);
    matches = certificate != NULL && SSL_get_verify_result(ssl) == X509_V_OK &&
              (inet_pton(AF_INET, t->host, &v4) == 1
                   ? X509_check_ip_asc(certificate, t->host, 0) == 1
                   : X509_check_host(certificate, t->host, strlen(t->host), 0, NULL) == 1);
    X509_free(certificate);
    if (!matches) {
        (void)encl_fail(err, ENCL_E_CONNECT,
                        "TLS: expected a trusted certificate for '%s', got another", t->host);
        err->retryable = false;
        return err->code;
    }
    return ENCL_OK;
}

#define REASON_MAX 201

/* libwebsockets' text need not end with a NUL. */
static void copy_reason(char out[REASON_MAX], encl_slice text) {
    (void)snprintf(out, REASON_MAX, "%.*s", (int)(text.len < 200 ? text.len : 200),
                   text.data == NULL ? "" : (const char *)text.data);
}

#define UNREACHED     "no server listens there, or none can be reached"
#define EXPLAINED_MAX 256

/* libwebsockets 4.3 gives what errno was as a number, where 4.1 gives none. */
static bool explain_number(char out[EXPLAINED_MAX], const char *reason) {
    static const char *const words[][2] = {
        {"conn fail: skt creation: errno ", "no socket could be made"},
        {"conn fail: skt options: errno ", "no socket could be made"},
        {"conn fail: errno ", UNREACHED},
        {"conn fail: ", UNREACHED},
    };

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        size_t len = strlen(words[i][0]);
        long code = strncmp(reason, words[i][0], len) == 0 ? strtol(reason + len, NULL, 10) : 0;

        if (code > 0 && code <= INT_MAX) {
            (void)snprintf(out, EXPLAINED_MAX, "%s: %s", words[i][1], strerror((int)code));
            return true;
        }
    }
    return false;
}

/* libwebsockets' reasons are short, and written for its own developers. */
static void explain(char out[EXPLAINED_MAX], const char *reason) {
    static const char *const words[][2] = {
        {"read failed",
         "expected a whole HTTP answer to the WebSocket upgrade, got the end of the connection"},
        {"Peer hung up",
         "expected a whole HTTP answer to the WebSocket upgrade, got the end of the connection"},
        {"Unable to connect", UNREACHED},
        {"proxy conn dead", "expected an answer of the proxy to CONNECT, it hung up"},
        {"proxy read err", "expected an answer of the proxy to CONNECT, it hung up"},
    };

    if (explain_number(out, reason)) {
        return;
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(reason, words[i][0]) == 0) {
            reason = words[i][1];
            break;
        }
    }
    (void)snprintf(out, EXPLAINED_MAX, "%s", reason);
}

/* Failures that another address of the same name would not mend. */
static bool is_final(const char *reason, encl_error *why) {
    if (strncmp(reason, "HS: ", 4) == 0) {
        encl_fail(why, ENCL_E_PROTOCOL,
                  "the WebSocket upgrade: expected an answer 101 of RFC 6455, got one with a wrong "
                  "header (%.100s)",
                  reason + 4);
    } else if (strcmp(reason, "problems parsing header") == 0) {
        encl_fail(
            why, ENCL_E_PROTOCOL,
            "the WebSocket upgrade: expected an HTTP answer with a head of a few KiB at most, "
            "got something else");
    } else if (strcmp(reason, "proxy not h1") == 0) {
        encl_fail(why, ENCL_E_CONNECT,
                  "the proxy refused: expected HTTP status 200 to CONNECT, got another answer");
        why->retryable = false;
    } else {
        return false;
    }
    return true;
}

bool net_upgrade_explain(const net_target *t, SSL *ssl, encl_slice text, encl_error *why) {
    char reason[REASON_MAX];

    if (ssl != NULL && t->verify && SSL_get_verify_result(ssl) != X509_V_OK) {
        encl_fail(why, ENCL_E_CONNECT,
                  "TLS: the certificate of '%s' was refused: %s (verify= says which "
                  "authorities are trusted)",
                  t->host, X509_verify_cert_error_string(SSL_get_verify_result(ssl)));
        why->retryable = false;
        return true;
    }
    copy_reason(reason, text);
    return is_final(reason, why);
}

bool net_upgrade_is_no_tls(unsigned long openssl_error) {
    return ERR_GET_LIB(openssl_error) == ERR_LIB_SSL &&
           ERR_GET_REASON(openssl_error) == SSL_R_WRONG_VERSION_NUMBER;
}

static bool begins_with(const char *text, const char *with) {
    return strncmp(text, with, strlen(with)) == 0;
}

void net_upgrade_note_failure(net_target *t, encl_slice text) {
    char reason[REASON_MAX], explained[EXPLAINED_MAX];
    bool in_tls;

    if (t->no_tls) { /* of all that was tried, this is what has to be mended */
        (void)snprintf(t->last_failure, sizeof t->last_failure,
                       "expected TLS, as wss:// says, got something that is no TLS; is it ws:// "
                       "(as a local enclave without tls=True is)?");
        return;
    }
    copy_reason(reason, text);
    explain(explained, reason);
    /* Versions 4.1 and 4.3 of libwebsockets. */
    in_tls = begins_with(reason, "connect SSL err") || begins_with(reason, "tls: error:");
    (void)snprintf(t->last_failure, sizeof t->last_failure, "%s%s",
                   in_tls ? "the TLS handshake failed; expected a server with TLS, as wss:// says "
                            "(a local enclave without tls=True is ws://): "
                          : "",
                   explained);
}
