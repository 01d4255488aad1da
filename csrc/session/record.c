/* Decides where a record begins and ends, and which lengths it may have. Calls noise to seal and
 * wire to encode; what a record means is session.c's to decide. */
#include "session/record.h"

#include <string.h>

#include "base/secmem.h"

void encl_gather_init(encl_gather *g) {
    memset(g, 0, sizeof *g);
    encl_buf_init(&g->bytes, ENCL_RECORD_MAX);
}

void encl_gather_free(encl_gather *g) {
    encl_buf_free(&g->bytes);
    g->expected = 0;
    g->done = false;
}

size_t encl_gather_partial(const encl_gather *g) {
    return g->done ? 0 : encl_buf_readable(&g->bytes);
}

bool encl_gather_forget(encl_gather *g) {
    bool partial = encl_gather_partial(g) != 0;

    encl_buf_clear(&g->bytes);
    g->expected = 0;
    g->done = false;
    return partial;
}

/* Moves bytes from the block until g holds target bytes, or the block has no more. */
static encl_result fill(encl_gather *g, const uint8_t *block, size_t len, size_t *pos,
                        size_t target, encl_error *err) {
    size_t have = encl_buf_readable(&g->bytes);
    size_t missing = target - have;
    size_t n = missing < len - *pos ? missing : len - *pos;
    uint8_t *room;

    if (n == 0) {
        return ENCL_OK;
    }
    /* Room for all of it at once: growing step by step would copy what is there each time. */
    ENCL_TRY(encl_buf_reserve(&g->bytes, missing, &room, err));
    memcpy(room, block + *pos, n);
    ENCL_TRY(encl_buf_commit(&g->bytes, n, err));
    *pos += n;
    return ENCL_OK;
}

encl_result encl_gather_exact(encl_gather *g, uint8_t *block, size_t len, size_t *pos, size_t size,
                              uint8_t **message, encl_error *err) {
    *message = NULL;
    if (encl_buf_readable(&g->bytes) == 0 && len - *pos >= size) {
        *message = block + *pos;
        *pos += size;
        return ENCL_OK;
    }
    g->expected = size;
    ENCL_TRY(fill(g, block, len, pos, size, err));
    if (encl_buf_readable(&g->bytes) == size) {
        g->done = true;
        *message = g->bytes.data;
    }
    return ENCL_OK;
}

static encl_result parse_length(const uint8_t head[ENCL_RECORD_HEAD], size_t *ciphertext_len,
                                encl_error *err) {
    uint32_t n = (uint32_t)head[0] << 24 | (uint32_t)head[1] << 16 | (uint32_t)head[2] << 8 |
                 (uint32_t)head[3];

    ENCL_ENSURE(n >= ENCL_RECORD_MIN_CIPHERTEXT && n <= ENCL_NOISE_MAX_MESSAGE, err,
                ENCL_E_PROTOCOL, "record length: expected %d to %d bytes, got %lu",
                ENCL_RECORD_MIN_CIPHERTEXT, ENCL_NOISE_MAX_MESSAGE, (unsigned long)n);
    *ciphertext_len = n;
    return ENCL_OK;
}

/* The common case: the whole record lies in the block and is used where it lies. */
static encl_result take_whole(uint8_t *block, size_t len, size_t *pos, uint8_t **ciphertext,
                              size_t *ciphertext_len, encl_error *err) {
    if (len - *pos < ENCL_RECORD_HEAD) {
        return ENCL_OK;
    }
    ENCL_TRY(parse_length(block + *pos, ciphertext_len, err));
    if (len - *pos - ENCL_RECORD_HEAD >= *ciphertext_len) {
        *ciphertext = block + *pos + ENCL_RECORD_HEAD;
        *pos += ENCL_RECORD_HEAD + *ciphertext_len;
    }
    return ENCL_OK;
}

