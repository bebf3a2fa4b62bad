/* The backward pass of attention. Everything that a row and a head of it have is computed by one thread, in order; what is summed over rows, the
 * gradients of the relative positions, is summed for GROUPS groups of rows first, whatever the number of threads. */
#include "models/attention_impl.h"

#include "core/parallel.h"

#define GROUPS 4

/* One thread's part of the scratch. */
typedef struct workspace {
    float *scores, *grads, *kept;   /* (HA_QUERY_BLOCK, longest row) each */
    float *c2p;                     /* (HA_QUERY_BLOCK, table rows in use): the products, then their gradients */
    float *p2c, *dp2c;              /* (longest row, table rows in use) each */
    void *pack;
} workspace;

/* Floats of each part; table: of the gradient of one table, of which each group has two. */
typedef struct sizes {
    size_t groups, rows, scores, c2p, p2c, pack, each, table;
} sizes;

static size_t
pack_floats(const ha_attention *a, size_t longest, size_t rows)
{
    size_t (*bytes)(size_t, size_t, size_t, int) = a->kernels->gemm_scratch_bytes;
    const size_t m = a->cls_only ? 1 : smaller(longest, HA_QUERY_BLOCK), d = a->head_dim;
    size_t most = larger(bytes(m, longest, d, 1), larger(bytes(m, d, longest, 1), bytes(longest, d, m, 1)));
    if (rows > 0) {
        most = larger(most, larger(bytes(m, rows, d, 1), larger(bytes(m, d, rows, 1), bytes(rows, d, m, 1))));
    }
    if (rows > 0 && !a->cls_only) {
        most = larger(most, larger(bytes(longest, rows, d, 1), larger(bytes(longest, d, rows, 1), bytes(rows, d, longest, 1))));
    }
    return whole_lines(most / sizeof(float) + 1);
}

static sizes
sizes_of(const ha_attention *a)
{
    const size_t longest = longest_row(a);
    size_t first = 0;
    sizes s = {.groups = a->n_rows, .scores = whole_lines((a->cls_only ? 1 : HA_QUERY_BLOCK) * longest)};
    if (a->relative != NULL) {
        s.groups = smaller(a->n_rows, GROUPS);
        s.rows = table_rows(a, 1 - (ptrdiff_t)longest, (ptrdiff_t)longest - 1, &first);
        s.c2p = whole_lines((a->cls_only ? 1 : HA_QUERY_BLOCK) * s.rows);
        s.p2c = a->cls_only ? 0 : whole_lines(longest * s.rows);
        s.table = whole_lines(s.rows * a->n_heads * a->head_dim);
    }
    s.pack = pack_floats(a, longest, s.rows);
    s.each = 3 * s.scores + s.c2p + 2 * s.p2c + s.pack;
    return s;
}

static int
threads_for(const ha_attention *a, int n_threads)
{
    return ha_threads_for(attention_work(a), HA_ATTENTION_GRAIN / 4, n_threads);
}

size_t
ha_attention_backward_scratch_bytes(const ha_attention *attention, int n_threads)
{
    const sizes s = sizes_of(attention);
    return (s.each * (size_t)threads_for(attention, n_threads) + 2 * s.groups * s.table) * sizeof(float);
}

static workspace
workspace_of(float *scratch, const sizes *s, int thread)
{
    float *scores = scratch + (size_t)thread * s->each, *c2p = scores + 3 * s->scores, *p2c = c2p + s->c2p;
    return (workspace){.scores = scores, .grads = scores + s->scores, .kept = scores + 2 * s->scores, .c2p = c2p, .p2c = p2c,
                       .dp2c = p2c + s->p2c, .pack = p2c + 2 * s->p2c};
}

/* One row and one head of it. */
typedef struct task {
    const ha_attention *a;
    const workspace *w;
    size_t head, keys, query;       /* query: the number of the row's first one */
    const float *q, *k, *v, *dout;
    float *dq, *dk, *dv;
    size_t ldo;
    size_t table, rows;             /* the table's rows that the row uses: the first, and how many */
    const float *key, *query_table; /* the head's columns of them, or NULL */
    float *dkey, *dquery;           /* of the group, or NULL */
} task;

/* -- relative positions: S_ij += Q_i . key_r + K_j . query_r -- */

/* The table's rows that queries [i, i + m) use, counted from t->table. */
static size_t
block_rows(const task *t, size_t i, size_t m, size_t *first)
{
    const size_t rows = table_rows(t->a, (ptrdiff_t)i - (ptrdiff_t)(t->keys - 1), (ptrdiff_t)(i + m - 1), first);
    *first -= t->table;
    return rows;
}

