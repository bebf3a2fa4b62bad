#include "tokenizer/normalizer.h"

#include <stdlib.h>
#include <string.h>

#include "tokenizer/unicode.h"

void
ha_norm_scratch_free(ha_norm_scratch *scratch)
{
    ha_text_buf_free(&scratch->a);
    ha_text_buf_free(&scratch->b);
    free(scratch->chars);
    free(scratch->composed);
    memset(scratch, 0, sizeof(*scratch));
}

ha_status
ha_normalizer_add(ha_normalizer *normalizer, ha_norm_pass pass, ha_error *err)
{
    if (normalizer->n_passes == HA_MAX_NORM_PASSES) {
        return ha_fail(err, HA_ERR_FORMAT, "normalizer: more than %d passes", HA_MAX_NORM_PASSES);
    }
    normalizer->passes[normalizer->n_passes++] = pass;
    return HA_OK;
}

ha_status
ha_normalizer_add_bert(ha_normalizer *normalizer, int clean_text, int chinese, int strip_accents, int lowercase, ha_error *err)
{
    const struct { int on; ha_norm_pass pass; } passes[] = {
        {clean_text, HA_NORM_CLEAN}, {chinese, HA_NORM_CJK}, {strip_accents, HA_NORM_NFD}, {strip_accents, HA_NORM_DROP_MN},
        {lowercase, HA_NORM_LOWERCASE},
    };
    ha_status status = HA_OK;
    for (size_t i = 0; i < sizeof(passes) / sizeof(passes[0]) && status == HA_OK; i++) {
        status = passes[i].on ? ha_normalizer_add(normalizer, passes[i].pass, err) : HA_OK;
    }
    return status;
}

void
ha_normalizer_finish(ha_normalizer *normalizer)
{
    for (unsigned c = 0; c < 128; c++) {
        unsigned now = c;
        for (size_t i = 0; i < normalizer->n_passes && now != HA_NORM_DROPPED; i++) {
            if (normalizer->passes[i] == HA_NORM_CLEAN) {
                const unsigned flags = ha_uc_flags(now);
                now = flags & HA_UC_CONTROL ? HA_NORM_DROPPED : flags & HA_UC_WHITE_SPACE ? ' ' : now;
            } else if (normalizer->passes[i] == HA_NORM_LOWERCASE) {
                now = ha_uc_lower(now);
            }
        }
        normalizer->ascii[c] = (uint8_t)now;
    }
}

static ha_align
align_at(const ha_text_buf *in, size_t i)
{
    return in->aligned ? in->align[i] : (ha_align){0, 0};
}

/* The passes that look at one character at a time; out holds room for three times the input. */
static void
pass_local(ha_norm_pass pass, const ha_text_buf *in, ha_text_buf *out)
{
    size_t size;
    for (size_t i = 0; i < in->length; i += size) {
        const uint32_t c = ha_utf8_decode(in->text + i, &size);
        const unsigned flags = ha_uc_flags(c);
        const ha_align from = align_at(in, i);
        switch (pass) {
        case HA_NORM_CLEAN:
            if ((flags & HA_UC_CONTROL) == 0) {
                ha_text_buf_push(out, flags & HA_UC_WHITE_SPACE ? ' ' : c, from);
            }
            break;
        case HA_NORM_CJK:
            if (flags & HA_UC_CJK) {
                ha_text_buf_push(out, ' ', from);
            }
            ha_text_buf_push(out, c, from);
            if (flags & HA_UC_CJK) {
                ha_text_buf_push(out, ' ', from);
            }
            break;
        case HA_NORM_DROP_MN:
            if ((flags & HA_UC_MN) == 0) {
                ha_text_buf_push(out, c, from);
            }
            break;
        default:
            ha_text_buf_push(out, ha_uc_lower(c), from);
            if (c == HA_UC_DOTTED_I) {
                ha_text_buf_push(out, 0x307, from);
            }
            break;
        }
    }
}

static ha_status
room(ha_norm_char **chars, size_t *capacity, size_t needed, ha_error *err)
{
    if (needed > *capacity) {
        ha_norm_char *grown = needed > SIZE_MAX / sizeof(**chars) ? NULL : realloc(*chars, needed * sizeof(**chars));
        if (grown == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu characters", needed);
        }
        *chars = grown;
        *capacity = needed;
    }
    return HA_OK;
}

