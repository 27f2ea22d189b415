/* Fused kernels of the merge engine: one pass over a chunk of every source, float32 arithmetic.
 *
 * Each function does, entry by entry and in the same order of operations, what the torch functions in
 * langmerge.methods do, so that both give the same bits; contraction into fused multiply-adds is off (see setup.py).
 * Sums over a chunk are kept in 16 float64 lanes of fixed assignment: no instruction set can change a bit of them.
 * The interpreter's lock is released while a chunk is worked on: threads run over chunks.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weights are stored with the low byte first: on this machine torch does the work"
#endif

#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 1024, LANES = 16, MAX_SOURCES = 4096 };
enum { F32, BF16, F16, F64, F8_E4M3, F8_E5M2, DTYPES };
static const Py_ssize_t WIDTH[DTYPES] = {4, 2, 2, 8, 1, 1};

static float float8_values[2][256];

static void fill_float8(void)
{
    for (int code = 0; code < 256; code++) {
        int wide = (code >> 3) & 15, narrow = (code >> 2) & 31;
        float e4m3 = wide ? ldexpf(1.0f + (float)(code & 7) / 8, wide - 7) : ldexpf((float)(code & 7) / 8, -6);
        float e5m2 = narrow ? ldexpf(1.0f + (float)(code & 3) / 4, narrow - 15) : ldexpf((float)(code & 3) / 4, -14);
        if ((code & 0x7f) == 0x7f) e4m3 = NAN; /* E4M3 has no infinity */
        if (narrow == 31) e5m2 = code & 3 ? NAN : INFINITY;
        float8_values[0][code] = code & 0x80 ? -e4m3 : e4m3;
        float8_values[1][code] = code & 0x80 ? -e5m2 : e5m2;
    }
}

enum { COMBINE = 0, TIES = 1, DARE = 2, DARE_TIES = 3 };
enum { SUM = 0, COUNT = 1, UNWEIGHTED = 2 };

typedef struct {
    Py_ssize_t entries, sources;
    const char *base;             /* or NULL */
    int base_dtype, out_dtype, op, about_base, election, normalize;
    const char *from[MAX_SOURCES];
    int dtype[MAX_SOURCES];
    const float *weights;         /* w_i */
    const float *bounds;          /* ties: smallest magnitude kept; dare: p_i */
    const uint64_t *streams;      /* dare: 2 per source: key, and the bound below which a word keeps its entry */
    uint64_t offset;              /* dare: position of the first entry */
    float scale;
    char *out;                    /* or NULL */
    double *squares;              /* N + 1: ‖τ_i‖² and ‖τ_m‖² of the chunk, where there is a base */
    const uint8_t *hashed;        /* N + 1: whether an input's digest is wanted, the base's last; or NULL */
    uint8_t *digests;             /* (N + 1, 16) */
    uint64_t *hashing;            /* (N + 1, 8): where they stand */
    int finite;
} Chunk;

enum { HASH_SECRET = 192, HASH_BLOCK = 1024, HASHED = 241 }; /* shorter inputs have another formula */

/* The default secret of XXH3. */
static const uint8_t hash_secret[HASH_SECRET] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

static const uint64_t hash_start[8] = {0xC2B2AE3Du,         0x9E3779B185EBCA87u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u,
                                       0x85EBCA77C2B2AE63u, 0x85EBCA77u,         0x27D4EB2F165667C5u, 0x9E3779B1u};

