#include <string.h>

#include "core/parallel.h"
#include "tokenizer/tokenizer.h"

enum { GRAIN = 1 << 15 };       /* elements a thread */

static int
all_zero(const uint8_t *bytes, size_t n)
{
    return n == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, n - 1) == 0);
}

/* What is 0 is left alone: pages of zeros that nobody writes cost nothing. */
#define PAD_ROW(name, type)                                                                                                               \
    static void                                                                                                                           \
    name(const int32_t *ids, const uint8_t *type_ids, size_t n, const ha_pad_options *o, type *out_ids, type *out_mask, type *out_types)  \
    {                                                                                                                                     \
        const size_t first = o->left ? o->columns - n : 0, typed = all_zero(type_ids, n) ? 0 : n;                                         \
        for (size_t i = 0; i < n; i++) {                                                                                                  \
            out_ids[first + i] = ids[i];                                                                                                  \
            out_mask[first + i] = 1;                                                                                                      \
        }                                                                                                                                 \
        for (size_t i = 0; i < typed; i++) {                                                                                              \
            out_types[first + i] = type_ids[i];                                                                                           \
        }                                                                                                                                 \
        const size_t begin = o->left ? 0 : n, end = o->left ? first : o->columns;                                                         \
        for (size_t i = begin; o->pad_id != 0 && i < end; i++) {                                                                          \
            out_ids[i] = o->pad_id;                                                                                                       \
        }                                                                                                                                 \
    }

PAD_ROW(pad_int32, int32_t)
PAD_ROW(pad_int64, int64_t)

void
ha_encoding_pad(size_t n, const int64_t *offsets, const int32_t *ids, const uint8_t *type_ids, const ha_pad_options *options,
                void *out_ids, void *out_mask, void *out_types)
{
    const int n_threads = ha_threads_for(n * options->columns, GRAIN, options->n_threads);
    HA_PARALLEL_FOR(n_threads)
    for (ptrdiff_t i = 0; i < (ptrdiff_t)n; i++) {
        const size_t begin = (size_t)offsets[i], length = (size_t)(offsets[i + 1] - offsets[i]), at = (size_t)i * options->columns;
        if (options->wide) {
            pad_int64(ids + begin, type_ids + begin, length, options, (int64_t *)out_ids + at, (int64_t *)out_mask + at, (int64_t *)out_types + at);
        } else {
            pad_int32(ids + begin, type_ids + begin, length, options, (int32_t *)out_ids + at, (int32_t *)out_mask + at, (int32_t *)out_types + at);
        }
    }
    (void)n_threads;
}
