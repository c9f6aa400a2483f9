// Matrix products of linear layers, forward and backward. Called by products.py.
//
// Everything is float32. A product may round its factors to bfloat16 and still sum in float32, which is twice as fast
// where the processor multiplies vectors of bfloat16, and many times where it has matrix units. Two rounded numbers that
// are neighbors in a sum then form one word of a panel.
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
#if defined(__AMX_BF16__)
#include <cstdint>
#include <sys/syscall.h>
#include <unistd.h>
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

#if defined(__AMX_BF16__)
// Matrix units (AMX) multiply two registers of 16 rows of 16 words. Four registers hold sums, of 32 rows and 32 columns.

constexpr long SIDE = 16, SQUARE = SIDE * SIDE;  // words

// Whether the system lends the registers to this process. It does so when asked, since Linux 5.16.
bool have_units() {
    static const bool lent = !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */);
    return lent;
}

// This thread's registers, in their full size, until the end of the block.
struct Registers {
    Registers() {
        alignas(64) struct {
            std::uint8_t palette = 1, start = 0, none[14] = {};
            std::uint16_t bytes[16] = {};
            std::uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; i++) shape.bytes[i] = 4 * SIDE, shape.rows[i] = SIDE;
        _tile_loadconfig(&shape);
    }
    ~Registers() { _tile_release(); }
    Registers(const Registers &) = delete;
};

// Packs 16 rows of the left side, square by square, with zeros beyond the last number of a sum.
void pack_squares(Matrix a, long rows, long inner, float *to) {
    for (long k = 0; k < inner; k += 2 * SIDE, to += SQUARE) {
        const Matrix from = a.from(0, k);
        const bool whole = inner - k >= 2 * SIDE;
        if (whole && a.column == 1)
            for (long i = 0; i < rows; i++) store(to + i * SIDE, Rounded::line(from.at + i * a.row));
        else if (whole && rows == SIDE)
            transpose_lines([&](long w, long i) {
                const float *at = from.from(i, 2 * w).at;
                return Rounded::words(load(at), load(at + a.column));
            }, SIDE, SIDE, to, SIDE);
        else
            for (long i = 0; i < rows; i++)
                for (long w = 0; w < SIDE; w++)
                    to[i * SIDE + w] = 2 * w < inner - k ? word_of<Rounded>({from.from(i, 0).at, a.column, a.row}, w, 0, inner - k) : 0.0f;
    }
}