static uint64_t folded(uint64_t x, uint64_t y)
{
    const unsigned __int128 product = (unsigned __int128)x * y;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_folded(const uint64_t *sum, const uint8_t *secret, uint64_t total)
{
    for (int k = 0; k < 4; k++) {
        uint64_t key[2];
        memcpy(key, secret + 16 * k, 16);
        total += folded(sum[2 * k] ^ key[0], sum[2 * k + 1] ^ key[1]);
    }
    total = (total ^ (total >> 37)) * 0x165667919E3779F9u;
    return total ^ (total >> 32);
}

/* One copy for each instruction set, chosen when the module is loaded. All give the same bits. */
#define JOIN_(name, suffix) name##_##suffix
#define JOIN(name, suffix) JOIN_(name, suffix)
#define NAME(name) JOIN(name, SET)

#define SET plain
#define WIDE 4
#include "_chunk.h"
#undef WIDE
#undef SET

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MANY_SETS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#define SET avx2
#define WIDE 8
#include "_chunk.h"
#undef WIDE
#undef SET
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")
#define SET avx512
#define WIDE 16
#include "_chunk.h"
#undef WIDE
#undef SET
#pragma GCC pop_options
#endif

static int (*merge_blocks)(Chunk *) = merge_blocks_plain;
static int (*gram_blocks)(Chunk *, double *) = gram_blocks_plain;
static int (*count_blocks)(Chunk *, const uint32_t *, uint32_t, int, int64_t *) = count_blocks_plain;
static int (*select_blocks)(Chunk *, const int64_t *, float *, uint32_t *) = select_blocks_plain;
static int (*dots_blocks)(Chunk *, const float *, double *) = dots_blocks_plain;
static const char *chosen = "plain";

static int choose(const char *name)
{
#ifdef MANY_SETS
    __builtin_cpu_init();
    if (!strcmp(name, "avx512") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        merge_blocks = merge_blocks_avx512, gram_blocks = gram_blocks_avx512, count_blocks = count_blocks_avx512;
        select_blocks = select_blocks_avx512, dots_blocks = dots_blocks_avx512;
        chosen = "avx512";
        return 1;
    }
    if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        merge_blocks = merge_blocks_avx2, gram_blocks = gram_blocks_avx2, count_blocks = count_blocks_avx2;
        select_blocks = select_blocks_avx2, dots_blocks = dots_blocks_avx2;
        chosen = "avx2";
        return 1;
    }
#endif
    if (!strcmp(name, "plain")) {
        merge_blocks = merge_blocks_plain, gram_blocks = gram_blocks_plain, count_blocks = count_blocks_plain;
        select_blocks = select_blocks_plain, dots_blocks = dots_blocks_plain;
        chosen = "plain";
        return 1;
    }
    return 0;
}

/* ---- Python ----------------------------------------------------------------------------------------------------- */

typedef struct {
    Py_buffer *held;
    Py_ssize_t count, room;
} Buffers;

static void let_go(Buffers *b)
{
    for (Py_ssize_t i = 0; i < b->count; i++) PyBuffer_Release(&b->held[i]);
    PyMem_Free(b->held);
    b->held = NULL;
}

/* `bytes` bytes of an object, from `offset` on; NULL with an exception where it has fewer. */
static char *take(Buffers *b, PyObject *object, Py_ssize_t offset, Py_ssize_t bytes, int writable)
{
    if (b->count == b->room) { PyErr_SetString(PyExc_RuntimeError, "too many buffers"); return NULL; }
    Py_buffer *view = &b->held[b->count];
    if (PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE)) return NULL;
    b->count++;
    if (offset < 0 || bytes < 0 || offset > view->len || bytes > view->len - offset) {
        PyErr_Format(PyExc_ValueError, "%zd bytes at %zd reach beyond a buffer of %zd", bytes, offset, view->len);
        return NULL;
    }
    return (char *)view->buf + offset;
}

/* One (buffer, offset, dtype). */
static char *take_input(Buffers *b, PyObject *triple, Py_ssize_t entries, int *dtype, int writable)
{
    PyObject *object;
    Py_ssize_t offset;
    if (!PyArg_ParseTuple(triple, "Oni", &object, &offset, dtype)) return NULL;
    if (*dtype < 0 || *dtype >= DTYPES) { PyErr_SetString(PyExc_ValueError, "unknown dtype"); return NULL; }
    return take(b, object, offset, entries * WIDTH[*dtype], writable);
}

static int begin(Chunk *c, Buffers *b, PyObject *inputs, PyObject *base)
{
    c->sources = PyTuple_Size(inputs);
    if (c->sources < 0) return -1;
    if (c->entries < 0 || c->entries > PY_SSIZE_T_MAX / 16 || c->sources < 1 || c->sources > MAX_SOURCES) {
        PyErr_SetString(PyExc_ValueError, "a negative or too large number of entries, or no or too many sources");
        return -1;
    }
    b->count = 0;
    b->room = c->sources + 8;
    b->held = PyMem_Calloc((size_t)b->room, sizeof(Py_buffer));
    if (!b->held) { PyErr_NoMemory(); return -1; }
    for (Py_ssize_t s = 0; s < c->sources; s++)
        if (!(c->from[s] = take_input(b, PyTuple_GetItem(inputs, s), c->entries, &c->dtype[s], 0))) return -1;
    c->base = NULL;
    if (base != Py_None && !(c->base = take_input(b, base, c->entries, &c->base_dtype, 0))) return -1;
    return 0;
}

static PyObject *finish(Buffers *b, int failed, int finite)
{
    let_go(b);
    if (failed) return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    return PyBool_FromLong(finite);
}

