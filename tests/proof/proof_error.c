/* Error values: any text of up to TEXT_MAX bytes formatted, and put before one that is there. */
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "proof.h"

#define TEXT_MAX 600

/* Any text that fits: the target utf8 is about the function itself. */
const char *encl_utf8_show_in(encl_slice shown, char *out, size_t cap) {
    (void)shown;
    Frama_C_make_unknown(out, cap - 1);
    out[cap - 1] = '\0';
    return out;
}

int main(void) {
    static char text[TEXT_MAX + 1];
    encl_error err;

    Frama_C_make_unknown(text, TEXT_MAX);
    (void)encl_fail(&err, (encl_code)any(0, UINT32_MAX), "%s: %zu", text, any(0, SIZE_MAX));
    Frama_C_make_unknown(err.message, sizeof err.message - 1);
    err.message[sizeof err.message - 1] = '\0';
    encl_error_prefix(&err, text);
    (void)encl_code_name((encl_code)any(0, UINT32_MAX));
    return 0;
}
