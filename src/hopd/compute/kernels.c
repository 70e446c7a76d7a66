/* Computes everything between the matrix products of a decoder layer, each in one pass over its data, on CPUs.

   Everything is computed in float and rounded where transformers' own modules round. The file includes itself once
   per dtype; kernels.py compiles it for the CPU of this machine. Rows are scheduled statically, so that results do not
   depend on timing. */

#ifndef T

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

typedef int64_t i64;
#define MOST_PARTS 16 /* a head's width is at most 256 */

static inline float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline uint16_t round_bf16(float x) { /* to nearest, ties to even; NaN from bf16 and from sums has no low bits, so it stays NaN */
    uint32_t bits = bits_of(x);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* e^x within a relative error of 2e-7: 2^n times a polynomial of the remainder, |r| <= ln 2 / 2. It has no branch, so
   that loops over it vectorise, and it keeps NaN. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 720 * r + 1.0f / 120;
    p = ((((p * r + 1.0f / 24) * r + 1.0f / 6) * r + 0.5f) * r + 1.0f) * r + 1.0f;
    return p * from_bits((uint32_t)((int32_t)n + 127) << 23);
}

/* Sixteen floats. Attention computes with these vectors: the width of its heads is a multiple of 16. */
typedef float vector __attribute__((vector_size(64)));
typedef float half __attribute__((vector_size(32)));
typedef uint32_t bits16 __attribute__((vector_size(64)));
typedef uint16_t shorts16 __attribute__((vector_size(32)));

static inline float sum(vector x) {
    half h[2];
    memcpy(h, &x, sizeof x);
    h[0] += h[1];
    float total[4];
    for (int i = 0; i < 4; i++) total[i] = h[0][i] + h[0][i + 4];
    return (total[0] + total[2]) + (total[1] + total[3]);
}

static inline vector load_float32(const float *from) {
    vector x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline vector load_bfloat16(const uint16_t *from) {
    shorts16 x;
    memcpy(&x, from, sizeof x);
    bits16 bits = __builtin_convertvector(x, bits16) << 16;
    vector y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

#define T float
#define NAMED(kernel) kernel##_float32
#define UP(x) (x)
#define DOWN(x) (x)
#include "kernels.c"
#undef T
#undef NAMED
#undef UP
#undef DOWN
#define T uint16_t
#define NAMED(kernel) kernel##_bfloat16
#define UP(x) from_bits((uint32_t)(x) << 16)
#define DOWN(x) round_bf16(x)
#include "kernels.c"

#else

static float NAMED(inverse_rms)(const T *x, i64 width, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < width; i++) sum += UP(x[i]) * UP(x[i]);
    return 1.0f / sqrtf(sum / width + eps);
}

/* x += added, unless that is null; out = weight * x / rms(x). */
void NAMED(norm)(T *out, T *x, const T *added, const T *weight, i64 rows, i64 width, float eps) {
#pragma omp parallel for schedule(static)
    for (i64 row = 0; row < rows; row++) {
        T *mine = x + row * width, *normed = out + row * width;
        if (added) {
            const T *more = added + row * width;
#pragma omp simd
            for (i64 i = 0; i < width; i++) mine[i] = DOWN(UP(mine[i]) + UP(more[i]));
        }
        float scale = NAMED(inverse_rms)(mine, width, eps);
#pragma omp simd
        for (i64 i = 0; i < width; i++) normed[i] = DOWN(UP(weight[i]) * UP(DOWN(UP(mine[i]) * scale)));
    }
}

/* The gradients of out = weight * x / rms(x): of x, and of the weight in float. */
void NAMED(norm_backward)(
    T *grad_x, float *grad_weight, const T *grad, const T *x, const T *weight, i64 rows, i64 width, float eps
) {
    int threads = omp_get_max_threads();
    float *parts = calloc((size_t)threads * width, sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float *part = parts + (size_t)omp_get_thread_num() * width;
#pragma omp for schedule(static)
        for (i64 row = 0; row < rows; row++) {
            const T *g = grad + row * width, *mine = x + row * width;
            T *to = grad_x + row * width;
            float scale = NAMED(inverse_rms)(mine, width, eps), along = 0;
#pragma omp simd reduction(+ : along)
            for (i64 i = 0; i < width; i++) along += UP(g[i]) * UP(weight[i]) * UP(mine[i]);
            along *= scale * scale / width;
#pragma omp simd
            for (i64 i = 0; i < width; i++) {
                part[i] += UP(g[i]) * UP(mine[i]) * scale;
                to[i] = DOWN(scale * (UP(g[i]) * UP(weight[i]) - UP(mine[i]) * along));
            }
        }
    }
    for (int thread = 0; thread < threads; thread++)
        for (i64 i = 0; i < width; i++) grad_weight[i] += parts[(size_t)thread * width + i];
    free(parts);
}

/* out = silu(gate) * up; rows of gate and up are `stride` elements apart. */
void NAMED(swiglu)(T *out, const T *gate, const T *up, i64 rows, i64 width, i64 stride) {
#pragma omp parallel for schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const T *g = gate + row * stride, *u = up + row * stride;
        T *to = out + row * width;
#pragma omp simd
        for (i64 i = 0; i < width; i++) to[i] = DOWN(UP(DOWN(UP(g[i]) * sigmoid(UP(g[i])))) * UP(u[i]));
    }
}

