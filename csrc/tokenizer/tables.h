/* The large tables of a tokenizer in a cache file: vocabulary, merges, scores, tries and raw bytes as they lie in memory, so that opening a known tokenizer.json
 * takes its small parts from the JSON and these from here. The file is named by the SHA-256 of the source and this format's version; it is written aside and
 * renamed. What is read is distrusted: a checksum tells damage, and every index, length and value is checked before use, so that the worst a file can do is to give
 * other ids (whoever can write into the user's cache folder can do as much elsewhere). It is read into private memory, not mapped: nobody can change or truncate it
 * after the check. */
#ifndef HARMAUG_TOKENIZER_TABLES_H
#define HARMAUG_TOKENIZER_TABLES_H

#include "io/json.h"
#include "tokenizer/pipeline.h"

enum { HA_TABLES_MIN_SOURCE = 1 << 20 };    /* a smaller source is as fast to read as a cache file */

/* *out: malloc'ed path of the cache file for a source in `folder`. */
ha_status ha_tables_path(const char *folder, const void *source, size_t length, char **out, ha_error *err);

/* Fills the tables of a zeroed tokenizer from the file, sets tok->tables, and `end` and `begin` of the n sinks. HA_ERR_IO: there is none, HA_ERR_FORMAT: it can't
 * be used; the tokenizer then is zeroed still. */
ha_status ha_tables_read(const char *path, ha_tokenizer *tok, ha_json_sink *sinks, size_t n, ha_error *err);

/* Writes the file of a tokenizer that was read from its source. */
ha_status ha_tables_write(const char *path, const ha_tokenizer *tok, const ha_json_sink *sinks, size_t n, ha_error *err);

/* Takes the tables out of a tokenizer that is about to be freed, and frees them. */
void ha_tables_release(ha_tokenizer *tok);

#endif
