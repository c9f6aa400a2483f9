// Attention over packed rows and over cache slots on a CPU, in float32. Called by attention.py, compiled by build.py.
//
// Queries, keys and values are read in place: element (t, h, d) is at t * token + h * head + d.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "vectors.h"

namespace {

constexpr long ROWS = 6;     // rows of a product that share each load of its right side
constexpr long QUERIES = 30; // queries whose scores fit into the cache together
constexpr long CHUNK = 128;  // queries of a segment that one thread takes

// The basic product: C = A B, or C += A B. Element (i, k) of A is at i * ai + k * ak.
struct Left {
    const float *at;
    long ai, ak;
};

// I is 0 to M W - 1. The loop is unrolled by hand, because compilers keep an array in registers only without a loop.
template <int M, int W, int... I>
void tile(Left a, long inner, const float *b, long ldb, float *c, long ldc, bool add, std::integer_sequence<int, I...>) {
    vec total[M * W];
    ((total[I] = add ? load(c + I / W * ldc + I % W * VEC) : vec{}), ...);
    for (long k = 0; k < inner; k++, b += ldb)
        ((total[I] += a.at[I / W * a.ai + k * a.ak] * load(b + I % W * VEC)), ...);
    (store(c + I / W * ldc + I % W * VEC, total[I]), ...);
}

template <int M, int W> void tile(Left a, long inner, const float *b, long ldb, float *c, long ldc, bool add) {
    tile<M, W>(a, inner, b, ldb, c, ldc, add, std::make_integer_sequence<int, M * W>{});
}

template <int M, int W> void fewer(long rows, Left a, long inner, const float *b, long ldb, float *c, long ldc, bool add) {
    if constexpr (M > 0) {
        if (rows >= M) {
            tile<M, W>(a, inner, b, ldb, c, ldc, add);
            rows -= M, a.at += M * a.ai, c += M * ldc;
        }
        fewer<M / 2, W>(rows, a, inner, b, ldb, c, ldc, add);
    }
}

template <int W> void strip(long rows, Left a, long inner, const float *b, long ldb, float *c, long ldc, bool add) {
    for (; rows >= ROWS; rows -= ROWS, a.at += ROWS * a.ai, c += ROWS * ldc) tile<ROWS, W>(a, inner, b, ldb, c, ldc, add);
    fewer<4, W>(rows, a, inner, b, ldb, c, ldc, add);
}

// `columns` is a multiple of VEC.
void product(long rows, long columns, long inner, Left a, const float *b, long ldb, float *c, long ldc, bool add) {
    for (; columns >= WIDE * VEC; columns -= WIDE * VEC, b += WIDE * VEC, c += WIDE * VEC)
        strip<WIDE>(rows, a, inner, b, ldb, c, ldc, add);
    if (WIDE > 3 && columns == 3 * VEC) strip<3>(rows, a, inner, b, ldb, c, ldc, add);
    if (WIDE > 2 && columns == 2 * VEC) strip<2>(rows, a, inner, b, ldb, c, ldc, add);
    if (columns == VEC) strip<1>(rows, a, inner, b, ldb, c, ldc, add);
}

}  // namespace

struct Rows {  // a tensor: its address, and the strides of tokens and heads
    const float *at;
    long token, head;
    const float *of(long t, long h) const { return at + t * token + h * head; }
};

// Queries `begin` to `begin + count`. They see `before` tokens from `prefix` on, then each other, causally.
struct Segment {
    long begin, count, prefix, before;
};

struct Part {
    long segment, query;
};

struct Shape {
    long heads, key_heads, width;  // query heads, key heads, floats per head
    long window;                   // tokens that a query sees, its own included
    float scale;
    int threads;
};

