/* UTF-8: any text of up to TEXT_MAX bytes, read or cut anywhere; any of SHOWN_MAX, shown. */
#include "base/utf8.h"
#include "proof.h"

#define TEXT_MAX  32
#define SHOWN_MAX 4 /* one character of any length, or some, and not all of them fit */

static uint8_t text[TEXT_MAX + 1];

static encl_slice any_text(void) {
    size_t len = any_split(0, TEXT_MAX);

    return ENCL_SLICE(ANY_BYTES(text, len), len);
}

static void cuts(void) {
    encl_slice bytes = any_text();
    size_t max = any_split(0, TEXT_MAX / 4);
    size_t cut = encl_utf8_cut(bytes, max);

    //@ assert cut <= max;
    //@ assert cut <= bytes.len;
}

static void shows(void) {
    char shown[ENCL_UTF8_SHOWN];

    size_t len = any_split(0, SHOWN_MAX);

    (void)encl_utf8_show_in(ENCL_SLICE(ANY_BYTES(text, len), len), shown, any_split(8, 10));
}

int main(void) {
    Frama_C_make_unknown((char *)text, sizeof text);
    switch (Frama_C_interval_split(0, 2)) {
    case 0:
        (void)encl_utf8_valid(any_text());
        break;
    case 1:
        cuts();
        break;
    default:
        shows();
        break;
    }
    return 0;
}