/* Digests of the inputs are wanted. */
static int begin_hashing(Chunk *c, Buffers *b, PyObject *hashed, PyObject *digests)
{
    const Py_ssize_t N = c->sources;
    if (!(c->hashed = (uint8_t *)take(b, hashed, 0, N + 1, 0))) return -1;
    if (!(c->digests = (uint8_t *)take(b, digests, 0, (N + 1) * 16, 1))) return -1;
    for (Py_ssize_t s = 0; s <= N; s++) {
        if (!c->hashed[s]) continue;
        if (s == N && !c->base) {
            PyErr_SetString(PyExc_ValueError, "there is no base to be hashed");
            return -1;
        }
        if (c->entries * WIDTH[s < N ? c->dtype[s] : c->base_dtype] < HASHED) {
            PyErr_SetString(PyExc_ValueError, "inputs of up to 240 bytes are hashed by another formula");
            return -1;
        }
    }
    c->hashing = PyMem_Malloc((size_t)(N + 1) * sizeof hash_start);
    if (!c->hashing) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t s = 0; s <= N; s++) memcpy(c->hashing + 8 * s, hash_start, sizeof hash_start);
    return 0;
}

static PyObject *merge(PyObject *self, PyObject *args)
{
    (void)self;
    Chunk *c = PyMem_Calloc(1, sizeof *c);
    Buffers b = {0};
    PyObject *inputs, *base, *weights, *bounds, *streams, *out, *squares, *hashed, *digests;
    Py_ssize_t offset;
    int failed = 1, finite = 0;
    if (!c) return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "nO!OipipOOOnfOOOO", &c->entries, &PyTuple_Type, &inputs, &base, &c->op, &c->about_base,
                          &c->election, &c->normalize, &weights, &bounds, &streams, &offset, &c->scale, &out,
                          &squares, &hashed, &digests) ||
        begin(c, &b, inputs, base))
        goto end;
    const Py_ssize_t N = c->sources;
    c->offset = (uint64_t)offset;
    if (c->op < COMBINE || c->op > DARE_TIES || (c->about_base && !c->base) || (c->op != COMBINE && !c->about_base)) {
        PyErr_SetString(PyExc_ValueError, "this operation needs a base");
        goto end;
    }
    if (c->election < SUM || c->election > UNWEIGHTED) {
        PyErr_SetString(PyExc_ValueError, "unknown election");
        goto end;
    }
    if (!(c->weights = (float *)take(&b, weights, 0, N * 4, 0))) goto end;
    if (c->op != COMBINE && !(c->bounds = (float *)take(&b, bounds, 0, N * 4, 0))) goto end;
    if (c->op >= DARE && !(c->streams = (uint64_t *)take(&b, streams, 0, N * 16, 0))) goto end;
    if (out != Py_None && !(c->out = take_input(&b, out, c->entries, &c->out_dtype, 1))) goto end;
    if (!(c->squares = (double *)take(&b, squares, 0, (N + 1) * 8, 1))) goto end;
    if (hashed != Py_None && begin_hashing(c, &b, hashed, digests)) goto end;
    Py_BEGIN_ALLOW_THREADS
    failed = merge_blocks(c);
    Py_END_ALLOW_THREADS
    finite = c->finite;
end:
    PyMem_Free(c->hashing);
    PyMem_Free(c);
    return finish(&b, failed, finite);
}

static PyObject *gram(PyObject *self, PyObject *args)
{
    (void)self;
    Chunk *c = PyMem_Calloc(1, sizeof *c);
    Buffers b = {0};
    PyObject *inputs, *base, *out;
    int failed = 1, finite = 0;
    double *to;
    if (!c) return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "nO!OO", &c->entries, &PyTuple_Type, &inputs, &base, &out) ||
        begin(c, &b, inputs, base) || !(to = (double *)take(&b, out, 0, c->sources * c->sources * 8, 1)))
        goto end;
    Py_BEGIN_ALLOW_THREADS
    failed = gram_blocks(c, to);
    Py_END_ALLOW_THREADS
    finite = c->finite;
end:
    PyMem_Free(c);
    return finish(&b, failed, finite);
}

static PyObject *dots(PyObject *self, PyObject *args)
{
    (void)self;
    Chunk *c = PyMem_Calloc(1, sizeof *c);
    Buffers b = {0};
    PyObject *inputs, *base, *gradient, *bounds, *out;
    int failed = 1, finite = 0;
    const float *g;
    double *to;
    if (!c) return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "nO!OOOO", &c->entries, &PyTuple_Type, &inputs, &base, &gradient, &bounds, &out) ||
        begin(c, &b, inputs, base))
        goto end;
    if (!c->base) {
        PyErr_SetString(PyExc_ValueError, "there is no task vector without a base");
        goto end;
    }
    if (!(g = (const float *)take(&b, gradient, 0, c->entries * 4, 0))) goto end;
    if (bounds != Py_None && !(c->bounds = (float *)take(&b, bounds, 0, c->sources * 4, 0))) goto end;
    if (!(to = (double *)take(&b, out, 0, c->sources * 8, 1))) goto end;
    Py_BEGIN_ALLOW_THREADS
    failed = dots_blocks(c, g, to);
    Py_END_ALLOW_THREADS
    finite = c->finite;
