/* SHA-256 (FIPS 180-4), with the instructions that x86 has for it where the processor and the compiler know them. */
#ifndef HARMAUG_CORE_SHA256_H
#define HARMAUG_CORE_SHA256_H

#include <stddef.h>
#include <stdint.h>

void ha_sha256(const void *data, size_t length, uint8_t digest[32]);
/* The same without the instructions, for their test. */
void ha_sha256_portable(const void *data, size_t length, uint8_t digest[32]);

#endif
