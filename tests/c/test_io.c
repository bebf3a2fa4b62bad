/* The readers of hostile files under a sanitizer: JSON, safetensors and GGUF from heap blocks of exactly the file's size, so that the first byte
 * read past it is seen; every prefix, seeded damage, and every allocation failing in turn.
 *
 *     make check | make asan
 *
 * Linked with --wrap=malloc, --wrap=calloc and --wrap=realloc. */
#define _POSIX_C_SOURCE 200809L
#include <unistd.h>

#include "allocations.h"
#include "check.h"
#include "io/decimal.h"
#include "io/tensor_file_impl.h"
#include "kernels/kernels.h"

#define N_DAMAGED 20000

/* -- samples -- */

typedef struct sample {
    uint8_t *data;
    size_t size;
} sample;

static const char json_sample[] =
    "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"\\u00e9\\ud83d\\ude00\": 1, \"\xC3\xA9\": 2, \"\": 3}, \"merges\": [[\"a\", \"b\"], []]},\n"
    " \"n\": [0, -1, 1.5, -2.5e-7, 12345678901234567890123, 1e400, 0.1234567890123456789], \"t\": true, \"f\": false, \"z\": null, \"deep\": [[[[{}]]]]}";

static void
put(sample *s, const void *bytes_of, size_t n)
{
    s->data = realloc(s->data, s->size + n + 1);
    memcpy(s->data + s->size, bytes_of, n);
    s->size += n;
}

static void put_u32(sample *s, uint32_t x) { put(s, &x, 4); }
static void put_u64(sample *s, uint64_t x) { put(s, &x, 8); }

static void
put_text(sample *s, const char *t)
{
    put_u64(s, strlen(t));
    put(s, t, strlen(t));
}

static void
put_info(sample *s, const char *name, uint32_t type, uint64_t offset)
{
    put_text(s, name);
    put_u32(s, 2), put_u64(s, 64), put_u64(s, 2);
    put_u32(s, type), put_u64(s, offset);
}

static sample
gguf_sample(void)
{
    static const struct { const char *name; uint32_t type; size_t size; } tensors[] = {
        {"f32", 0, 512}, {"f16", 1, 256}, {"bf16", 30, 256}, {"q8_0", 8, 136}, {"q4_0", 2, 72}, {"q4_1", 3, 80}, {"q5_0", 6, 88}};
    sample s = {0};
    uint64_t offset = 0;
    put(&s, "GGUF", 4), put_u32(&s, 3), put_u64(&s, 7), put_u64(&s, 8);
    put_text(&s, "general.alignment"), put_u32(&s, HA_GGUF_U32), put_u32(&s, 8);
    put_text(&s, "s"), put_u32(&s, HA_GGUF_STRING), put_text(&s, "text");
    put_text(&s, "words"), put_u32(&s, HA_GGUF_ARRAY), put_u32(&s, HA_GGUF_STRING), put_u64(&s, 3);
    put_text(&s, "a"), put_text(&s, ""), put_text(&s, "bc");
    put_text(&s, "numbers"), put_u32(&s, HA_GGUF_ARRAY), put_u32(&s, HA_GGUF_I16), put_u64(&s, 4), put_u64(&s, 0x8000000100020003u);
    put_text(&s, "flags"), put_u32(&s, HA_GGUF_ARRAY), put_u32(&s, HA_GGUF_BOOL), put_u64(&s, 2), put(&s, "\1\0", 2);
    put_text(&s, "nested"), put_u32(&s, HA_GGUF_ARRAY), put_u32(&s, HA_GGUF_ARRAY), put_u64(&s, 2);
    put_u32(&s, HA_GGUF_STRING), put_u64(&s, 1), put_text(&s, "x"), put_u32(&s, HA_GGUF_F64), put_u64(&s, 1), put_u64(&s, 0x3FF0000000000000u);
    put_text(&s, "f"), put_u32(&s, HA_GGUF_F32), put_u32(&s, 0x3F800000u);
    put_text(&s, "b"), put_u32(&s, HA_GGUF_BOOL), put(&s, "\1", 1);
    for (size_t i = 0; i < 7; i++) {
        put_info(&s, tensors[i].name, tensors[i].type, offset);
        offset += tensors[i].size;
    }
    put(&s, "\0\0\0\0\0\0\0", (8 - s.size % 8) % 8);
    for (uint64_t i = 0; i < offset; i++) {
        const uint8_t byte = (uint8_t)(i * 37);
        put(&s, &byte, 1);
    }
    return s;
}

