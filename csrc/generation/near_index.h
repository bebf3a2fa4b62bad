/* The indexed text whose character 5-grams are nearest to a text's, exactly.
 *
 * Texts are near from a Jaccard similarity of `threshold` on. Two such texts share one of their rarest grams: those that are left when as many
 * as must be shared, less one, are set aside (prefix filtering: Chaudhuri, Ganti, Kaushik 2006, "A primitive operator for similarity joins in
 * data cleaning"). Only these are posted and looked up. What is rare is counted anew whenever the index has doubled.
 *
 * A text is its code points, normalised by the caller; shorter than five it is one gram. One thread at a time. */
#ifndef HARMAUG_GENERATION_NEAR_INDEX_H
#define HARMAUG_GENERATION_NEAR_INDEX_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct ha_near_index ha_near_index;

/* HA_ERR_VALUE unless threshold is in (0, 1]. */
ha_status ha_near_index_new(double threshold, ha_near_index **out, ha_error *err);
void ha_near_index_free(ha_near_index *index);
size_t ha_near_index_size(const ha_near_index *index);     /* texts */

/* Index a text under the next place, from 0. After an error the index is as before. */
ha_status ha_near_index_add(ha_near_index *index, const uint32_t *points, size_t n, ha_error *err);

/* *place of the nearest text at or over the threshold, the earlier on a tie, and their *similarity; SIZE_MAX: none. */
ha_status ha_near_index_find(ha_near_index *index, const uint32_t *points, size_t n, size_t *place, double *similarity, ha_error *err);

#endif
