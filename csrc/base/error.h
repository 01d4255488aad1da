/* base: error values, bounded buffers, secure memory. Knows nothing of the layers above, of
 * sockets, of threads or of Python. */
#ifndef ENCL_BASE_ERROR_H
#define ENCL_BASE_ERROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENCL_MUST_USE                __attribute__((warn_unused_result))
#define ENCL_PRINTF(fmt_at, args_at) __attribute__((format(printf, fmt_at, args_at)))

/* One code per error class that Python users can catch; the binding maps them one to one. */
typedef enum encl_code {
    ENCL_OK = 0,
    ENCL_E_NOMEM,
    ENCL_E_INVALID, /* the caller's argument cannot be used */
    ENCL_E_INVALID_URL,
    ENCL_E_STATE,   /* not possible in the present state */
    ENCL_E_CONNECT, /* DNS, TCP, TLS, proxy */
    ENCL_E_UPGRADE_REJECTED,
    ENCL_E_CLOSED, /* the connection is gone */
    ENCL_E_CONNECT_TIMEOUT,
    ENCL_E_READ_TIMEOUT,
    ENCL_E_WRITE_TIMEOUT,
    ENCL_E_POOL_TIMEOUT, /* no free slot in time */
    ENCL_E_PROTOCOL,     /* the peer broke the wire contract */
    ENCL_E_DOCUMENT,
    ENCL_E_CERTIFICATE,
    ENCL_E_SIGNATURE,
    ENCL_E_NONCE,
    ENCL_E_PCR,
    ENCL_E_SERVER,      /* the enclave answered with Error */
    ENCL_E_FORKED,      /* a forked child must not use its parent's keys */
    ENCL_E_INTERNAL,    /* a library refused what it must not refuse */
    ENCL_E_SLOW_READER, /* its unread bytes were dropped so that other streams could go on */
    ENCL_E_COUNT_
} encl_code;

/* What a refused document looks like, where that is known: its message says it in words, this is
 * for programs. Nothing is decided by it. */
typedef enum encl_hint {
    ENCL_HINT_NONE = 0,
    ENCL_HINT_DEBUG_ENCLAVE, /* it proves nothing, as those of debug enclaves do */
    ENCL_HINT_ANOTHER_ROOT,  /* it leads to a root, but not to the pinned one */
    ENCL_HINT_COUNT_
} encl_hint;

#define ENCL_ERROR_TEXT_MAX 512
#define ENCL_ERROR_HEAD_MAX 1024
#define ENCL_PCR_MAX_BYTES  64

typedef struct encl_error {
    encl_code code;
    bool retryable;
    encl_hint hint; /* of ENCL_E_DOCUMENT, ENCL_E_CERTIFICATE and ENCL_E_PCR */
    char message[ENCL_ERROR_TEXT_MAX];
    union {
        struct {
            int index;
            size_t expected_len, actual_len;
            uint8_t expected[ENCL_PCR_MAX_BYTES], actual[ENCL_PCR_MAX_BYTES];
        } pcr; /* ENCL_E_PCR */
        struct {
            uint64_t id;
        } server; /* ENCL_E_SERVER */
        struct {
            int status;
            size_t head_len;
            uint8_t head[ENCL_ERROR_HEAD_MAX];
        } upgrade; /* ENCL_E_UPGRADE_REJECTED */
    } detail;
} encl_error;

/* The return type of every function that can fail: an encl_code that must be looked at. */
#define encl_result ENCL_MUST_USE encl_code

/* Resets *err, then fills code, retryable (from the code) and the message; returns code. The
 * message is shown by encl_utf8_show_in, so that nothing a peer chose can pass for another line of
 * a log or move a terminal's cursor. */
encl_code encl_fail(encl_error *err, encl_code code, const char *fmt, ...) ENCL_PRINTF(3, 4);

/* Puts "context: " before the message of an error that a lower layer filled in. */
void encl_error_prefix(encl_error *err, const char *context);

/* Puts text behind the message, as far as there is room. */
void encl_error_suffix(encl_error *err, const char *text);

const char *encl_code_name(encl_code code);

/* NULL for ENCL_HINT_NONE. */
const char *encl_hint_name(encl_hint hint);

/* Straight-line checks: the happy path reads downwards, every failure leaves at once. The _GOTO
 * forms are for functions that own something; they expect `encl_code rc` in scope. */
#define ENCL_ENSURE(cond, err, code, ...)                                                          \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            (void)encl_fail((err), (code), __VA_ARGS__);                                           \
            return (code);                                                                         \
        }                                                                                          \
    } while (0)

#define ENCL_TRY(expr)                                                                             \
    do {                                                                                           \
        encl_code encl_try_rc_ = (expr);                                                           \
        if (encl_try_rc_ != ENCL_OK) {                                                             \
            return encl_try_rc_;                                                                   \
        }                                                                                          \
    } while (0)

#define ENCL_ENSURE_GOTO(cond, label, err, code, ...)                                              \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            (void)encl_fail((err), (code), __VA_ARGS__);                                           \
            rc = (code);                                                                           \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

#define ENCL_TRY_GOTO(expr, label)                                                                 \
    do {                                                                                           \
        rc = (expr);                                                                               \
        if (rc != ENCL_OK) {                                                                       \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

#endif
