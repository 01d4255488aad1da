/* Decides which errors may be retried by default, and that no message holds a character which could
 * steer a terminal or forge a line of a log. Calls utf8.c and the C library's formatting. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

static const char *const code_names[ENCL_E_COUNT_] = {
    [ENCL_OK] = "ok",
    [ENCL_E_NOMEM] = "out of memory",
    [ENCL_E_INVALID] = "invalid argument",
    [ENCL_E_INVALID_URL] = "invalid URL",
    [ENCL_E_STATE] = "wrong state",
    [ENCL_E_CONNECT] = "connect error",
    [ENCL_E_UPGRADE_REJECTED] = "upgrade rejected",
    [ENCL_E_CLOSED] = "connection closed",
    [ENCL_E_CONNECT_TIMEOUT] = "connect timeout",
    [ENCL_E_READ_TIMEOUT] = "read timeout",
    [ENCL_E_WRITE_TIMEOUT] = "write timeout",
    [ENCL_E_POOL_TIMEOUT] = "pool timeout",
    [ENCL_E_PROTOCOL] = "protocol error",
    [ENCL_E_DOCUMENT] = "document error",
    [ENCL_E_CERTIFICATE] = "certificate error",
    [ENCL_E_SIGNATURE] = "signature error",
    [ENCL_E_NONCE] = "nonce mismatch",
    [ENCL_E_PCR] = "PCR mismatch",
    [ENCL_E_SERVER] = "server error",
    [ENCL_E_FORKED] = "forked process",
    [ENCL_E_INTERNAL] = "internal error",
    [ENCL_E_SLOW_READER] = "slow reader",
};

const char *encl_code_name(encl_code code) {
    if ((unsigned)code >= ENCL_E_COUNT_) {
        return "unknown";
    }
    return code_names[code];
}

const char *encl_hint_name(encl_hint hint) {
    static const char *const names[ENCL_HINT_COUNT_] = {
        [ENCL_HINT_DEBUG_ENCLAVE] = "debug enclave",
        [ENCL_HINT_ANOTHER_ROOT] = "another root",
    };

    return (unsigned)hint < ENCL_HINT_COUNT_ ? names[hint] : NULL;
}

static bool retryable_by_default(encl_code code) {
    switch (code) {
    case ENCL_E_CONNECT:
    case ENCL_E_CLOSED:
    case ENCL_E_CONNECT_TIMEOUT:
    case ENCL_E_READ_TIMEOUT:
    case ENCL_E_WRITE_TIMEOUT:
    case ENCL_E_POOL_TIMEOUT:
        return true;
    default:
        return false;
    }
}

/* How many characters are in a block of cap bytes, without the NUL, after vsnprintf into it
 * returned len. */
static size_t written(int len, size_t cap) {
    if (len < 0) {
        return 0;
    }
    return (size_t)len < cap ? (size_t)len : cap - 1;
}

encl_code encl_fail(encl_error *err, encl_code code, const char *fmt, ...) {
    char text[ENCL_ERROR_TEXT_MAX];
    va_list args;
    int len;

    memset(err, 0, sizeof *err);
    err->code = code;
    err->retryable = retryable_by_default(code);
    va_start(args, fmt);
    len = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    /* Parts of it may be a peer's words: a close reason, an Error's text, a certificate's name. */
    (void)encl_utf8_show_in(ENCL_SLICE(text, written(len, sizeof text)), err->message,
                            sizeof err->message);
    return code;
}

void encl_error_prefix(encl_error *err, const char *context) {
    char joined[ENCL_ERROR_TEXT_MAX + 128];

    (void)snprintf(joined, sizeof joined, "%.120s: %s", context, err->message);
    memcpy(err->message, joined, sizeof err->message - 1);
    err->message[sizeof err->message - 1] = '\0';
}

void encl_error_suffix(encl_error *err, const char *text) {
    size_t used = strnlen(err->message, sizeof err->message - 1);

    (void)snprintf(err->message + used, sizeof err->message - used, "%s", text);
}
