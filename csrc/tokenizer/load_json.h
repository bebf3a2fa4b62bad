/* What the loaders of the parts of a tokenizer.json share. Private to csrc/tokenizer/load_json*.c. */
#ifndef HARMAUG_TOKENIZER_LOAD_JSON_H
#define HARMAUG_TOKENIZER_LOAD_JSON_H

#include "io/json.h"
#include "tokenizer/pipeline.h"

#define TRY(call) do { const ha_status status_ = (call); if (status_ != HA_OK) { return status_; } } while (0)

/* What is read while the file is parsed and has no place in the tokenizer yet. */
typedef struct ha_load_tables { ha_merge *merges; size_t n_merges, cap_merges, cap_scores; } ha_load_tables;

typedef struct ha_json_reader {
    ha_tokenizer *tok;
    const ha_json *json;        /* NULL while the file is parsed */
    ha_load_tables *tables;
    size_t max_ids;         /* what a file of this size can hold */
    ha_error *err;
} ha_json_reader;

/* Absent, or null. */
int ha_load_is_null(const ha_json_node *node);
int ha_load_is_string(const ha_json_node *node, const char *text);
/* The "type" of a component, which must be an object that has one. */
ha_status ha_load_type(const ha_json_reader *r, const ha_json_node *node, const char *what, const char **type);
ha_status ha_load_bool(const ha_json_reader *r, const ha_json_node *node, const char *key, int fallback, int *out);
/* HA_ERR_FORMAT "<what> '<name>' is not supported". */
ha_status ha_load_unsupported(const ha_json_reader *r, const char *what, const char *name);

/* The string member `key`; HA_ERR_FORMAT when it is missing or no string. */
ha_status ha_load_string(const ha_json_reader *r, const ha_json_node *node, const char *what, const char *key, const ha_json_node **out);

/* The options of a Metaspace, as pre-tokenizer and as decoder. */
ha_status ha_load_metaspace(const ha_json_reader *r, const ha_json_node *node, ha_metaspace *out);

/* One component, or the members of a Sequence (which may not hold another: nothing is lost, and there is no recursion). */
typedef ha_status (*ha_load_component)(const ha_json_reader *r, const ha_json_node *node, const char *type);
ha_status ha_load_sequence(const ha_json_reader *r, const ha_json_node *node, const char *what, const char *members, ha_load_component read);

/* What takes vocabulary and merges while the file is parsed (their context is the reader), and what then makes of them the model's. */
enum { HA_LOAD_SINKS = 2 };
void ha_load_sinks(ha_json_sink sinks[HA_LOAD_SINKS]);
ha_status ha_load_vocab(const ha_json_reader *r, const ha_json_node *vocab, ha_json_type type);
ha_status ha_load_merges(const ha_json_reader *r, const ha_json_node *model, size_t prefix_length);

/* The parts, in the order in which they must be read: each relies on those before it. */
ha_status ha_load_normalizer(const ha_json_reader *r, const ha_json_node *node, const char *type);
ha_status ha_load_pre_tokenizer(const ha_json_reader *r, const ha_json_node *node, const char *type);
ha_status ha_load_model(const ha_json_reader *r, const ha_json_node *model);
ha_status ha_load_post_processor(const ha_json_reader *r, const ha_json_node *node, const char *type);
ha_status ha_load_decoder(const ha_json_reader *r, const ha_json_node *node, const char *type);

#endif
