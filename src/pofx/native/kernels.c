/* The inner loops of splines and of autoregressive nets, in vectors of whatever width the machine has.

   `library.py` compiles this file when it is first needed. Tensors stand upright, the batch last, so that a vector holds one entry of
   several columns; the functions below work on the columns from `start` to `stop`, so that threads can share a batch. Formulas, symbols
   and order are those of `transforms/spline.py` and `nets/made.py`, against which the tests hold them. Built without -ffast-math: NaN
   passes through. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define INLINE static inline __attribute__((always_inline))
#define TO_BASE 0 /* from data */
#define TO_DATA 1

typedef struct { /* as `Form`; `least` of a width, of a height and of a slope */
  double bound, least;
  int64_t bins, circular;
} Form;

typedef struct { /* a map of the line, as `Kernel`: its kind and its numbers */
  int64_t kind;
  double most;
  Form form;
} Map;

enum { SHIFT, AFFINE, SPLINE };

typedef struct { /* the form of a `MADE` */
  int64_t dim, size, layers, backwards, residual;
  double far;
  const int64_t *widths, *skips, *ends; /* skips[j] < 0: none; ends[j * dim + i]: how many units of layer j see i variables at most */
  const int64_t *starts; /* of the weights of the layers, then of the last, in its numbers theta; biases follow their weights */
} Net;

/* What the i-th variable in order sees: of layer j, or (j < 0) of the variables. */
INLINE int64_t seen(const Net *net, int64_t j, int64_t i) { return j < 0 ? i : net->ends[j * net->dim + i]; }
INLINE int64_t from(const Net *net, int64_t j, int64_t i) { return j < 0 && net->backwards ? net->dim - i : 0; }
INLINE int64_t inputs(const Net *net, int64_t j) { return j ? net->widths[j - 1] : net->dim; }
INLINE int64_t outputs(const Net *net, int64_t j) { return j < net->layers ? net->widths[j] : net->size * net->dim; }
INLINE int64_t biases(const Net *net, int64_t j) { return net->starts[j] + outputs(net, j) * inputs(net, j); }
INLINE int64_t first(const Net *net, int64_t j) { /* where the units of layer j begin */
  int64_t sum = 0;
  for (int64_t k = 0; k < j; k++) sum += net->widths[k];
  return sum;
}
INLINE int64_t variable(const Net *net, int64_t i) { return net->backwards ? net->dim - 1 - i : i; }

#define REAL float
#define INTEGER int32_t
#define NAME(f) f##_float32
#define MANTISSA 23
#define EXP_MOST 86.0f
#define EXP_TERMS 7
#define LOG_TERMS 5
#define LOG1P_TERMS 8
#define LN2_HIGH 0x1.62e4p-1f /* few digits: a product with an exponent is exact */
#define LN2_LOW 0x1.7f7d1cp-20f
#include __FILE__
#undef REAL
#undef INTEGER
#undef NAME
#undef MANTISSA
#undef EXP_MOST
#undef EXP_TERMS
#undef LOG_TERMS
#undef LOG1P_TERMS
#undef LN2_HIGH
#undef LN2_LOW

#define REAL double
#define INTEGER int64_t
#define NAME(f) f##_float64
#define MANTISSA 52
#define EXP_MOST 700.0
#define EXP_TERMS 13
#define LOG_TERMS 12
#define LOG1P_TERMS 17
#define LN2_HIGH 0x1.62e42fefp-1
#define LN2_LOW 0x1.473de6af278edp-34
#include __FILE__

#else

#define vec NAME(vec)
#define ivec NAME(ivec)
#define LANES (BYTES / (int)sizeof(REAL))
#define VECTORS 2 /* of a tile of the net */
#define ROWS 6 /* at a time: these sums, and what they are made of, fill the registers */
#define DOWN 4
#define ACROSS 6
#define TILE (VECTORS * LANES)

typedef REAL vec __attribute__((vector_size(BYTES)));
typedef INTEGER ivec __attribute__((vector_size(BYTES)));
typedef REAL NAME(anywhere) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

/* -- arithmetic ------------------------------------------------------------------------------------------------------------- */

INLINE vec NAME(all)(REAL a) { return a - (vec){0}; }
INLINE vec NAME(load)(const REAL *p) { return *(const NAME(anywhere) *)p; }
INLINE void NAME(store)(REAL *p, vec a) { *(NAME(anywhere) *)p = a; }
INLINE vec NAME(select)(ivec m, vec a, vec b) { return (vec)((m & (ivec)a) | (~m & (ivec)b)); }
INLINE vec NAME(at_least)(vec a, REAL b) { return NAME(select)(a < b, NAME(all)(b), a); } /* NaN stays, here and below */
INLINE vec NAME(at_most)(vec a, REAL b) { return NAME(select)(a > b, NAME(all)(b), a); }
INLINE vec NAME(clamp)(vec a, REAL most) { return NAME(at_most)(NAME(at_least)(a, -most), most); }
INLINE vec NAME(larger)(vec a, vec b) { return NAME(select)(a < b, b, a); }
INLINE vec NAME(abs)(vec a) { return NAME(select)(a < 0, -a, a); }
INLINE vec NAME(sqrt)(vec a) {
  for (int i = 0; i < LANES; i++) a[i] = sizeof(REAL) == 4 ? sqrtf(a[i]) : sqrt(a[i]);
  return a;
}

