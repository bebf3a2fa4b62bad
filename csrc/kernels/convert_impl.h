/* Storage formats. The last elements go through a whole vector on the stack. */

static void
f16_to_f32(float *out, const uint16_t *x, size_t n)
{
    size_t i;
    for (i = 0; i + VF_LANES <= n; i += VF_LANES) {
        vf_store(out + i, vf_load_f16(x + i));
    }
    if (i < n) {
        uint16_t last[VF_LANES] = {0};
        memcpy(last, x + i, (n - i) * sizeof(*x));
        vf_store_n(out + i, vf_load_f16(last), n - i);
    }
}

static void
bf16_to_f32(float *out, const uint16_t *x, size_t n)
{
    size_t i;
    for (i = 0; i + VF_LANES <= n; i += VF_LANES) {
        vf_store(out + i, vf_load_bf16(x + i));
    }
    if (i < n) {
        uint16_t last[VF_LANES] = {0};
        memcpy(last, x + i, (n - i) * sizeof(*x));
        vf_store_n(out + i, vf_load_bf16(last), n - i);
    }
}

static void
f32_to_f16(uint16_t *out, const float *x, size_t n)
{
    size_t i;
    for (i = 0; i + VF_LANES <= n; i += VF_LANES) {
        vf_store_f16(out + i, vf_load(x + i));
    }
    if (i < n) {
        uint16_t last[VF_LANES];
        vf_store_f16(last, vf_load_n(x + i, n - i, 0.0f));
        memcpy(out + i, last, (n - i) * sizeof(*out));
    }
}

static void
f32_to_bf16(uint16_t *out, const float *x, size_t n)
{
    size_t i;
    for (i = 0; i + VF_LANES <= n; i += VF_LANES) {
        vf_store_bf16(out + i, vf_load(x + i));
    }
    if (i < n) {
        uint16_t last[VF_LANES];
        vf_store_bf16(last, vf_load_n(x + i, n - i, 0.0f));
        memcpy(out + i, last, (n - i) * sizeof(*out));
    }
}
