/* The work on one chunk. Included once for each instruction set, with NAME() giving every function a name of its own. */
#define from_bits NAME(from_bits)
#define to_bits NAME(to_bits)
#define from_half NAME(from_half)
#define to_half NAME(to_half)
#define to_bfloat NAME(to_bfloat)
#define to_float8 NAME(to_float8)
#define load NAME(load)
#define store NAME(store)
#define mixed NAME(mixed)
#define all_lanes NAME(all_lanes)
#define signs_of NAME(signs_of)
#define lanes_at NAME(lanes_at)
#define squared_norm NAME(squared_norm)
#define all_finite NAME(all_finite)
#define elect NAME(elect)
#define trim NAME(trim)
#define agree NAME(agree)
#define delta_dot NAME(delta_dot)
#define drop NAME(drop)
#define rows_of NAME(rows_of)
#define hash_inputs NAME(hash_inputs)
#define squared_distance NAME(squared_distance)
#define add_row NAME(add_row)
#define sparse_row NAME(sparse_row)
#define merge_sources NAME(merge_sources)
#define Lanes NAME(Lanes)
#define Masks NAME(Masks)
#define Doubles NAME(Doubles)
#define dot NAME(dot)
#include "_xxh3.h"
INLINE float from_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

/* Half precision by integer arithmetic on both sides: exact, and the same on every machine. */
INLINE float from_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    float scaled = from_bits(rest << 13) * from_bits(0x77800000); /* 2^112: exponents are 15 and 127 off zero */
    uint32_t bits = to_bits(scaled);
    bits = rest >= 0x7c00 ? (0x7f800000 | (rest << 13)) : bits;
    return from_bits(bits | sign);
}

INLINE uint16_t to_half(float x)
{
    uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    uint32_t normal = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
    /* Below 2^-14 a half is a multiple of 2^-24: adding 0.5 rounds to it in the float32 unit, to nearest even. */
    uint32_t small = to_bits(from_bits(rest) + 0.5f) - 0x3f000000;
    uint32_t value = rest < 0x38800000 ? small : normal;
    value = rest >= 0x47800000 ? 0x7c00 : value;
    value = rest > 0x7f800000 ? 0x7e00 : value;
    return (uint16_t)(sign | value);
}

