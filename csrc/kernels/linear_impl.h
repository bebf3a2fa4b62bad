/* y = act(x W^T + bias) over a weight packed once: panels [steps][GEMM_NR] of the register tile, all of k for one panel, then the next. */

#define LINEAR_ROWS 504         /* rows of x packed at once: bounds the scratch */
#define LINEAR_GROUP_TILES (168 / GEMM_MR)      /* a task's rows, of which one block of k stays in the second-level cache, ... */
#define LINEAR_GROUP_PANELS (128 / GEMM_NR)     /* ... and its panels */

/* How a format is stored and computed on this instruction set. */
typedef struct linear_layout {
    int step;                   /* STEP_F32, ... */
    size_t steps;               /* along k */
    size_t row_words;           /* of 4 bytes that a packed row of x takes */
    size_t step_bytes;          /* of one panel of the weight */
    const tile_fn *tiles;
    int bits;                   /* of STEP_GROUP */
} linear_layout;

static linear_layout
linear_layout_of(ha_weight_format format, size_t k)
{
    if (format == HA_WEIGHT_F32) {
        return (linear_layout){STEP_F32, k, k, GEMM_NR * sizeof(float), tiles_f32, 0};
    }
    if (format == HA_WEIGHT_Q8 || format == HA_WEIGHT_Q4) {
        const size_t groups = (k + HA_GROUP - 1) / HA_GROUP;
        const int bits = format == HA_WEIGHT_Q4 ? 4 : 8;
        return (linear_layout){STEP_GROUP, groups, groups * GROUP_WORDS, group_bytes(bits), NULL, bits};
    }
    if (format == HA_WEIGHT_I8) {
        const size_t steps = (k + I8_STEP - 1) / I8_STEP;
        return (linear_layout){STEP_I8, steps, I8_ROW_WORDS(steps), GEMM_NR * I8_STEP, NULL, 8};
    }
#if defined(VF_HAS_DOT_BF16)
    return (linear_layout){STEP_PAIR, (k + 1) / 2, (k + 1) / 2, GEMM_NR * 2 * sizeof(uint16_t), tiles_pair, 16};
#else
    return (linear_layout){STEP_BF16, k, k, GEMM_NR * sizeof(uint16_t), tiles_bf16, 16};
#endif
}

/* Whether one row of x is its own tile. */
static int
linear_reads_x(const linear_layout *layout)
{
    return layout->step == STEP_F32 || layout->step == STEP_BF16;
}

static size_t
linear_packed_bytes(ha_weight_format format, size_t n, size_t k)
{
    const linear_layout layout = linear_layout_of(format, k);
    if (format == HA_WEIGHT_I8) {
        return round_up(n, GEMM_NR) / GEMM_NR * i8_panel_bytes(k);
    }
    return round_up(n, GEMM_NR) / GEMM_NR * layout.steps * layout.step_bytes;
}

/* Rows of w as one panel of bfloat16. */
static void
linear_pack_bf16(uint16_t *panel, int step, size_t k, const float *w, size_t ldw, size_t cols)
{
    for (size_t p = 0; p < k; p++) {
        float row[GEMM_NR] = {0};
        uint16_t narrow[GEMM_NR];
        for (size_t j = 0; j < cols; j++) {
            row[j] = w[j * ldw + p];
        }
        f32_to_bf16(narrow, row, GEMM_NR);
        if (step == STEP_BF16) {
            memcpy(panel + p * GEMM_NR, narrow, sizeof(narrow));
            continue;
        }
        for (size_t j = 0; j < GEMM_NR; j++) {      /* pairs along k; the last of an odd k is a zero */
            panel[(p / 2 * GEMM_NR + j) * 2 + p % 2] = narrow[j];
            if (p % 2 == 0) {
                panel[(p / 2 * GEMM_NR + j) * 2 + 1] = 0;
            }
        }
    }
}

