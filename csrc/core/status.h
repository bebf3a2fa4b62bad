/* Result codes of every fallible harmaug function. Nothing below csrc/python/ prints, exits or aborts. */
#ifndef HARMAUG_CORE_STATUS_H
#define HARMAUG_CORE_STATUS_H

typedef enum ha_status {
    HA_OK = 0,
    HA_ERR_NOMEM,   /* -> MemoryError */
    HA_ERR_VALUE,   /* -> ValueError: an argument or a file's content is out of range */
    HA_ERR_IO,      /* -> OSError */
    HA_ERR_FORMAT   /* -> harmaug.FormatError: malformed model or tokenizer file */
} ha_status;

/* Where the message goes. The caller owns it; it lives on the caller's stack, one per call. */
typedef struct ha_error {
    char message[512];
} ha_error;

#if defined(__GNUC__)
#define HA_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define HA_PRINTF(fmt, args)
#endif

/* Formats a message into *err (err may be NULL) and returns `status`, so that callers write
 *     return ha_fail(err, HA_ERR_VALUE, "eps must be > 0, got %g", eps); */
ha_status ha_fail(ha_error *err, ha_status status, const char *format, ...) HA_PRINTF(3, 4);

#endif
