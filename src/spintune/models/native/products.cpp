// Products of matrices in float32, as linear layers need them forwards and backwards. Called from products.py.
//
// The loops are those of K. Goto and R. van de Geijn, Anatomy of high-performance matrix multiplication (ACM TOMS 34,
// 2008): a tile of the result in registers, the right side packed into panels in the cache.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "vectors.h"

struct Matrix {  // element (i, j) lies at i * row + j * column, one of which is 1
    const float *at;
    long row, column;
    Matrix from(long i, long j) const { return {at + i * row + j * column, row, column}; }
};

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TALL = 8, ACROSS = 3;  // rows of a tile, and vectors of a row: sums, in as many registers as there are
#else
constexpr int TALL = 6, ACROSS = 2;
#endif
constexpr long PANEL = ACROSS * VEC;
constexpr long INNER = 1024;                     // terms of a sum between two visits of the result
constexpr long SECOND = 160'000, THIRD = 1'500'000; // floats that second- and third-level caches keep for a thread
constexpr long ROWS = 16 * TALL;                 // of a left side that is packed, at a time
constexpr long AHEAD = 8;                        // lines fetched before they are packed

struct Scratch {
    float *at;
    explicit Scratch(long floats) : at(static_cast<float *>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64))) {}
    ~Scratch() { std::free(at); }
    Scratch(const Scratch &) = delete;
};

constexpr long parts(long whole, long most) { return (whole + most - 1) / most; }

// c (M rows of V vectors) = a b, or += a b, where b is a packed panel and `a` may be packed. I is 0 to M V - 1: written
// out, since a compiler keeps an array in registers only where it sees no loop over it.
template <int M, int V, bool PACKED, int... I>
void tile(const float *a, long row, long inner, const float *b, float *c, long ldc, bool add,
          std::integer_sequence<int, I...>) {
    vec total[M * V];
    ((total[I] = vec{}), ...);
    (__builtin_prefetch(c + I / V * ldc + I % V * VEC, 1), ...);  // the result is far away: fetched while sums are made
    for (long k = 0; k < inner; k++, b += V * VEC)
        ((total[I] += (PACKED ? a[I / V + k * TALL] : a[I / V * row + k]) * load(b + I % V * VEC)), ...);
    if (add) ((total[I] += load(c + I / V * ldc + I % V * VEC)), ...);
    (store(c + I / V * ldc + I % V * VEC, total[I]), ...);
}

template <int M, int V> void tile_of(Matrix a, long inner, const float *b, float *c, long ldc, bool add) {
    constexpr std::make_integer_sequence<int, M * V> all{};
    if (a.column == 1) tile<M, V, false>(a.at, a.row, inner, b, c, ldc, add, all);
    else tile<M, V, true>(a.at, 1, inner, b, c, ldc, add, all);
}

template <int M, int V> void fewer(long rows, Matrix a, long inner, const float *b, float *c, long ldc, bool add) {
    if constexpr (M > 0) {
        if (rows >= M) {
            tile_of<M, V>(a, inner, b, c, ldc, add);
            rows -= M, a = a.from(M, 0), c += M * ldc;
        }
        fewer<M / 2, V>(rows, a, inner, b, c, ldc, add);
    }
}

template <int V> void tile_rows(long rows, Matrix a, long inner, const float *b, float *c, long ldc, bool add) {
    if (rows == TALL) tile_of<TALL, V>(a, inner, b, c, ldc, add);
    else fewer<4, V>(rows, a, inner, b, c, ldc, add);
}

// Up to TALL rows times a packed panel of `columns` columns. Where these end within a vector, by way of a copy.
void tiles(long rows, long columns, Matrix a, long inner, const float *b, float *c, long ldc, bool add) {
    if (columns == PANEL) return tile_rows<ACROSS>(rows, a, inner, b, c, ldc, add);
    const long wide = up(columns);
    float copy[TALL * PANEL];
    float *to = wide == columns ? c : copy;
    const long ldt = wide == columns ? ldc : PANEL;
    if (to == copy && add)
        for (long i = 0; i < rows; i++) std::memcpy(copy + i * PANEL, c + i * ldc, 4 * columns);
    if (wide == VEC) tile_rows<1>(rows, a, inner, b, to, ldt, add);
    else if (wide == 2 * VEC) tile_rows<2>(rows, a, inner, b, to, ldt, add);
    else tile_rows<ACROSS>(rows, a, inner, b, to, ldt, add);
    if (to == copy)
        for (long i = 0; i < rows; i++) std::memcpy(c + i * ldc, copy + i * PANEL, 4 * columns);
}

