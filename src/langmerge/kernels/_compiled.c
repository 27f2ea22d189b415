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

typedef struct {
    Py_ssize_t entries, sources;
    const char *base;             /* or NULL */
    int base_dtype, out_dtype, op, about_base, count, normalize;
    const char *from[MAX_SOURCES];
    int dtype[MAX_SOURCES];
    const float *weights;         /* w_i */
    const float *bounds;          /* ties: smallest magnitude kept; dare: p_i */
    const uint64_t *streams;      /* dare: 2 per source: key, and the bound below which a word keeps its entry */
    uint64_t offset;              /* dare: position of the first entry */
    float scale;
    char *out;                    /* or NULL */
    double *squares;              /* N + 1: ‖τ_i‖² and ‖τ_m‖² of the chunk, where there is a base */
    int finite;
} Chunk;


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
static const char *chosen = "plain";

static int choose(const char *name)
{
#ifdef MANY_SETS
    __builtin_cpu_init();
    if (!strcmp(name, "avx512") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        merge_blocks = merge_blocks_avx512, gram_blocks = gram_blocks_avx512, count_blocks = count_blocks_avx512;
        select_blocks = select_blocks_avx512;
        chosen = "avx512";
        return 1;
    }
    if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        merge_blocks = merge_blocks_avx2, gram_blocks = gram_blocks_avx2, count_blocks = count_blocks_avx2;
        select_blocks = select_blocks_avx2;
        chosen = "avx2";
        return 1;
    }
#endif
    if (!strcmp(name, "plain")) {
        merge_blocks = merge_blocks_plain, gram_blocks = gram_blocks_plain, count_blocks = count_blocks_plain;
        select_blocks = select_blocks_plain;
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

static PyObject *merge(PyObject *self, PyObject *args)
{
    (void)self;
    Chunk *c = PyMem_Calloc(1, sizeof *c);
    Buffers b = {0};
    PyObject *inputs, *base, *weights, *bounds, *streams, *out, *squares;
    Py_ssize_t offset;
    int failed = 1, finite = 0;
    if (!c) return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "nO!OipppOOOnfOO", &c->entries, &PyTuple_Type, &inputs, &base, &c->op, &c->about_base,
                          &c->count, &c->normalize, &weights, &bounds, &streams, &offset, &c->scale, &out,
                          &squares) ||
        begin(c, &b, inputs, base))
        goto end;
    const Py_ssize_t N = c->sources;
    c->offset = (uint64_t)offset;
    if (c->op < COMBINE || c->op > DARE_TIES || (c->about_base && !c->base) || (c->op != COMBINE && !c->about_base)) {
        PyErr_SetString(PyExc_ValueError, "this operation needs a base");
        goto end;
    }
    if (!(c->weights = (float *)take(&b, weights, 0, N * 4, 0))) goto end;
    if (c->op != COMBINE && !(c->bounds = (float *)take(&b, bounds, 0, N * 4, 0))) goto end;
    if (c->op >= DARE && !(c->streams = (uint64_t *)take(&b, streams, 0, N * 16, 0))) goto end;
    if (out != Py_None && !(c->out = take_input(&b, out, c->entries, &c->out_dtype, 1))) goto end;
    if (!(c->squares = (double *)take(&b, squares, 0, (N + 1) * 8, 1))) goto end;
    Py_BEGIN_ALLOW_THREADS
    failed = merge_blocks(c);
    Py_END_ALLOW_THREADS
    finite = c->finite;
end:
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
     "merge(entries, inputs, base, op, about_base, count, normalize, weights, bounds, streams, offset, scale, out, "
     "squares) -> finite"},
    {"gram", gram, METH_VARARGS, "gram(entries, inputs, base, out) -> finite"},
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
