#include "generation/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 64                /* logits under one maximum */
#define BINS 1024               /* of the mass histogram: 1/16 nat each, the last takes the rest */
#define BINS_PER_NAT 16
#define LANES 2                 /* neighbours add to histograms of their own: an addition need not wait for the last one. Both fit the nearest cache */
#define GREEDY_BELOW 1e-4

/* A place in the ranking: what ranks at or before it is kept. */
typedef struct rank {
    float x;
    int32_t id;
} rank;

typedef struct candidate {
    rank at;
    float p;                    /* exp((x - max) / temperature) */
} candidate;

static const rank EVERYTHING = {-INFINITY, INT32_MAX};

const ha_sampling ha_sampling_plain = {.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};

/* A logit that penalties or bans have changed. */
typedef struct change {
    int32_t id;
    float before;
} change;

struct ha_sampler {
    size_t vocab_size, n_blocks;
    float *p, *block_max, *ranked;  /* (vocab_size,), (n_blocks,), (n_blocks,) */
    double *block_sum;              /* (n_blocks,) */
    candidate *candidates;          /* (vocab_size,) */
    size_t n_candidates;
    float max;
    double sum;                     /* of exp(x - max) over the model's own logits */
    double mass[LANES][BINS];
    uint32_t *seen;                 /* (vocab_size,) 0: not in the history; else 1 + 2 times its count in the continuation */
    change *changes;                /* (2 vocab_size,): a token may be penalised, then banned */
    size_t n_changes;
};

ha_status
ha_sampling_check(const ha_sampling *s, ha_error *err)
{
    if (!(s->temperature >= 0 && isfinite(s->temperature))) {
        return ha_fail(err, HA_ERR_VALUE, "temperature must be >= 0, got %g", s->temperature);
    }
    if (!(s->top_p > 0 && s->top_p <= 1)) {
        return ha_fail(err, HA_ERR_VALUE, "top_p must be in (0, 1], got %g", s->top_p);
    }
    if (!(s->min_p >= 0 && s->min_p <= 1)) {
        return ha_fail(err, HA_ERR_VALUE, "min_p must be in [0, 1], got %g", s->min_p);
    }
    if (!(s->typical_p > 0 && s->typical_p <= 1)) {
        return ha_fail(err, HA_ERR_VALUE, "typical_p must be in (0, 1], got %g", s->typical_p);
    }
    if (!(s->repetition_penalty > 0 && isfinite(s->repetition_penalty))) {
        return ha_fail(err, HA_ERR_VALUE, "repetition_penalty must be > 0, got %g", s->repetition_penalty);
    }
    if (!(isfinite(s->presence_penalty) && isfinite(s->frequency_penalty))) {
        return ha_fail(err, HA_ERR_VALUE, "presence_penalty and frequency_penalty must be finite, got %g and %g", s->presence_penalty, s->frequency_penalty);
    }
    return HA_OK;
}

ha_status
ha_sampler_new(size_t vocab_size, ha_sampler **out, ha_error *err)
{
    *out = NULL;
    const size_t n_blocks = (vocab_size + BLOCK - 1) / BLOCK;
    ha_sampler *s = calloc(1, sizeof(*s));
    if (s != NULL) {
        s->vocab_size = vocab_size;
        s->n_blocks = n_blocks;
        s->p = calloc(vocab_size, sizeof(*s->p));
        s->block_max = calloc(n_blocks, sizeof(*s->block_max));
        s->ranked = calloc(n_blocks, sizeof(*s->ranked));
        s->block_sum = calloc(n_blocks, sizeof(*s->block_sum));
        s->candidates = calloc(vocab_size, sizeof(*s->candidates));
        s->seen = calloc(vocab_size, sizeof(*s->seen));
        s->changes = calloc(vocab_size, 2 * sizeof(*s->changes));
    }
    if (s == NULL || s->p == NULL || s->block_max == NULL || s->ranked == NULL || s->block_sum == NULL || s->candidates == NULL || s->seen == NULL ||
        s->changes == NULL) {
        ha_sampler_free(s);
        return ha_fail(err, HA_ERR_NOMEM, "out of memory: sampler over %zu tokens", vocab_size);
    }
    *out = s;
    return HA_OK;
}