static void
add_relative(const task *t, size_t i, size_t m)
{
    const ha_attention *a = t->a;
    const size_t n = t->keys, d = a->head_dim, width = a->n_heads * d;
    size_t first;
    const size_t rows = block_rows(t, i, m, &first);
    if (t->key != NULL) {
        product(a, m, rows, d, t->q + i * a->ldq, (ptrdiff_t)a->ldq, 1, t->key + first * width, 1, (ptrdiff_t)width, 0.0f, t->w->c2p, rows, t->w->pack);
    }
    for (size_t r = 0; r < m; r++) {
        float *scores = t->w->scores + r * n;
        const int32_t *row = a->relative->row + (i + r);    /* of key j: row[-j] */
        const float *c2p = t->w->c2p + r * rows, *p2c = t->w->p2c;
        for (size_t j = 0; t->key != NULL && j < n; j++) {
            scores[j] += c2p[(size_t)row[-(ptrdiff_t)j] - t->table - first];
        }
        for (size_t j = 0; t->query_table != NULL && j < n; j++) {
            const size_t at = (size_t)row[-(ptrdiff_t)j] - t->table;
            scores[j] += a->cls_only ? a->kernels->dot_f32(t->k + j * a->ldkv, t->query_table + at * width, d) : p2c[j * t->rows + at];
        }
    }
}

/* From the gradients of the scores of queries [i, i + m): c2p's share at once, p2c's into dp2c, or at once where the row has one query. */
static void
relative_backward(const task *t, size_t i, size_t m)
{
    const ha_attention *a = t->a;
    const size_t n = t->keys, d = a->head_dim, width = a->n_heads * d;
    size_t first;
    const size_t rows = block_rows(t, i, m, &first);
    float *dc2p = t->w->c2p;
    memset(dc2p, 0, t->key != NULL ? m * rows * sizeof(*dc2p) : 0);
    for (size_t r = 0; r < m; r++) {
        const float *ds = t->w->grads + r * n;
        const int32_t *row = a->relative->row + (i + r);
        for (size_t j = 0; t->key != NULL && j < n; j++) {
            dc2p[r * rows + (size_t)row[-(ptrdiff_t)j] - t->table - first] += ds[j];
        }
        for (size_t j = 0; t->query_table != NULL && j < n; j++) {
            const size_t at = (size_t)row[-(ptrdiff_t)j] - t->table;
            if (!a->cls_only) {
                t->w->dp2c[j * t->rows + at] += ds[j];
                continue;
            }
            a->kernels->axpy_f32(t->dk + j * a->ldkv, ds[j], t->query_table + at * width, d);
            a->kernels->axpy_f32(t->dquery + at * width, ds[j], t->k + j * a->ldkv, d);
        }
    }
    if (t->key != NULL) {
        const ptrdiff_t ld = (ptrdiff_t)rows, ldq = (ptrdiff_t)a->ldq;
        product(a, m, d, rows, dc2p, ld, 1, t->key + first * width, (ptrdiff_t)width, 1, 1.0f, t->dq + i * a->ldq, a->ldq, t->w->pack);
        product(a, rows, d, m, dc2p, 1, ld, t->q + i * a->ldq, ldq, 1, 1.0f, t->dkey + first * width, width, t->w->pack);
    }
}

/* -- a row -- */

/* With P the probabilities, M the dropout mask with its scale and R = P * M: dV = R^T dO, dP = (dO V^T) * M,
 * dS = softmax_backward(P, dP), dQ = dS K, dK = dS^T Q, of queries [i, i + m). dK and dV add up over the blocks in their order. */
static void
block_backward(const task *t, size_t i, size_t m)
{
    const ha_attention *a = t->a;
    const workspace *w = t->w;
    const size_t d = a->head_dim, query = t->query + i;
    const ptrdiff_t ldq = (ptrdiff_t)a->ldq, ldkv = (ptrdiff_t)a->ldkv, ldo = (ptrdiff_t)t->ldo;
    const float *q = t->q + i * a->ldq, *g = t->dout + i * t->ldo, *used = w->scores;
    size_t first, end;
    keys_of(a, i, m, t->keys, &first, &end);
    const size_t n = end - first, at = first * a->ldkv;
    const ptrdiff_t ld = (ptrdiff_t)n;
    product(a, m, n, d, q, ldq, 1, t->k + at, 1, ldkv, 0.0f, w->scores, n, w->pack);
    if (a->relative != NULL) {
        add_relative(t, i, m);
    }
    softmax_of_block(a, w->scores, i, m, first, n);
    product(a, m, n, d, g, ldo, 1, t->v + at, 1, ldkv, 0.0f, w->grads, n, w->pack);
    if (a->dropout.drop != 0) {
        drop_block(a, query, t->head, first, w->kept, w->scores, m, n);
        for (size_t j = 0; j < m * n; j++) {    /* a probability that is 0 without being dropped gives its score no gradient either */
            w->grads[j] = w->kept[j] != 0.0f ? w->grads[j] * a->dropout.scale : 0.0f;
        }
        used = w->kept;
    }
    product(a, n, d, m, used, 1, ld, g, ldo, 1, 1.0f, t->dv + at, a->ldkv, w->pack);
    a->kernels->softmax_backward_f32(w->grads, w->grads, w->scores, m, n, n, a->scale);
    product(a, m, d, n, w->grads, ld, 1, t->k + at, ldkv, 1, 0.0f, t->dq + i * a->ldq, a->ldq, w->pack);
    product(a, n, d, m, w->grads, 1, ld, q, ldq, 1, 1.0f, t->dk + at, a->ldkv, w->pack);
    if (a->relative != NULL) {
        relative_backward(t, i, m);
    }
}

