/* Matchers of the regular expressions by which byte-level tokenizers cut a text. Each gives what the expression's own engine gives, backtracking
 * included; the sets \p{L}, \p{N}, \s and their like come from unicode.h and are those of both engines, Oniguruma and Rust's regex. */
#include <string.h>

#include "core/ascii.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/unicode.h"

#define SHORT_FORMS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TAIL "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define WORD_OR(digits) "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" TAIL
#define CAPITALISED(short_forms, digits) \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" short_forms \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" short_forms \
    "|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" TAIL

typedef struct known_pattern { const char *pattern; ha_pre_kind kind; } known_pattern;

static const known_pattern known[] = {
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", HA_PRE_GPT2},
    {SHORT_FORMS WORD_OR("\\p{N}{1,3}"), HA_PRE_LLAMA3},
    {SHORT_FORMS WORD_OR("\\p{N}"), HA_PRE_QWEN2},
    {CAPITALISED(SHORT_FORMS "?", "\\p{N}{1,3}"), HA_PRE_O200K},
    {CAPITALISED("", "\\p{N}"), HA_PRE_TEKKEN},
};

/* In Oniguruma $ ends a line and {1,3}+ is no possessive quantifier: these say what they say in Rust's syntax alone. */
static const known_pattern known_tiktoken[] = {
    {"'(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s", HA_PRE_GPT2},
    {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s", HA_PRE_CL100K},
    {"gpt2", HA_PRE_GPT2}, {"r50k_base", HA_PRE_GPT2}, {"p50k_base", HA_PRE_GPT2},
    {"cl100k", HA_PRE_CL100K}, {"cl100k_base", HA_PRE_CL100K},
    {"o200k", HA_PRE_O200K}, {"o200k_base", HA_PRE_O200K}, {"o200k_harmony", HA_PRE_O200K},
    {"llama3", HA_PRE_LLAMA3}, {"qwen2", HA_PRE_QWEN2}, {"tekken", HA_PRE_TEKKEN},
};

static int
find(const known_pattern *list, size_t n, const char *pattern, size_t length, ha_pre_kind *out)
{
    for (size_t i = 0; i < n; i++) {
        if (strlen(list[i].pattern) == length && memcmp(list[i].pattern, pattern, length) == 0) {
            *out = list[i].kind;
            return 1;
        }
    }
    return 0;
}

int
ha_pre_pattern(const char *pattern, size_t length, ha_pre_kind *out)
{
    return find(known, sizeof(known) / sizeof(known[0]), pattern, length, out);
}

int
ha_pre_pattern_tiktoken(const char *pattern, size_t length, ha_pre_kind *out)
{
    return find(known_tiktoken, sizeof(known_tiktoken) / sizeof(known_tiktoken[0]), pattern, length, out) || ha_pre_pattern(pattern, length, out);
}

/* ---- each function returns where the match at s[i] ends; every position has one ---- */

enum { LETTER = HA_UC_L, NUMBER = HA_UC_N, SPACE = HA_UC_S };

/* The same for a byte below 0x80; MORE for the others. */
enum { MORE = 0x80 };
#define TIMES_8(x) x, x, x, x, x, x, x, x
#define LETTERS_26 TIMES_8(LETTER), TIMES_8(LETTER), TIMES_8(LETTER), LETTER, LETTER
#define TIMES_32(x) TIMES_8(x), TIMES_8(x), TIMES_8(x), TIMES_8(x)
static const uint8_t kind_of_byte[256] = {
    TIMES_8(0), 0, SPACE, SPACE, SPACE, SPACE, SPACE, 0, 0, TIMES_8(0), TIMES_8(0),
    SPACE, 0, 0, 0, 0, 0, 0, 0, TIMES_8(0), TIMES_8(NUMBER), NUMBER, NUMBER, 0, 0, 0, 0, 0, 0,
    0, LETTERS_26, 0, 0, 0, 0, 0,
    0, LETTERS_26, 0, 0, 0, 0, 0,
    TIMES_32(MORE), TIMES_32(MORE), TIMES_32(MORE), TIMES_32(MORE),
};

/* Which of \p{L}, \p{N}, \s the character at s[i] is, or 0; its length in *size. */
static inline unsigned
kind_at(const uint8_t *s, size_t i, size_t *size)
{
    *size = 1;
    return s[i] < 0x80 ? kind_of_byte[s[i]] : ha_uc_flags(ha_utf8_decode(s + i, size)) & (LETTER | NUMBER | SPACE);
}

static inline size_t
run_of(const uint8_t *s, size_t i, size_t n, unsigned kind)
{
    size_t size;
    for (;;) {
        if (kind == LETTER) {
            i = ha_swar_run(s, i, n, 0);
        }
        while (i < n && kind_of_byte[s[i]] == kind) {
            i++;
        }
        if (i == n || s[i] < 0x80 || kind_at(s, i, &size) != kind) {
            return i;
        }
        i += size;
    }
}

static int
is_line_end(uint8_t c)
{
    return c == '\r' || c == '\n';
}

/* 's 't 'm 'd 're 've 'll at s[i]: the length, or 0. With any_case upper case too, and U+017F, which both engines fold to s. */
static inline size_t
contraction(const uint8_t *s, size_t i, size_t n, int any_case)
{
    if (i + 1 >= n || s[i] != '\'') {
        return 0;
    }
    if (any_case && i + 2 < n && s[i + 1] == 0xC5 && s[i + 2] == 0xBF) {
        return 3;
    }
    const uint8_t fold = any_case ? 0x20 : 0;
    const uint8_t a = s[i + 1] | (s[i + 1] >= 'A' && s[i + 1] <= 'Z' ? fold : 0);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') {
        return 2;
    }
    if (i + 2 >= n) {
        return 0;
    }
    const uint8_t b = s[i + 2] | (s[i + 2] >= 'A' && s[i + 2] <= 'Z' ? fold : 0);
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : the white space [i, end) but its last character where something follows. */
static size_t
spaces(const uint8_t *s, size_t i, size_t end, size_t n)
{
    const size_t last = end < n ? ha_utf8_back(s, end) : end;
    return last > i ? last : end;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ ; with at_end \s+$ before it. */
static size_t
match_spaces(const uint8_t *s, size_t i, size_t n, int at_end)
{
    const size_t end = run_of(s, i, n, SPACE);
    if (at_end && end == n) {
        return n;
    }
    for (size_t last = end; last > i; last--) {
        if (is_line_end(s[last - 1])) {
            return last;
        }
    }
    return spaces(s, i, end, n);
}

/* \p{N}{1,max} */
static size_t
match_digits(const uint8_t *s, size_t i, size_t n, int max)
{
    size_t size;
    for (int k = 0; k < max && i < n && kind_at(s, i, &size) == NUMBER; k++) {
        i += size;
    }
    return i;
}

/* " ?[^\s\p{L}\p{N}]+[\r\n]*", with slash [\r\n/]*: where the match ends, or i when there is none. */
static size_t
match_others(const uint8_t *s, size_t i, size_t n, int slash)
{
    size_t size;
    const size_t other = s[i] == ' ' ? i + 1 : i;
    if (other == n || kind_at(s, other, &size) != 0) {
        return i;
    }
    size_t end = run_of(s, other, n, 0);
    while (end < n && (is_line_end(s[end]) || (slash && s[end] == '/'))) {
        end++;
    }
    return end;
}

static inline size_t
match_gpt2(const uint8_t *s, size_t i, size_t n)
{
    size_t size, next_size;
    const size_t short_form = contraction(s, i, n, 0);
    if (short_form > 0) {
        return i + short_form;
    }
    const unsigned kind = kind_at(s, i, &size);
    if (s[i] == ' ' && i + 1 < n) {
        const unsigned next = kind_at(s, i + 1, &next_size);
        if (next != SPACE) {
            return run_of(s, i + 1, n, next);
        }
    }
    const size_t end = run_of(s, i, n, kind);
    return kind == SPACE ? spaces(s, i, end, n) : end;
}

/* Llama-3's expression; Qwen2's differs in max_digits (3, 1), tiktoken's cl100k in at_end. */
static inline size_t
match_llama3(const uint8_t *s, size_t i, size_t n, int max_digits, int at_end)
{
    size_t size, next_size;
    const size_t short_form = contraction(s, i, n, 1);
    if (short_form > 0) {
        return i + short_form;
    }
    const unsigned kind = kind_at(s, i, &size);
    if (kind == LETTER || (kind != NUMBER && !is_line_end(s[i]) && i + size < n && kind_at(s, i + size, &next_size) == LETTER)) {
        return run_of(s, i + size, n, LETTER);
    }
    if (kind == NUMBER) {
        return match_digits(s, i, n, max_digits);
    }
    const size_t end = match_others(s, i, n, 0);
    return end > i ? end : match_spaces(s, i, n, at_end);
}

/* The two first branches of o200k's expression, "X?U*W+" and "X?U+W*" with U the characters that may begin a capitalised word and W those that may
 * go on with it; the marks, modifiers and caseless letters are both. The end, or i when neither matches. */
static size_t
match_capitalised(const uint8_t *s, size_t i, size_t n)
{
    size_t size, at, last_both = i;     /* last_both: the end of the last character of the run that is both */
    const unsigned flags = ha_uc_flags(ha_utf8_decode(s + i, &size));
    const int leading = (flags & (LETTER | NUMBER)) == 0 && !is_line_end(s[i]);
    const size_t begin = leading ? i + size : i;
    if (leading && (flags & HA_UC_LOWER) != 0) {
        last_both = begin;              /* a mark: as the optional first character, or as a word of its own */
    }
    for (at = begin; at < n; at += size) {
        const unsigned f = ha_uc_flags(ha_utf8_decode(s + at, &size));
        if ((f & HA_UC_UPPER) == 0) {
            if ((f & HA_UC_LOWER) == 0) {
                break;
            }
            do {                        /* U* went as far as it can and W+ follows */
                at += size;
            } while (at < n && (ha_uc_flags(ha_utf8_decode(s + at, &size)) & HA_UC_LOWER) != 0);
            return at;
        }
        if ((f & HA_UC_LOWER) != 0) {
            last_both = at + size;
        }
    }
    if (last_both > i) {
        return last_both;               /* U* gives back so much that W+ has one character */
    }
    return at > begin ? at : i;         /* U+ alone */
}

/* o200k's expression; Tekken's has no short forms and takes one digit at a time. */
static size_t
match_o200k(const uint8_t *s, size_t i, size_t n, int max_digits, int short_forms)
{
    size_t end = match_capitalised(s, i, n);
    if (end > i) {
        return short_forms ? end + contraction(s, end, n, 1) : end;
    }
    end = match_digits(s, i, n, max_digits);
    if (end == i) {
        end = match_others(s, i, n, 1);
    }
    return end > i ? end : match_spaces(s, i, n, 0);
}

/* Up to 64 bytes of text as bits: ASCII letters, ASCII signs with which a word may begin, and what is not ASCII. */
typedef struct view { size_t begin, size; uint64_t letters, signs, high; } view;

/* `any_sign`: words begin with any printable sign but the apostrophe, else with a space alone. */
static view
view_at(const uint8_t *s, size_t i, size_t end, int any_sign)
{
    view v = {i, end - i < 64 ? end - i : 64, 0, 0, 0};
    for (size_t k = 0; k < v.size; k += HA_BYTES) {
        const ha_bytes x = ha_bytes_load(s + i + k), letters = ha_bytes_letters(x);
        ha_bytes signs = ha_bytes_between(x, ' ', any_sign ? '~' : ' ');
        signs &= ~(letters | ha_bytes_between(x, '0', '9') | ha_bytes_between(x, '\'', '\''));
        v.letters |= ha_bytes_bits(letters) << k;
        v.signs |= ha_bytes_bits(signs) << k;
        v.high |= ha_bytes_bits(x) << k;
    }
    v.letters &= ha_low_bits(v.size);
    return v;
}

/* Where the pieces end that begin at byte `at` of the view and behind one another, bit 0 being that byte: words of ASCII letters, each behind at most one sign,
 * as far as they come and are seen whole. */
static uint64_t
ends_of_words(const view *v, size_t at, size_t end)
{
    const size_t size = v->size - at;
    const uint64_t letters = v->letters >> at, others = ~(letters | (v->signs >> at & letters >> 1)) & ha_low_bits(size);
    const size_t run = others != 0 ? ha_lowest_bit(others) : size;
    const int whole = run < size ? (v->high >> at >> run & 1) == 0 : size < 64 && v->begin + v->size == end;
    return ~letters & letters << 1 & (run < 64 ? ha_low_bits(run) | (uint64_t)whole << run : UINT64_MAX);
}

/* Whether the word at byte `at` of the view may go on behind it. */
static int
ends_view(const view *v, size_t at, size_t end)
{
    return v->begin + v->size < end && (v->letters >> at | ha_low_bits(1)) == ha_low_bits(v->size - at);
}

static size_t
match_at(ha_pre_kind kind, const uint8_t *s, size_t i, size_t n)
{
    switch (kind) {
    case HA_PRE_GPT2: return match_gpt2(s, i, n);
    case HA_PRE_O200K: return match_o200k(s, i, n, 3, 1);
    case HA_PRE_TEKKEN: return match_o200k(s, i, n, 1, 0);
    case HA_PRE_QWEN2: return match_llama3(s, i, n, 1, 0);
    case HA_PRE_CL100K: return match_llama3(s, i, n, 3, 1);
    default: return match_llama3(s, i, n, 3, 0);
    }
}

size_t
ha_pre_cut_pattern(ha_pre_kind kind, const uint8_t *s, size_t *at, size_t end, ha_piece *out, size_t room)
{
    enum { LITTLE = 24 };       /* a view of which no more is left is made anew */
    const int has_words = kind != HA_PRE_O200K && kind != HA_PRE_TEKKEN;        /* there words end at capital letters too */
    view v = {0};
    size_t n = 0, i = *at;
    while (i < end && n < room) {
        const size_t left = v.begin + v.size > i ? v.begin + v.size - i : 0;
        if (has_words && left < LITTLE && left < end - i) {
            v = view_at(s, i, end, kind != HA_PRE_GPT2);
        }
        const size_t begin = i;
        uint64_t ends = has_words ? ends_of_words(&v, i - v.begin, end) : 0;
        for (; ends != 0 && n < room; ends &= ends - 1) {
            const size_t next = begin + ha_lowest_bit(ends);
            out[n++] = (ha_piece){(uint32_t)i, (uint32_t)next, -1};
            i = next;
        }
        if (i == begin && has_words && begin > v.begin && ends_view(&v, begin - v.begin, end)) {
            v.size = 0;
        } else if (i == begin) {
            i = match_at(kind, s, begin, end);
            out[n++] = (ha_piece){(uint32_t)begin, (uint32_t)i, -1};
        }
    }
    *at = i;
    return n;
}