void
ha_sampler_free(ha_sampler *s)
{
    if (s != NULL) {
        free(s->p);
        free(s->block_max);
        free(s->ranked);
        free(s->block_sum);
        free(s->candidates);
        free(s->seen);
        free(s->changes);
        free(s);
    }
}

static size_t
block_end(const ha_sampler *s, size_t block)
{
    return (block + 1) * BLOCK < s->vocab_size ? (block + 1) * BLOCK : s->vocab_size;
}

/* -- selection -- */

static int
before(rank a, rank b)
{
    return a.x > b.x || (a.x == b.x && a.id < b.id);
}

static rank
median_of_three(const candidate *c, size_t lo, size_t hi)
{
    const rank a = c[lo].at, b = c[lo + (hi - lo) / 2].at, d = c[hi - 1].at;
    if (before(a, b)) {
        return before(b, d) ? b : before(a, d) ? d : a;
    }
    return before(a, d) ? a : before(b, d) ? d : b;
}

/* Where the shortest ranked prefix of c[0..n) whose weight (1 each when `count`, else p) reaches `target` ends; the end of all when none does.
 * Reorders c. Expected linear time: quickselect (Hoare 1961). n >= 1. */
static rank
prefix_end(candidate *c, size_t n, int count, double target)
{
    size_t lo = 0, hi = n;
    double above = 0;
    while (hi - lo > 1) {
        const rank pivot = median_of_three(c, lo, hi);
        size_t mid = lo, at = lo;
        double weight = 0, last = 0;
        for (size_t i = lo; i < hi; i++) {      /* [lo, mid): ranked at or before the pivot, which itself ends up at `at` */
            if (!before(pivot, c[i].at)) {
                const candidate t = c[i];
                const double w = count ? 1.0 : (double)t.p;
                weight += w;
                if (t.at.id == pivot.id) {
                    at = mid;
                    last = w;
                }
                c[i] = c[mid];
                c[mid++] = t;
            }
        }
        if (above + weight < target) {
            if (mid == hi) {
                return pivot;
            }
            above += weight;
            lo = mid;
        }
        else if (above + (weight - last) < target) {
            return pivot;
        }
        else {                                  /* the end is before the pivot */
            const candidate t = c[at];
            c[at] = c[--mid];
            c[mid] = t;
            hi = mid;
        }
    }
    return c[lo].at;
}

/* The k-th largest of x[0..n), 1 <= k <= n. Reorders x. */
static float
nth_largest(float *x, size_t n, size_t k)
{
    size_t lo = 0, hi = n;
    while (hi - lo > 1) {
        const float pivot = x[lo + (hi - 1 - lo) / 2];   /* not the last: both sides shrink */
        size_t i = lo, j = hi - 1;
        for (;; i++, j--) {
            while (x[i] > pivot) {
                i++;
            }
            while (x[j] < pivot) {
                j--;
            }
            if (i >= j) {
                break;
            }
            const float t = x[i];
            x[i] = x[j];
            x[j] = t;
        }
        if (k - 1 <= j) {
            hi = j + 1;
        }
        else {
            lo = j + 1;
        }
    }
    return x[lo];
}

/* -- filters -- */

/* The end of the k most probable. Block maxima bound them: at least k logits reach the k-th largest maximum. */
static rank
keep_most_probable(ha_sampler *s, const float *logits, size_t k)
{
    float least = -INFINITY;
    if (k <= s->n_blocks) {
        memcpy(s->ranked, s->block_max, s->n_blocks * sizeof(float));
        least = nth_largest(s->ranked, s->n_blocks, k);
    }
    size_t n = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        for (size_t i = b * BLOCK; s->block_max[b] >= least && i < block_end(s, b); i++) {
            if (logits[i] >= least) {
                s->candidates[n++].at = (rank){logits[i], (int32_t)i};
            }
        }
    }
    const rank end = prefix_end(s->candidates, n, 1, (double)k);
    s->n_candidates = 0;
    for (size_t i = 0; i < n; i++) {            /* the kept ones, for a nucleus among them */
        if (!before(end, s->candidates[i].at)) {
            s->candidates[s->n_candidates++] = s->candidates[i];
        }
    }
    return end;
}