/* Adding it rounds to an integer, which then stands in the last digits. */
#define ROUND ((REAL)3 * (REAL)((int64_t)1 << (MANTISSA - 1)))

/* 2^n sum_k r^k / k!, x = n log 2 + r; at either end of the exponents it stays where it is. */
INLINE vec NAME(exp)(vec x) {
  vec held = NAME(clamp)(x, EXP_MOST), t = held * (REAL)1.44269504088896340736 + ROUND, n = t - ROUND;
  vec r = held - n * LN2_HIGH - n * LN2_LOW, sum = NAME(all)(1);
  for (int k = EXP_TERMS; k > 0; k--) sum = sum * r * ((REAL)1 / k) + 1;
  return NAME(select)(x == x, (vec)((ivec)sum + ((ivec)t << MANTISSA)), x);
}

/* 2 atanh f = 2 (f + f^3 / 3 + f^5 / 5 + ...) */
INLINE vec NAME(twice_atanh)(vec f, int terms) {
  vec square = f * f, sum = NAME(all)((REAL)2 / (2 * terms - 1));
  for (int k = terms - 1; k > 0; k--) sum = sum * square + (REAL)2 / (2 * k - 1);
  return sum * f;
}

/* n log 2 + log m, x = 2^n m with m within a factor sqrt 2 of 1. */
INLINE vec NAME(log)(vec x) {
  ivec bits = (ivec)x, n = (bits - (ivec)NAME(all)((REAL)0.70710678118654752440)) >> MANTISSA;
  vec m = (vec)(bits - (n << MANTISSA)), exponent = (vec)(n + (ivec)NAME(all)(ROUND)) - ROUND;
  vec value = exponent * LN2_HIGH + (NAME(twice_atanh)((m - 1) / (m + 1), LOG_TERMS) + exponent * LN2_LOW);
  value = NAME(select)(x > 0, value, NAME(all)((REAL)-INFINITY));
  return NAME(select)(x - x == 0, value, NAME(select)(x == x, NAME(abs)(x), x));
}

/* max(a, 0) + log(1 + exp -|a|) */
INLINE vec NAME(softplus)(vec a) {
  vec e = NAME(exp)(-NAME(abs)(a));
  return NAME(at_least)(a, 0) + NAME(twice_atanh)(e / (e + 2), LOG1P_TERMS);
}

INLINE vec NAME(sigmoid)(vec a) { return 1 / (1 + NAME(exp)(-a)); }

/* -- rational-quadratic splines --------------------------------------------------------------------------------------------- */

typedef struct { /* the bin that each value stands in, and what the formulas have of it */
  vec k, left, right, below, above, raw0, raw1, own_x, upto_x, own_y, upto_y; /* own: its share; upto: of those before it */
  vec W, H, d0, d1;
} NAME(Bin);

typedef struct {
  vec s, D, M, share;
} NAME(Ratio);

/* Softmax over the bins. */
INLINE void NAME(shares)(const REAL *raw, int64_t stride, int64_t K, vec *share) {
  vec most = NAME(load)(raw), sum = {0};
  for (int64_t k = 1; k < K; k++) most = NAME(larger)(most, NAME(load)(raw + k * stride));
  for (int64_t k = 0; k < K; k++) sum += share[k] = NAME(exp)(NAME(load)(raw + k * stride) - most);
  vec over = 1 / sum;
  for (int64_t k = 0; k < K; k++) share[k] *= over;
}

/* The raw slope of knot k; at an end without a free one, any. */
INLINE vec NAME(raw_slope)(const REAL *raw, int64_t stride, Form f, int64_t k) {
  int64_t i = f.circular ? k % f.bins : k == 0 ? 0 : k == f.bins ? k - 2 : k - 1;
  return NAME(load)(raw + (2 * f.bins + i) * stride);
}

INLINE NAME(Bin) NAME(bin)(vec v, const REAL *raw, int64_t stride, Form f, int way, vec *widths, vec *heights) {
  const REAL B = f.bound, least = f.least, scale = 2 * f.bound * (1 - f.least * f.bins), step = 2 * f.bound * f.least;
  const int64_t K = f.bins;
  NAME(shares)(raw, stride, K, widths);
  NAME(shares)(raw + K * stride, stride, K, heights);
  NAME(Bin) b = {0};
  vec x = {0}, y = {0}, left = NAME(all)(-B), below = left, raw0 = NAME(raw_slope)(raw, stride, f, 0);
  for (int64_t k = 0; k < K; k++) {
    const REAL lower = (k + 1) * step - B;
    vec next_x = x + widths[k], next_y = y + heights[k], raw1 = NAME(raw_slope)(raw, stride, f, k + 1);
    vec right = next_x * scale + lower, above = next_y * scale + lower;
    if (k == K - 1) right = above = NAME(all)(B);
    ivec in = k == 0 ? (left == left) : (v >= (way == TO_DATA ? below : left));
    b.k = NAME(select)(in, NAME(all)(k), b.k);
    b.left = NAME(select)(in, left, b.left), b.right = NAME(select)(in, right, b.right);
    b.below = NAME(select)(in, below, b.below), b.above = NAME(select)(in, above, b.above);
    b.raw0 = NAME(select)(in, raw0, b.raw0), b.raw1 = NAME(select)(in, raw1, b.raw1);
    b.upto_x = NAME(select)(in, x, b.upto_x), b.own_x = NAME(select)(in, widths[k], b.own_x);
    b.upto_y = NAME(select)(in, y, b.upto_y), b.own_y = NAME(select)(in, heights[k], b.own_y);
    x = next_x, y = next_y, left = right, below = above, raw0 = raw1;
  }
  b.W = b.right - b.left, b.H = b.above - b.below;
  b.d0 = NAME(softplus)(b.raw0) + least, b.d1 = NAME(softplus)(b.raw1) + least;
  if (!f.circular) b.d0 = NAME(select)(b.k == 0, NAME(all)(1), b.d0), b.d1 = NAME(select)(b.k == (REAL)(K - 1), NAME(all)(1), b.d1);
  return b;
}