static encl_result take_split(encl_gather *g, const uint8_t *block, size_t len, size_t *pos,
                              uint8_t **ciphertext, size_t *ciphertext_len, encl_error *err) {
    if (encl_buf_readable(&g->bytes) < ENCL_RECORD_HEAD) {
        ENCL_TRY(fill(g, block, len, pos, ENCL_RECORD_HEAD, err));
        if (encl_buf_readable(&g->bytes) < ENCL_RECORD_HEAD) {
            return ENCL_OK;
        }
    }
    ENCL_TRY(parse_length(g->bytes.data, ciphertext_len, err));
    g->expected = ENCL_RECORD_HEAD + *ciphertext_len;
    ENCL_TRY(fill(g, block, len, pos, g->expected, err));
    if (encl_buf_readable(&g->bytes) == g->expected) {
        g->done = true;
        *ciphertext = g->bytes.data + ENCL_RECORD_HEAD;
    }
    return ENCL_OK;
}

encl_result encl_gather_record(encl_gather *g, uint8_t *block, size_t len, size_t *pos,
                               uint8_t **ciphertext, size_t *ciphertext_len, encl_error *err) {
    *ciphertext = NULL;
    if (g->done) {
        (void)encl_gather_forget(g);
    }
    if (encl_buf_readable(&g->bytes) == 0) {
        ENCL_TRY(take_whole(block, len, pos, ciphertext, ciphertext_len, err));
        if (*ciphertext != NULL) {
            return ENCL_OK;
        }
    }
    return take_split(g, block, len, pos, ciphertext, ciphertext_len, err);
}

static void write_length(uint8_t head[ENCL_RECORD_HEAD], size_t n) {
    head[0] = (uint8_t)(n >> 24);
    head[1] = (uint8_t)(n >> 16);
    head[2] = (uint8_t)(n >> 8);
    head[3] = (uint8_t)n;
}

encl_result encl_record_seal(encl_noise_transport *transport, const encl_msg *m,
                             encl_direction direction, encl_buf *out, encl_error *err) {
    uint8_t *room;
    size_t bound = encl_wire_bound(m), plain_len, sealed_len;
    size_t plain_cap = bound < ENCL_NOISE_MAX_PLAIN ? bound : ENCL_NOISE_MAX_PLAIN;
    encl_buf plain;
    encl_code rc;

    ENCL_TRY(
        encl_buf_reserve(out, ENCL_RECORD_HEAD + plain_cap + ENCL_NOISE_TAG_BYTES, &room, err));
    encl_buf_wrap(&plain, room + ENCL_RECORD_HEAD, plain_cap);
    ENCL_TRY_GOTO(encl_wire_encode(m, direction, &plain, err), fail);
    plain_len = encl_buf_readable(&plain);
    ENCL_TRY_GOTO(encl_noise_seal(transport, room + ENCL_RECORD_HEAD, plain_len,
                                  plain_cap + ENCL_NOISE_TAG_BYTES, &sealed_len, err),
                  fail);
    write_length(room, sealed_len);
    return encl_buf_commit(out, ENCL_RECORD_HEAD + sealed_len, err);
fail:
    encl_wipe(room, ENCL_RECORD_HEAD + plain_cap);
    return rc;
}

encl_result encl_record_seal_raw(encl_noise_transport *transport, encl_slice plaintext,
                                 encl_buf *out, encl_error *err) {
    uint8_t *room;
    size_t sealed_len;
    encl_code rc;

    ENCL_ENSURE(plaintext.len <= ENCL_NOISE_MAX_PLAIN, err, ENCL_E_INVALID,
                "expected a plaintext of at most %d bytes, got %zu", ENCL_NOISE_MAX_PLAIN,
                plaintext.len);
    ENCL_TRY(
        encl_buf_reserve(out, ENCL_RECORD_HEAD + plaintext.len + ENCL_NOISE_TAG_BYTES, &room, err));
    if (plaintext.len != 0) {
        memcpy(room + ENCL_RECORD_HEAD, plaintext.data, plaintext.len);
    }
    rc = encl_noise_seal(transport, room + ENCL_RECORD_HEAD, plaintext.len,
                         plaintext.len + ENCL_NOISE_TAG_BYTES, &sealed_len, err);
    if (rc != ENCL_OK) {
        encl_wipe(room, ENCL_RECORD_HEAD + plaintext.len);
        return rc;
    }
    write_length(room, sealed_len);
    return encl_buf_commit(out, ENCL_RECORD_HEAD + sealed_len, err);
}