INLINE uint16_t to_bfloat(float x)
{
    uint32_t bits = to_bits(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

/* Round to nearest even into an 8-bit float; what is too large becomes NaN (E4M3 has no infinity) or infinity. */
INLINE uint8_t to_float8(float x, int e5m2)
{
    uint32_t bits = to_bits(x), rest = bits & 0x7fffffff;
    uint8_t sign = (uint8_t)(bits >> 24) & 0x80;
    const int drop = e5m2 ? 21 : 20;
    const uint32_t smallest = e5m2 ? 0x38800000u : 0x3c800000u; /* the smallest normal: 2^-14, 2^-6 */
    const uint32_t most = e5m2 ? 0x7cu : 0x7fu, nan = 0x7fu;
    uint32_t value;
    if (rest > 0x7f800000) return sign | (uint8_t)nan;
    if (rest < smallest) {
        /* A multiple of 2^-16 or 2^-9: one addition rounds to it. */
        float magic = e5m2 ? 128.0f : 16384.0f;
        value = to_bits(from_bits(rest) + magic) - to_bits(magic);
    } else {
        uint32_t rounded = rest - (e5m2 ? 0x38000000u : 0x3c000000u) + ((1u << (drop - 1)) - 1) + ((rest >> drop) & 1);
        value = rounded >> drop;
        if (value > most) value = most;
    }
    return sign | (uint8_t)value;
}

INLINE void load(float *restrict to, const char *from, int dtype, Py_ssize_t n)
{
    uint16_t half[BLOCK];
    switch (dtype) {
    case F32:
        memcpy(to, from, (size_t)n * 4);
        break;
    case BF16:
        memcpy(half, from, (size_t)n * 2);
        for (Py_ssize_t i = 0; i < n; i++) to[i] = from_bits((uint32_t)half[i] << 16);
        break;
    case F16:
        memcpy(half, from, (size_t)n * 2);
        for (Py_ssize_t i = 0; i < n; i++) to[i] = from_half(half[i]);
        break;
    case F64:
        for (Py_ssize_t i = 0; i < n; i++) { double x; memcpy(&x, from + 8 * i, 8); to[i] = (float)x; }
        break;
    default:
        for (Py_ssize_t i = 0; i < n; i++) to[i] = float8_values[dtype == F8_E5M2][(uint8_t)from[i]];
    }
}

INLINE void store(char *to, const float *restrict from, int dtype, Py_ssize_t n)
{
    uint16_t half[BLOCK];
    switch (dtype) {
    case F32:
        memcpy(to, from, (size_t)n * 4);
        break;
    case BF16:
        for (Py_ssize_t i = 0; i < n; i++) half[i] = to_bfloat(from[i]);
        memcpy(to, half, (size_t)n * 2);
        break;
    case F16:
        for (Py_ssize_t i = 0; i < n; i++) half[i] = to_half(from[i]);
        memcpy(to, half, (size_t)n * 2);
        break;
    case F64:
        for (Py_ssize_t i = 0; i < n; i++) { double x = from[i]; memcpy(to + 8 * i, &x, 8); }
        break;
    default:
        for (Py_ssize_t i = 0; i < n; i++) to[i] = (char)to_float8(from[i], dtype == F8_E5M2);
    }
}

/* SplitMix64, by counter: see langmerge.methods.draws. */
INLINE uint64_t mixed(uint64_t stream, uint64_t pair)
{
    uint64_t z = stream + (pair + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}


/* WIDE entries make a vector of the instruction set; sums go over LANES lanes in every set, so that all give the same. */
typedef float Lanes __attribute__((vector_size(4 * WIDE)));
typedef int32_t Masks __attribute__((vector_size(4 * WIDE)));
typedef double Doubles __attribute__((vector_size(8 * WIDE)));
enum { NAME(PARTS) = LANES / WIDE };
#define PARTS NAME(PARTS)

INLINE Lanes all_lanes(float x) { return x - (Lanes){0}; }
INLINE Lanes signs_of(Lanes x)
{
    const Lanes one = all_lanes(1.0f);
    return (Lanes)((Masks)one & (x > 0.0f)) - (Lanes)((Masks)one & (x < 0.0f));
}
INLINE Lanes lanes_at(const float *x) { Lanes v; memcpy(&v, x, sizeof v); return v; }

/* Σ x² of a block: float32 lanes of at most 64 terms each, added up in float64; in float64 throughout if squares may
 * have left the range of float32. Above TINY what may have underflowed is less than a rounding. */
#define TINY 1e-26
INLINE double squared_norm(const float *restrict x, Py_ssize_t n)
{
    Lanes sum[PARTS] = {0};
    float lane[LANES];
    Py_ssize_t i = 0;
    double total = 0;
    for (; i + LANES <= n; i += LANES)
        for (int p = 0; p < PARTS; p++) {
            const Lanes v = lanes_at(x + i + p * WIDE);
            sum[p] += v * v;
        }
    memcpy(lane, sum, sizeof lane);
    for (int k = 0; k < LANES; k++) total += (double)lane[k];
    for (; i < n; i++) total += (double)x[i] * (double)x[i];
    if (isfinite(total) && total > TINY) return total;
    total = 0;
    for (i = 0; i < n; i++) total += (double)x[i] * (double)x[i];
    return total;
}

/* Σ x y of a block in float64. */
INLINE double dot(const float *restrict x, const float *restrict y, Py_ssize_t n)
{
    Doubles sum[PARTS] = {0};
    double lane[LANES], total = 0;
    Py_ssize_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int p = 0; p < PARTS; p++)
            sum[p] += __builtin_convertvector(lanes_at(x + i + p * WIDE), Doubles) *
                      __builtin_convertvector(lanes_at(y + i + p * WIDE), Doubles);
    memcpy(lane, sum, sizeof lane);
    for (int k = 0; k < LANES; k++) total += lane[k];
    for (; i < n; i++) total += (double)x[i] * (double)y[i];
    return total;
}

/* Whether a block holds neither NaN nor infinity: x - x is NaN for both. */
INLINE int all_finite(const float *restrict x, Py_ssize_t n)
{
    Lanes sum = {0};
    float rest = 0;
    Py_ssize_t i = 0;
    for (; i + WIDE <= n; i += WIDE) {
        const Lanes v = lanes_at(x + i);
        sum += v - v;
    }
    for (; i < n; i++) rest += x[i] - x[i];
    for (int k = 0; k < WIDE; k++) rest += sum[k];
    return rest == 0;
}

/* γ, numerator and denominator of the elected mean, as in methods/signs.py: delta rows are δ_i, whole rows τ_i (or NULL
 * where they are the same). What is not finite was found by then: a comparison may decide where torch multiplies. */
INLINE void elect(const Chunk *c, const float *restrict delta, const float *restrict whole, float *restrict merged,
                  Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i += WIDE) { /* rows are BLOCK long: the last lanes may be idle */
        Lanes vote = {0}, sum = {0}, below = {0};
        for (Py_ssize_t s = 0; s < c->sources; s++) {
            const Lanes x = lanes_at(delta + s * BLOCK + i), w = all_lanes(c->weights[s]);
            vote = vote + (c->election == UNWEIGHTED ? x : w * (c->election == COUNT ? signs_of(x) : x));
        }
        const Masks up = vote > 0.0f, down = vote < 0.0f;
        for (Py_ssize_t s = 0; s < c->sources; s++) {
            const Lanes x = lanes_at(delta + s * BLOCK + i), w = all_lanes(c->weights[s]);
            const Masks agrees = ((x > 0.0f) & up) | ((x < 0.0f) & down);
            sum = sum + w * (Lanes)((Masks)x & agrees);
            if (whole) {
                const Lanes full = lanes_at(whole + s * BLOCK + i);
                below = below + (Lanes)((Masks)w & (((full > 0.0f) & up) | ((full < 0.0f) & down)));
            } else
                below = below + (Lanes)((Masks)w & agrees);
        }
        if (c->normalize) {
            const Masks none = below == 0.0f;
            sum = sum / (Lanes)(((Masks)all_lanes(1.0f) & none) | ((Masks)below & ~none));
        }
        memcpy(merged + i, &sum, sizeof sum);
    }
}

INLINE void trim(float *restrict delta, const float *restrict tau, float bound, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i += WIDE) {
        const Lanes x = lanes_at(tau + i), size = (Lanes)((Masks)x & 0x7fffffff);
        const Lanes left = (Lanes)((Masks)x & ~(size < bound));
        memcpy(delta + i, &left, sizeof left);
    }
}

