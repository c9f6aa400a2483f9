// Tiles of a product rounded to bfloat16 in the matrix units (AMX) of a processor. For products.cpp.
//
// A unit multiplies two registers of 16 rows of 16 words. Four registers hold sums, of 32 rows and 32 columns.

#pragma once

#include "tiles.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define MATRIX_UNITS
#include <cstdint>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr long SIDE = 16, SQUARE = SIDE * SIDE;  // words
constexpr long CORNER = 2 * SIDE;                // rows and columns of the sums that registers hold

// Whether the system lends the registers to this process. It does so when asked, since Linux 5.16.
bool have_units() {
    static const bool lent = !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */);
    return lent;
}

// Memory holds what was stored so far. GCC's own functions of matrix units do not say which memory they read.
inline void written() { asm volatile("" ::: "memory"); }

// This thread's registers, in their full size, until the end of the block.
struct Registers {
    Registers() {
        alignas(64) struct {
            std::uint8_t palette = 1, start = 0, none[14] = {};
            std::uint16_t bytes[16] = {};
            std::uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; i++) shape.bytes[i] = 4 * SIDE, shape.rows[i] = SIDE;
        written();
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
    written();
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
    float copy[CORNER * CORNER];
    const bool whole = rows == (tall ? 2 : 1) * SIDE && columns == (wide ? 2 : 1) * SIDE;
    float *to = whole ? c : copy;
    const long ldt = whole ? ldc : CORNER;
    if (!whole && add)
        for (long i = 0; i < rows; i++) std::memcpy(copy + i * ldt, c + i * ldc, 4 * columns);
    if (tall && wide) squares<2, 2>(count, a, below, b, to, ldt, add);
    else if (tall) squares<2, 1>(count, a, below, b, to, ldt, add);
    else if (wide) squares<1, 2>(count, a, below, b, to, ldt, add);
    else squares<1, 1>(count, a, below, b, to, ldt, add);
    if (!whole)
        for (long i = 0; i < rows; i++) std::memcpy(c + i * ldc, copy + i * ldt, 4 * columns);
}

}  // namespace
#endif
