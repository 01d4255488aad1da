/* What the analysed code calls and EVA cannot see, or would spend its time on. Each stub does
 * anything that the real function may do, and touches all that the real one touches. */
#include <string.h>

#include "base/secmem.h"
#include "proof.h"

/* The real one formats: proof_error.c has it. */
encl_code encl_fail(encl_error *err, encl_code code, const char *fmt, ...) {
    (void)fmt;
    err->code = code;
    err->retryable = any_bool();
    err->message[0] = '\0';
    return code;
}

void encl_wipe(void *memory, size_t size) {
    if (memory != NULL && size != 0) {
        memset(memory, 0, size);
    }
}
