/* UTF-8 (RFC 3629), for text that comes from outside. */
#ifndef ENCL_BASE_UTF8_H
#define ENCL_BASE_UTF8_H

#include "base/buf.h"

/* Well-formed: no overlong forms, no surrogates, nothing above U+10FFFF, no cut sequence. */
bool encl_utf8_valid(encl_slice text);

/* The longest prefix of at most max bytes that does not cut a character of well-formed text. */
size_t encl_utf8_cut(encl_slice text, size_t max);

/* Text that a peer chose, made fit for a message or a line of a log: what can be seen stays as it
 * is. Controls, line ends, format characters (those that change the direction of writing among
 * them), private characters and bytes that are no UTF-8 become escapes: \n, \x1b, \u202e,
 * \U000e0001. Fills at most cap bytes (8 or more) with the NUL; ends in "..." where text was cut.
 * Returns out. */
const char *encl_utf8_show_in(encl_slice text, char *out, size_t cap);

#define ENCL_UTF8_SHOWN 48
/* The same for a part of a message. */
const char *encl_utf8_show(encl_slice text, char shown[ENCL_UTF8_SHOWN]);

#endif