end:
    PyMem_Free(c);
    return finish(&b, failed, finite);
}

static PyObject *count(PyObject *self, PyObject *args)
{
    (void)self;
    Chunk *c = PyMem_Calloc(1, sizeof *c);
    Buffers b = {0};
    PyObject *inputs, *base, *low, *counts;
    unsigned int span;
    int shift, failed = 1, finite = 0;
    uint32_t *from;
    int64_t *to;
    if (!c) return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "nO!OOIiO", &c->entries, &PyTuple_Type, &inputs, &base, &low, &span, &shift, &counts) ||
        begin(c, &b, inputs, base) || !(from = (uint32_t *)take(&b, low, 0, c->sources * 4, 0)))
        goto end;
    if (shift < 0 || shift > 31 || span & ((1u << shift) - 1)) {
        PyErr_SetString(PyExc_ValueError, "shift lies outside 0 to 31, or span is no multiple of a bucket");
        goto end;
    }
    if (!(to = (int64_t *)take(&b, counts, 0, c->sources * (1 + (Py_ssize_t)(span >> shift)) * 8, 1))) goto end;
    Py_BEGIN_ALLOW_THREADS
    failed = count_blocks(c, from, span, shift, to);
    Py_END_ALLOW_THREADS
    finite = c->finite;
end:
    PyMem_Free(c);
    return finish(&b, failed, finite);
}

static PyObject *select_(PyObject *self, PyObject *args)
{
    (void)self;
    Chunk *c = PyMem_Calloc(1, sizeof *c);
    Buffers b = {0};
    PyObject *inputs, *base, *ranks, *out, *space;
    int failed = 1, finite = 0;
    int64_t *rank;
    float *to;
    uint32_t *room;
    if (!c) return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "nO!OOOO", &c->entries, &PyTuple_Type, &inputs, &base, &ranks, &space, &out) ||
        begin(c, &b, inputs, base) || !(rank = (int64_t *)take(&b, ranks, 0, c->sources * 8, 0)) ||
        !(room = (uint32_t *)take(&b, space, 0, c->entries * 4, 1)) ||
        !(to = (float *)take(&b, out, 0, c->sources * 4, 1)))
        goto end;
    for (Py_ssize_t s = 0; s < c->sources; s++)
        if (rank[s] < 1 || rank[s] > c->entries) {
            PyErr_SetString(PyExc_ValueError, "a rank lies outside 1 to the number of entries");
            goto end;
        }
    Py_BEGIN_ALLOW_THREADS
    failed = select_blocks(c, rank, to, room);
    Py_END_ALLOW_THREADS
    finite = c->finite;
end:
    PyMem_Free(c);
    return finish(&b, failed, finite);
}

static PyObject *instructions(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "|s", &name)) return NULL;
    if (name && !choose(name)) return PyErr_Format(PyExc_ValueError, "this machine has no instruction set %s", name);
    return PyUnicode_FromString(chosen);
}

static PyMethodDef functions[] = {
    {"merge", merge, METH_VARARGS,
     "merge(entries, inputs, base, op, about_base, election, normalize, weights, bounds, streams, offset, scale, out, "
     "squares, hashed, digests) -> finite"},
    {"gram", gram, METH_VARARGS, "gram(entries, inputs, base, out) -> finite"},
    {"dots", dots, METH_VARARGS, "dots(entries, inputs, base, gradient, bounds, out) -> finite"},
    {"count", count, METH_VARARGS, "count(entries, inputs, base, low, span, shift, counts) -> finite"},
    {"select", select_, METH_VARARGS, "select(entries, inputs, base, ranks, space, out) -> finite"},
    {"instructions", instructions, METH_VARARGS, "instructions([name]) -> the set in use: avx512, avx2 or plain"},
    {NULL, NULL, 0, NULL},
};

static int set_up(PyObject *module)
{
    (void)module;
    fill_float8();
    if (!choose("avx512") && !choose("avx2")) choose("plain");
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)set_up}, {0, NULL}};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", "Fused kernels of the merge engine.", 0,
                                 functions, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }
