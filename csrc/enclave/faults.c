/* faults: copies of what is switched on, and questions about it. Each question takes the enclave's
 * lock and calls nothing but base with it held. */
#include "enclave/faults.h"

#include <stdlib.h>
#include <string.h>

#include "base/secmem.h"

static encl_result copy_slice(encl_slice from, encl_slice *to, encl_error *err) {
    uint8_t *block;

    *to = ENCL_SLICE_NONE;
    if (from.len == 0) {
        return ENCL_OK;
    }
    block = malloc(from.len);
    ENCL_ENSURE(block != NULL, err, ENCL_E_NOMEM, "out of memory for %zu bytes of fault", from.len);
    memcpy(block, from.data, from.len);
    *to = ENCL_SLICE(block, from.len);
    return ENCL_OK;
}

encl_result encl_faults_copy(const encl_enclave_faults *faults, encl_enclave_faults *out,
                             encl_error *err) {
    encl_code rc;

    *out = *faults;
    out->instead_of_attestation = out->after_attestation = ENCL_SLICE_NONE;
    ENCL_ENSURE((faults->mask & ENCL_FAULT_SPLIT) == 0 || faults->split != 0, err, ENCL_E_INVALID,
                "split: expected at least 1 byte, got 0");
    ENCL_ENSURE((faults->mask & ENCL_FAULT_SLOW) == 0 || faults->delay_ms != 0, err, ENCL_E_INVALID,
                "delay: expected at least 1 ms, got 0");
    ENCL_ENSURE(faults->instead_of_attestation.len <= ENCL_NOISE_MAX_PLAIN &&
                    faults->after_attestation.len <= ENCL_NOISE_MAX_PLAIN,
                err, ENCL_E_INVALID, "a record's plaintext holds at most %d bytes",
                ENCL_NOISE_MAX_PLAIN);
    ENCL_TRY_GOTO(copy_slice(faults->instead_of_attestation, &out->instead_of_attestation, err),
                  done);
    ENCL_TRY_GOTO(copy_slice(faults->after_attestation, &out->after_attestation, err), done);
done:
    if (rc != ENCL_OK) {
        encl_faults_free(out);
    }
    return rc;
}

void encl_faults_free(encl_enclave_faults *faults) {
    free((void *)(uintptr_t)faults->instead_of_attestation.data);
    free((void *)(uintptr_t)faults->after_attestation.data);
    memset(faults, 0, sizeof *faults);
}

bool encl_fault_on(encl_enclave *e, encl_fault fault) {
    bool on;

    encl_lock(&e->lock);
    on = (e->faults.mask & (uint32_t)fault) != 0;
    encl_unlock(&e->lock);
    return on;
}

size_t encl_fault_split(encl_enclave *e) {
    size_t split;

    encl_lock(&e->lock);
    split = (e->faults.mask & ENCL_FAULT_SPLIT) != 0 ? e->faults.split : 0;
    encl_unlock(&e->lock);
    return split;
}

uint64_t encl_fault_delay_ms(encl_enclave *e) {
    uint64_t delay_ms;

    encl_lock(&e->lock);
    delay_ms = (e->faults.mask & ENCL_FAULT_SLOW) != 0 ? e->faults.delay_ms : 0;
    encl_unlock(&e->lock);
    return delay_ms;
}

bool encl_fault_truncates(encl_enclave *e, size_t *after) {
    bool on;

    encl_lock(&e->lock);
    on = (e->faults.mask & ENCL_FAULT_TRUNCATED) != 0;
    *after = e->faults.truncated_after;
    encl_unlock(&e->lock);
    return on;
}

encl_result encl_fault_plaintext(encl_enclave *e, encl_hostile which, encl_buf *out,
                                 encl_error *err) {
    encl_code rc;

    encl_lock(&e->lock);
    rc = encl_buf_write(out,
                        which == ENCL_INSTEAD_OF_ATTESTATION ? e->faults.instead_of_attestation
                                                             : e->faults.after_attestation,
                        err);
    encl_unlock(&e->lock);
    return rc;
}

encl_result encl_fault_handshake(encl_enclave *e, encl_buf *answer, bool *silent, bool *close,
                                 encl_error *err) {
    *silent = encl_fault_on(e, ENCL_FAULT_SILENT_HANDSHAKE);
    *close = encl_fault_on(e, ENCL_FAULT_SHORT_HANDSHAKE);
    if (encl_fault_on(e, ENCL_FAULT_ZERO_KEY)) {
        memset(answer->data + answer->r, 0, ENCL_NOISE_KEY_BYTES);
    }
    if (*close) {
        answer->w = answer->r + ENCL_NOISE_KEY_BYTES - 1;
    } else if (encl_fault_on(e, ENCL_FAULT_LONG_HANDSHAKE)) {
        ENCL_TRY(encl_buf_write_u8(answer, 0, err));
    }
    return ENCL_OK;
}

encl_result encl_fault_after_handshake(encl_enclave *e, encl_buf *out, encl_error *err) {
    uint8_t noise[64];
    uint32_t length;

    if (encl_fault_on(e, ENCL_FAULT_GARBAGE_RECORD)) {
        ENCL_TRY(encl_random(noise, sizeof noise, err));
        ENCL_TRY(encl_buf_write_u32(out, sizeof noise, err));
        ENCL_TRY(encl_buf_write(out, ENCL_SLICE(noise, sizeof noise), err));
    }
    if (encl_fault_on(e, ENCL_FAULT_RAW_RECORD_LENGTH)) {
        encl_lock(&e->lock);
        length = e->faults.record_length;
        encl_unlock(&e->lock);
        ENCL_TRY(encl_buf_write_u32(out, length, err));
    }
    return ENCL_OK;
}
