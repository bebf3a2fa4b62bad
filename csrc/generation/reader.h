/* The token that follows: logits after each of many sequences, such as conversations behind one long policy.
 *
 * Sequences are read one after another, and what one has in common with the one before it is not computed again. The decoder's contract (a row's
 * result depends on its own earlier tokens and its position alone) makes the logits those of reading the sequence by itself, bit for bit. */
#ifndef HARMAUG_GENERATION_READER_H
#define HARMAUG_GENERATION_READER_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "models/decoder.h"

typedef struct ha_reader ha_reader;

/* The decoder must outlive the reader. One thread at a time. */
ha_status ha_reader_new(const ha_decoder *decoder, int n_threads, ha_reader **out, ha_error *err);
void ha_reader_free(ha_reader *reader);

/* Next-token logits (vocab_size,) after ids (n_ids,). HA_ERR_VALUE: no token, more than the context, an id outside the vocabulary; what was
 * read before is then kept as far as it is in common. */
ha_status ha_reader_next(ha_reader *reader, const int32_t *ids, size_t n_ids, float *logits, ha_error *err);

/* Tokens that went through the layers so far. */
uint64_t ha_reader_computed(const ha_reader *reader);

#endif
