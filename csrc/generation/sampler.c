#include "generation/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 64                /* logits under one maximum */
#define STRIDE 512              /* probabilities summed at a time while drawing */
#define GREEDY_BELOW 1e-4

typedef struct candidate {
    float x, p;                     /* logit; exp((x - max) / temperature) */
    int32_t id;
} candidate;

struct ha_sampler {
    size_t vocab_size, n_blocks;
    float *p, *block_max, *ranked;  /* (vocab_size,), (n_blocks,), (n_blocks,) */
    candidate *kept, *work;         /* (vocab_size,) */
    size_t n_kept;
    float max;
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
    return HA_OK;
}

ha_status
ha_sampler_new(size_t vocab_size, ha_sampler **out, ha_error *err)
{
    *out = NULL;
    const size_t n_blocks = (vocab_size + BLOCK - 1) / BLOCK;
    ha_sampler *s = calloc(1, sizeof(*s));
    if (s != NULL) {
        *s = (ha_sampler){.vocab_size = vocab_size, .n_blocks = n_blocks};
        s->p = calloc(vocab_size, sizeof(*s->p));
        s->block_max = calloc(n_blocks, sizeof(*s->block_max));
        s->ranked = calloc(n_blocks, sizeof(*s->ranked));
        s->kept = calloc(vocab_size, sizeof(*s->kept));
        s->work = calloc(vocab_size, sizeof(*s->work));
    }
    if (s == NULL || s->p == NULL || s->block_max == NULL || s->ranked == NULL || s->kept == NULL || s->work == NULL) {
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
        free(s->kept);
        free(s->work);
        free(s);
    }
}

/* -- selection -- */

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

static int
before(candidate a, candidate b)
{
    return a.x > b.x || (a.x == b.x && a.id < b.id);
}

static candidate
median_of_three(const candidate *c, size_t lo, size_t hi)
{
    const candidate a = c[lo], b = c[lo + (hi - lo) / 2], d = c[hi - 1];
    if (before(a, b)) {
        return before(b, d) ? b : before(a, d) ? d : a;
    }
    return before(a, d) ? a : before(b, d) ? d : b;
}

/* The last member of the shortest ranked prefix whose weight reaches `target` (weight: 1 each when `count`, else p). The whole set's last
 * member when it never does. Reorders work[0..n). Expected linear time: quickselect (Hoare 1961). */
static candidate
boundary(candidate *work, size_t n, int count, double target)
{
    size_t lo = 0, hi = n;
    double above = 0;
    while (hi - lo > 1) {
        const candidate pivot = median_of_three(work, lo, hi);
        size_t mid = lo;
        double weight = 0;
        for (size_t i = lo; i < hi; i++) {      /* [lo, mid): ranked at or before the pivot */
            if (!before(pivot, work[i])) {
                const candidate t = work[i];
                weight += count ? 1.0 : (double)t.p;
                work[i] = work[mid];
                work[mid++] = t;
            }
        }
        if (above + weight < target) {
            if (mid == hi) {
                return pivot;                   /* the pivot is the last of all, and the target was never reached */
            }
            above += weight;
            lo = mid;
        }
        else if (mid == hi) {                   /* the pivot ranks last here: set it aside to make progress */
            size_t last = lo;
            while (work[last].id != pivot.id) {
                last++;
            }
            work[last] = work[hi - 1];
            work[hi - 1] = pivot;
            if (above + weight - (count ? 1.0 : (double)pivot.p) < target) {
                return pivot;
            }
            hi--;
        }
        else {
            hi = mid;
        }
    }
    return work[lo];
}

/* Keeps of s->kept what ranks at or before `last`, in id order. */
static void
cut_after(ha_sampler *s, candidate last)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n_kept; i++) {
        if (!before(last, s->kept[i])) {
            s->kept[n++] = s->kept[i];
        }
    }
    s->n_kept = n;
}

static int
descending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* A logit that at least k tokens reach: the k-th largest block maximum. */
static float
reached_by(ha_sampler *s, size_t k)
{
    if (k > s->n_blocks) {
        return -INFINITY;
    }
    memcpy(s->ranked, s->block_max, s->n_blocks * sizeof(float));
    qsort(s->ranked, s->n_blocks, sizeof(float), descending);
    return s->ranked[k - 1];
}