INLINE NAME(Ratio) NAME(ratio)(vec theta, NAME(Bin) b) {
  vec s = b.H / b.W, rest = 1 - theta, q = theta * rest, D = s + (b.d0 + b.d1 - 2 * s) * q;
  vec M = b.d1 * theta * theta + 2 * s * q + b.d0 * rest * rest;
  return (NAME(Ratio)){s, D, M, (s * theta * theta + b.d0 * q) / D};
}

INLINE vec NAME(slope)(NAME(Ratio) r) {
  vec steep = r.s / r.D;
  return r.M * steep * steep;
}

/* Theta at which the share w of H lies below; see `_root`. */
INLINE vec NAME(root)(vec w, NAME(Bin) b) {
  vec s = b.H / b.W, e = b.d0 * (1 - w) - b.d1 * w, g = 4 * s * s * w * (1 - w), twice = 2 * s * w;
  vec p = NAME(abs)(e) + NAME(sqrt)(e * e + g);
  return twice / (twice + NAME(select)(e < 0, g / p, p));
}

INLINE vec NAME(theta)(vec held, NAME(Bin) b, int way) {
  if (way == TO_BASE) return (held - b.left) / b.W;
  return NAME(root)(NAME(at_most)(NAME(at_least)((held - b.below) / b.H, 0), 1), b);
}

INLINE void NAME(spline_vector)(const REAL *v, const REAL *raw, int64_t stride, Form f, int way, REAL *out, REAL *log_slope) {
  const REAL B = f.bound;
  vec widths[f.bins], heights[f.bins], value = NAME(load)(v), held = NAME(clamp)(value, B);
  ivec outside = NAME(abs)(value) > B;
  NAME(Bin) b = NAME(bin)(held, raw, stride, f, way, widths, heights);
  vec theta = NAME(theta)(held, b, way);
  NAME(Ratio) r = NAME(ratio)(theta, b);
  vec to = way == TO_BASE ? b.below + b.H * r.share : b.left + b.W * theta, log = NAME(log)(NAME(slope)(r));
  NAME(store)(out, NAME(select)(outside, value, to));
  NAME(store)(log_slope, NAME(select)(outside, NAME(all)(0), way == TO_BASE ? log : -log));
}

/* Gradients of what the spline gives, in the value and in its numbers; see `_pull_back`. */
INLINE void NAME(pull_back)(vec grad, vec grad_log, vec theta, NAME(Bin) b, const vec *widths, const vec *heights, Form f, REAL *by_raw,
                            int64_t stride, vec *by_v) {
  const REAL scale = 2 * f.bound * (1 - f.least * f.bins);
  const int64_t K = f.bins;
  NAME(Ratio) r = NAME(ratio)(theta, b);
  vec rest = 1 - theta, q = theta * rest, lean = rest - theta, over = 1 / r.D, spread = 1 - 2 * q;
  vec up = grad * b.H * over, by_M = grad_log / r.M, by_D = 2 * grad_log * over;
  vec by_theta = up * r.s * r.M * over + 2 * by_M * (b.d1 * theta + r.s * lean - b.d0 * rest) - by_D * (b.d0 + b.d1 - 2 * r.s) * lean;
  vec by_s = up * (theta * theta - r.share * spread) + 2 * (grad_log / r.s + by_M * q) - by_D * spread;
  vec by_d0 = (up * q * (1 - r.share) + by_M * rest * rest - by_D * q) * NAME(sigmoid)(b.raw0);
  vec by_d1 = (by_M * theta * theta - by_D * q - up * q * r.share) * NAME(sigmoid)(b.raw1);
  vec over_W = 1 / b.W, by_left = by_theta * over_W;
  vec edge_x = -by_left * scale, size_x = -(by_s * r.s + by_theta * theta) * over_W * scale;
  vec edge_y = grad * scale, size_y = (grad * r.share + by_s * over_W) * scale;
  vec mean_x = edge_x * b.upto_x + size_x * b.own_x, mean_y = edge_y * b.upto_y + size_y * b.own_y, none = {0};
  for (int64_t k = 0; k < K; k++) {
    ivec own = b.k == (REAL)k, after = b.k > (REAL)k;
    vec to_x = NAME(select)(own, size_x, NAME(select)(after, edge_x, none)), to_y = NAME(select)(own, size_y, NAME(select)(after, edge_y, none));
    NAME(store)(by_raw + k * stride, widths[k] * (to_x - mean_x));
    NAME(store)(by_raw + (K + k) * stride, heights[k] * (to_y - mean_y));
  }
  for (int64_t knot = f.circular ? 0 : 1; knot < K; knot++) {
    vec here = NAME(select)(b.k == (REAL)knot, by_d0, none) + NAME(select)(b.k == (REAL)((knot ? knot : K) - 1), by_d1, none);
    NAME(store)(by_raw + (2 * K + knot - !f.circular) * stride, here);
  }
  *by_v = by_left;
}