static sample
safetensors_sample(void)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[5],\"data_offsets\":[24,34]},\"c\":{\"dtype\":\"F16\",\"shape\":[1,3,1],\"data_offsets\":[34,40]},"
        "\"d\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[40,43]},\"e\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[43,43]},"
        "\"f\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[43,47]}}";
    sample s = {0};
    put_u64(&s, strlen(header)), put(&s, header, strlen(header));
    put(&s, "0123456789abcdefghijklmnopqrstuvwxyz0123456789!", 47);
    return s;
}

/* -- readers -- */

static ha_status
read_json(const uint8_t *data, size_t size)
{
    ha_json *json = NULL;
    ha_error err;
    const ha_status status = ha_json_parse("sample", (const char *)data, size, &json, &err);
    if (status == HA_OK) {
        const ha_json_node *root = ha_json_root(json), *model = ha_json_get(json, root, "model");
        size_t n = 0;
        uint64_t u = 0;
        double d = 0;
        const char *text = NULL;
        for (const ha_json_node *node = ha_json_first(json, ha_json_get(json, root, "n")); node != NULL; node = ha_json_next(json, node)) {
            (void)ha_json_u64(node, &u);
        }
        (void)ha_json_get_size(json, root, "n", 1, 0, 10, &n, &err);
        (void)ha_json_get_double(json, root, "t", 0, &d, &err);
        (void)ha_json_get_string(json, model, "type", NULL, &text, &err);
        ha_json_free(json);
    }
    return status;
}

static void
read_gguf_keys(const ha_tensor_file *file)
{
    static const char *const keys[] = {"general.alignment", "s", "words", "numbers", "flags", "nested", "f", "b", "absent"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        ha_error err;
        uint64_t u;
        double d;
        int b;
        const char *text;
        size_t n = 0, length = 0;
        (void)ha_gguf_u64(file, keys[i], &u, &err);
        (void)ha_gguf_f64(file, keys[i], &d, &err);
        (void)ha_gguf_bool(file, keys[i], &b, &err);
        (void)ha_gguf_string(file, keys[i], &text, &length, &err);
        (void)ha_gguf_array_length(file, keys[i], &n, &err);
        for (size_t j = 0; j < (n < 10 ? n + 1 : 10); j++) {
            (void)ha_gguf_array_string(file, keys[i], j, &text, &length, &err);
            (void)ha_gguf_array_f64(file, keys[i], j, &d, &err);
        }
    }
}

static size_t
count_values(const ha_gguf_value *value)
{
    const uint8_t *at = value->data;
    size_t n = 1;
    if (value->type == HA_GGUF_ARRAY) {
        for (uint64_t i = 0; i < value->count; i++) {
            ha_gguf_value item;
            ha_gguf_next(value, &at, &item);
            n += count_values(&item);
        }
    }
    return n;
}

