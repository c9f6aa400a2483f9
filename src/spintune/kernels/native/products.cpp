// Matrix products of linear layers, forward and backward. Called by products.py.
//
// The loops follow K. Goto and R. van de Geijn, Anatomy of high-performance matrix multiplication (ACM TOMS 34, 2008):
// a tile of the result in registers, the right side packed into panels in the cache. A right side that stays the same for
// many products, as weights do while a model writes, is packed once for all of them.

#include "matrix_units.h"
#include "tiles.h"

namespace {

enum { FLOAT32, ROUNDED, VECTORS };               // ways to multiply: as products.py names them
constexpr long INNER = 1024;                     // terms of a sum between two visits to the result
constexpr long SECOND = 160'000, THIRD = 1'500'000; // floats per thread in second- and third-level caches
constexpr long ROWS = 16 * TALL, BAND = 256;     // rows of the left side that are packed together, BAND for the matrix units

// Words of a sum between two visits to the result.
long depth(long words) { return parts(words, parts(words, INNER)); }

// One thread's share: c (M, N) = a (M, K) b (K, N).
template <class Way> void share(long M, long N, long K, Matrix a, Matrix b, float *c, long ldc) {
    constexpr long STEP = Way::NUMBERS;
    const bool as_it_is = STEP == 1 && a.column == 1;
    const long deep = depth(parts(K, STEP));
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

#if defined(MATRIX_UNITS)
// One thread's share by the matrix units.
template <class Way> void share_of_units(long M, long N, long K, Matrix a, Matrix b, float *c, long ldc) {
    const Registers registers;
    const long most = parts(parts(K, 2 * SIDE), parts(K, 2 * INNER / Way::PARTS));  // squares in a row of the left side at a time
    const long floats = Way::PARTS * most * CORNER * SIDE;                  // of a panel: the columns of a corner
    const long chunk = std::min(parts(N, CORNER), std::max(1l, THIRD / floats)) * CORNER;
    const Scratch right(chunk * Way::PARTS * most * SIDE), left(BAND * Way::PARTS * most * SIDE);
    for (long k = 0; k < K; k += most * 2 * SIDE)
        for (long n0 = 0; n0 < N; n0 += chunk) {
            const long inner = std::min(most * 2 * SIDE, K - k), count = parts(inner, 2 * SIDE), width = std::min(chunk, N - n0);
            const long line = Way::PARTS * count * SIDE;  // floats of a row of the left side, or of a column of the right one
            for (long n = 0; n < width; n += CORNER) {
                const long columns = std::min(CORNER, width - n), words = parts(inner, 2), wide = up(columns);
                float *to = right.at + n * line;
                pack_panel<Way>(b.from(k, n0 + n), inner, columns, to, count * SIDE * wide);
                for (long part = 0; part < Way::PARTS; part++, to += count * SIDE * wide)
                    std::memset(to + words * wide, 0, 4 * (count * SIDE - words) * wide);
            }
            for (long m0 = 0; m0 < M; m0 += BAND) {
                const long rows = std::min(BAND, M - m0);
                for (long m = 0; m < rows; m += SIDE)
                    pack_squares<Way>(a.from(m0 + m, k), std::min(SIDE, rows - m), inner, left.at + m * line, count * SQUARE);
                for (long n = 0; n < width; n += CORNER) {  // a panel stays in the cache while the rows meet it
                    const long columns = std::min(CORNER, width - n);
                    for (long m = 0; m < rows; m += CORNER)
                        corner<Way>(std::min(CORNER, rows - m), columns, count, {left.at + m * line, count * SQUARE},
                                    {right.at + n * line, count * SIDE * up(columns)},
                                    c + (m0 + m) * ldc + n0 + n, ldc, k > 0);
                }
            }
        }
}
#endif

// Columns of a packed right side: the last panel is filled up to a whole vector.
long filled(long N) { return N / PANEL * PANEL + up(N % PANEL); }

// One thread's share of a product with a packed right side: columns `first` to `last`, which are whole panels. While rows
// meet one panel, they fetch a part of the next one each.
void share_of_packed(long M, long N, long K, Matrix a, const float *right, long first, long last, float *c) {
    const long deep = depth(K);
    for (long k = 0; k < K; k += deep) {
        const long words = std::min(deep, K - k);
        for (long m0 = 0; m0 < M; m0 += ROWS) {
            const long rows = std::min(ROWS, M - m0), lines = parts(words * ACROSS, parts(rows, TALL));
            for (long n = first; n < last; n += PANEL) {
                const float *b = right + k * filled(N) + n * words, *next = b + PANEL * words;
                const long columns = std::min(PANEL, N - n), fetched = n + PANEL < last ? std::min(lines, words) : 0;
                for (long m = 0; m < rows; m += TALL, next += lines * VEC) {
                    const Left x{a.from(m0 + m, k).at, a.row, false};
                    float *to = c + (m0 + m) * N + n;
                    if (rows - m >= TALL && columns == PANEL)
                        tile_of<Exact, TALL, ACROSS>(x, words, b, to, N, k > 0, {next, fetched});
                    else tiles<Exact>(std::min<long>(TALL, rows - m), columns, x, words, b, to, N, k > 0);
                }
            }
        }
    }
}

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
             long b_column, float *c, int way, int most) {
    const bool rounded = way == ROUNDED;
    const int threads = team(0.03 * (M + 16) * N * K, most);  // 16: packing the right side
    const Matrix a{a_at, a_row, a_column}, b{b_at, b_row, b_column};
#if defined(MATRIX_UNITS)
    const bool units = (rounded || (way == FLOAT32 && std::min(N, K) >= CORNER)) && have_units();
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
#if defined(MATRIX_UNITS)
        if (units) {
            auto *share = rounded ? share_of_units<Rounded> : share_of_units<Whole>;
            share(rows, columns, K, a.from(m, 0), b.from(0, n), c + m * N + n, N);
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

// Number of floats of a packed right side (K, N).
long packed_floats(long N, long K) { return K * filled(N); }

// Packs a right side for product_of_packed().
void pack_right(long N, long K, const float *b_at, long b_row, long b_column, float *to, int most) {
    const Matrix b{b_at, b_row, b_column};
    const long deep = depth(K);
    for (long k = 0; k < K; k += deep) {
        const long words = std::min(deep, K - k);
#pragma omp parallel for num_threads(team(0.5 * N * words, most)) schedule(static)
        for (long n = 0; n < N; n += PANEL)
            pack_panel<Exact>(b.from(k, n), words, std::min(PANEL, N - n), to + k * filled(N) + n * words);
    }
}

// As product() by vectors, with the same bits, for rows of `a` that are contiguous and a right side of pack_right().
void product_of_packed(long M, long N, long K, const float *a_at, long a_row, const float *right, float *c, int most) {
    const int threads = team(0.03 * M * N * K, most);
    const Matrix a{a_at, a_row, 1};
    const long panels = parts(N, PANEL), tall = parts(M, TALL);
    const long across = std::min<long>(threads, panels), down = std::max(1l, threads / across);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < across * down; t++) {
        const long i = t / across, j = t % across, m = tall * i / down * TALL;
        const long rows = std::min(M, tall * (i + 1) / down * TALL) - m;
        const long first = panels * j / across * PANEL, last = std::min(N, panels * (j + 1) / across * PANEL);
        if (rows > 0) share_of_packed(rows, N, K, a.from(m, 0), right, first, last, c + m * N);
    }
}
}