namespace {

// Keys (or values) of a segment as columns: those before the segment, then its own up to `count`.
void columns(const Rows &before, const Rows &own, const Segment &segment, long count, long head, long width, float *to,
             long ld) {
    transpose(own.of(segment.begin, head), own.token, count, width, to + segment.before, ld);
    // stores write whole vectors, so the later columns come first, and the last partial vector is copied one by one
    const long whole = segment.before / VEC * VEC;
    transpose(before.of(segment.prefix, head), before.token, whole, width, to, ld);
    for (long i = whole; i < segment.before; i++)
        for (long d = 0; d < width; d++) to[d * ld + i] = before.of(segment.prefix + i, head)[d];
}

// Rows times the keys (or values) of a segment, read in place.
void weigh(long rows, Left a, long from, long to, const Rows &before, const Rows &own, const Segment &segment, long head,
           const Shape &shape, float *c, long ldc) {
    const long first = std::min(from, segment.before), split = std::min(to, segment.before);
    product(rows, shape.width, split - first, {a.at + first * a.ak, a.ai, a.ak}, before.of(segment.prefix + first, head),
            before.token, c, ldc, false);
    const long start = std::max(from, segment.before);
    if (to > start)
        product(rows, shape.width, to - start, {a.at + start * a.ak, a.ai, a.ak},
                own.of(segment.begin + start - segment.before, head), own.token, c, ldc, true);
}

// Sets scores in [begin, end) that the query at `position` must not see to minus infinity; bounds are multiples of VEC.
void hide(float *scores, long begin, long end, long position, long window) {
    const long from = position - window + 1;
    for (long j = begin; j < from && j < end; j++) scores[j] = -INFINITY;
    for (long j = position + 1; j < end; j++) scores[j] = -INFINITY;
}

long first_seen(long position, long window) {
    const long from = position - window + 1;
    return from > 0 ? from / VEC * VEC : 0;
}

// Scores of G queries with consecutive keys. `next` is prefetched, since it is read soon after.
template <int G>
void dots(const float *q, long head, const float *k, long token, long count, long width, const float *next, float *scores,
          long ld) {
    for (long i = 0; i < count; i++, k += token, next += token) {
        vec total[G] = {};
        for (long d = 0; d < width; d += VEC) {
            const vec line = load(k + d);
            __builtin_prefetch(next + d);
            for (int g = 0; g < G; g++) total[g] += load(q + g * head + d) * line;
        }
        for (int g = 0; g < G; g++) scores[g * ld + i] = sum(total[g]);
    }
}

void dots(long groups, const float *q, long head, const float *k, long token, long count, long width, const float *next,
          float *scores, long ld) {
    for (; groups >= 4; groups -= 4, q += 4 * head, scores += 4 * ld)
        dots<4>(q, head, k, token, count, width, next, scores, ld);
    if (groups == 3) dots<3>(q, head, k, token, count, width, next, scores, ld);
    if (groups == 2) dots<2>(q, head, k, token, count, width, next, scores, ld);
    if (groups == 1) dots<1>(q, head, k, token, count, width, next, scores, ld);
}

// Replaces scores by e^(scale (score - largest)); returns their sum, and scale times the largest.
std::pair<float, float> softmax(float *scores, long begin, long end, float scale) {
    vec top = load(scores + begin);
    for (long j = begin + VEC; j < end; j += VEC) top = load(scores + j) > top ? load(scores + j) : top;
    const float most = largest(top);
    vec total{};
    for (long j = begin; j < end; j += VEC) {
        const vec weight = exponential((load(scores + j) - most) * scale);
        store(scores + j, weight);
        total += weight;
    }
    return {sum(total), scale * most};
}

}  // namespace