/* In float64: a threshold near 1 is finer than a float32 sum over the vocabulary. */
static double
sum_of(const float *p, size_t n)
{
    double lanes[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (size_t j = 0; j < 4; j++) {
            lanes[j] += (double)p[i + j];
        }
    }
    for (; i < n; i++) {
        lanes[0] += (double)p[i];
    }
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

/* Bins of logits[0..n): distance from the maximum; monotone in x, in float32 too. */
static void
bins_of(int32_t *out, const float *logits, size_t n, float max, float scale)
{
    for (size_t i = 0; i < n; i++) {
        const float d = (max - logits[i]) * scale;
        out[i] = (int32_t)(d < (float)(BINS - 1) ? d : (float)(BINS - 1));
    }
}

/* Adds the mass of n tokens to the histogram. */
static void
add_mass(ha_sampler *s, const int32_t *bins, const float *p, size_t n)
{
    for (size_t i = 0; i + 1 < n; i += 2) {
        s->mass[0][bins[i]] += (double)p[i];
        s->mass[1][bins[i + 1]] += (double)p[i + 1];
    }
    if (n % 2 != 0) {
        s->mass[0][bins[n - 1]] += (double)p[n - 1];
    }
}

/* The bin in which the histogram's mass reaches `target`, and the mass above it. */
static int32_t
bin_of_mass(const ha_sampler *s, double target, double *above)
{
    *above = 0;
    for (int32_t bin = 0;; bin++) {
        double here = 0;
        for (size_t lane = 0; lane < LANES; lane++) {
            here += s->mass[lane][bin];
        }
        if (bin == BINS - 1 || *above + here >= target) {
            return bin;
        }
        *above += here;
    }
}

/* The end of the nucleus of the whole vocabulary: a histogram of mass over distance from the maximum finds the bin that it ends in, and a
 * selection among that bin's tokens the end itself. `sum` is the mass of all, about. */
static rank
keep_nucleus(ha_sampler *s, const float *logits, double temperature, double top_p, double sum)
{
    /* vocab_size tokens below max - c t nats hold less than vocab_size exp(-c) <= (1 - top_p) sum; half a nat for rounding */
    const double c = log((double)s->vocab_size) - log((1 - top_p) * sum) + 0.5;
    const float least = (float)(s->max - (c > 0 ? c : 0) * temperature), scale = (float)(BINS_PER_NAT / temperature);
    int32_t bins[BLOCK];
    double all = 0, above = 0;
    memset(s->mass, 0, sizeof(s->mass));
    for (size_t b = 0; b < s->n_blocks; b++) {
        const size_t first = b * BLOCK, n = block_end(s, b) - first;
        if (s->block_max[b] >= least) {
            bins_of(bins, logits + first, n, s->max, scale);
            add_mass(s, bins, s->p + first, n);
        }
        else {
            all += sum_of(s->p + first, n);
        }
    }
    for (size_t i = 0; i < LANES * BINS; i++) {
        all += s->mass[i / BINS][i % BINS];
    }
    const int32_t bin = bin_of_mass(s, top_p * all, &above);
    int32_t top[1];
    size_t n = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        bins_of(top, &s->block_max[b], 1, s->max, scale);
        if (top[0] > bin) {
            continue;
        }
        const size_t first = b * BLOCK, count = block_end(s, b) - first;
        bins_of(bins, logits + first, count, s->max, scale);
        for (size_t i = 0; i < count; i++) {
            if (bins[i] == bin) {
                s->candidates[n++] = (candidate){{logits[first + i], (int32_t)(first + i)}, s->p[first + i]};
            }
        }
    }
    return n > 0 ? prefix_end(s->candidates, n, 0, top_p * all - above) : EVERYTHING;
}

/* s->p becomes exp((x - max) / temperature) in the blocks that hold what ranks up to `end`. Returns its sum there. */
static double
exponentials(ha_sampler *s, const ha_kernels *k, const ha_sampling *sampling, const float *logits, rank end)
{
    const float scale = (float)(1 / sampling->temperature);
    double sum = 0;
    for (size_t b = 0, last; b < s->n_blocks; b = last) {
        for (last = b; last < s->n_blocks && s->block_max[last] >= end.x; last++) {
        }
        if (last > b) {
            sum += k->exp_sum_f32(s->p + b * BLOCK, logits + b * BLOCK, s->max, scale, block_end(s, last - 1) - b * BLOCK);
        }
        last += last < s->n_blocks;
    }
    return sum;
}