static void
linear_pack(void *packed, ha_weight_format format, size_t n, size_t k, size_t first, size_t count, const float *w, size_t ldw)
{
    const linear_layout layout = linear_layout_of(format, k);
    (void)n;
    if (format == HA_WEIGHT_I8) {
        i8_pack(packed, k, first, count, w, ldw);
        return;
    }
    if (layout.step == STEP_GROUP) {
        group_pack(packed, layout.bits, k, first, count, NULL, w, ldw);
        return;
    }
    for (size_t j = 0; j < count; j += GEMM_NR) {
        const size_t cols = count - j < GEMM_NR ? count - j : GEMM_NR;
        char *panel = (char *)packed + (first + j) / GEMM_NR * layout.steps * layout.step_bytes;
        if (layout.step == STEP_F32) {
            pack_panel((float *)panel, w + j * ldw, 1, (ptrdiff_t)ldw, k, cols);
        }
        else {
            linear_pack_bf16((uint16_t *)panel, layout.step, k, w + j * ldw, ldw, cols);
        }
    }
}

static void
linear_pack_groups(void *packed, ha_weight_format format, size_t k, size_t first, size_t count, const uint8_t *rows)
{
    group_pack(packed, linear_layout_of(format, k).bits, k, first, count, rows, NULL, 0);
}

static size_t
linear_scratch_bytes(ha_weight_format format, size_t m, size_t n, size_t k, int n_threads)
{
    const linear_layout layout = linear_layout_of(format, k);
    (void)n, (void)n_threads;
    if (m == 1 && linear_reads_x(&layout)) {
        return 0;
    }
    return (m < LINEAR_ROWS ? m : LINEAR_ROWS) * layout.row_words * sizeof(float) + 64;
}

typedef struct linear_run {
    float *y;
    size_t ldy;
    const float *x;
    size_t ldx;
    const void *packed;
    const float *bias;
    ha_activation act;
    size_t m, n, k;
    linear_layout layout;
    float *scratch;             /* NULL: the one row of x is its own tile */
    task_counter counter;
} linear_run;

/* Rows of x as a tile [steps][rows], 4 bytes each. */
static void
linear_pack_rows(const linear_run *run, float *tile, size_t first, size_t rows)
{
    const float *x = run->x + first * run->ldx;
    if (run->layout.step == STEP_I8) {
        i8_pack_rows((uint32_t *)tile, rows, x, run->ldx, run->k);
        return;
    }
    if (run->layout.step == STEP_GROUP) {
        group_pack_rows((uint32_t *)tile, rows, run->layout.bits, x, run->ldx, run->k);
        return;
    }
    if (run->layout.step != STEP_PAIR) {
        pack(tile, rows, x, (ptrdiff_t)run->ldx, 1, rows, run->k);
        return;
    }
    enum { SPAN = 256 };        /* of one row, rounded at a time */
    for (size_t r = 0; r < rows; r++) {
        for (size_t p0 = 0; p0 < run->k; p0 += SPAN) {
            uint16_t narrow[SPAN + 1];
            const size_t count = run->k - p0 < SPAN ? run->k - p0 : SPAN;
            f32_to_bf16(narrow, x + r * run->ldx + p0, count);
            narrow[count] = 0;  /* the second of the last pair of an odd k */
            for (size_t p = 0; p < count; p += 2) {
                memcpy(tile + (p0 + p) / 2 * rows + r, narrow + p, 2 * sizeof(*narrow));
            }
        }
    }
}

/* How the product of a chunk of rows is cut into tasks: groups of row tiles by groups of panels. */
typedef struct linear_cut {
    size_t tiles, panels, group_tiles, group_panels, row_groups, panel_groups;
} linear_cut;

static linear_cut
linear_cut_of(size_t rows, size_t n, int n_threads)
{
    linear_cut c = {.tiles = (rows + GEMM_MR - 1) / GEMM_MR, .panels = (n + GEMM_NR - 1) / GEMM_NR, .group_tiles = LINEAR_GROUP_TILES,
                    .group_panels = LINEAR_GROUP_PANELS};
    const size_t wanted = n_threads > 1 ? 4 * (size_t)n_threads : 1;
    c.row_groups = (c.tiles + c.group_tiles - 1) / c.group_tiles;
    if (c.panels * c.row_groups < wanted * c.group_panels) {
        c.group_panels = c.panels * c.row_groups / wanted > 0 ? c.panels * c.row_groups / wanted : 1;
    }
    c.panel_groups = (c.panels + c.group_panels - 1) / c.group_panels;
    if (c.row_groups * c.panel_groups < wanted) {
        c.group_tiles = c.tiles * c.panel_groups / wanted > 0 ? c.tiles * c.panel_groups / wanted : 1;
        c.group_tiles = c.group_tiles < LINEAR_GROUP_TILES ? c.group_tiles : LINEAR_GROUP_TILES;
        c.row_groups = (c.tiles + c.group_tiles - 1) / c.group_tiles;
    }
    return c;
}