// A panel of the right side row by row, with zeros up to a whole vector.
void pack_panel(Matrix b, long inner, long columns, float *to) {
    const long wide = up(columns), whole = columns / VEC * VEC, filled = inner / VEC * VEC;
    if (b.column == 1) {
        for (long k = 0; k < inner; k++)
            for (long j = 0; j < whole; j += VEC) store(to + k * wide + j, load(b.at + k * b.row + j));
    } else {
        for (long k = 0; k < filled; k += VEC) transpose(b.at + k, b.column, whole, VEC, to + k * wide, wide);
        for (long k = filled; k < inner; k++)
            for (long j = 0; j < whole; j++) to[k * wide + j] = b.from(k, j).at[0];
    }
    for (long k = 0; k < inner && whole < wide; k++)
        for (long j = whole; j < wide; j++) to[k * wide + j] = j < columns ? b.from(k, j).at[0] : 0.0f;
}

// Rows of a left side whose columns lie side by side: TALL of them column by column, then the next TALL.
void pack_rows(Matrix a, long rows, long inner, float *to) {
    const long whole = rows / TALL;
    for (long k = 0; k < inner; k++) {
        const float *from = a.from(0, k).at;
        for (long i = 0; i < rows; i += 16) __builtin_prefetch(from + AHEAD * a.column + i);
        for (long p = 0; p < whole; p++) std::memcpy(to + (p * inner + k) * TALL, from + p * TALL, 4 * TALL);
        for (long i = whole * TALL; i < rows; i++) to[(whole * inner + k) * TALL + i - whole * TALL] = from[i];
    }
}

// What one thread does: c (M, N) = a (M, K) b (K, N), or += a b.
void share(long M, long N, long K, Matrix a, Matrix b, float *c, long ldc, bool add) {
    const bool packed = a.column != 1;  // rows that lie side by side cannot be read one by one
    const long depth = parts(K, parts(K, INNER));
    const long most = std::max(1l, (packed ? THIRD : SECOND) / (depth * PANEL));
    const long chunk = parts(parts(N, PANEL), parts(parts(N, PANEL), most)) * PANEL;
    const long narrow = std::max(1l, SECOND / (depth * PANEL)) * PANEL, block = packed ? ROWS : M;
    const Scratch right(chunk * depth), left(packed ? block * depth : 0);
    for (long k = 0; k < K; k += depth)
        for (long n0 = 0; n0 < N; n0 += chunk) {
            const long inner = std::min(depth, K - k), width = std::min(chunk, N - n0);
            for (long n = 0; n < width; n += PANEL)
                pack_panel(b.from(k, n0 + n), inner, std::min(PANEL, width - n), right.at + n * inner);
            for (long m0 = 0; m0 < M; m0 += block) {
                const long rows = std::min(block, M - m0);
                if (packed) pack_rows(a.from(m0, k), rows, inner, left.at);
                for (long begin = 0; begin < width; begin += narrow)
                    for (long m = 0; m < rows; m += TALL) {
                        const Matrix x = packed ? Matrix{left.at + m * inner, 1, TALL} : a.from(m, k);
                        for (long n = begin; n < std::min(width, begin + narrow); n += PANEL)
                            tiles(std::min<long>(TALL, rows - m), std::min(PANEL, width - n), x, inner,
                                  right.at + n * inner, c + (m0 + m) * ldc + n0 + n, ldc, add || k);
                    }
            }
        }
}

}  // namespace

extern "C" {

// c (M, N) = a (M, K) b (K, N), or += a b; rows of c are contiguous. Threads share out rows and columns, never a sum,
// so that no bit depends on how many there are.
void product(long M, long N, long K, const float *a_at, long a_row, long a_column, const float *b_at, long b_row,
             long b_column, float *c, bool add, int threads) {
    const Matrix a{a_at, a_row, a_column}, b{b_at, b_row, b_column};
    const long tall = parts(M, TALL), wide = parts(N, PANEL);
    // of all grids of threads the one whose largest share takes least, what each of them packs for itself included
    long across = 1;
    double least = 1e300;
    for (long grid = 1; grid <= threads; grid++) {
        if (threads % grid) continue;
        const double rows = parts(tall, threads / grid) * TALL, columns = parts(wide, grid) * PANEL;
        const double cost = rows * columns + 16 * columns + (a_column == 1 ? 0 : 8 * rows);
        if (cost < least) least = cost, across = grid;
    }
    const long down = threads / across;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < threads; t++) {
        const long i = t / across, j = t % across;
        const long m = tall * i / down * TALL, n = wide * j / across * PANEL;
        const long rows = std::min(M, tall * (i + 1) / down * TALL) - m;
        const long columns = std::min(N, wide * (j + 1) / across * PANEL) - n;
        if (rows > 0 && columns > 0) share(rows, columns, K, a.from(m, 0), b.from(0, n), c + m * N + n, N, add);
    }
}
}