/* τ m / p: the entry at position i keeps its place if its word is below `below`, which is at most 2^32. */
INLINE void drop(float *restrict delta, const float *restrict tau, uint64_t stream, uint64_t below, float share,
                 uint64_t offset, Py_ssize_t n)
{
    uint64_t pairs[BLOCK / 2 + 1];
    uint32_t words[BLOCK + 2];
    const uint64_t first = offset >> 1;
    const int skip = (int)(offset & 1); /* little-endian: the low half stands first, as the positions do */
    if (below == 0) {
        memset(delta, 0, (size_t)n * sizeof *delta);
        return;
    }
    const uint32_t last = (uint32_t)(below - 1);
    for (Py_ssize_t k = 0; k < BLOCK / 2 + 1; k++) pairs[k] = mixed(stream, first + (uint64_t)k);
    memcpy(words, pairs, sizeof pairs);
    /* By a mask: a branch that goes either way at random costs more than the division. */
    for (Py_ssize_t i = 0; i < n; i++)
        delta[i] = from_bits(to_bits(tau[i] / share) & -(uint32_t)(words[i + skip] <= last));
}

/* Rows of a block as float32: where they are stored so and aligned, the mapped file itself. */
INLINE const float *rows_of(float *restrict space, const char *from, int dtype, Py_ssize_t n)
{
    if (dtype == F32 && ((uintptr_t)from & 3) == 0) return (const float *)(const void *)from;
    load(space, from, dtype, n);
    return space;
}