/* A task: tiles [first_tile, end_tile) of the chunk of rows_here rows that starts at row m0, by panels [first_panel, end_panel). */
typedef struct linear_part {
    size_t m0, rows_here, tiles, first_tile, end_tile, first_panel, end_panel;
} linear_part;

/* A block of k of the part's rows stays in the second-level cache while the panels pass by. */
static void
linear_float_part(const linear_run *run, const linear_part *part)
{
    const linear_layout *layout = &run->layout;
    const size_t block = gemm_block(layout->steps), panel_bytes = layout->steps * layout->step_bytes, tiles_here = part->end_tile - part->first_tile;
    const float *x = run->scratch != NULL ? run->scratch : run->x;
    tile_out out = {.ldc = run->ldy, .alpha = 1.0f, .ahead_step = (layout->step_bytes + tiles_here - 1) / tiles_here};
    size_t k0 = 0;
    do {
        const size_t kc = layout->steps - k0 < block ? layout->steps - k0 : block;
        for (size_t panel = part->first_panel; panel < part->end_panel; panel++) {
            const size_t col = panel * GEMM_NR;
            const char *w = (const char *)run->packed + panel * panel_bytes + k0 * layout->step_bytes;
            const char *next = panel + 1 < part->end_panel ? w + panel_bytes : w - (panel - part->first_panel) * panel_bytes + kc * layout->step_bytes;
            out.cols = run->n - col < GEMM_NR ? run->n - col : GEMM_NR;
            out.beta = k0 == 0 ? 0.0f : 1.0f;
            out.bias = k0 == 0 && run->bias != NULL ? run->bias + col : NULL;
            for (size_t t = part->first_tile; t < part->end_tile; t++) {
                const size_t first = tile_start(t, part->tiles, part->rows_here), rows = tile_start(t + 1, part->tiles, part->rows_here) - first;
                out.c = run->y + (part->m0 + first) * run->ldy + col;
                out.ahead = next + (t - part->first_tile) * kc * out.ahead_step;
                layout->tiles[rows - 1](kc, x + first * layout->steps + k0 * rows, w, &out);
            }
        }
        k0 += kc;
    } while (k0 < layout->steps);
}

static void
linear_i8_part(const linear_run *run, const linear_part *part)
{
    const size_t tiles_here = part->end_tile - part->first_tile, panel_bytes = i8_panel_bytes(run->k), steps = run->layout.steps;
    i8_tile tile = {.ldy = run->ldy, .steps = steps};
    tile.ahead_step = steps > 0 ? (panel_bytes + tiles_here * steps - 1) / (tiles_here * steps) : 0;
    for (size_t panel = part->first_panel; panel < part->end_panel; panel++) {
        const size_t col = panel * GEMM_NR;
        tile.cols = run->n - col < GEMM_NR ? run->n - col : GEMM_NR;
        tile.w = (const int8_t *)run->packed + panel * panel_bytes;
        tile.bias = run->bias != NULL ? run->bias + col : NULL;
        for (size_t t = part->first_tile; t < part->end_tile; t++) {
            const size_t first = tile_start(t, part->tiles, part->rows_here), rows = tile_start(t + 1, part->tiles, part->rows_here) - first;
            tile.y = run->y + (part->m0 + first) * run->ldy + col;
            tile.x = (const uint32_t *)run->scratch + first * run->layout.row_words;
            tile.ahead = tile.w + panel_bytes + (t - part->first_tile) * tile.ahead_step * steps;   /* a share of the next panel */
            i8_tile_run(rows, &tile);
        }
    }
}

