#include "tokenizer/normalizer.h"

#include <stdlib.h>
#include <string.h>

#include "core/ascii.h"
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

void
ha_normalizer_free(ha_normalizer *normalizer)
{
    for (size_t i = 0; i < normalizer->n_steps; i++) {
        free(normalizer->steps[i].from);
        free(normalizer->steps[i].to);
        ha_charsmap_free(&normalizer->steps[i].charsmap);
    }
    normalizer->n_steps = 0;
}

/* Takes over what the step owns, also when it fails. */
static ha_status
add_step(ha_normalizer *normalizer, ha_norm_step step, ha_error *err)
{
    if (normalizer->n_steps == HA_MAX_NORM_STEPS) {
        free(step.from);
        free(step.to);
        ha_charsmap_free(&step.charsmap);
        return ha_fail(err, HA_ERR_FORMAT, "normalizer: more than %d steps", HA_MAX_NORM_STEPS);
    }
    normalizer->steps[normalizer->n_steps++] = step;
    return HA_OK;
}

ha_status
ha_normalizer_add(ha_normalizer *normalizer, ha_norm_pass pass, ha_error *err)
{
    return add_step(normalizer, (ha_norm_step){.pass = pass}, err);
}

ha_status
ha_normalizer_add_strip(ha_normalizer *normalizer, int left, int right, ha_error *err)
{
    return add_step(normalizer, (ha_norm_step){.pass = HA_NORM_STRIP, .left = left, .right = right}, err);
}

ha_status
ha_normalizer_add_precompiled(ha_normalizer *normalizer, ha_charsmap charsmap, ha_error *err)
{
    return add_step(normalizer, (ha_norm_step){.pass = HA_NORM_PRECOMPILED, .charsmap = charsmap}, err);
}