/* ‖x − b‖², as squared_norm gives it, without writing the difference down. */
INLINE double squared_distance(const float *restrict x, const float *restrict b, Py_ssize_t n)
{
    float row[BLOCK];
    for (Py_ssize_t i = 0; i < n; i++) row[i] = x[i] - b[i];
    return squared_norm(row, n);
}

/* merged += w x, or w (x − b) about the base; returns ‖x − b‖². One pass over the registers' worth. */
INLINE double add_row(float *restrict merged, const float *restrict x, const float *restrict b, float w,
                      int about_base, Py_ssize_t n)
{
    const Lanes weight = all_lanes(w);
    Lanes sum[PARTS] = {0};
    float lane[LANES];
    double total = 0;
    Py_ssize_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int p = 0; p < PARTS; p++) {
            const Py_ssize_t at = i + p * WIDE;
            const Lanes v = lanes_at(x + at), d = v - lanes_at(b + at);
            const Lanes m = lanes_at(merged + at) + weight * (about_base ? d : v);
            sum[p] += d * d;
            memcpy(merged + at, &m, sizeof m);
        }
    memcpy(lane, sum, sizeof lane);
    for (int k = 0; k < LANES; k++) total += (double)lane[k];
    for (; i < n; i++) {
        const float d = x[i] - b[i];
        merged[i] = merged[i] + w * (about_base ? d : x[i]);
        total += (double)d * (double)d;
    }
    return isfinite(total) && total > TINY ? total : squared_distance(x, b, n);
}

/* δ_s of one source, by what the operation drops. */
INLINE void sparse_row(const Chunk *c, float *restrict delta, const float *restrict tau, Py_ssize_t s,
                       Py_ssize_t start, Py_ssize_t n)
{
    if (c->op == TIES)
        trim(delta, tau, c->bounds[s], n);
    else
        drop(delta, tau, c->streams[2 * s], c->streams[2 * s + 1], c->bounds[s], c->offset + (uint64_t)start, n);
}

/* The sources of one block into `merged`. */
INLINE void merge_sources(const Chunk *c, float *restrict tau, float *restrict delta, const float *restrict base,
                          float *restrict merged, Py_ssize_t start, Py_ssize_t n)
{
    float space[BLOCK];
    memset(merged, 0, sizeof(float) * BLOCK);
    for (Py_ssize_t s = 0; s < c->sources; s++) {
        const float *x = rows_of(space, c->from[s] + start * WIDTH[c->dtype[s]], c->dtype[s], n);
        float *restrict row = tau + s * BLOCK, *restrict own = delta + s * BLOCK;
        const float w = c->weights[s];
        if (c->op == COMBINE && c->base) {
            c->squares[s] += add_row(merged, x, base, w, c->about_base, n);
        } else if (c->op == COMBINE) {
            for (Py_ssize_t i = 0; i < n; i++) merged[i] = merged[i] + w * x[i];
        } else {
            for (Py_ssize_t i = 0; i < n; i++) row[i] = x[i] - base[i];
            c->squares[s] += squared_norm(row, n);
            sparse_row(c, own, row, s, start, n);
            for (Py_ssize_t i = 0; c->op == DARE && i < n; i++) merged[i] = merged[i] + w * own[i];
        }
    }
    if (c->op == TIES) elect(c, delta, delta, merged, n);
    if (c->op == DARE_TIES) elect(c, delta, tau, merged, n);
}

/* A block of every input whose digest is wanted. */
INLINE void hash_inputs(Chunk *c, Py_ssize_t start, Py_ssize_t stop)
{
    for (Py_ssize_t s = 0; s <= c->sources; s++) {
        if (!c->hashed[s]) continue;
        const char *data = s < c->sources ? c->from[s] : c->base;
        const Py_ssize_t width = WIDTH[s < c->sources ? c->dtype[s] : c->base_dtype];
        hash_stretch(c->hashing + 8 * s, data, start * width, stop * width, c->entries * width, c->digests + 16 * s);
    }
}

