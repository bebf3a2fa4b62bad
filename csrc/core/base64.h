/* Base64 with padding (RFC 4648, section 4). */
#ifndef HARMAUG_CORE_BASE64_H
#define HARMAUG_CORE_BASE64_H

#include <stddef.h>
#include <stdint.h>

/* Bytes written to `out` (which holds length / 4 * 3), or SIZE_MAX: malformed, or with bits beyond the last byte. */
size_t ha_base64_decode(const char *text, size_t length, uint8_t *out);

#endif