/* d log(dy/dx) / dx */
INLINE vec NAME(curvature)(vec theta, NAME(Bin) b, NAME(Ratio) r) {
  vec lean = 1 - 2 * theta, dM = 2 * (b.d1 * theta + r.s * lean - b.d0 * (1 - theta));
  return (dM / r.M - 2 * (b.d0 + b.d1 - 2 * r.s) * lean / r.D) / b.W;
}

INLINE void NAME(spline_gradient_vector)(const REAL *v, const REAL *raw, int64_t stride, Form f, int way, const REAL *grad, const REAL *grad_log,
                                         REAL *by_v, REAL *by_raw) {
  const REAL B = f.bound;
  vec widths[f.bins], heights[f.bins], value = NAME(load)(v), held = NAME(clamp)(value, B), from = NAME(load)(grad), in_x;
  ivec outside = NAME(abs)(value) > B;
  vec g = NAME(select)(outside, NAME(all)(0), from), g_log = NAME(select)(outside, NAME(all)(0), NAME(load)(grad_log));
  NAME(Bin) b = NAME(bin)(held, raw, stride, f, way, widths, heights);
  vec theta = NAME(theta)(held, b, way);
  if (way == TO_DATA) { /* dx = (dy - what the numbers move y) / y', and the log-slope is that of the way there, negated */
    NAME(Ratio) r = NAME(ratio)(theta, b);
    vec pull = (g - g_log * NAME(curvature)(theta, b, r)) / NAME(slope)(r);
    NAME(pull_back)(-pull, -g_log, theta, b, widths, heights, f, by_raw, stride, &in_x);
    in_x = pull;
  } else NAME(pull_back)(g, g_log, theta, b, widths, heights, f, by_raw, stride, &in_x);
  NAME(store)(by_v, NAME(select)(outside, from, in_x));
}

/* Room for some zeros and more numbers, at the edge of a line of the cache. */
static REAL *NAME(room)(int64_t zeros, int64_t more) {
  return memset(aligned_alloc(64, ((zeros + more) * sizeof(REAL) + 63) / 64 * 64), 0, zeros * sizeof(REAL));
}

/* Columns at `from` into a block, of which `n` are there; and back. */
INLINE void NAME(pull)(REAL *block, int64_t wide, const REAL *from, int64_t stride, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; r++) memcpy(block + r * wide, from + r * stride, n * sizeof(REAL));
}

INLINE void NAME(push)(REAL *to, int64_t stride, const REAL *block, int64_t wide, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; r++) memcpy(to + r * stride, block + r * wide, n * sizeof(REAL));
}

#define BLOCK (4 * LANES) /* whole lines of the cache, however far the rows of the raw numbers lie apart */

void NAME(spline)(int64_t start, int64_t stop, const Form *form, int64_t way, int64_t columns, const REAL *v, const REAL *raw, REAL *out,
                  REAL *log_slope) {
  const Form f = *form;
  const int64_t P = 3 * f.bins - !f.circular;
  REAL values[BLOCK] = {0}, to[BLOCK], log[BLOCK], *numbers = NAME(room)(P * BLOCK, 0);
  for (int64_t at = start; at < stop; at += BLOCK) {
    const int64_t n = stop - at < BLOCK ? stop - at : BLOCK;
    NAME(pull)(numbers, BLOCK, raw + at, columns, P, n);
    NAME(pull)(values, BLOCK, v + at, 0, 1, n);
    for (int64_t i = 0; i < n; i += LANES) {
      if (way == TO_BASE) NAME(spline_vector)(values + i, numbers + i, BLOCK, f, TO_BASE, to + i, log + i);
      else NAME(spline_vector)(values + i, numbers + i, BLOCK, f, TO_DATA, to + i, log + i);
    }
    NAME(push)(out + at, 0, to, BLOCK, 1, n);
    NAME(push)(log_slope + at, 0, log, BLOCK, 1, n);
  }
  free(numbers);
}