static int NAME(merge_blocks)(Chunk *c)
{
    const Py_ssize_t N = c->sources;
    float *tau = calloc(c->op == COMBINE ? 1 : (size_t)N * 2 * BLOCK, sizeof(float));
    if (!tau) return -1;
    float *delta = c->op == COMBINE ? tau : tau + N * BLOCK, base_space[BLOCK], merged[BLOCK], result_space[BLOCK];
    const float *base = base_space;
    c->finite = 1;
    for (Py_ssize_t start = 0; start < c->entries; start += BLOCK) {
        const Py_ssize_t n = c->entries - start < BLOCK ? c->entries - start : BLOCK;
        if (c->hashed) hash_inputs(c, start, start + n);
        char *out = c->out ? c->out + start * WIDTH[c->out_dtype] : NULL;
        const int direct = out && c->out_dtype == F32 && ((uintptr_t)out & 3) == 0;
        float *restrict result = direct ? (float *)(void *)out : result_space;
        if (c->base) base = rows_of(base_space, c->base + start * WIDTH[c->base_dtype], c->base_dtype, n);
        merge_sources(c, tau, delta, base, merged, start, n);
        if (c->about_base)
            for (Py_ssize_t i = 0; i < n; i++) result[i] = base[i] + c->scale * merged[i];
        else
            memcpy(result, merged, sizeof(float) * (size_t)n);
        if (c->base)
            c->squares[N] += squared_distance(result, base, n);
        else if (!all_finite(result, n)) /* NaN and infinity in a source come through, whatever its weight */
            c->finite = 0;
        if (out && !direct) store(out, result, c->out_dtype, n);
    }
    for (Py_ssize_t s = 0; c->base && s <= N; s++) c->finite &= isfinite(c->squares[s]) != 0;
    free(tau);
    return 0;
}

/* Dot products of all pairs of sources, or of their deltas: out is (N, N) float64. */
static int NAME(gram_blocks)(Chunk *c, double *out)
{
    const Py_ssize_t N = c->sources;
    float *tau = malloc(sizeof(float) * BLOCK * (size_t)N), base[BLOCK];
    if (!tau) return -1;
    memset(out, 0, sizeof(double) * (size_t)(N * N));
    for (Py_ssize_t start = 0; start < c->entries; start += BLOCK) {
        const Py_ssize_t n = c->entries - start < BLOCK ? c->entries - start : BLOCK;
        if (c->base) load(base, c->base + start * WIDTH[c->base_dtype], c->base_dtype, n);
        for (Py_ssize_t s = 0; s < N; s++) {
            float *restrict row = tau + s * BLOCK;
            load(row, c->from[s] + start * WIDTH[c->dtype[s]], c->dtype[s], n);
            if (c->base)
                for (Py_ssize_t i = 0; i < n; i++) row[i] = row[i] - base[i];
        }
        for (Py_ssize_t a = 0; a < N; a++)
            for (Py_ssize_t b = 0; b <= a; b++)
                out[a * N + b] += dot(tau + a * BLOCK, tau + b * BLOCK, n);
    }
    c->finite = 1;
    for (Py_ssize_t a = 0; a < N; a++) {
        c->finite &= isfinite(out[a * N + a]) != 0;
        for (Py_ssize_t b = 0; b < a; b++) out[b * N + a] = out[a * N + b];
    }
    free(tau);
    return 0;
}

/* Only entries with the sign of Σ δ_i stay in the rows of a block, as `elect` has it without weights. */
INLINE void agree(float *restrict delta, Py_ssize_t sources, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i += WIDE) {
        Lanes vote = {0};
        for (Py_ssize_t s = 0; s < sources; s++) vote = vote + lanes_at(delta + s * BLOCK + i);
        const Masks up = vote > 0.0f, down = vote < 0.0f;
        for (Py_ssize_t s = 0; s < sources; s++) {
            const Lanes x = lanes_at(delta + s * BLOCK + i);
            const Lanes left = (Lanes)((Masks)x & (((x > 0.0f) & up) | ((x < 0.0f) & down)));
            memcpy(delta + s * BLOCK + i, &left, sizeof left);
        }
    }
}