extern "C" {

int vector_floats() { return VEC; }

// Queries of a segment that a task takes.
long query_chunk() { return CHUNK; }

// Writes out (T, heads, width) and, for the backward pass, the logarithm of each softmax's denominator: lse (heads, T).
// A part is a segment and the first of its queries that a task takes.
void attend_segments(const Rows *q, const Rows *k, const Rows *v, const Rows *before_k, const Rows *before_v,
                     const Segment *segments, long count, const Part *parts, long part_count, const Shape *shape,
                     long tokens, float *out, float *lse) {
    const long groups = shape->heads / shape->key_heads, width = shape->width;
    long longest = 0;
    for (long r = 0; r < count; r++) longest = std::max(longest, segments[r].before + segments[r].count);
    const long tasks = part_count * shape->key_heads;
    const long ld = up(longest) + VEC;
    const int threads = team(0.1 * tokens * longest * shape->heads * width, shape->threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch keys(width * ld), scores(QUERIES * ld);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < tasks; task++) {
            const Segment segment = segments[parts[task / shape->key_heads].segment];
            const long head = task % shape->key_heads, first = parts[task / shape->key_heads].query;
            const long last = std::min(first + CHUNK, segment.count);
            columns(*before_k, *k, segment, last, head, width, keys.at, ld);
            for (long h = head * groups; h < (head + 1) * groups; h++)
                for (long i = first; i < last; i += QUERIES) {
                    const long rows = std::min(QUERIES, last - i), position = segment.before + i;
                    const long begin = first_seen(position, shape->window), end = up(position + rows);
                    const Left query{q->of(segment.begin + i, h), q->token, 1};
                    product(rows, end - begin, width, query, keys.at + begin, ld, scores.at + begin, ld, false);
                    float *target = out + ((segment.begin + i) * shape->heads + h) * width;
                    float denominator[QUERIES];
                    for (long row = 0; row < rows; row++) {
                        float *mine = scores.at + row * ld;
                        hide(mine, begin, end, position + row, shape->window);
                        const auto [total, most] = softmax(mine, begin, end, shape->scale);
                        denominator[row] = total;
                        lse[h * tokens + segment.begin + i + row] = most + std::log(total);
                    }
                    weigh(rows, {scores.at, ld, 1}, begin, position + rows, *before_v, *v, segment, head, *shape, target,
                          shape->heads * width);
                    for (long row = 0; row < rows; row++)
                        for (long d = 0; d < width; d++) target[row * shape->heads * width + d] /= denominator[row];
                }
        }
    }
}

// Writes grad_q (T, heads, width) and adds to grad_k and grad_v (T, key_heads, width). The segments of a group, from
// bounds[g] to bounds[g + 1], share a prefix; one thread takes them all, because they add to the prefix's gradient.
void attend_segments_backward(const Rows *q, const Rows *k, const Rows *v, const Segment *segments, const long *bounds,
                              long count, const Shape *shape, long tokens, const float *out, const float *lse,
                              const Rows *grad, float *grad_q, float *grad_k, float *grad_v) {
    const long groups = shape->heads / shape->key_heads, width = shape->width, token = shape->key_heads * width;
    long longest = 0;
    for (long r = 0; r < bounds[count]; r++)
        longest = std::max(longest, segments[r].before + segments[r].count);
    const long ld = up(longest) + VEC;
    const int threads = team(0.25 * tokens * longest * shape->heads * width, shape->threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch keys(width * ld), values(width * ld), scores(QUERIES * ld), slopes(QUERIES * ld);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < count * shape->key_heads; task++) {
            const long head = task % shape->key_heads, group = task / shape->key_heads;
            for (long r = bounds[group]; r < bounds[group + 1]; r++) {
                const Segment segment = segments[r];
                columns(*k, *k, segment, segment.count, head, width, keys.at, ld);
                columns(*v, *v, segment, segment.count, head, width, values.at, ld);
                for (long h = head * groups; h < (head + 1) * groups; h++)
                    for (long i = 0; i < segment.count; i += QUERIES) {
                        const long rows = std::min(QUERIES, segment.count - i), position = segment.before + i;
                        const long begin = first_seen(position, shape->window), seen = position + rows, end = up(seen);
                        const long at = segment.begin + i;
                        product(rows, end - begin, width, {q->of(at, h), q->token, 1}, keys.at + begin, ld,
                                scores.at + begin, ld, false);
                        product(rows, end - begin, width, {grad->of(at, h), grad->token, 1}, values.at + begin, ld,
                                slopes.at + begin, ld, false);
                        for (long row = 0; row < rows; row++) {
                            float *weight = scores.at + row * ld, *slope = slopes.at + row * ld;
                            const float *y = out + ((at + row) * shape->heads + h) * width, *dy = grad->of(at + row, h);
                            vec dot{};
                            for (long d = 0; d < width; d += VEC) dot += load(y + d) * load(dy + d);
                            const float mean = sum(dot), logarithm = lse[h * tokens + at + row];
                            hide(weight, begin, end, position + row, shape->window);
                            for (long j = begin; j < end; j += VEC) {
                                const vec p = exponential(load(weight + j) * shape->scale - logarithm);
                                store(weight + j, p);
                                store(slope + j, p * (load(slope + j) - mean) * shape->scale);
                            }
                        }
                        weigh(rows, {slopes.at, ld, 1}, begin, seen, *k, *k, segment, head, *shape,
                              grad_q + (at * shape->heads + h) * width, shape->heads * width);
                        // transposed: a key's gradient is a sum over the queries that see it
                        const auto collect = [&](const Scratch &weights, const Rows &x, float *to) {
                            const long split = std::min(begin, segment.before), middle = std::min(seen, segment.before);
                            product(middle - split, width, rows, {weights.at + split, 1, ld}, x.of(at, h), x.token,
                                    to + (segment.prefix + split) * token + head * width, token, true);
                            const long start = std::max(begin, segment.before);
                            product(seen - start, width, rows, {weights.at + start, 1, ld}, x.of(at, h), x.token,
                                    to + (segment.begin + start - segment.before) * token + head * width, token, true);
                        };
                        collect(slopes, *q, grad_k);
                        collect(scores, *grad, grad_v);
                    }
            }
        }
    }
}