void NAME(pull_spline)(int64_t start, int64_t stop, const Form *form, int64_t way, int64_t columns, const REAL *v, const REAL *raw,
                           const REAL *grad, const REAL *grad_log, REAL *by_v, REAL *by_raw) {
  const Form f = *form;
  const int64_t P = 3 * f.bins - !f.circular;
  REAL rows[4 * BLOCK] = {0}, *numbers = NAME(room)(2 * P * BLOCK, 0), *by_numbers = numbers + P * BLOCK;
  REAL *values = rows, *g = rows + BLOCK, *g_log = rows + 2 * BLOCK, *by = rows + 3 * BLOCK;
  for (int64_t at = start; at < stop; at += BLOCK) {
    const int64_t n = stop - at < BLOCK ? stop - at : BLOCK;
    NAME(pull)(numbers, BLOCK, raw + at, columns, P, n);
    NAME(pull)(values, BLOCK, v + at, 0, 1, n);
    NAME(pull)(g, BLOCK, grad + at, 0, 1, n);
    NAME(pull)(g_log, BLOCK, grad_log + at, 0, 1, n);
    for (int64_t i = 0; i < n; i += LANES) {
      if (way == TO_BASE) NAME(spline_gradient_vector)(values + i, numbers + i, BLOCK, f, TO_BASE, g + i, g_log + i, by + i, by_numbers + i);
      else NAME(spline_gradient_vector)(values + i, numbers + i, BLOCK, f, TO_DATA, g + i, g_log + i, by + i, by_numbers + i);
    }
    NAME(push)(by_v + at, 0, by, BLOCK, 1, n);
    NAME(push)(by_raw + at, columns, by_numbers, BLOCK, P, n);
  }
  free(numbers);
}

/* -- autoregressive nets ---------------------------------------------------------------------------------------------------- */

/* out_r += sum_k W[r * row + k * column] h_k, for R rows r and a tile of columns; the sums stay in registers. */
INLINE void NAME(some_rows)(int R, const REAL *W, int64_t row, int64_t column, const REAL *h, int64_t inputs, REAL *out) {
  vec sum[ROWS][VECTORS];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < VECTORS; t++) sum[r][t] = NAME(load)(out + r * TILE + t * LANES);
  for (int64_t k = 0; k < inputs; k++) {
    vec in[VECTORS];
    for (int t = 0; t < VECTORS; t++) in[t] = NAME(load)(h + k * TILE + t * LANES);
    for (int r = 0; r < R; r++)
      for (int t = 0; t < VECTORS; t++) sum[r][t] += W[r * row + k * column] * in[t];
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < VECTORS; t++) NAME(store)(out + r * TILE + t * LANES, sum[r][t]);
}

static void NAME(product)(int64_t n, const REAL *W, int64_t row, int64_t column, const REAL *h, int64_t inputs, REAL *out) {
  int64_t r = 0;
#define SOME(R) NAME(some_rows)(R, W + r * row, row, column, h, inputs, out + r * TILE)
  for (; r + ROWS <= n; r += ROWS) SOME(ROWS);
  switch (n - r) {
    case 5: SOME(5); break;
    case 4: SOME(4); break;
    case 3: SOME(3); break;
    case 2: SOME(2); break;
    case 1: SOME(1); break;
  }
#undef SOME
}

INLINE REAL NAME(total)(vec a) {
  REAL part[LANES];
  NAME(store)(part, a);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}

/* out[r * row + k] += sum over the columns of g_r h_k, for R rows and C columns of the gradient of a weight. */
INLINE void NAME(some_weights)(int R, int C, const REAL *g, int64_t ldg, const REAL *h, int64_t ldh, int64_t columns, REAL *out, int64_t row) {
  vec sum[DOWN][ACROSS];
  for (int r = 0; r < R; r++)
    for (int k = 0; k < C; k++) sum[r][k] = NAME(all)(0);
  for (int64_t i = 0; i < columns; i += LANES) {
    vec in[ACROSS];
    for (int k = 0; k < C; k++) in[k] = NAME(load)(h + k * ldh + i);
    for (int r = 0; r < R; r++) {
      vec down = NAME(load)(g + r * ldg + i);
      for (int k = 0; k < C; k++) sum[r][k] += down * in[k];
    }
  }
  for (int r = 0; r < R; r++)
    for (int k = 0; k < C; k++) out[r * row + k] += NAME(total)(sum[r][k]);
}

/* The same for n rows and m columns. Whatever `columns` rounds up to, the rows hold zeros there. */
static void NAME(weights)(int64_t n, int64_t m, const REAL *g, int64_t ldg, const REAL *h, int64_t ldh, int64_t columns, REAL *out, int64_t row) {
#define SOME(R, C) NAME(some_weights)(R, C, g + r * ldg, ldg, h + k * ldh, ldh, columns, out + r * row + k, row)
#define SOME_ROWS(R) \
  for (k = 0; k + ACROSS <= m; k += ACROSS) SOME(R, ACROSS); \
  for (; k + 2 <= m; k += 2) SOME(R, 2); \
  if (k < m) SOME(R, 1)
  int64_t r = 0, k;
  for (; r + DOWN <= n; r += DOWN) { SOME_ROWS(DOWN); }
  switch (n - r) {
    case 3: SOME_ROWS(3); break;
    case 2: SOME_ROWS(2); break;
    case 1: SOME_ROWS(1);
  }
#undef SOME_ROWS
#undef SOME
}