/* Where the kept head of the ranking ends; s->p holds exp((x - max) / temperature) up to there. `sum`: of s->p where it holds all of them already, else 0. */
static rank
filter(ha_sampler *s, const ha_kernels *k, const ha_sampling *sampling, const float *logits, double sum)
{
    const int some = sampling->top_k > 0 && sampling->top_k < s->vocab_size;
    rank end = some ? keep_most_probable(s, logits, sampling->top_k) : EVERYTHING, least = EVERYTHING;
    if (sampling->min_p > 0) {
        least = (rank){(float)(s->max + sampling->temperature * log(sampling->min_p)), INT32_MAX};
    }
    if (sampling->top_p == 1 && before(least, end)) {
        end = least;            /* all keep the head of one ranking: the shortest head rules */
    }
    if (sum == 0) {
        sum = exponentials(s, k, sampling, logits, end);
    }
    if (sampling->top_p < 1 && some) {
        double all = 0;
        for (size_t i = 0; i < s->n_candidates; i++) {
            s->candidates[i].p = s->p[s->candidates[i].at.id];
            all += (double)s->candidates[i].p;
        }
        end = prefix_end(s->candidates, s->n_candidates, 0, sampling->top_p * all);
    }
    else if (sampling->top_p < 1) {
        end = keep_nucleus(s, logits, sampling->temperature, sampling->top_p, sum);
    }
    return before(least, end) ? least : end;
}

/* Puts zeros into s->p for what ranks after `end`, in the blocks that hold something kept; s->block_sum of all blocks. Returns the kept mass. */
static double
keep(ha_sampler *s, const float *logits, rank end)
{
    double total = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        const size_t first = b * BLOCK, last = block_end(s, b);
        s->block_sum[b] = 0;
        if (!(s->block_max[b] >= end.x)) {
            continue;
        }
        for (size_t i = first; end.x > -INFINITY && i < last; i++) {
            const int kept = (logits[i] > end.x) | ((logits[i] == end.x) & ((int32_t)i <= end.id));
            s->p[i] = kept ? s->p[i] : 0.0f;
        }
        s->block_sum[b] = sum_of(s->p + first, last - first);
        total += s->block_sum[b];
    }
    return total;
}

/* How near a token's information is to the entropy, negative or 0: `centre` is the mean of (x - max) / temperature. */
static void
nearness(float *out, const float *logits, size_t n, float max, float scale, float centre)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = -fabsf((logits[i] - max) * scale - centre);
    }
}

/* Where the tokens nearest to the entropy end: by a histogram and a selection in one bin, as in keep_nucleus. Least nearness that is kept. */
static float
typical_end(ha_sampler *s, const float *logits, float scale, float centre, double target)
{
    float near[BLOCK];
    int32_t bins[BLOCK];
    memset(s->mass, 0, sizeof(s->mass));
    for (size_t b = 0; b < s->n_blocks; b++) {
        const size_t first = b * BLOCK, n = s->block_sum[b] > 0 ? block_end(s, b) - first : 0;
        nearness(near, logits + first, n, s->max, scale, centre);
        bins_of(bins, near, n, 0, BINS_PER_NAT);
        add_mass(s, bins, s->p + first, n);     /* 0 outside the kept set */
    }
    double above = 0;
    const int32_t bin = bin_of_mass(s, target, &above);
    size_t n_candidates = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        const size_t first = b * BLOCK, n = s->block_sum[b] > 0 ? block_end(s, b) - first : 0;
        nearness(near, logits + first, n, s->max, scale, centre);
        bins_of(bins, near, n, 0, BINS_PER_NAT);
        for (size_t i = 0; i < n; i++) {
            if (bins[i] == bin && s->p[first + i] > 0) {
                s->candidates[n_candidates++] = (candidate){{near[i], (int32_t)(first + i)}, s->p[first + i]};
            }
        }
    }
    return n_candidates > 0 ? prefix_end(s->candidates, n_candidates, 0, target - above).x : -INFINITY;
}