static void
row_backward(const task *t)
{
    const ha_attention *a = t->a;
    const size_t n = t->keys, d = a->head_dim, width = a->n_heads * d, queries = a->cls_only ? 1 : n;
    const ptrdiff_t ld = (ptrdiff_t)t->rows, ldkv = (ptrdiff_t)a->ldkv, ldt = (ptrdiff_t)width;
    const int far = t->query_table != NULL && !a->cls_only;
    for (size_t j = 0; j < n; j++) {
        memset(t->dk + j * a->ldkv, 0, d * sizeof(float));
        memset(t->dv + j * a->ldkv, 0, d * sizeof(float));
    }
    if (far) {
        product(a, n, t->rows, d, t->k, ldkv, 1, t->query_table, 1, ldt, 0.0f, t->w->p2c, t->rows, t->w->pack);
        memset(t->w->dp2c, 0, n * t->rows * sizeof(float));
    }
    for (size_t i = 0; i < queries; i += HA_QUERY_BLOCK) {
        block_backward(t, i, smaller(queries - i, HA_QUERY_BLOCK));
    }
    if (far) {
        product(a, n, d, t->rows, t->w->dp2c, ld, 1, t->query_table, ldt, 1, 1.0f, t->dk, a->ldkv, t->w->pack);
        product(a, t->rows, d, n, t->w->dp2c, 1, ld, t->k, ldkv, 1, 1.0f, t->dquery, width, t->w->pack);
    }
}

/* The task of a row and a head; tables: the gradients of the group, or NULL without relative positions. */
static task
task_of(const ha_attention *a, size_t row, size_t head, const float *dout, size_t ldo, const ha_attention_grads *grads, float *tables,
        const sizes *s, const workspace *w)
{
    const size_t first_key = (size_t)a->offsets[row], first_query = a->cls_only ? row : first_key, at = head * a->head_dim;
    const size_t q = first_query * a->ldq + at, kv = first_key * a->ldkv + at, n = length_of(a, row);
    task t = {.a = a, .w = w, .head = head, .keys = n, .query = first_query, .q = a->q + q, .k = a->k + kv, .v = a->v + kv,
              .dout = dout + first_query * ldo + at, .ldo = ldo, .dq = grads->dq + q, .dk = grads->dk + kv, .dv = grads->dv + kv};
    if (a->relative != NULL) {
        t.rows = table_rows(a, 1 - (ptrdiff_t)n, (ptrdiff_t)n - 1, &t.table);
        const size_t columns = t.table * a->n_heads * a->head_dim + at;
        t.key = a->relative->key != NULL ? a->relative->key + columns : NULL;
        t.query_table = a->relative->query != NULL ? a->relative->query + columns : NULL;
        t.dkey = tables + columns;
        t.dquery = tables + s->table + columns;
    }
    return t;
}

/* Adds the groups' gradients up, in order. */
static void
sum_tables(const ha_attention *a, const sizes *s, const float *tables, const ha_attention_grads *grads)
{
    const size_t n = s->rows * a->n_heads * a->head_dim;
    float *const out[2] = {grads->key, grads->query};
    for (int i = 0; i < 2; i++) {
        for (size_t g = 0; g < s->groups && out[i] != NULL; g++) {
            const float *table = tables + (2 * g + (size_t)i) * s->table;
            if (g == 0) {
                memcpy(out[i], table, n * sizeof(float));
            } else {
                a->kernels->add_f32(out[i], out[i], table, n, 1);
            }
        }
    }
}

void
ha_attention_backward(const ha_attention *attention, const float *dout, size_t ldo, const ha_attention_grads *grads,
                      void *scratch, int n_threads)
{
    const ha_attention *a = attention;
    const sizes s = sizes_of(a);
    const int n = threads_for(a, n_threads);
    (void)n;
    float *tables = scratch, *rest = tables + 2 * s.groups * s.table;
    memset(tables, 0, 2 * s.groups * s.table * sizeof(float));
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t t = 0; t < (ptrdiff_t)(s.groups * a->n_heads); t++) {
        const size_t group = (size_t)t / a->n_heads, head = (size_t)t % a->n_heads;
        const workspace w = workspace_of(rest, &s, ha_thread_index());
        for (size_t row = group * a->n_rows / s.groups; row < (group + 1) * a->n_rows / s.groups; row++) {
            const task one = task_of(a, row, head, dout, ldo, grads, tables + 2 * group * s.table, &s, &w);
            row_backward(&one);
        }
    }
    if (a->relative != NULL) {
        sum_tables(a, &s, tables, grads);
    }
}