/* Σ (x − b) g of a block: the difference in float32, as everywhere, products and sums in float64. */
INLINE double delta_dot(const float *restrict x, const float *restrict b, const double *restrict g, Py_ssize_t n)
{
    Doubles sum[PARTS] = {0};
    double lane[LANES], total = 0;
    Py_ssize_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int p = 0; p < PARTS; p++) {
            const Py_ssize_t at = i + p * WIDE;
            Doubles wide;
            memcpy(&wide, g + at, sizeof wide);
            sum[p] += __builtin_convertvector(lanes_at(x + at) - lanes_at(b + at), Doubles) * wide;
        }
    memcpy(lane, sum, sizeof lane);
    for (int k = 0; k < LANES; k++) total += lane[k];
    for (; i < n; i++) total += (double)(x[i] - b[i]) * g[i];
    return total;
}

/* ⟨g, τ_s⟩ of every source; with bounds the τ_s are trimmed and only what agrees is taken. out is (N,) float64. */
static int NAME(dots_blocks)(Chunk *c, const float *g, double *out)
{
    const Py_ssize_t N = c->sources;
    float *delta = calloc(c->bounds ? (size_t)N * BLOCK : 1, sizeof(float));
    float base_space[BLOCK], space[BLOCK], row[BLOCK] = {0};
    const float zero[BLOCK] = {0};
    double wide[BLOCK];
    if (!delta) return -1;
    memset(out, 0, sizeof(double) * (size_t)N);
    for (Py_ssize_t start = 0; start < c->entries; start += BLOCK) {
        const Py_ssize_t n = c->entries - start < BLOCK ? c->entries - start : BLOCK;
        const float *base = rows_of(base_space, c->base + start * WIDTH[c->base_dtype], c->base_dtype, n);
        for (Py_ssize_t i = 0; i < n; i++) wide[i] = (double)g[start + i];
        for (Py_ssize_t s = 0; s < N; s++) {
            const float *x = rows_of(space, c->from[s] + start * WIDTH[c->dtype[s]], c->dtype[s], n);
            if (!c->bounds) {
                out[s] += delta_dot(x, base, wide, n);
                continue;
            }
            for (Py_ssize_t i = 0; i < n; i++) row[i] = x[i] - base[i];
            trim(delta + s * BLOCK, row, c->bounds[s], n);
        }
        if (c->bounds) {
            agree(delta, N, n);
            for (Py_ssize_t s = 0; s < N; s++) out[s] += delta_dot(delta + s * BLOCK, zero, wide, n);
        }
    }
    c->finite = 1;
    for (Py_ssize_t s = 0; s < N; s++) c->finite &= isfinite(out[s]) != 0;
    free(delta);
    return 0;
}

/* Counts of magnitudes |τ_s|, as the bits of a float32: how many are at least low[s] + span, and, between low[s] and
 * that, a histogram of (bits - low[s]) >> shift. counts is (N, 1 + (span >> shift)) int64 and is added to. */
static int NAME(count_blocks)(Chunk *c, const uint32_t *low, uint32_t span, int shift, int64_t *counts)
{
    const Py_ssize_t N = c->sources, width = 1 + (Py_ssize_t)(span >> shift);
    float base[BLOCK], row[BLOCK];
    uint32_t bits[BLOCK], inside[BLOCK];
    for (Py_ssize_t start = 0; start < c->entries; start += BLOCK) {
        const Py_ssize_t n = c->entries - start < BLOCK ? c->entries - start : BLOCK;
        if (c->base) load(base, c->base + start * WIDTH[c->base_dtype], c->base_dtype, n);
        for (Py_ssize_t s = 0; s < N; s++) {
            const uint32_t from = low[s];
            uint32_t above = 0;
            Py_ssize_t found = 0;
            load(row, c->from[s] + start * WIDTH[c->dtype[s]], c->dtype[s], n);
            if (c->base)
                for (Py_ssize_t i = 0; i < n; i++) row[i] = row[i] - base[i];
            for (Py_ssize_t i = 0; i < n; i++) {
                bits[i] = to_bits(row[i]) & 0x7fffffff;
                above += (uint32_t)(bits[i] >= from) & (uint32_t)(bits[i] - from >= span);
            }
            for (Py_ssize_t i = 0; i < n; i++) {
                inside[found] = bits[i] - from; /* below `from` it wraps round to a large number */
                found += inside[found] < span;
            }
            int64_t *own = counts + s * width;
            own[0] += above;
            for (Py_ssize_t i = 0; i < found; i++) own[1 + (inside[i] >> shift)]++;
        }
    }
    c->finite = 1; /* the pass that merges looks for NaN */
    return 0;
}

