/* The JSON files that stand beside a vocabulary in a Hugging Face folder and say how transformers sets its tokenizer up. Private to csrc/tokenizer/. */
#ifndef HARMAUG_TOKENIZER_HF_CONFIG_H
#define HARMAUG_TOKENIZER_HF_CONFIG_H

#include "io/json.h"
#include "tokenizer/pipeline.h"

/* `name` in the folder of the file `path`: *out stays NULL when it is not there. HA_ERR_FORMAT when it is no object. */
ha_status ha_hf_open(const char *path, const char *name, ha_json **out, ha_error *err);

/* The options of an added token, {"content": ..., "lstrip": ..., "special": ...}; `normalized`: what it is when the object does not say. */
ha_status ha_hf_token_options(const ha_json *json, const ha_json_node *node, int normalized, ha_added_token *out, ha_error *err);

/* An added token: its id in the vocabulary, or a new one at the end. One that is there already takes the new options when `replace` says so. */
ha_status ha_hf_add_token(ha_tokenizer *tok, const char *text, ha_added_token token, int replace, ha_error *err);

/* "added_tokens_decoder": {"100": {"content": ..., "lstrip": ..., ...}, ...} of tokenizer_config.json (NULL: none). HA_ERR_FORMAT where an id is not the token's place. */
ha_status ha_hf_added_tokens(ha_tokenizer *tok, const ha_json *config, ha_error *err);

#endif