/* Stable, by combining class: runs of marks are short, and an already ordered run costs one comparison a mark. A long unordered run (hostile)
 * goes through a counting sort, so that nothing is quadratic. `spare` holds n. */
static void
order_marks(ha_norm_char *marks, size_t n, ha_norm_char *spare)
{
    if (n <= 32) {
        for (size_t i = 1; i < n; i++) {
            const ha_norm_char moved = marks[i];
            size_t k = i;
            for (; k > 0 && marks[k - 1].ccc > moved.ccc; k--) {
                marks[k] = marks[k - 1];
            }
            marks[k] = moved;
        }
        return;
    }
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++) {
        start[marks[i].ccc + 1]++;
    }
    for (size_t v = 0; v < 256; v++) {
        start[v + 1] += start[v];
    }
    for (size_t i = 0; i < n; i++) {
        spare[start[marks[i].ccc]++] = marks[i];
    }
    memcpy(marks, spare, n * sizeof(*marks));
}

/* Canonical decomposition of the whole text; `change` is 0 for the first code point of each character and 1 for the others. */
static ha_status
decompose(const ha_text_buf *in, ha_norm_scratch *scratch, size_t *n_out, ha_error *err)
{
    size_t n_chars = 0, n = 0, size;
    for (size_t i = 0; i < in->length; i++) {
        n_chars += (in->text[i] & 0xC0) != 0x80;
    }
    ha_status status = room(&scratch->chars, &scratch->cap_chars, n_chars * HA_UC_MAX_NFD, err);
    if (status == HA_OK) {
        status = room(&scratch->composed, &scratch->cap_composed, n_chars * HA_UC_MAX_NFD, err);
    }
    if (status != HA_OK) {
        return status;
    }
    ha_norm_char *chars = scratch->chars;
    size_t pending = 0;         /* marks since the last starter begin here */
    for (size_t i = 0; i < in->length; i += size) {
        uint32_t parts[HA_UC_MAX_NFD];
        const size_t n_parts = ha_uc_decompose(ha_utf8_decode(in->text + i, &size), parts);
        for (size_t k = 0; k < n_parts; k++) {
            const unsigned ccc = ha_uc_ccc(parts[k]);
            if (ccc == 0) {
                order_marks(chars + pending, n - pending, scratch->composed);
                pending = n + 1;
            }
            chars[n++] = (ha_norm_char){parts[k], k > 0, ccc};
        }
    }
    order_marks(chars + pending, n - pending, scratch->composed);
    *n_out = n;
    return HA_OK;
}

/* Canonical composition (UAX #15, section 1.3) of `chars` into `composed`. A composite's `change` is the sum of its parts' less one for each part
 * after the first: how many characters of the text it consumes. Returns the new count. */
static size_t
compose(const ha_norm_char *chars, size_t n, ha_norm_char *composed)
{
    size_t out = 0, starter = SIZE_MAX;     /* where the last starter stands in `composed` */
    unsigned last_ccc = 0;                  /* of the last mark left after it; 0: none */
    for (size_t i = 0; i < n; i++) {
        const ha_norm_char ch = chars[i];
        if (starter != SIZE_MAX && (last_ccc == 0 || last_ccc < ch.ccc)) {
            const uint32_t both = ha_uc_compose(composed[starter].c, ch.c);
            if (both != 0) {
                composed[starter].c = both;
                composed[starter].change += ch.change - 1;
                continue;
            }
        }
        if (ch.ccc == 0) {
            starter = out;
        }
        last_ccc = starter != SIZE_MAX ? ch.ccc : 0;
        composed[out++] = ch;
    }
    return out;
}

/* Writes the characters and gives each the origin that the reference gives it: a character of change 1 shares that of the byte before, one of
 * change -k consumes one character of the input and k more. */
static void
realign(const ha_norm_char *chars, size_t n, const ha_text_buf *in, ha_text_buf *out)
{
    size_t at = 0, size;
    for (size_t i = 0; i < n; i++) {
        if (chars[i].change > 0) {
            ha_text_buf_push(out, chars[i].c, at > 0 ? align_at(in, at - 1) : (ha_align){0, 0});
            continue;
        }
        ha_text_buf_push(out, chars[i].c, align_at(in, at < in->length ? at : in->length - 1));
        for (int32_t k = chars[i].change; k <= 0 && at < in->length; k++) {
            ha_utf8_decode(in->text + at, &size);
            at += size;
        }
    }
}

