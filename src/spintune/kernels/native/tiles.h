// Tiles of a matrix product: the sums that registers hold, and the panels and rows that they read. For products.cpp.
//
// Sums are float32. A product may round its factors to bfloat16, which is twice as fast where the processor multiplies
// vectors of bfloat16. Two rounded numbers that are neighbors in a sum then form one word of a panel.

#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "vectors.h"

#if defined(__AVX512BF16__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

struct Matrix {  // element (i, j) is at i * row + j * column; row or column is 1
    const float *at;
    long row, column;
    Matrix from(long i, long j) const { return {at + i * row + j * column, row, column}; }
};

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TALL = 8, ACROSS = 3;  // rows of a tile and vectors per row: its sums fill the registers
#else
constexpr int TALL = 6, ACROSS = 2;
#endif
constexpr long PANEL = ACROSS * VEC;
constexpr long AHEAD = 8;                        // lines prefetched before they are packed

constexpr long parts(long whole, long most) { return (whole + most - 1) / most; }

// How a product multiplies: what a word of a panel holds, and how a word of each side adds to sums. A number may be packed
// in several parts, each of which has a panel of its own.
struct Exact {
    static constexpr int NUMBERS = 1;  // per word
    static constexpr int PARTS = 1;
    // Explicitly fused where the processor can. Compilers fuse in some tiles and round twice in others (GCC for Zen, to
    // shorten dependency chains), and a row's bits would then depend on the number of rows in its tile.
    static vec add(vec total, float a, vec b) {
#if defined(__AVX512F__)
        return (vec)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)total);
#elif defined(__FMA__)
        return (vec)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)total);
#elif defined(__aarch64__)
        return (vec)vfmaq_n_f32((float32x4_t)total, (float32x4_t)b, a);
#else
        return total + a * b;
#endif
    }
    template <int> static vec words(vec x, vec) { return x; }
    template <int> static vec line(const float *at) { return load(at); }
};

#if defined(__AVX512BF16__)
struct Rounded {
    static constexpr int NUMBERS = 2, PARTS = 1;
    static vec add(vec total, float a, vec b) {
        return _mm512_dpbf16_ps(total, (__m512bh)_mm512_set1_ps(a), (__m512bh)(b));
    }
    // Words of numbers and of their successors in the sum.
    template <int> static vec words(vec x, vec next) {
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(next));
        return (vec)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
    // Words of numbers that are side by side in memory.
    template <int> static vec line(const float *at) { return (vec)_mm512_cvtne2ps_pbh(load(at + VEC), load(at)); }
};
#endif

template <class Way, int PART = 0> float word(float x, float next) {
    vec one{}, other{};
    one[0] = x, other[0] = next;
    return Way::template words<PART>(one, other)[0];
}

// Calls `pack` with the number of each part of a number, as a type.
template <class Way, class Pack, int PART = 0> void each_part(const Pack &pack) {
    pack(std::integral_constant<int, PART>{});
    if constexpr (PART + 1 < Way::PARTS) each_part<Way, Pack, PART + 1>(pack);
}

// What a tile fetches on the side for later: vectors from `at` on, one for each of its first words.
struct Fetch {
    const float *at;
    long lines;
};

// c (M rows of V vectors) = a b, or += a b, where b is a packed panel and rows of `a` are packed or `row` words apart. I
// is 0 to M V - 1. The loop is unrolled by hand, because compilers keep an array in registers only without a loop.
template <class Way, int M, int V, bool PACKED, int... I>
void tile(const float *a, long row, long words, const float *b, float *c, long ldc, bool add, Fetch fetch,
          std::integer_sequence<int, I...>) {
    vec total[M * V];
    ((total[I] = vec{}), ...);
    (__builtin_prefetch(c + I / V * ldc + I % V * VEC, 1), ...);  // the result is not in the cache: prefetched meanwhile
    long k = 0;
    for (; k < fetch.lines; k++, b += V * VEC) {  // the same loop twice: with a test inside it takes half as long again
        __builtin_prefetch(fetch.at + k * VEC, 0, 2);
        ((total[I] = Way::add(total[I], PACKED ? a[I / V + k * TALL] : a[I / V * row + k], load(b + I % V * VEC))), ...);
    }
    for (; k < words; k++, b += V * VEC)
        ((total[I] = Way::add(total[I], PACKED ? a[I / V + k * TALL] : a[I / V * row + k], load(b + I % V * VEC))), ...);
    if (add) ((total[I] += load(c + I / V * ldc + I % V * VEC)), ...);
    (store(c + I / V * ldc + I % V * VEC, total[I]), ...);
}

struct Left {  // rows of words, packed or `row` apart
    const float *at;
    long row;
    bool packed;
    Left below(long rows) const { return {at + (packed ? rows : rows * row), row, packed}; }
};

template <class Way, int M, int V>
void tile_of(Left a, long words, const float *b, float *c, long ldc, bool add, Fetch fetch = {nullptr, 0}) {
    constexpr std::make_integer_sequence<int, M * V> all{};
    if (a.packed) tile<Way, M, V, true>(a.at, 0, words, b, c, ldc, add, fetch, all);
    else tile<Way, M, V, false>(a.at, a.row, words, b, c, ldc, add, fetch, all);
}

template <class Way, int M, int V> void fewer(long rows, Left a, long words, const float *b, float *c, long ldc, bool add) {
    if constexpr (M > 0) {
        if (rows >= M) {
            tile_of<Way, M, V>(a, words, b, c, ldc, add);
            rows -= M, a = a.below(M), c += M * ldc;
        }
        fewer<Way, M / 2, V>(rows, a, words, b, c, ldc, add);
    }
}