/* The map, a tile of one variable. */
static void NAME(bend)(const Map *map, int way, const REAL *v, const REAL *raw, REAL *out, REAL *log_slope) {
  for (int64_t i = 0; i < TILE; i += LANES) {
    if (map->kind == SPLINE) {
      if (way == TO_BASE) NAME(spline_vector)(v + i, raw + i, TILE, map->form, TO_BASE, out + i, log_slope + i);
      else NAME(spline_vector)(v + i, raw + i, TILE, map->form, TO_DATA, out + i, log_slope + i);
      continue;
    }
    vec value = NAME(load)(v + i), t = NAME(load)(raw + i), s = {0}, scale = NAME(all)(1);
    if (map->kind == AFFINE) {
      vec a = NAME(load)(raw + TILE + i);
      s = a / (1 + NAME(abs)(a) * (REAL)(1 / map->most));
      scale = NAME(exp)(way == TO_BASE ? s : -s);
    }
    NAME(store)(out + i, way == TO_BASE ? value * scale + t : (value - t) * scale);
    NAME(store)(log_slope + i, way == TO_BASE ? s : -s);
  }
}

/* Its gradients on the way to the base, in x and the numbers. */
static void NAME(bend_gradient)(const Map *map, const REAL *x, const REAL *raw, const REAL *grad, const REAL *grad_log, REAL *by_x, REAL *by_raw) {
  for (int64_t i = 0; i < TILE; i += LANES) {
    if (map->kind == SPLINE) {
      NAME(spline_gradient_vector)(x + i, raw + i, TILE, map->form, TO_BASE, grad + i, grad_log + i, by_x + i, by_raw + i);
      continue;
    }
    vec g = NAME(load)(grad + i), down = g;
    if (map->kind == AFFINE) {
      vec a = NAME(load)(raw + TILE + i), bend = 1 + NAME(abs)(a) * (REAL)(1 / map->most);
      down = g * NAME(exp)(a / bend);
      NAME(store)(by_raw + TILE + i, (NAME(load)(grad_log + i) + down * NAME(load)(x + i)) / (bend * bend));
    }
    NAME(store)(by_raw + i, g);
    NAME(store)(by_x + i, down);
  }
}

typedef struct { /* of a tile; z and lit of all layers, one after the other */
  REAL *v, *steering, *raw, *out, *log_slope, *log_det, *z, *lit, *context;
} NAME(Tile);

/* The units of all layers that see i variables and no more; see `MADE._complete`. */
static void NAME(complete)(const Net *net, const REAL *theta, int64_t i, NAME(Tile) t) {
  for (int64_t j = 0; j < net->layers; j++) {
    const int64_t a = i ? seen(net, j, i - 1) : 0, e = seen(net, j, i), skip = net->skips[j], at = first(net, j), start = from(net, j - 1, i);
    const REAL *W = theta + net->starts[j] + a * inputs(net, j) + start, *b = theta + biases(net, j);
    const REAL *h = (j ? t.lit + first(net, j - 1) * TILE : t.steering) + start * TILE;
    for (int64_t u = a; u < e; u++)
      for (int64_t c = 0; c < TILE; c += LANES) {
        vec own = NAME(all)(b[u]);
        if (j == 0 && t.context) own += NAME(load)(t.context + u * TILE + c);
        if (skip >= 0) own += NAME(load)(t.z + (first(net, skip) + u) * TILE + c);
        NAME(store)(t.z + (at + u) * TILE + c, own);
      }
    NAME(product)(e - a, W, inputs(net, j), 1, h, seen(net, j - 1, i), t.z + (at + a) * TILE);
    for (int64_t c = (at + a) * TILE; c < (at + e) * TILE; c += LANES) NAME(store)(t.lit + c, NAME(at_least)(NAME(load)(t.z + c), 0));
  }
}

/* One tile, variable by variable. */
static void NAME(unroll_tile)(const Net *net, const REAL *theta, const Map *map, int way, NAME(Tile) t) {
  const int64_t D = net->dim, L = net->layers;
  const REAL *W = theta + net->starts[L], *b = theta + biases(net, L);
  memset(t.log_det, 0, TILE * sizeof(REAL));
  for (int64_t i = 0; i < D; i++) {
    const int64_t d = variable(net, i);
    REAL *raw = t.raw + d * net->size * TILE, *out = t.out + d * TILE;
    NAME(complete)(net, theta, i, t);
    for (int64_t s = 0; s < net->size; s++)
      for (int64_t c = 0; c < TILE; c += LANES) NAME(store)(raw + s * TILE + c, NAME(all)(b[s * D + d]));
    NAME(product)(net->size, W + d * inputs(net, L), D * inputs(net, L), 1, t.lit + first(net, L - 1) * TILE, seen(net, L - 1, i), raw);
    NAME(bend)(map, way, t.v + d * TILE, raw, out, t.log_slope);
    const REAL *x = way == TO_DATA ? out : t.v + d * TILE;
    for (int64_t c = 0; c < TILE; c += LANES) {
      NAME(store)(t.log_det + c, NAME(load)(t.log_det + c) + NAME(load)(t.log_slope + c));
      NAME(store)(t.steering + d * TILE + c, NAME(clamp)(NAME(load)(x + c), net->far));
    }
  }
}

#define ROOM(rows, wide) (next += (rows) * (wide), next - (rows) * (wide))

/* v (dim, columns), and what the context adds to the first layer (its width, columns) or NULL, to out (dim, columns) and log|det|
   (columns). Outputs (size, dim, ld), and all units before and after the ReLU (their number, ld), are kept where not NULL. */
