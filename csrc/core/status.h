/* Result codes of every fallible harmaug function, and their messages. Nothing below csrc/python/ prints, exits or aborts.
 * In Python: HA_ERR_NOMEM is MemoryError, HA_ERR_VALUE ValueError, HA_ERR_IO OSError, HA_ERR_FORMAT harmaug.FormatError. */
#ifndef HARMAUG_CORE_STATUS_H
#define HARMAUG_CORE_STATUS_H

#include "include/harmaug.h"

#if defined(__GNUC__)
#define HA_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define HA_PRINTF(fmt, args)
#endif

/* Formats a message into *err (err may be NULL) and returns `status`, so that callers write
 *     return ha_fail(err, HA_ERR_VALUE, "eps must be > 0, got %g", eps); */
ha_status ha_fail(ha_error *err, ha_status status, const char *format, ...) HA_PRINTF(3, 4);

#endif