/* Of the tokens that are kept, of mass `total`, keeps the typical ones. Returns their mass. */
static double
keep_typical(ha_sampler *s, const float *logits, const ha_sampling *sampling, double total)
{
    double lanes[4] = {0};      /* additions need not wait for one another */
    for (size_t b = 0; b < s->n_blocks; b++) {
        for (size_t i = b * BLOCK; s->block_sum[b] > 0 && i < block_end(s, b); i++) {
            lanes[i % 4] += s->p[i] > 0 ? (double)s->p[i] * (double)(logits[i] - s->max) : 0;
        }
    }
    const double sum = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    const float scale = (float)(1 / sampling->temperature), centre = (float)(sum / total / sampling->temperature);
    const float end = typical_end(s, logits, scale, centre, sampling->typical_p * total);
    total = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        const size_t first = b * BLOCK, n = s->block_sum[b] > 0 ? block_end(s, b) - first : 0;
        float near[BLOCK];
        nearness(near, logits + first, n, s->max, scale, centre);
        for (size_t i = 0; i < n; i++) {
            s->p[first + i] = near[i] >= end ? s->p[first + i] : 0.0f;
        }
        s->block_sum[b] = sum_of(s->p + first, n);
        total += s->block_sum[b];
    }
    return total;
}

/* -- penalties and bans -- */

static void
change_logit(ha_sampler *s, float *logits, int32_t id, float x)
{
    const size_t block = (size_t)id / BLOCK;
    const float before = logits[id];
    s->changes[s->n_changes++] = (change){id, before};
    logits[id] = x;
    if (x > s->block_max[block]) {
        s->block_max[block] = x;
    }
    else if (before == s->block_max[block]) {
        s->block_max[block] = -INFINITY;
        for (size_t i = block * BLOCK; i < block_end(s, block); i++) {
            s->block_max[block] = logits[i] > s->block_max[block] ? logits[i] : s->block_max[block];
        }
    }
}

/* Notes a token in the history; its penalty is applied when the whole history is known. */
static void
see(ha_sampler *s, int32_t id, uint32_t count)
{
    if (s->seen[id] == 0) {
        s->candidates[s->n_candidates++].at.id = id;
        s->seen[id] = 1;
    }
    s->seen[id] += 2 * count;
}

static void
penalise(ha_sampler *s, const ha_sampling *sampling, const ha_history *h, float *logits)
{
    const float repetition = (float)sampling->repetition_penalty;
    s->n_candidates = 0;
    for (size_t i = 0; repetition != 1 && i < h->n_prompt; i++) {
        see(s, h->prompt[i], 0);
    }
    for (size_t i = 0; i < h->n_ids; i++) {
        see(s, h->ids[i], 1);
    }
    for (size_t i = 0; i < s->n_candidates; i++) {
        const int32_t id = s->candidates[i].at.id;
        const uint32_t count = s->seen[id] / 2;
        float x = logits[id];
        x = x < 0 ? x * repetition : x / repetition;
        if (count > 0) {
            x -= (float)sampling->frequency_penalty * (float)count;
            x -= (float)sampling->presence_penalty;
        }
        s->seen[id] = 0;
        change_logit(s, logits, id, x);
    }
}

/* Brings penalties and bans into the logits and the maxima; `restore` takes them out of the logits again. */
static ha_status
adjust(ha_sampler *s, const ha_sampling *sampling, const ha_history *h, float *logits, ha_error *err)
{
    s->n_changes = 0;
    if (h == NULL) {
        return HA_OK;
    }
    if (sampling->repetition_penalty != 1 || sampling->presence_penalty != 0 || sampling->frequency_penalty != 0) {
        penalise(s, sampling, h, logits);
    }
    for (size_t i = 0; i < h->n_banned; i++) {
        if (logits[h->banned[i]] > -INFINITY) {
            change_logit(s, logits, h->banned[i], -INFINITY);
        }
    }
    for (size_t b = 0; b < s->n_blocks && s->n_changes > 0; b++) {
        s->max = b == 0 || s->block_max[b] > s->max ? s->block_max[b] : s->max;
    }
    return isfinite(s->max) ? HA_OK : ha_fail(err, HA_ERR_VALUE, "no token can come next: every one is banned");
}

static void
restore(const ha_sampler *s, float *logits)
{
    for (size_t i = s->n_changes; i-- > 0;) {
        logits[s->changes[i].id] = s->changes[i].before;
    }
}