/* Opens a file that lies in the heap, and reads all there is. */
static ha_status
read_tensors(const uint8_t *data, size_t size)
{
    ha_tensor_file *file = calloc(1, sizeof(*file));
    ha_status status = HA_ERR_NOMEM;
    ha_error err;
    if (file == NULL) {
        return status;
    }
    file->maps = calloc(1, sizeof(*file->maps));
    file->documents = calloc(1, sizeof(ha_json *));
    if (file->maps == NULL || file->documents == NULL) {
        goto done;
    }
    file->maps[0] = (ha_map_file){.data = data, .size = size};
    file->n_maps = 1;
    status = size >= 4 && memcmp(data, "GGUF", 4) == 0 ? ha_gguf_read(file, "sample", &err) : ha_safetensors_read(file, "sample", &err);
    status = status != HA_OK ? status : ha_tensor_file_index(file, "sample", &err);
    for (size_t i = 0; status == HA_OK && i < ha_tensor_file_count(file); i++) {
        const ha_tensor *tensor = ha_tensor_file_at(file, i);
        const size_t rows = tensor->ndim >= 2 ? tensor->shape[0] : 1;
        size_t cols = tensor->ndim == 1 ? tensor->shape[0] : 1;
        for (int d = 1; d < tensor->ndim; d++) {
            cols *= tensor->shape[d];
        }
        float *out = rows <= 1 << 20 && cols <= 1 << 20 ? malloc(rows * cols * sizeof(*out) + 1) : NULL;
        if (out != NULL) {
            (void)ha_tensor_rows_f32(tensor, 0, rows, out, &err);
            CHECK(ha_tensor_rows_f32(tensor, 0, rows + 1, out, &err) == HA_ERR_VALUE, "one row too many of '%s'", tensor->name);
        }
        free(out);
        CHECK(ha_tensor_file_find(file, tensor->name) == tensor, "'%s' is found", tensor->name);
    }
    if (status == HA_OK) {
        read_gguf_keys(file);
        for (size_t i = 0; i < ha_gguf_count(file); i++) {
            const char *key;
            size_t length;
            ha_gguf_value value;
            ha_gguf_at(file, i, &key, &length, &value);
            (void)count_values(&value);
        }
    }
    file->maps[0].data = NULL;      /* the heap's, not a mapping */
done:
    ha_tensor_file_close(file);
    return status;
}

typedef ha_status (*reader_fn)(const uint8_t *data, size_t size);

/* In a block of exactly `size` bytes. */
static ha_status
read_copy(reader_fn reader, const uint8_t *data, size_t size)
{
    uint8_t *copy = __real_malloc(size > 0 ? size : 1);
    memcpy(copy, data, size);
    const ha_status status = reader(copy, size);
    free(copy);
    return status;
}

static void
test_damage(const char *name, reader_fn reader, sample s)
{
    CHECK(read_copy(reader, s.data, s.size) == HA_OK, "%s: the sample is read", name);
    for (size_t n = 0; n < s.size; n++) {
        CHECK(read_copy(reader, s.data, n) == HA_ERR_FORMAT, "%s: prefix of %zu bytes", name, n);
    }
    uint8_t *broken = bytes(s.size);
    seed(7);
    for (int i = 0; i < N_DAMAGED; i++) {
        memcpy(broken, s.data, s.size);
        for (int flips = 1 + (i & 3); flips > 0; flips--) {
            const size_t at = (size_t)((uniform() + 1) * 0.5f * (float)s.size) % s.size;
            broken[at] = (uint8_t)((i & 4) ? 255 : (i & 8) ? broken[at] ^ (1 << (i >> 4 & 7)) : (int)((uniform() + 1) * 128));
        }
        const ha_status status = read_copy(reader, broken, s.size);
        CHECK(status == HA_OK || status == HA_ERR_FORMAT, "%s: damage %d gives status %d", name, i, (int)status);
    }
    free(broken);
}

/* Each allocation of a reading fails in turn: HA_ERR_NOMEM, and nothing leaks (the sanitizer looks). */
static void
test_no_memory(const char *name, reader_fn reader, sample s)
{
    for (long n = 0; n < 200; n++) {
        allocations_left = n;
        const ha_status status = read_copy(reader, s.data, s.size);
        const int exhausted = allocations_left == 0;
        allocations_left = -1;
        CHECK(status == HA_ERR_NOMEM || status == HA_OK, "%s: allocation %ld fails with status %d", name, n, (int)status);
        if (status == HA_OK && !exhausted) {
            return;
        }
    }
    CHECK(0, "%s: never enough allocations", name);
}