void NAMED(swiglu_backward)(T *grad_gate, T *grad_up, const T *grad, const T *gate, const T *up, i64 size) {
#pragma omp parallel for simd schedule(static)
    for (i64 i = 0; i < size; i++) {
        float g = UP(gate[i]), share = sigmoid(g), silu = g * share, d = UP(grad[i]);
        grad_up[i] = DOWN(d * silu);
        grad_gate[i] = DOWN(d * UP(up[i]) * share * (1.0f + g - silu));
    }
}

/* x rotated by pairs (i, i + width / 2), as transformers' rotate_half does. */
static void NAMED(rotate)(float *x, const T *cos, const T *sin, i64 width) {
    i64 half = width / 2;
#pragma omp simd
    for (i64 i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = UP(DOWN(a * UP(cos[i]) - b * UP(sin[i])));
        x[i + half] = UP(DOWN(b * UP(cos[i + half]) + a * UP(sin[i + half])));
    }
}

/* Reads a head's query or key, norms it by `weight` unless that is null, and rotates it. */
static void NAMED(take)(
    float *to, const T *from, const T *weight, float eps, const T *cos, const T *sin, i64 width
) {
    float scale = weight ? NAMED(inverse_rms)(from, width, eps) : 1.0f;
    for (i64 i = 0; i < width; i++) to[i] = weight ? UP(weight[i]) * UP(DOWN(UP(from[i]) * scale)) : UP(from[i]);
    NAMED(rotate)(to, cos, sin, width);
}

/* Attends with one key head's queries over its cached positions. A head is `parts` vectors, a constant after inlining. */
static inline __attribute__((always_inline)) void NAMED(attend_head)(
    T *out, const float *query, float *scores, const T *keys, const T *values, i64 share, i64 start, i64 length, int parts
) {
    i64 width = 16 * parts;
    vector one[MOST_PARTS];
    for (i64 t = start; t < length; t++) {
        for (int part = 0; part < parts; part++) one[part] = NAMED(load)(keys + t * width + 16 * part);
        for (i64 h = 0; h < share; h++) {
            vector product = load_float32(query + h * width) * one[0];
            for (int part = 1; part < parts; part++) product += load_float32(query + h * width + 16 * part) * one[part];
            scores[h * length + t] = sum(product);
        }
    }
    for (i64 h = 0; h < share; h++) {
        float *score = scores + h * length, highest = score[start], total = 0;
#pragma omp simd reduction(max : highest)
        for (i64 t = start; t < length; t++) highest = score[t] > highest ? score[t] : highest;
#pragma omp simd reduction(+ : total)
        for (i64 t = start; t < length; t++) total += score[t] = exponential(score[t] - highest);
        for (int part = 0; part < parts; part++) one[part] = (vector){0};
        for (i64 t = start; t < length; t++)
            for (int part = 0; part < parts; part++)
                one[part] += score[t] * NAMED(load)(values + t * width + 16 * part);
        for (int part = 0; part < parts; part++)
            for (int i = 0; i < 16; i++) out[h * width + 16 * part + i] = DOWN(one[part][i] / total);
    }
}

/* Attends with one token per sequence: writes its key and value to the cache at `end` and attends from `first[row]` to there.

   qkv (rows, heads + 2 groups, width); cache (rows, groups, capacity, width); cos, sin (rows, width). */
void NAMED(attend)(
    T *out, const T *qkv, T *keys, T *values, const T *cos, const T *sin, const i64 *first, const T *query_weight,
    const T *key_weight, i64 rows, i64 heads, i64 groups, i64 width, i64 capacity, i64 end, float scale, float eps
) {
    i64 share = heads / groups, length = end + 1;
#pragma omp parallel
    {
        float *query = malloc(sizeof(float) * share * (width + length) + sizeof(float) * width);
        float *key = query + share * width, *scores = key + width;
#pragma omp for schedule(static)
        for (i64 task = 0; task < rows * groups; task++) {
            i64 row = task / groups, group = task % groups;
            const T *mine = qkv + row * (heads + 2 * groups) * width, *c = cos + row * width, *s = sin + row * width;
            T *k = keys + task * capacity * width, *v = values + task * capacity * width;
            T *to = out + (row * heads + group * share) * width;
            NAMED(take)(key, mine + (heads + group) * width, key_weight, eps, c, s, width);
            for (i64 i = 0; i < width; i++) k[end * width + i] = DOWN(key[i]);
            memcpy(v + end * width, mine + (heads + groups + group) * width, sizeof(T) * width);
            for (i64 h = 0; h < share; h++) {
                NAMED(take)(query + h * width, mine + (group * share + h) * width, query_weight, eps, c, s, width);
                for (i64 i = 0; i < width; i++) query[h * width + i] *= scale;
            }
#define HEAD(parts) NAMED(attend_head)(to, query, scores, k, v, share, first[row], length, parts)
            switch (width / 16) {
            case 2: HEAD(2); break;
            case 4: HEAD(4); break;
            case 8: HEAD(8); break;
            default: HEAD((int)(width / 16));
            }
#undef HEAD
        }
        free(query);
    }
}

#endif