/* The magnitude |τ_s| that rank[s] entries reach or exceed (1 for the largest), by a radix selection over the 31 bits of
 * a float32 magnitude, most significant first. `space` holds as many numbers as there are entries. */
static int NAME(select_blocks)(Chunk *c, const int64_t *rank, float *out, uint32_t *space)
{
    static const int SHIFT[3] = {20, 10, 0};
    enum { BUCKETS = 2048, COPIES = 4 }; /* copies: equal neighbours would wait for each other's increment */
    float base[BLOCK], row[BLOCK];
    uint32_t *counts = malloc(sizeof(uint32_t) * BUCKETS * COPIES);
    if (!counts) return -1;
    for (Py_ssize_t s = 0; s < c->sources; s++) {
        for (Py_ssize_t start = 0; start < c->entries; start += BLOCK) {
            const Py_ssize_t n = c->entries - start < BLOCK ? c->entries - start : BLOCK;
            if (c->base) load(base, c->base + start * WIDTH[c->base_dtype], c->base_dtype, n);
            load(row, c->from[s] + start * WIDTH[c->dtype[s]], c->dtype[s], n);
            if (c->base)
                for (Py_ssize_t i = 0; i < n; i++) row[i] = row[i] - base[i];
            for (Py_ssize_t i = 0; i < n; i++) space[start + i] = to_bits(row[i]) & 0x7fffffff;
        }
        Py_ssize_t left = c->entries;
        int64_t place = rank[s];
        uint32_t found = 0;
        for (int level = 0; level < 3; level++) {
            const int shift = SHIFT[level];
            const uint32_t mask = level ? 1023 : 2047;
            memset(counts, 0, sizeof(uint32_t) * BUCKETS * COPIES);
            for (Py_ssize_t i = 0; i < left; i++) counts[(i & (COPIES - 1)) * BUCKETS + ((space[i] >> shift) & mask)]++;
            uint32_t bucket = mask + 1;
            for (int64_t above = 0; bucket-- > 0; place -= above) {
                above = 0;
                for (int copy = 0; copy < COPIES; copy++) above += counts[copy * BUCKETS + bucket];
                if (above >= place) break;
            }
            found |= bucket << shift;
            Py_ssize_t kept_ones = 0;
            for (Py_ssize_t i = 0; level < 2 && i < left; i++) {
                space[kept_ones] = space[i];
                kept_ones += ((space[i] >> shift) & mask) == bucket;
            }
            left = kept_ones;
        }
        out[s] = from_bits(found);
    }
    free(counts);
    c->finite = 1;
    return 0;
}

#undef from_bits
#undef to_bits
#undef from_half
#undef to_half
#undef to_bfloat
#undef to_float8
#undef load
#undef store
#undef mixed
#undef all_lanes
#undef signs_of
#undef lanes_at
#undef squared_norm
#undef TINY
#undef all_finite
#undef elect
#undef trim
#undef agree
#undef delta_dot
#undef drop
#undef rows_of
#undef hash_inputs
#undef squared_distance
#undef add_row
#undef sparse_row
#undef merge_sources
#undef Lanes
#undef Masks
#undef Doubles
#undef dot
#undef PARTS
#undef hash_stripes
#undef hash_blocks
#undef hash_end
#undef hash_stretch
#undef Words
