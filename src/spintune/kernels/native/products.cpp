// Matrix products of linear layers, forward and backward. Called by products.py.
//
// Everything is float32. A product may round its factors to bfloat16 and still sum in float32, which is twice as fast
// where the processor multiplies bfloat16. Two rounded numbers that are neighbors in a sum then form one word of a panel.
//
// The loops follow K. Goto and R. van de Geijn, Anatomy of high-performance matrix multiplication (ACM TOMS 34, 2008):
// a tile of the result in registers, the right side packed into panels in the cache.

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
constexpr long INNER = 1024;                     // terms of a sum between two visits to the result
constexpr long SECOND = 160'000, THIRD = 1'500'000; // floats per thread in second- and third-level caches
constexpr long ROWS = 16 * TALL;                 // rows of the left side that are packed together
constexpr long AHEAD = 8;                        // lines prefetched before they are packed

constexpr long parts(long whole, long most) { return (whole + most - 1) / most; }

// How a product multiplies: what a word of a panel holds, and how a word of each side adds to sums.
struct Exact {
    static constexpr int NUMBERS = 1;  // per word
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
    static vec words(vec x, vec) { return x; }
    static vec line(const float *at) { return load(at); }
};

#if defined(__AVX512BF16__)
struct Rounded {
    static constexpr int NUMBERS = 2;
    static vec add(vec total, float a, vec b) {
        return _mm512_dpbf16_ps(total, (__m512bh)_mm512_set1_ps(a), (__m512bh)(b));
    }
    // Words of numbers and of their successors in the sum.
    static vec words(vec x, vec next) {
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(next));
        return (vec)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
    // Words of numbers that are side by side in memory.
    static vec line(const float *at) { return (vec)_mm512_cvtne2ps_pbh(load(at + VEC), load(at)); }
};
#endif

template <class Way> float word(float x, float next) {
    vec one{}, other{};
    one[0] = x, other[0] = next;
    return Way::words(one, other)[0];
}