static void
linear_group_part(const linear_run *run, const linear_part *part)
{
    const linear_layout *layout = &run->layout;
    const group_fn *tiles = tiles_groups[layout->bits == 4 ? GROUPS_4 : GROUPS_8];
    const size_t tiles_here = part->end_tile - part->first_tile;
    group_tile tile = {.ldy = run->ldy, .groups = layout->steps, .ahead_step = (layout->step_bytes + tiles_here - 1) / tiles_here};
    for (size_t panel = part->first_panel; panel < part->end_panel; panel++) {
        const size_t col = panel * GEMM_NR;
        tile.cols = run->n - col < GEMM_NR ? run->n - col : GEMM_NR;
        tile.w = (const uint8_t *)run->packed + panel * layout->steps * layout->step_bytes;
        tile.bias = run->bias != NULL ? run->bias + col : NULL;
        for (size_t t = part->first_tile; t < part->end_tile; t++) {
            const size_t first = tile_start(t, part->tiles, part->rows_here), rows = tile_start(t + 1, part->tiles, part->rows_here) - first;
            tile.y = run->y + (part->m0 + first) * run->ldy + col;
            tile.x = (const uint32_t *)run->scratch + first * run->layout.row_words;
            tile.ahead = tile.w + (layout->step_bytes + (t - part->first_tile) * tile.ahead_step) * layout->steps;      /* a share of the next panel */
            tiles[rows - 1](&tile);
        }
    }
}

/* Task `task` of the chunk of rows_here rows that starts at row m0. */
static void
linear_task(const linear_run *run, size_t m0, size_t rows_here, const linear_cut *cut, size_t task)
{
    const size_t tile = task / cut->panel_groups * cut->group_tiles, panel = task % cut->panel_groups * cut->group_panels;
    const linear_part part = {
        .m0 = m0, .rows_here = rows_here, .tiles = cut->tiles, .first_tile = tile, .first_panel = panel,
        .end_tile = cut->tiles - tile < cut->group_tiles ? cut->tiles : tile + cut->group_tiles,
        .end_panel = cut->panels - panel < cut->group_panels ? cut->panels : panel + cut->group_panels,
    };
    (run->layout.step == STEP_I8 ? linear_i8_part : run->layout.step == STEP_GROUP ? linear_group_part : linear_float_part)(run, &part);
    const size_t begin = m0 + tile_start(part.first_tile, cut->tiles, rows_here), end = m0 + tile_start(part.end_tile, cut->tiles, rows_here);
    const size_t col = panel * GEMM_NR, end_col = part.end_panel * GEMM_NR < run->n ? part.end_panel * GEMM_NR : run->n;
    for (size_t r = begin; r < end && run->act != HA_ACT_NONE; r++) {       /* while the rows are in the near caches */
        float *y = run->y + r * run->ldy + col;
        activate(run->act, y, y, NULL, end_col - col);
    }
}

static void
linear_body(void *arg, int thread, int n_threads)
{
    linear_run *run = arg;
    (void)thread;
    size_t base = 0, task;
    for (size_t m0 = 0; m0 < run->m; m0 += LINEAR_ROWS) {
        const size_t rows_here = run->m - m0 < LINEAR_ROWS ? run->m - m0 : LINEAR_ROWS;
        const linear_cut cut = linear_cut_of(rows_here, run->n, n_threads);
        if (run->scratch != NULL) {
            while ((task = task_take(&run->counter) - base) < cut.tiles) {
                const size_t first = tile_start(task, cut.tiles, rows_here), end = tile_start(task + 1, cut.tiles, rows_here);
                linear_pack_rows(run, run->scratch + first * run->layout.row_words, m0 + first, end - first);
            }
            base += cut.tiles + (size_t)n_threads;
            ha_parallel_barrier(n_threads);
        }
        while ((task = task_take(&run->counter) - base) < cut.row_groups * cut.panel_groups) {
            linear_task(run, m0, rows_here, &cut, task);
        }
        base += cut.row_groups * cut.panel_groups + (size_t)n_threads;
        ha_parallel_barrier(n_threads);
    }
}

static void
linear_f32(float *y, size_t ldy, const float *x, size_t ldx, const void *packed, ha_weight_format format,
           const float *bias, ha_activation act, size_t m, size_t n, size_t k, void *scratch, int n_threads)
{
    if (m == 0 || n == 0) {
        return;
    }
    linear_run run = {.y = y, .ldy = ldy, .x = x, .ldx = ldx, .packed = packed, .bias = bias, .act = act, .m = m, .n = n, .k = k,
                      .layout = linear_layout_of(format, k)};
    run.scratch = m == 1 && linear_reads_x(&run.layout) ? NULL : align_64(scratch);
    atomic_init(&run.counter.next, 0);
    ha_parallel_run(ha_threads_for(m * n * k, GEMM_GRAIN, n_threads), linear_body, &run);
}