template <class Way, int V> void tile_rows(long rows, Left a, long words, const float *b, float *c, long ldc, bool add) {
    if (rows == TALL) tile_of<Way, TALL, V>(a, words, b, c, ldc, add);
    else fewer<Way, 4, V>(rows, a, words, b, c, ldc, add);
}

// Up to TALL rows times a packed panel of `columns` columns. A partial last vector goes through a copy.
template <class Way>
void tiles(long rows, long columns, Left a, long words, const float *b, float *c, long ldc, bool add) {
    if (columns == PANEL) return tile_rows<Way, ACROSS>(rows, a, words, b, c, ldc, add);
    const long wide = up(columns);
    float copy[TALL * PANEL];
    float *to = wide == columns ? c : copy;
    const long ldt = wide == columns ? ldc : PANEL;
    if (to == copy && add)
        for (long i = 0; i < rows; i++) std::memcpy(copy + i * PANEL, c + i * ldc, 4 * columns);
    if (wide == VEC) tile_rows<Way, 1>(rows, a, words, b, to, ldt, add);
    else if (wide == 2 * VEC) tile_rows<Way, 2>(rows, a, words, b, to, ldt, add);
    else tile_rows<Way, ACROSS>(rows, a, words, b, to, ldt, add);
    if (to == copy)
        for (long i = 0; i < rows; i++) std::memcpy(c + i * ldc, copy + i * PANEL, 4 * columns);
}

// Word `w` of column j, zero beyond the last number.
template <class Way, int PART = 0> float word_of(Matrix b, long w, long j, long inner) {
    const long k = w * Way::NUMBERS;
    return word<Way, PART>(b.from(k, j).at[0], Way::NUMBERS > 1 && k + 1 < inner ? b.from(k + 1, j).at[0] : 0.0f);
}

// Packs a panel of the right side word by word, with zeros up to a whole vector. The parts of numbers are `apart` floats
// from each other, and made together, since the matrix is read from afar.
template <class Way> void pack_panel(Matrix b, long inner, long columns, float *to, long apart = 0) {
    constexpr long STEP = Way::NUMBERS;
    const long words = parts(inner, STEP), wide = up(columns), whole = columns / VEC * VEC;
    const long filled = b.column == 1 ? words : inner / (STEP * VEC) * VEC;
    if (b.column == 1)
        for (long w = 0, k = 0; w < words; w++, k += STEP)
            for (long j = 0; j < whole; j += VEC) {
                for (long next = 0; next < STEP; next++) __builtin_prefetch(b.at + (k + 2 * AHEAD * STEP + next) * b.row + j);
                const vec x = load(b.at + k * b.row + j), next = STEP > 1 && k + 1 < inner ? load(b.at + (k + 1) * b.row + j) : vec{};
                each_part<Way>([&](auto part) { store(to + part * apart + w * wide + j, Way::template words<part>(x, next)); });
            }
    else
        for (long j = 0; j < whole; j += VEC)
            for (long w = 0; w < filled; w += VEC)
                each_part<Way>([&](auto part) {
                    const auto line = [&](long i, long) { return Way::template line<part>(b.at + (j + i) * b.column + w * STEP); };
                    transpose_lines(line, VEC, VEC, to + part * apart + w * wide + j, wide);
                });
    each_part<Way>([&](auto part) {
        for (long w = 0; w < words; w++)
            for (long j = w < filled ? whole : 0; j < wide; j++)
                to[part * apart + w * wide + j] = j < columns ? word_of<Way, part>(b, w, j, inner) : 0.0f;
    });
}

// Packs rows of the left side as the tiles read them: word by word if rows are contiguous; if columns are, TALL rows
// column by column, and then the next TALL.
template <class Way> Left pack_rows(Matrix a, long rows, long inner, float *to) {
    constexpr long STEP = Way::NUMBERS;
    const long words = parts(inner, STEP), whole = rows / TALL;
    if (a.column == 1) {
        const long filled = inner / (STEP * VEC) * VEC;
        for (long i = 0; i < rows; i++) {
            for (long w = 0; w < filled; w += VEC) store(to + i * words + w, Way::template line<0>(a.at + i * a.row + w * STEP));
            const Matrix row{a.at + i * a.row, a.column, a.row};
            for (long w = filled; w < words; w++) to[i * words + w] = word_of<Way>(row, w, 0, inner);
        }
        return {to, words, false};
    }
    for (long w = 0, k = 0; w < words; w++, k += STEP) {
        const float *from = a.from(0, k).at, *next = STEP > 1 && k + 1 < inner ? a.from(0, k + 1).at : nullptr;
        for (long i = 0; i < rows; i += 16) __builtin_prefetch(from + AHEAD * a.column + i);
        long p = 0;
        if constexpr (STEP == 1)
            for (; p < whole; p++) std::memcpy(to + (p * words + w) * TALL, from + p * TALL, 4 * TALL);
        else
            for (; p + VEC / TALL <= whole; p += VEC / TALL) {
                const vec line = Way::template words<0>(load(from + p * TALL), next ? load(next + p * TALL) : vec{});
                for (int i = 0; i < VEC / TALL; i++)
                    std::memcpy(to + ((p + i) * words + w) * TALL, reinterpret_cast<const float *>(&line) + i * TALL, 4 * TALL);
            }
        for (long i = p * TALL; i < rows; i++)
            to[(i / TALL * words + w) * TALL + i % TALL] = word<Way>(from[i], next ? next[i] : 0.0f);
    }
    return {to, 0, true};
}

}  // namespace
