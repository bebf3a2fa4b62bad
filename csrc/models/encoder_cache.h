/* The weights of an inference form in a cache file, packed as they lie in memory, so that opening a known model maps them instead of packing them.
 *
 * The file is named by the folder's path, the instruction set and the weight format. It says from which files it was made, by
 * ha_checkpoint_stamp and the SHA-256 of config.json, and holds a checksum of all that follows, checked on each opening; a file that belongs to another user, or
 * that others may write, is not used. It holds numbers only, no index and no length, so that the worst it can do is to give other logits. It is mapped: several
 * processes share it. Nothing writes to it once it has its name. */
#ifndef HARMAUG_MODELS_ENCODER_CACHE_H
#define HARMAUG_MODELS_ENCODER_CACHE_H

#include "core/map_file.h"
#include "models/encoder_impl.h"

#define HA_ENCODER_CACHE_LEAST ((size_t)16 << 20)   /* bytes; fewer are packed as fast */

/* *path: malloc'ed name of the file. stamp: what it must have been made from; 0 in *settled: a file changed moments ago, and a next change might not show. */
ha_status ha_encoder_cache_name(const char *cache_folder, const char *folder, const ha_encoder *encoder, ha_weight_format format,
                                const ha_checkpoint *checkpoint, char **path, uint8_t stamp[32], int *settled, ha_error *err);

/* Maps the file: `size` bytes of weights are at *weights, aligned as an arena is. HA_ERR_IO: there is none; HA_ERR_FORMAT: it can't be used. */
ha_status ha_encoder_cache_open(const char *path, const uint8_t stamp[32], size_t size, ha_map_file *map, uint8_t **weights, ha_error *err);

ha_status ha_encoder_cache_write(const char *path, const uint8_t stamp[32], const uint8_t *weights, size_t size, ha_error *err);

#endif