/* s->kept: the tokens whose logit is at least `least`, in id order, with p = exp((x - max) * scale). */
static void
gather(ha_sampler *s, const ha_kernels *k, const float *logits, float least, float scale)
{
    size_t n = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        if (!(s->block_max[b] >= least)) {
            continue;
        }
        const size_t end = (b + 1) * BLOCK < s->vocab_size ? (b + 1) * BLOCK : s->vocab_size;
        for (size_t i = b * BLOCK; i < end; i++) {
            if (logits[i] >= least) {
                s->p[n] = logits[i];
                s->kept[n++].id = (int32_t)i;
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        s->kept[i].x = s->p[i];
    }
    k->exp_sum_f32(s->p, s->p, s->max, scale, n);
    for (size_t i = 0; i < n; i++) {
        s->kept[i].p = s->p[i];
    }
    s->n_kept = n;
}

/* Fills s->kept by all filters. s->p holds exp((x - max) / temperature) of the whole vocabulary before, and not after. */
static void
filter(ha_sampler *s, const ha_kernels *k, const ha_sampling *sampling, const float *logits)
{
    const double t = sampling->temperature;
    double all = 0;
    const int by_rank = sampling->top_k > 0 && sampling->top_k < s->vocab_size;
    float least = -INFINITY;
    if (by_rank) {
        least = reached_by(s, sampling->top_k);
    }
    else if (sampling->top_p < 1) {
        all = sum_of(s->p, s->vocab_size);
        /* vocab_size tokens below max - c t nats hold less than vocab_size exp(-c) <= (1 - top_p) all; half a nat for rounding */
        const double c = log((double)s->vocab_size) - log((1 - sampling->top_p) * all) + 0.5;
        least = (float)(s->max - (c > 0 ? c : 0) * t);
    }
    const float min_least = sampling->min_p > 0 ? (float)(s->max + t * log(sampling->min_p)) : -INFINITY;
    if (!by_rank && min_least > least) {
        least = min_least;      /* both keep the head of one ranking: the shorter head rules */
    }
    gather(s, k, logits, least, (float)(1 / t));
    if (by_rank) {
        memcpy(s->work, s->kept, s->n_kept * sizeof(*s->kept));
        cut_after(s, boundary(s->work, s->n_kept, 1, (double)sampling->top_k));
        for (size_t i = 0; i < s->n_kept; i++) {
            all += (double)s->kept[i].p;
        }
    }
    if (sampling->top_p < 1) {
        memcpy(s->work, s->kept, s->n_kept * sizeof(*s->kept));
        cut_after(s, boundary(s->work, s->n_kept, 0, sampling->top_p * all));
    }
    if (by_rank && sampling->min_p > 0) {
        cut_after(s, (candidate){.x = min_least, .id = INT32_MAX});
    }
}

/* -- drawing -- */

/* Maxima of blocks and of all; the log of the softmax's denominator at temperature 1; exponentials at temperature 1 stand in s->p after it. */
static ha_status
scan(ha_sampler *s, const ha_kernels *k, const float *logits, double *log_sum, ha_error *err)
{
    for (size_t b = 0; b < s->n_blocks; b++) {
        const size_t left = s->vocab_size - b * BLOCK;
        s->block_max[b] = k->max_f32(logits + b * BLOCK, left < BLOCK ? left : BLOCK);
    }
    s->max = k->max_f32(s->block_max, s->n_blocks);
    const double sum = k->exp_sum_f32(s->p, logits, s->max, 1.0f, s->vocab_size);
    *log_sum = log(sum) + (double)s->max;
    if (!isfinite(s->max) || !isfinite(sum) || !(sum >= 0.5)) {
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

static int
is_unfiltered(const ha_sampler *s, const ha_sampling *sampling)
{
    return (sampling->top_k == 0 || sampling->top_k >= s->vocab_size) && sampling->top_p >= 1 && sampling->min_p <= 0;
}

/* The first i at which the running sum of s->p exceeds `uniform` of the whole. */
static int32_t
walk_all(const ha_sampler *s, double uniform)
{
    const double target = uniform * sum_of(s->p, s->vocab_size);
    double run = 0;
    size_t i = 0;
    for (; i + STRIDE < s->vocab_size; i += STRIDE) {
        const double sum = sum_of(s->p + i, STRIDE);
        if (run + sum > target) {
            break;
        }
        run += sum;
    }
    for (; i < s->vocab_size; i++) {
        run += (double)s->p[i];
        if (run > target) {
            return (int32_t)i;
        }
    }
    size_t last = s->vocab_size - 1;        /* rounding at the very end: the last token that has any probability */
    while (last > 0 && s->p[last] <= 0) {
        last--;
    }
    return (int32_t)last;
}

static int32_t
walk_kept(const ha_sampler *s, double uniform)
{
    double total = 0, run = 0;
    for (size_t i = 0; i < s->n_kept; i++) {
        total += (double)s->kept[i].p;
    }
    int32_t last = s->kept[0].id;
    for (size_t i = 0; i < s->n_kept; i++) {
        if (s->kept[i].p > 0) {
            last = s->kept[i].id;
        }
        run += (double)s->kept[i].p;
        if (run > uniform * total) {
            return last;
        }
    }
    return last;
}

ha_status
ha_sampler_draw(ha_sampler *s, const ha_kernels *k, const ha_sampling *sampling, const float *logits, double uniform,
                int32_t *token, double *logprob, ha_error *err)
{
    double log_sum = 0;
    ha_status status = scan(s, k, logits, &log_sum, err);
    if (status != HA_OK) {
        return status;
    }
    if (sampling->temperature < GREEDY_BELOW) {
        *token = argmax(s, logits);
    }
    else {
        if (sampling->temperature != 1.0) {
            k->exp_sum_f32(s->p, logits, s->max, (float)(1 / sampling->temperature), s->vocab_size);
        }
        if (is_unfiltered(s, sampling)) {
            *token = walk_all(s, uniform);
        }
        else {
            filter(s, k, sampling, logits);
            *token = walk_kept(s, uniform);
        }
    }
    *logprob = (double)logits[*token] - log_sum;
    return HA_OK;
}

ha_status
ha_sampler_probabilities(ha_sampler *s, const ha_kernels *k, const ha_sampling *sampling, const float *logits, float *out, ha_error *err)
{
    double log_sum = 0, total = 0;
    ha_status status = scan(s, k, logits, &log_sum, err);
    if (status != HA_OK) {
        return status;
    }
    memset(out, 0, s->vocab_size * sizeof(*out));
    if (sampling->temperature < GREEDY_BELOW) {
        out[argmax(s, logits)] = 1;
        return HA_OK;
    }
    const float scale = (float)(1 / sampling->temperature);
    if (is_unfiltered(s, sampling)) {
        gather(s, k, logits, -INFINITY, scale);
    }
    else {
        k->exp_sum_f32(s->p, logits, s->max, scale, s->vocab_size);
        filter(s, k, sampling, logits);
    }
    for (size_t i = 0; i < s->n_kept; i++) {
        total += (double)s->kept[i].p;
    }
    for (size_t i = 0; i < s->n_kept; i++) {
        out[s->kept[i].id] = (float)((double)s->kept[i].p / total);
    }
    return HA_OK;
}