ha_status
ha_normalizer_add_replace(ha_normalizer *normalizer, ha_norm_pattern pattern, const char *from, size_t from_length,
                          const char *to, size_t to_length, ha_error *err)
{
    ha_norm_step step = {.pass = HA_NORM_REPLACE, .pattern = pattern, .from_length = from_length, .to_length = to_length};
    step.from = pattern == HA_NORM_TEXT ? ha_text_copy(from, from_length) : NULL;
    step.to = ha_text_copy(to, to_length);
    if ((pattern == HA_NORM_TEXT && step.from == NULL) || step.to == NULL) {
        free(step.from);
        free(step.to);
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    return add_step(normalizer, step, err);
}

ha_status
ha_normalizer_add_prepend(ha_normalizer *normalizer, const char *text, size_t length, ha_error *err)
{
    char *to = ha_text_copy(text, length);
    return to != NULL ? add_step(normalizer, (ha_norm_step){.pass = HA_NORM_PREPEND, .to = to, .to_length = length}, err)
                      : ha_fail(err, HA_ERR_NOMEM, "out of memory");
}

/* The runs of a regular expression: characters of at least `least` that are a space or, with `blanks`, \s; with `line` also single line breaks and tabs. */
static const struct run_pattern { const char *regex; size_t least; int blanks, line; } runs[] = {
    [HA_NORM_SPACES] = {" +", 1, 0, 0},
    [HA_NORM_TWO_SPACES] = {" {2,}", 2, 0, 0},
    [HA_NORM_BLANKS] = {"\\s+", 1, 1, 0},
    [HA_NORM_TWO_BLANKS] = {"\\s{2,}", 2, 1, 0},
    [HA_NORM_TWO_BLANKS_OR_LINE] = {"\\s{2,}|[\\n\\r\\t]", 2, 1, 1},
};

int
ha_norm_regex(const char *regex, size_t length, ha_norm_pattern *out)
{
    for (size_t i = HA_NORM_TEXT + 1; i < sizeof(runs) / sizeof(runs[0]); i++) {
        if (strlen(runs[i].regex) == length && memcmp(runs[i].regex, regex, length) == 0) {
            *out = (ha_norm_pattern)i;
            return 1;
        }
    }
    return 0;
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

/* What Nmt makes of a character; HA_NORM_DROPPED: nothing (that character itself stays what it is). */
static uint32_t
nmt(uint32_t c)
{
    if ((c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) {
        return HA_NORM_DROPPED;
    }
    const int space = c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029
                      || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
    return space ? ' ' : c;
}

void
ha_normalizer_finish(ha_normalizer *normalizer)
{
    normalizer->local = 1;
    for (size_t i = 0; i < normalizer->n_steps; i++) {
        normalizer->local &= normalizer->steps[i].pass <= HA_NORM_NFKC;      /* ASCII is in every normal form */
    }
    for (unsigned c = 0; c < 128; c++) {
        unsigned now = c;
        for (size_t i = 0; i < normalizer->n_steps && now != HA_NORM_DROPPED; i++) {
            const unsigned flags = ha_uc_flags(now);
            switch (normalizer->steps[i].pass) {
            case HA_NORM_CLEAN: now = flags & HA_UC_CONTROL ? HA_NORM_DROPPED : flags & HA_UC_WHITE_SPACE ? ' ' : now; break;
            case HA_NORM_NMT: now = nmt(now); break;
            case HA_NORM_LOWERCASE: now = ha_uc_lower(now); break;
            default: break;
            }
        }
        normalizer->ascii[c] = (uint8_t)now;
    }
    int same = 1, lower = 1;
    for (unsigned c = 0x20; c < 0x7F; c++) {
        same &= normalizer->ascii[c] == c;
        lower &= normalizer->ascii[c] == c + (c >= 'A' && c <= 'Z' ? 0x20 : 0);
    }
    normalizer->printable = same ? HA_PRINTABLE_SAME : lower ? HA_PRINTABLE_LOWER : HA_PRINTABLE_OTHER;
}

/* Positions in a text are 32 bits wide, and a short rule file must not fill the memory. */
#define MAX_NORMAL ((size_t)1 << 30)

static ha_status
make_room(ha_text_buf *out, size_t extra, ha_error *err)
{
    if (extra > MAX_NORMAL || out->length > MAX_NORMAL - extra) {
        return ha_fail(err, HA_ERR_VALUE, "the text is too long once it is normalized: more than %zu bytes", MAX_NORMAL);
    }
    return ha_text_buf_reserve(out, extra, err);
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
        case HA_NORM_STRIP_ACCENTS:
            if ((flags & (pass == HA_NORM_DROP_MN ? HA_UC_MN : HA_UC_MARK)) == 0) {
                ha_text_buf_push(out, c, from);
            }
            break;
        case HA_NORM_NMT:
            if (c == HA_NORM_DROPPED || nmt(c) != HA_NORM_DROPPED) {
                ha_text_buf_push(out, nmt(c), from);
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

/* Decomposition of the whole text; `change` is 0 for the first code point of each character and 1 for the others. */
static ha_status
decompose(const ha_text_buf *in, int compatibility, ha_norm_scratch *scratch, size_t *n_out, ha_error *err)
{
    uint32_t parts[HA_UC_MAX_PARTS];
    size_t needed = 0, n = 0, size;
    for (size_t i = 0; i < in->length; i += size) {
        needed += ha_uc_decompose(ha_utf8_decode(in->text + i, &size), compatibility, parts);
    }
    ha_status status = room(&scratch->chars, &scratch->cap_chars, needed, err);
    if (status == HA_OK) {
        status = room(&scratch->composed, &scratch->cap_composed, needed, err);
    }
    if (status != HA_OK) {
        return status;
    }
    ha_norm_char *chars = scratch->chars;
    size_t pending = 0;         /* marks since the last starter begin here */
    for (size_t i = 0; i < in->length; i += size) {
        const size_t n_parts = ha_uc_decompose(ha_utf8_decode(in->text + i, &size), compatibility, parts);
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

/* Where the characters of a new text come from, as the reference has it: a character of change 1 shares the origin of the byte before, one of change -k takes
 * the place of one character of the old text and of k more. */
typedef struct retrace { const ha_text_buf *in; ha_text_buf *out; size_t at; } retrace;

/* Needs 4 reserved bytes. */
static void
emit(retrace *r, uint32_t c, int32_t change)
{
    const ha_text_buf *in = r->in;
    size_t size;
    if (change > 0) {
        ha_text_buf_push(r->out, c, r->at > 0 ? align_at(in, r->at - 1) : (ha_align){0, 0});
        return;
    }
    ha_text_buf_push(r->out, c, align_at(in, r->at < in->length ? r->at : in->length - 1));
    for (int32_t k = change; k <= 0 && r->at < in->length; k++) {
        ha_utf8_decode(in->text + r->at, &size);
        r->at += size;
    }
}

/* 1 when the pass would leave the text as it is: no character decomposes (for NFC, NFKC: to something else), none is a mark. */
static int
is_normal(const ha_text_buf *in, ha_norm_pass pass)
{
    const unsigned bad = pass == HA_NORM_NFD || pass == HA_NORM_NFKD ? HA_UC_NFD_NO : HA_UC_NFC_NO | HA_UC_SECOND;
    const int compatibility = pass == HA_NORM_NFKD || pass == HA_NORM_NFKC;
    size_t size;
    for (size_t i = ha_utf8_ascii_prefix(in->text, in->length); i < in->length; i += size) {
        const uint32_t c = ha_utf8_decode(in->text + i, &size);
        const size_t class = ha_uc_class(c);
        if ((ha_uc_class_flags[class] & bad) || ha_uc_class_ccc[class] != 0 || (compatibility && ha_uc_is_compatibility(c))) {
            return 0;
        }
    }
    return 1;
}

static ha_status
pass_form(ha_norm_pass pass, const ha_text_buf *in, ha_norm_scratch *scratch, ha_text_buf *out, ha_error *err)
{
    size_t n = 0;
    ha_status status = decompose(in, pass == HA_NORM_NFKD || pass == HA_NORM_NFKC, scratch, &n, err);
    if (status != HA_OK) {
        return status;
    }
    const ha_norm_char *chars = scratch->chars;
    if (pass == HA_NORM_NFC || pass == HA_NORM_NFKC) {
        n = compose(scratch->chars, n, scratch->composed);
        chars = scratch->composed;
    }
    status = make_room(out, n * 4 + 8, err);
    retrace r = {in, out, 0};
    for (size_t i = 0; i < n && status == HA_OK; i++) {
        emit(&r, chars[i].c, chars[i].change);
    }
    return status;
}

/* ---- passes that know more than one character ---- */

/* Needs end - begin reserved bytes. */
static void
copy_range(const ha_text_buf *in, size_t begin, size_t end, ha_text_buf *out)
{
    memcpy(out->text + out->length, in->text + begin, end - begin);
    if (out->aligned) {
        memcpy(out->align + out->length, in->align + begin, (end - begin) * sizeof(*in->align));
    }
    out->length += end - begin;
}

/* Needs `length` reserved bytes. */
static void
push_text(ha_text_buf *out, const char *text, size_t length, ha_align from)
{
    memcpy(out->text + out->length, text, length);
    for (size_t i = 0; out->aligned && i < length; i++) {
        out->align[out->length + i] = from;
    }
    out->length += length;
}

static ha_status
pass_strip(const ha_norm_step *step, const ha_text_buf *in, ha_text_buf *out, ha_error *err)
{
    size_t begin = 0, end = in->length, size;
    while (step->left && begin < end && (ha_uc_flags(ha_utf8_decode(in->text + begin, &size)) & HA_UC_WHITE_SPACE)) {
        begin += size;
    }
    while (step->right && end > begin) {
        const size_t back = ha_utf8_back(in->text, end);
        if ((ha_uc_flags(ha_utf8_decode(in->text + back, &size)) & HA_UC_WHITE_SPACE) == 0) {
            break;
        }
        end = back;
    }
    const ha_status status = make_room(out, end - begin, err);
    if (status == HA_OK) {
        copy_range(in, begin, end, out);
    }
    return status;
}

/* Where the match of a Replace at text[i] ends; i: none. */
static size_t
match_at(const ha_norm_step *step, const uint8_t *text, size_t i, size_t n)
{
    if (step->pattern == HA_NORM_TEXT) {
        return n - i >= step->from_length && memcmp(text + i, step->from, step->from_length) == 0 ? i + step->from_length : i;
    }
    const struct run_pattern *p = &runs[step->pattern];
    size_t end = i, count = 0, size = 1;
    while (end < n && (p->blanks ? (ha_uc_flags(ha_utf8_decode(text + end, &size)) & HA_UC_S) != 0 : text[end] == ' ')) {
        end += size;
        count++;
    }
    const int line = p->line && (text[i] == '\n' || text[i] == '\r' || text[i] == '\t');
    return count >= p->least || line ? end : i;
}

/* What replaces a match has the origin of the last character of the match. */
static ha_status
pass_replace(const ha_norm_step *step, const ha_text_buf *in, ha_text_buf *out, ha_error *err)
{
    size_t done = 0, size;
    ha_status status = HA_OK;
    for (size_t i = 0; i < in->length && status == HA_OK;) {
        const size_t end = match_at(step, in->text, i, in->length);
        if (end == i) {
            ha_utf8_decode(in->text + i, &size);
            i += size;
            continue;
        }
        status = make_room(out, i - done + step->to_length, err);
        if (status == HA_OK) {
            copy_range(in, done, i, out);
            push_text(out, step->to, step->to_length, align_at(in, end - 1));
        }
        done = i = end;
    }
    if (status == HA_OK) {
        status = make_room(out, in->length - done, err);
    }
    if (status == HA_OK) {
        copy_range(in, done, in->length, out);
    }
    return status;
}

static ha_status
pass_prepend(const ha_norm_step *step, const ha_text_buf *in, ha_text_buf *out, ha_error *err)
{
    const ha_status status = make_room(out, in->length + step->to_length, err);
    if (status == HA_OK && in->length > 0) {
        push_text(out, step->to, step->to_length, align_at(in, 0));
        copy_range(in, 0, in->length, out);
    }
    return status;
}

/* The new characters of Precompiled. Which change one has is known only when the next comes: what a rule drops counts for the last character written, of
 * whatever rule. */
typedef struct rewrite { retrace r; uint32_t c; int32_t change; int pending; } rewrite;

static void
rewrite_push(rewrite *w, uint32_t c, int32_t change)
{
    if (w->pending) {
        emit(&w->r, w->c, w->change);
    }
    w->c = c, w->change = change, w->pending = 1;
}

static size_t
count_chars(const uint8_t *text, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        count += (text[i] & 0xC0) != 0x80;
    }
    return count;
}

/* One unit of `n` bytes that has a rule. */
static void
rewrite_unit(rewrite *w, const uint8_t *unit, size_t n, const char *text, size_t length)
{
    const size_t n_old = count_chars(unit, n), n_new = count_chars((const uint8_t *)text, length);
    size_t size, k = 0;
    for (size_t i = 0; i < length; i += size, k++) {
        rewrite_push(w, ha_utf8_decode((const uint8_t *)text + i, &size), k >= n_old);
    }
    if (n_new < n_old && w->pending) {
        w->change -= (int32_t)(n_old - n_new);
    }
}

/* A grapheme cluster of fewer than 6 bytes is one unit: the rule of its shortest prefix replaces all of it. Without one, and in a longer cluster, each
 * character is a unit. */
ha_status
ha_norm_precompiled(const ha_norm_step *step, const ha_text_buf *in, ha_text_buf *out, ha_error *err)
{
    const ha_charsmap *map = &step->charsmap;
    rewrite w = {.r = {in, out, 0}};
    ha_grapheme_state state = {0};
    const char *text;
    size_t length, size;
    for (size_t i = 0; i < in->length;) {
        const size_t cluster = ha_uc_grapheme(in->text, i, in->length, &state), end = i + cluster;
        while (i < end) {
            size_t n = i + cluster == end && cluster < 6 ? ha_charsmap_find(map, 0, in->text + i, cluster, &text, &length) > 0 ? cluster : 0 : 0;
            const uint32_t c = ha_utf8_decode(in->text + i, &size);
            n = n > 0 ? n : ha_charsmap_find(map, 0, in->text + i, size, &text, &length) > 0 ? size : 0;
            const ha_status status = make_room(out, (n > 0 ? length : size) + 4, err);
            if (status != HA_OK) {
                return status;
            }
            if (n > 0) {
                rewrite_unit(&w, in->text + i, n, text, length);
            } else {
                rewrite_push(&w, c, 0);
            }
            i += n > 0 ? n : size;
        }
    }
    if (w.pending) {
        emit(&w.r, w.c, w.change);
    }
    return HA_OK;
}

static ha_status
run_step(const ha_norm_step *step, const ha_text_buf *in, ha_norm_scratch *scratch, ha_text_buf *out, ha_error *err)
{
    out->length = 0;
    switch (step->pass) {
    case HA_NORM_NFD: case HA_NORM_NFC: case HA_NORM_NFKD: case HA_NORM_NFKC: return pass_form(step->pass, in, scratch, out, err);
    case HA_NORM_STRIP: return pass_strip(step, in, out, err);
    case HA_NORM_PRECOMPILED: return ha_norm_precompiled(step, in, out, err);
    case HA_NORM_REPLACE: return pass_replace(step, in, out, err);
    case HA_NORM_PREPEND: return pass_prepend(step, in, out, err);
    default: break;
    }
    const ha_status status = make_room(out, in->length * 3 + 8, err);     /* CJK: 3 bytes become 5; U+0130: 2 become 3 */
    if (status == HA_OK) {
        pass_local(step->pass, in, out);
    }
    return status;
}

/* ASCII text needs one look-up a character where the steps look at no more. */
static ha_status
normalize_ascii(const ha_normalizer *normalizer, const uint8_t *original, size_t begin, size_t end, ha_text_buf *out, ha_error *err)
{
    const ha_status status = ha_text_buf_reserve(out, end - begin, err);
    if (status != HA_OK) {
        return status;
    }
    const int lower = normalizer->printable == HA_PRINTABLE_LOWER, wide = !out->aligned && normalizer->printable != HA_PRINTABLE_OTHER;
    uint8_t *text = out->text;
    size_t n = out->length;
    for (size_t i = begin; i < end;) {
        if (wide) {         /* what is written behind the text is in its padding */
            const size_t left = end - i < HA_BYTES ? end - i : HA_BYTES;
            uint8_t last[HA_BYTES] = {0};
            const ha_bytes x = ha_bytes_load(left < HA_BYTES ? memcpy(last, original + i, left) : original + i);
            const uint64_t others = ~ha_bytes_bits(ha_bytes_between(x, ' ', '~')) & ha_low_bits(left);
            const size_t run = others != 0 ? ha_lowest_bit(others) : left;
            ha_bytes_store(text + n, lower ? ha_bytes_lower(x) : x);
            n += run;
            i += run;
            if (others == 0) {
                continue;
            }
        }
        const uint8_t c = normalizer->ascii[original[i]];
        text[n] = c;
        if (out->aligned) {
            out->align[n] = (ha_align){(uint32_t)i, (uint32_t)i + 1};
        }
        n += c != HA_NORM_DROPPED;
        i++;
    }
    out->length = n;
    return HA_OK;
}

/* Step by step. */
static ha_status
normalize_any(const ha_normalizer *normalizer, const uint8_t *original, size_t begin, size_t end,
              ha_norm_scratch *scratch, ha_text_buf *out, ha_error *err)
{
    ha_text_buf *in = &scratch->a, *next = &scratch->b;
    in->aligned = next->aligned = out->aligned;
    in->length = 0;
    ha_status status = ha_text_buf_append_original(in, original, begin, end, err);
    for (size_t i = 0; i < normalizer->n_steps && status == HA_OK; i++) {
        const ha_norm_step *step = &normalizer->steps[i];
        if (step->pass >= HA_NORM_NFD && step->pass <= HA_NORM_NFKC && is_normal(in, step->pass)) {
            continue;
        }
        status = run_step(step, in, scratch, next, err);
        ha_text_buf *swap = in;
        in = next, next = swap;
    }
    if (status == HA_OK) {
        status = make_room(out, in->length, err);
    }
    if (status == HA_OK) {
        copy_range(in, 0, in->length, out);
    }
    return status;
}

/* Where the next run of ASCII begins that can be normalized by itself, and where it ends: before its last character that stays, with which a mark may compose. */
static size_t
next_run(const ha_normalizer *normalizer, const uint8_t *text, size_t at, size_t end, size_t *run_end)
{
    enum { WORTH = 16 };
    while (at < end) {
        size_t to = at + ha_utf8_ascii_prefix(text + at, end - at);
        const size_t after = to;
        while (to < end && to > at && normalizer->ascii[text[to - 1]] == HA_NORM_DROPPED) {
            to--;
        }
        to -= to < end && to > at;
        if (to - at >= WORTH) {
            *run_end = to;
            return at;
        }
        for (at = after; at < end && text[at] >= 0x80; at++) {
        }
    }
    *run_end = end;
    return end;
}

ha_status
ha_normalize(const ha_normalizer *normalizer, const uint8_t *original, size_t begin, size_t end,
             ha_norm_scratch *scratch, ha_text_buf *out, ha_error *err)
{
    if (normalizer->n_steps == 0) {
        return ha_text_buf_append_original(out, original, begin, end, err);
    }
    if (normalizer->local && ha_utf8_ascii_prefix(original + begin, end - begin) == end - begin) {
        return normalize_ascii(normalizer, original, begin, end, out, err);
    }
    if (!normalizer->local || out->aligned) {
        return normalize_any(normalizer, original, begin, end, scratch, out, err);
    }
    ha_status status = HA_OK;
    while (begin < end && status == HA_OK) {
        size_t run_end;
        const size_t run = next_run(normalizer, original, begin, end, &run_end);
        if (run > begin) {
            status = normalize_any(normalizer, original, begin, run, scratch, out, err);
        }
        if (status == HA_OK && run < run_end) {
            status = normalize_ascii(normalizer, original, run, run_end, out, err);
        }
        begin = run_end;
    }
    return status;
}