// The next token of each slot. Its key and value are stored after the `lengths` ones of the slot in `keys` and `values`
// (slots, key_heads, max_len, width). Its queries see the shared prefix, the slot and themselves. Writes out (slots, heads,
// width).
void attend_slots(const Rows *q, const Rows *k, const Rows *v, const Rows *before_k, const Rows *before_v, long prefix,
                  float *keys, float *values, long max_len, const long *lengths, long slots, const Shape *shape,
                  float *out) {
    const long groups = shape->heads / shape->key_heads, width = shape->width, ld = up(prefix + max_len) + VEC;
    double seen = 0;  // keys and values, each read once
    for (long slot = 0; slot < slots; slot++) seen += 2.0 * (prefix + lengths[slot] + 1) * shape->key_heads * width;
    const int threads = team(0.18 * seen, shape->threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch scores(groups * ld);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < slots * shape->key_heads; task++) {
            const long slot = task / shape->key_heads, head = task % shape->key_heads;
            const long position = prefix + lengths[slot], from = first_seen(position, shape->window);
            float *mine_k = keys + task * max_len * width, *mine_v = values + task * max_len * width;
            std::memcpy(mine_k + lengths[slot] * width, k->of(slot, head), width * sizeof(float));
            std::memcpy(mine_v + lengths[slot] * width, v->of(slot, head), width * sizeof(float));
            const long first = std::min(from, prefix), skip = std::max(from - prefix, 0L);
            const long shared = prefix - first, own = lengths[slot] + 1 - skip, all = shared + own;
            const float *query = q->of(slot, head * groups);
            dots(groups, query, q->head, before_k->of(first, head), before_k->token, shared, width,
                 before_v->of(first, head), scores.at, ld);
            dots(groups, query, q->head, mine_k + skip * width, width, own, width, mine_v + skip * width,
                 scores.at + shared, ld);
            float *target = out + (slot * shape->heads + head * groups) * width;
            float denominator[64];
            for (long g = 0; g < groups; g++) {
                hide(scores.at + g * ld - from, from, from + up(all), position, shape->window);
                denominator[g] = softmax(scores.at + g * ld, 0, up(all), shape->scale).first;
            }
            product(groups, width, shared, {scores.at, ld, 1}, before_v->of(first, head), before_v->token, target, width,
                    false);
            product(groups, width, own, {scores.at + shared, ld, 1}, mine_v + skip * width, width, target, width, true);
            for (long g = 0; g < groups; g++)
                for (long d = 0; d < width; d++) target[g * width + d] /= denominator[g];
        }
    }
}
}