static void
test_write(void)
{
    char path[] = "/tmp/harmaug-test-io-XXXXXX";
    const int fd = mkstemp(path);
    float *x = floats(40000, 1);
    const ha_tensor_out out[] = {{"a \"b\"\n", HA_F32, 2, {200, 200}, x}, {"h", HA_F16, 1, {39999}, x}, {"b", HA_BF16, 3, {1, 7, 11}, x}, {"s", HA_F32, 0, {0}, x}};
    ha_error err;
    CHECK(fd >= 0, "a temporary file");
    close(fd);
    ha_status status = HA_ERR_NOMEM;
    for (long n = 0; status != HA_OK && n < 100; n++) {
        allocations_left = n;
        status = ha_safetensors_write(path, out, 4, NULL, &err);
        allocations_left = -1;
        CHECK(status == HA_OK || status == HA_ERR_NOMEM, "writing with %ld allocations: %s", n, err.message);
    }
    ha_tensor_file *file = NULL;
    status = ha_tensor_file_open(path, &file, &err);
    CHECK(status == HA_OK, "what was written opens: %s", err.message);
    if (status == HA_OK) {
        const ha_tensor *tensor = NULL;
        const size_t shape[2] = {200, 200};
        float *back = floats(40000, 0);
        CHECK(ha_tensor_file_expect(file, "a \"b\"\n", 2, shape, &tensor, &err) == HA_OK, "%s", err.message);
        CHECK(ha_tensor_rows_f32(tensor, 3, 5, back, &err) == HA_OK && memcmp(back, x + 600, 1000 * sizeof(float)) == 0, "rows 3 to 8 come back");
        CHECK(ha_tensor_file_expect(file, "nope", 2, shape, &tensor, &err) == HA_ERR_FORMAT && strstr(err.message, "'nope' is missing"), "%s", err.message);
        CHECK(ha_tensor_file_expect(file, "h", 2, shape, &tensor, &err) == HA_ERR_FORMAT && strstr(err.message, "has shape (39999), expected (200, 200)"), "%s", err.message);
        free(back);
    }
    ha_tensor_file_close(file);
    unlink(path);
    free(x);
}

static void
test_decimal(void)
{
    seed(3);
    for (int i = 0; i < 20000; i++) {
        char text[64];
        double x;
        uint64_t bits = 0;
        for (int j = 0; j < 4; j++) {
            bits = bits << 16 | (uint64_t)((uniform() + 1) * 32768);
        }
        memcpy(&x, &bits, 8);
        if (isfinite(x)) {
            snprintf(text, sizeof(text), "%.*e", 16 + (i & 7), x);
            const double back = ha_decimal_to_double(text, strlen(text));
            CHECK(memcmp(&back, &x, 8) == 0, "%s", text);
        }
    }
}

int
main(void)
{
    ha_error err;
    if (ha_kernels_select(NULL, &err) != HA_OK) {
        printf("%s\n", err.message);
        return 1;
    }
    sample json = {0}, tensors = safetensors_sample(), gguf = gguf_sample();
    put(&json, json_sample, strlen(json_sample));
    const struct { const char *name; reader_fn reader; sample s; } cases[] = {
        {"json", read_json, json}, {"safetensors", read_tensors, tensors}, {"gguf", read_tensors, gguf}};
    for (size_t i = 0; i < 3; i++) {
        test_damage(cases[i].name, cases[i].reader, cases[i].s);
        test_no_memory(cases[i].name, cases[i].reader, cases[i].s);
        free(cases[i].s.data);
    }
    test_write();
    test_decimal();
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
