/* UTF-8 (RFC 3629), for text that comes from outside. */
#ifndef ENCL_BASE_UTF8_H
#define ENCL_BASE_UTF8_H

#include "base/buf.h"

/* Well-formed: no overlong forms, no surrogates, nothing above U+10FFFF, no cut sequence. */
bool encl_utf8_valid(encl_slice text);

/* The longest prefix of at most max bytes that does not cut a character of well-formed text. */
size_t encl_utf8_cut(encl_slice text, size_t max);

#define ENCL_UTF8_SHOWN 48
/* Outside text made fit for an error message: printable ASCII, the rest as '?', cut to size. */
const char *encl_utf8_show(encl_slice text, char shown[ENCL_UTF8_SHOWN]);

#endif