/* -- drawing -- */

/* Maxima of blocks and of all; the log of the softmax's denominator at temperature 1; exponentials at temperature 1 stand in s->p after it. */
static ha_status
scan(ha_sampler *s, const ha_kernels *k, const float *logits, double *log_sum, ha_error *err)
{
    for (size_t b = 0; b < s->n_blocks; b++) {
        s->block_max[b] = k->max_f32(logits + b * BLOCK, block_end(s, b) - b * BLOCK);
    }
    s->max = k->max_f32(s->block_max, s->n_blocks);
    s->sum = k->exp_sum_f32(s->p, logits, s->max, 1.0f, s->vocab_size);
    *log_sum = log(s->sum) + (double)s->max;
    if (!isfinite(s->max) || !isfinite(s->sum) || !(s->sum >= 0.5)) {
        return ha_fail(err, HA_ERR_VALUE, "the model's logits are not finite");
    }
    return HA_OK;
}

static int32_t
argmax(const ha_sampler *s, const float *logits)
{
    size_t b = 0;
    while (b + 1 < s->n_blocks && s->block_max[b] != s->max) {
        b++;
    }
    size_t i = b * BLOCK;
    while (i + 1 < s->vocab_size && logits[i] != s->max) {
        i++;
    }
    return (int32_t)i;
}

/* Brings s->p to the temperature and the changed logits, and keeps what the filters keep. Returns the kept mass. */
static double
shape(ha_sampler *s, const ha_kernels *k, const ha_sampling *sampling, const float *logits)
{
    const double total = keep(s, logits, filter(s, k, sampling, logits, sampling->temperature == 1.0 && s->n_changes == 0 ? s->sum : 0));
    return sampling->typical_p < 1 ? keep_typical(s, logits, sampling, total) : total;
}

/* The first kept token at which the running mass exceeds `uniform` of the whole; the last one where rounding lets none. */
static int32_t
walk(const ha_sampler *s, double total, double uniform)
{
    const double target = uniform * total;
    double run = 0;
    size_t block = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        if (s->block_sum[b] > 0) {
            block = b;
            if (run + s->block_sum[b] > target) {
                break;
            }
            run += s->block_sum[b];
        }
    }
    int32_t token = (int32_t)(block * BLOCK);
    for (size_t i = block * BLOCK; i < block_end(s, block); i++) {
        run += (double)s->p[i];
        if (s->p[i] > 0) {
            token = (int32_t)i;
            if (run > target) {
                break;
            }
        }
    }
    return token;
}

ha_status
ha_sampler_draw(ha_sampler *s, const ha_kernels *k, const ha_sampling *sampling, const ha_history *history, float *logits, double uniform,
                int32_t *token, double *logprob, ha_error *err)
{
    double log_sum = 0;
    ha_status status = scan(s, k, logits, &log_sum, err);
    if (status != HA_OK) {
        return status;
    }
    status = adjust(s, sampling, history, logits, err);
    if (status == HA_OK) {
        *token = sampling->temperature < GREEDY_BELOW ? argmax(s, logits) : walk(s, shape(s, k, sampling, logits), uniform);
    }
    restore(s, logits);
    *logprob = status == HA_OK ? (double)logits[*token] - log_sum : 0;
    return status;
}

ha_status
ha_sampler_probabilities(ha_sampler *s, const ha_kernels *k, const ha_sampling *sampling, const ha_history *history, float *logits, float *out, ha_error *err)
{
    double log_sum = 0;
    ha_status status = scan(s, k, logits, &log_sum, err);
    if (status != HA_OK) {
        return status;
    }
    memset(out, 0, s->vocab_size * sizeof(*out));
    if ((status = adjust(s, sampling, history, logits, err)) == HA_OK && sampling->temperature < GREEDY_BELOW) {
        out[argmax(s, logits)] = 1;
    }
    else if (status == HA_OK) {
        const double total = shape(s, k, sampling, logits);
        for (size_t b = 0; b < s->n_blocks; b++) {
            for (size_t i = b * BLOCK; s->block_sum[b] > 0 && i < block_end(s, b); i++) {
                out[i] = (float)((double)s->p[i] / total);
            }
        }
    }
    restore(s, logits);
    return status;
}