/* 1 when the pass would leave the text as it is: no character decomposes (for NFC: to something else), none is a mark. */
static int
is_normal(const ha_text_buf *in, ha_norm_pass pass)
{
    const unsigned bad = pass == HA_NORM_NFD ? HA_UC_NFD_NO : HA_UC_NFC_NO | HA_UC_SECOND;
    size_t size;
    for (size_t i = ha_utf8_ascii_prefix(in->text, in->length); i < in->length; i += size) {
        const size_t class = ha_uc_class(ha_utf8_decode(in->text + i, &size));
        if ((ha_uc_class_flags[class] & bad) || ha_uc_class_ccc[class] != 0) {
            return 0;
        }
    }
    return 1;
}

static ha_status
run_pass(ha_norm_pass pass, const ha_text_buf *in, ha_norm_scratch *scratch, ha_text_buf *out, ha_error *err)
{
    out->length = 0;
    if (pass != HA_NORM_NFD && pass != HA_NORM_NFC) {
        const ha_status status = ha_text_buf_reserve(out, in->length * 3 + 8, err);     /* CJK: 3 bytes become 5; U+0130: 2 become 3 */
        if (status == HA_OK) {
            pass_local(pass, in, out);
        }
        return status;
    }
    size_t n = 0;
    ha_status status = decompose(in, scratch, &n, err);
    if (status != HA_OK) {
        return status;
    }
    const ha_norm_char *chars = scratch->chars;
    if (pass == HA_NORM_NFC) {
        n = compose(scratch->chars, n, scratch->composed);
        chars = scratch->composed;
    }
    status = ha_text_buf_reserve(out, n * 4 + 8, err);
    if (status == HA_OK) {
        realign(chars, n, in, out);
    }
    return status;
}

/* ASCII text needs one look-up a character, and the passes of none. */
static ha_status
normalize_ascii(const ha_normalizer *normalizer, const uint8_t *original, size_t begin, size_t end, ha_text_buf *out, ha_error *err)
{
    const ha_status status = ha_text_buf_reserve(out, end - begin, err);
    if (status != HA_OK) {
        return status;
    }
    uint8_t *text = out->text;
    size_t n = out->length;
    for (size_t i = begin; i < end; i++) {
        const uint8_t c = normalizer->ascii[original[i]];
        text[n] = c;
        if (out->aligned) {
            out->align[n] = (ha_align){(uint32_t)i, (uint32_t)i + 1};
        }
        n += c != HA_NORM_DROPPED;
    }
    out->length = n;
    return HA_OK;
}

ha_status
ha_normalize(const ha_normalizer *normalizer, const uint8_t *original, size_t begin, size_t end,
             ha_norm_scratch *scratch, ha_text_buf *out, ha_error *err)
{
    if (normalizer->n_passes == 0) {
        return ha_text_buf_append_original(out, original, begin, end, err);
    }
    if (ha_utf8_ascii_prefix(original + begin, end - begin) == end - begin) {
        return normalize_ascii(normalizer, original, begin, end, out, err);
    }
    ha_text_buf *in = &scratch->a, *next = &scratch->b;
    in->aligned = next->aligned = out->aligned;
    in->length = 0;
    ha_status status = ha_text_buf_append_original(in, original, begin, end, err);
    for (size_t i = 0; i < normalizer->n_passes && status == HA_OK; i++) {
        const ha_norm_pass pass = normalizer->passes[i];
        if ((pass == HA_NORM_NFD || pass == HA_NORM_NFC) && is_normal(in, pass)) {
            continue;
        }
        status = run_pass(pass, in, scratch, next, err);
        ha_text_buf *swap = in;
        in = next, next = swap;
    }
    if (status == HA_OK) {
        status = ha_text_buf_reserve(out, in->length, err);
    }
    if (status != HA_OK) {
        return status;
    }
    memcpy(out->text + out->length, in->text, in->length);
    if (out->aligned) {
        memcpy(out->align + out->length, in->align, in->length * sizeof(*in->align));
    }
    out->length += in->length;
    return HA_OK;
}