// c (16 DOWN rows, 16 RIGHT columns) = a b, or += a b: `squares` of the left side at `a` and, below them, at `below`.
template <int DOWN, int RIGHT>
void squares(long count, const float *a, const float *below, const float *b, float *c, long ldc, bool add) {
    if (add) {
        _tile_loadd(0, c, 4 * ldc);
        if constexpr (RIGHT > 1) _tile_loadd(1, c + SIDE, 4 * ldc);
        if constexpr (DOWN > 1) _tile_loadd(2, c + SIDE * ldc, 4 * ldc);
        if constexpr (DOWN > 1 && RIGHT > 1) _tile_loadd(3, c + SIDE * ldc + SIDE, 4 * ldc);
    } else {
        _tile_zero(0);
        if constexpr (RIGHT > 1) _tile_zero(1);
        if constexpr (DOWN > 1) _tile_zero(2);
        if constexpr (DOWN > 1 && RIGHT > 1) _tile_zero(3);
    }
    for (long k = 0; k < count; k++, a += SQUARE, below += SQUARE, b += RIGHT * SQUARE) {
        _tile_loadd(4, a, 4 * SIDE);
        _tile_loadd(6, b, 4 * SIDE * RIGHT);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (RIGHT > 1) _tile_loadd(7, b + SIDE, 4 * SIDE * RIGHT);
        if constexpr (RIGHT > 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (DOWN > 1) _tile_loadd(5, below, 4 * SIDE);
        if constexpr (DOWN > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (DOWN > 1 && RIGHT > 1) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 4 * ldc);
    if constexpr (RIGHT > 1) _tile_stored(1, c + SIDE, 4 * ldc);
    if constexpr (DOWN > 1) _tile_stored(2, c + SIDE * ldc, 4 * ldc);
    if constexpr (DOWN > 1 && RIGHT > 1) _tile_stored(3, c + SIDE * ldc + SIDE, 4 * ldc);
}

// The same for up to 32 rows and columns. Partial squares go through a copy.
void corner(long rows, long columns, long count, const float *a, const float *b, float *c, long ldc, bool add) {
    const bool tall = rows > SIDE, wide = columns > SIDE;
    const float *below = a + count * SQUARE;
    float copy[4 * SQUARE];
    const bool whole = rows == (tall ? 2 : 1) * SIDE && columns == (wide ? 2 : 1) * SIDE;
    float *to = whole ? c : copy;
    const long ldt = whole ? ldc : 2 * SIDE;
    if (!whole && add)
        for (long i = 0; i < rows; i++) std::memcpy(copy + i * ldt, c + i * ldc, 4 * columns);
    if (tall && wide) squares<2, 2>(count, a, below, b, to, ldt, add);
    else if (tall) squares<2, 1>(count, a, below, b, to, ldt, add);
    else if (wide) squares<1, 2>(count, a, below, b, to, ldt, add);
    else squares<1, 1>(count, a, below, b, to, ldt, add);
    if (!whole)
        for (long i = 0; i < rows; i++) std::memcpy(c + i * ldc, copy + i * ldt, 4 * columns);
}

// One thread's share by the matrix units.
void share_of_units(long M, long N, long K, Matrix a, Matrix b, float *c, long ldc) {
    const Registers registers;
    const long most = parts(parts(K, 2 * SIDE), parts(K, 2 * INNER));  // squares in a row of the left side at a time
    const long chunk = std::max(1l, THIRD / (most * 2 * SQUARE)) * 2 * SIDE, narrow = std::max(1l, SECOND / (most * 2 * SQUARE)) * 2 * SIDE;
    const Scratch right(std::min(chunk, (N + 2 * SIDE - 1) / (2 * SIDE) * 2 * SIDE) * most * SIDE), left(ROWS * most * SIDE);
    for (long k = 0; k < K; k += most * 2 * SIDE)
        for (long n0 = 0; n0 < N; n0 += chunk) {
            const long inner = std::min(most * 2 * SIDE, K - k), count = parts(inner, 2 * SIDE), width = std::min(chunk, N - n0);
            for (long n = 0; n < width; n += 2 * SIDE) {
                const long columns = std::min(2 * SIDE, width - n), words = parts(inner, 2), wide = up(columns);
                float *to = right.at + n * count * SIDE;
                pack_panel<Rounded>(b.from(k, n0 + n), inner, columns, to);
                std::memset(to + words * wide, 0, 4 * (count * SIDE - words) * wide);
            }
            for (long m0 = 0; m0 < M; m0 += ROWS) {
                const long rows = std::min(ROWS, M - m0);
                for (long m = 0; m < rows; m += SIDE)
                    pack_squares(a.from(m0 + m, k), std::min(SIDE, rows - m), inner, left.at + m * count * SIDE);
                for (long begin = 0; begin < width; begin += narrow)
                    for (long m = 0; m < rows; m += 2 * SIDE)
                        for (long n = begin; n < std::min(width, begin + narrow); n += 2 * SIDE)
                            corner(std::min(2 * SIDE, rows - m), std::min(2 * SIDE, width - n), count, left.at + m * count * SIDE,
                                   right.at + n * count * SIDE, c + (m0 + m) * ldc + n0 + n, ldc, k > 0);
            }
        }
}
#endif

}  // namespace

extern "C" {

// Whether products of bfloat16 are faster than those of float32.
int rounds() {
#if defined(__AVX512BF16__)
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
#if defined(__AMX_BF16__)
    const bool units = rounded && have_units();
#else
    const bool units = false;
#endif
    const long tall = parts(M, TALL), wide = parts(N, PANEL);
    // the grid of threads whose largest share takes least time, including what each thread packs for itself
    long across = 1;
    double least = 1e300;
    for (long grid = 1; grid <= threads; grid++) {
        if (threads % grid) continue;
        const double rows = parts(tall, threads / grid) * TALL, columns = parts(wide, grid) * PANEL;
        const double cost = rows * columns + (units ? 140 : 16) * columns + (units ? 70 : a_column == 1 && !rounded ? 0 : 8) * rows;
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
#if defined(__AMX_BF16__)
        if (units) {
            share_of_units(rows, columns, K, a.from(m, 0), b.from(0, n), c + m * N + n, N);
            continue;
        }
#endif
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