void NAME(unroll)(int64_t start, int64_t stop, const Net *net, const REAL *theta, const Map *map, int64_t way, int64_t columns, int64_t ld,
                  const REAL *v, const REAL *context, REAL *out, REAL *log_det, REAL *raw, REAL *z, REAL *lit) {
  const int64_t D = net->dim, P = net->size, units = first(net, net->layers), shared = context ? net->widths[0] : 0;
  REAL *room = NAME(room)((3 * D + D * P + 2 + (net->residual ? 2 : 1) * units + shared) * TILE, 0), *next = room;
  NAME(Tile) t;
  t.v = ROOM(D, TILE), t.steering = ROOM(D, TILE), t.out = ROOM(D, TILE), t.raw = ROOM(D * P, TILE), t.lit = ROOM(units, TILE);
  t.log_slope = ROOM(1, TILE), t.log_det = ROOM(1, TILE);
  t.z = net->residual ? ROOM(units, TILE) : t.lit, t.context = context ? ROOM(shared, TILE) : NULL;
  for (int64_t at = start; at < stop; at += TILE) {
    const int64_t n = stop - at < TILE ? stop - at : TILE;
    NAME(pull)(t.v, TILE, v + at, columns, D, n);
    if (context) NAME(pull)(t.context, TILE, context + at, columns, shared, n);
    NAME(unroll_tile)(net, theta, map, way, t);
    NAME(push)(out + at, columns, t.out, TILE, D, n);
    NAME(push)(log_det + at, 0, t.log_det, TILE, 1, n);
    if (raw)
      for (int64_t d = 0; d < D; d++) NAME(push)(raw + d * ld + at, D * ld, t.raw + d * P * TILE, TILE, P, n);
    if (z) NAME(push)(z + at, ld, t.z, TILE, units, n);
    if (lit) NAME(push)(lit + at, ld, t.lit, TILE, units, n);
  }
  free(room);
}

typedef struct { /* of a tile; to_z of all layers, one after the other */
  REAL *x, *raw, *lit, *grad, *grad_log, *to_x, *to_raw, *to_z;
} NAME(Down);

/* From what is above layer j to its units: each feeds what sees at least as many variables. */
static void NAME(pull_layer)(const Net *net, const REAL *theta, int64_t j, NAME(Down) t) {
  const int64_t D = net->dim, L = net->layers, n = net->widths[j], at = first(net, j);
  const REAL *W = theta + net->starts[j + 1];
  REAL *own = t.to_z + at * TILE;
  memset(own, 0, n * TILE * sizeof(REAL));
  for (int64_t a = 0, e, i = 0; a < n; a = e) { /* several at a time, from where the first of them begins: what it feeds alone is 0 */
    while (seen(net, j, i) <= a) i++;
    e = a + ROWS < n ? a + ROWS : n;
    if (j + 1 < L) {
      const int64_t above = i ? seen(net, j + 1, i - 1) : 0;
      NAME(product)(e - a, W + above * n + a, 1, n, t.to_z + (first(net, j + 1) + above) * TILE, net->widths[j + 1] - above, own + a * TILE);
      continue;
    }
    const int64_t low = net->backwards ? 0 : i;
    for (int64_t s = 0; s < net->size; s++)
      NAME(product)(e - a, W + (s * D + low) * n + a, 1, n, t.to_raw + (s * D + low) * TILE, D - i, own + a * TILE);
  }
  for (int64_t c = 0; c < n * TILE; c += LANES) {
    vec dimmed = NAME(select)(NAME(load)(t.lit + at * TILE + c) > 0, NAME(load)(own + c), NAME(all)(0));
    for (int64_t k = j + 1; k < L; k++)
      if (net->skips[k] == j) dimmed += NAME(load)(t.to_z + first(net, k) * TILE + c);
    NAME(store)(own + c, dimmed);
  }
}

static void NAME(pull_tile)(const Net *net, const REAL *theta, const Map *map, NAME(Down) t, REAL *by_raw) {
  const int64_t D = net->dim, P = net->size;
  for (int64_t d = 0; d < D; d++) {
    NAME(bend_gradient)(map, t.x + d * TILE, t.raw + d * P * TILE, t.grad + d * TILE, t.grad_log, t.to_x + d * TILE, by_raw);
    for (int64_t s = 0; s < P; s++) memcpy(t.to_raw + (s * D + d) * TILE, by_raw + s * TILE, TILE * sizeof(REAL));
  }
  for (int64_t j = net->layers - 1; j >= 0; j--) NAME(pull_layer)(net, theta, j, t);
  for (int64_t i = 0; i < D; i += ROWS) {
    const int64_t n = D - i < ROWS ? D - i : ROWS, d = net->backwards ? D - i - n : i, a = seen(net, 0, i);
    REAL to[ROWS * TILE] = {0};
    NAME(product)(n, theta + net->starts[0] + a * D + d, 1, D, t.to_z + a * TILE, net->widths[0] - a, to);
    for (int64_t c = 0; c < n * TILE; c += LANES) {
      vec inside = NAME(select)(NAME(abs)(NAME(load)(t.x + d * TILE + c)) <= (REAL)net->far, NAME(load)(to + c), NAME(all)(0));
      NAME(store)(t.to_x + d * TILE + c, NAME(load)(t.to_x + d * TILE + c) + inside);
    }
  }
}

