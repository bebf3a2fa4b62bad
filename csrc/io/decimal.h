/* Decimal text to binary64, correctly rounded (nearest, ties to even), whatever the process's locale says a decimal point is. */
#ifndef HARMAUG_IO_DECIMAL_H
#define HARMAUG_IO_DECIMAL_H

#include <stddef.h>

/* text[0..length) is a JSON number (RFC 8259, section 6: the caller has checked the grammar). Too large gives infinity, too small zero,
 * both signed. Allocates nothing. */
double ha_decimal_to_double(const char *text, size_t length);

#endif