// c (M rows of V vectors) = a b, or += a b, where b is a packed panel and rows of `a` are packed or `row` words apart. I
// is 0 to M V - 1. The loop is unrolled by hand, because compilers keep an array in registers only without a loop.
template <class Way, int M, int V, bool PACKED, int... I>
void tile(const float *a, long row, long words, const float *b, float *c, long ldc, bool add,
          std::integer_sequence<int, I...>) {
    vec total[M * V];
    ((total[I] = vec{}), ...);
    (__builtin_prefetch(c + I / V * ldc + I % V * VEC, 1), ...);  // the result is not in the cache: prefetched meanwhile
    for (long k = 0; k < words; k++, b += V * VEC)
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

template <class Way, int M, int V> void tile_of(Left a, long words, const float *b, float *c, long ldc, bool add) {
    constexpr std::make_integer_sequence<int, M * V> all{};
    if (a.packed) tile<Way, M, V, true>(a.at, 0, words, b, c, ldc, add, all);
    else tile<Way, M, V, false>(a.at, a.row, words, b, c, ldc, add, all);
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
template <class Way> float word_of(Matrix b, long w, long j, long inner) {
    const long k = w * Way::NUMBERS;
    return word<Way>(b.from(k, j).at[0], Way::NUMBERS > 1 && k + 1 < inner ? b.from(k + 1, j).at[0] : 0.0f);
}

// Packs a panel of the right side word by word, with zeros up to a whole vector.
template <class Way> void pack_panel(Matrix b, long inner, long columns, float *to) {
    constexpr long STEP = Way::NUMBERS;
    const long words = parts(inner, STEP), wide = up(columns), whole = columns / VEC * VEC;
    if (b.column == 1) {
        for (long w = 0, k = 0; w < words; w++, k += STEP)
            for (long j = 0; j < whole; j += VEC) {
                const vec next = STEP > 1 && k + 1 < inner ? load(b.at + (k + 1) * b.row + j) : vec{};
                store(to + w * wide + j, Way::words(load(b.at + k * b.row + j), next));
            }
    } else {
        const long filled = inner / (STEP * VEC) * VEC;
        const auto line = [&](long j, long w) { return Way::line(b.at + j * b.column + w * STEP); };
        transpose_lines(line, whole, filled, to, wide);
        for (long w = filled; w < words; w++)
            for (long j = 0; j < whole; j++) to[w * wide + j] = word_of<Way>(b, w, j, inner);
    }
    for (long w = 0; w < words && whole < wide; w++)
        for (long j = whole; j < wide; j++) to[w * wide + j] = j < columns ? word_of<Way>(b, w, j, inner) : 0.0f;
}

// Packs rows of the left side as the tiles read them: word by word if rows are contiguous; if columns are, TALL rows
// column by column, and then the next TALL.
template <class Way> Left pack_rows(Matrix a, long rows, long inner, float *to) {
    constexpr long STEP = Way::NUMBERS;
    const long words = parts(inner, STEP), whole = rows / TALL;
    if (a.column == 1) {
        const long filled = inner / (STEP * VEC) * VEC;
        for (long i = 0; i < rows; i++) {
            for (long w = 0; w < filled; w += VEC) store(to + i * words + w, Way::line(a.at + i * a.row + w * STEP));
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
                const vec line = Way::words(load(from + p * TALL), next ? load(next + p * TALL) : vec{});
                for (int i = 0; i < VEC / TALL; i++)
                    std::memcpy(to + ((p + i) * words + w) * TALL, reinterpret_cast<const float *>(&line) + i * TALL, 4 * TALL);
            }
        for (long i = p * TALL; i < rows; i++)
            to[(i / TALL * words + w) * TALL + i % TALL] = word<Way>(from[i], next ? next[i] : 0.0f);
    }
    return {to, 0, true};
}

// One thread's share: c (M, N) = a (M, K) b (K, N).
template <class Way> void share(long M, long N, long K, Matrix a, Matrix b, float *c, long ldc) {
    constexpr long STEP = Way::NUMBERS;
    const bool as_it_is = STEP == 1 && a.column == 1;
    const long deep = parts(parts(K, STEP), parts(parts(K, STEP), INNER));  // words
    const long most = std::max(1l, (as_it_is ? SECOND : THIRD) / (deep * PANEL));
    const long chunk = parts(parts(N, PANEL), parts(parts(N, PANEL), most)) * PANEL;
    const long narrow = std::max(1l, SECOND / (deep * PANEL)) * PANEL, block = as_it_is ? M : ROWS;
    const Scratch right(chunk * deep), left(as_it_is ? 0 : block * deep);
    for (long k = 0; k < K; k += deep * STEP)
        for (long n0 = 0; n0 < N; n0 += chunk) {
            const long inner = std::min(deep * STEP, K - k), words = parts(inner, STEP), width = std::min(chunk, N - n0);
            for (long n = 0; n < width; n += PANEL)
                pack_panel<Way>(b.from(k, n0 + n), inner, std::min(PANEL, width - n), right.at + n * words);
            for (long m0 = 0; m0 < M; m0 += block) {
                const long rows = std::min(block, M - m0);
                const Matrix mine = a.from(m0, k);
                const Left lines = as_it_is ? Left{mine.at, mine.row, false} : pack_rows<Way>(mine, rows, inner, left.at);
                for (long begin = 0; begin < width; begin += narrow)
                    for (long m = 0; m < rows; m += TALL) {
                        Left x = lines;
                        x.at += m * (x.packed ? words : x.row);
                        for (long n = begin; n < std::min(width, begin + narrow); n += PANEL)
                            tiles<Way>(std::min<long>(TALL, rows - m), std::min(PANEL, width - n), x, words,
                                       right.at + n * words, c + (m0 + m) * ldc + n0 + n, ldc, k > 0);
                    }
            }
        }
}

}  // namespace

extern "C" {

// Whether the processor multiplies bfloat16 at twice the rate. Not where it has matrix units, which torch's products use.
int rounds() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
    return 1;
#else
    return 0;
#endif
}

// c (M, N) = a (M, K) b (K, N); rows of c are contiguous. Threads divide rows and columns, never a sum, so that no bit
// depends on their number.
void product(long M, long N, long K, const float *a_at, long a_row, long a_column, const float *b_at, long b_row,
             long b_column, float *c, bool rounded, int most) {
    const int threads = team(0.03 * (M + 16) * N * K, most);  // 16: packing the right side
    const Matrix a{a_at, a_row, a_column}, b{b_at, b_row, b_column};
    const long tall = parts(M, TALL), wide = parts(N, PANEL);
    // the grid of threads whose largest share takes least time, including what each thread packs for itself
    long across = 1;
    double least = 1e300;
    for (long grid = 1; grid <= threads; grid++) {
        if (threads % grid) continue;
        const double rows = parts(tall, threads / grid) * TALL, columns = parts(wide, grid) * PANEL;
        const double cost = rows * columns + 16 * columns + (a_column == 1 && !rounded ? 0 : 8 * rows);
        if (cost < least) least = cost, across = grid;
    }
    const long down = threads / across;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < threads; t++) {
        const long i = t / across, j = t % across;
        const long m = tall * i / down * TALL, n = wide * j / across * PANEL;
        const long rows = std::min(M, tall * (i + 1) / down * TALL) - m;
        const long columns = std::min(N, wide * (j + 1) / across * PANEL) - n;
        if (rows <= 0 || columns <= 0) continue;
#if defined(__AVX512BF16__)
        if (rounded) {
            share<Rounded>(rows, columns, K, a.from(m, 0), b.from(0, n), c + m * N + n, N);
            continue;
        }
#endif
        share<Exact>(rows, columns, K, a.from(m, 0), b.from(0, n), c + m * N + n, N);
    }
}
}