#define SLAB (8 * TILE) /* columns over which the gradients of weights are summed in registers */
#define APART (SLAB + LANES) /* from row to row: no power of two, lest rows push each other out of the cache */

/* Of n columns of a slab, as theta stands. */
static void NAME(slab)(const Net *net, const REAL *steering, const REAL *lit, const REAL *to_z, const REAL *to_raw, int64_t n, REAL *grads) {
  const int64_t D = net->dim, L = net->layers;
  for (int64_t j = 0; j <= L; j++) {
    const int64_t m = inputs(net, j), rows = outputs(net, j);
    const REAL *g = j < L ? to_z + first(net, j) * APART : to_raw, *h = j ? lit + first(net, j - 1) * APART : steering;
    for (int64_t i = 0; i < D; i++) {
      const int64_t k = from(net, j - 1, i), wide = seen(net, j - 1, i), a = j < L && i ? seen(net, j, i - 1) : 0;
      if (j < L) NAME(weights)(seen(net, j, i) - a, wide, g + a * APART, APART, h + k * APART, APART, n, grads + a * m + k, m);
      else NAME(weights)(net->size, wide, g + variable(net, i) * APART, D * APART, h, APART, n, grads + variable(net, i) * m, D * m);
    }
    grads += rows * m;
    for (int64_t r = 0; r < rows; r++) {
      vec sum = {0};
      for (int64_t c = 0; c < n; c += LANES) sum += NAME(load)(g + r * APART + c);
      grads[r] += NAME(total)(sum);
    }
    grads += rows;
  }
}

/* The gradient of the pass to the base: in x (dim, columns), in what the context added (its width, columns; or NULL), and, added to what
   stands there, in theta; of those in u (dim, columns) and log|det| (columns). */
void NAME(pull_unrolled)(int64_t start, int64_t stop, const Net *net, const REAL *theta, const Map *map, int64_t columns, int64_t ld, const REAL *x,
                         const REAL *raw, const REAL *lit, const REAL *grad, const REAL *grad_log, REAL *to_x, REAL *to_context, REAL *grads) {
  const int64_t D = net->dim, P = net->size, units = first(net, net->layers);
  REAL *room = NAME(room)((3 * D + 2 * D * P + P + 1 + 2 * units) * TILE, (D + 2 * units + D * P) * APART), *next = room;
  NAME(Down) t;
  t.x = ROOM(D, TILE), t.raw = ROOM(D * P, TILE), t.lit = ROOM(units, TILE), t.grad = ROOM(D, TILE), t.grad_log = ROOM(1, TILE);
  t.to_x = ROOM(D, TILE), t.to_raw = ROOM(D * P, TILE), t.to_z = ROOM(units, TILE);
  REAL *by_raw = ROOM(P, TILE), *steering = ROOM(D, APART), *lits = ROOM(units, APART), *to_zs = ROOM(units, APART), *to_raws = ROOM(D * P, APART);
  for (int64_t slab = start; slab < stop; slab += SLAB) {
    const int64_t wide = stop - slab < SLAB ? stop - slab : SLAB;
    for (int64_t at = slab; at < slab + wide; at += TILE) {
      const int64_t n = slab + wide - at < TILE ? slab + wide - at : TILE, c = at - slab;
      if (n < TILE) memset(room, 0, (size_t)((char *)t.to_x - (char *)room)); /* so that what is not there adds nothing */
      NAME(pull)(t.x, TILE, x + at, columns, D, n);
      for (int64_t d = 0; d < D; d++) NAME(pull)(t.raw + d * P * TILE, TILE, raw + d * ld + at, D * ld, P, n);
      NAME(pull)(t.lit, TILE, lit + at, ld, units, n);
      NAME(pull)(t.grad, TILE, grad + at, columns, D, n);
      NAME(pull)(t.grad_log, TILE, grad_log + at, 0, 1, n);
      NAME(pull_tile)(net, theta, map, t, by_raw);
      NAME(push)(to_x + at, columns, t.to_x, TILE, D, n);
      if (to_context) NAME(push)(to_context + at, columns, t.to_z, TILE, net->widths[0], n);
      for (int64_t k = 0; k < D * TILE; k += LANES)
        NAME(store)(steering + k / TILE * APART + c + k % TILE, NAME(clamp)(NAME(load)(t.x + k), net->far));
      NAME(push)(lits + c, APART, t.lit, TILE, units, TILE);
      NAME(push)(to_zs + c, APART, t.to_z, TILE, units, TILE);
      NAME(push)(to_raws + c, APART, t.to_raw, TILE, D * P, TILE);
    }
    NAME(slab)(net, steering, lits, to_zs, to_raws, (wide + TILE - 1) / TILE * TILE, grads);
  }
  free(room);
}

#undef vec
#undef ivec
#undef LANES
#undef VECTORS
#undef ROWS
#undef DOWN
#undef ACROSS
#undef TILE
#undef BLOCK
#undef SLAB
#undef APART
#undef ROOM
#undef ROUND

#endif
