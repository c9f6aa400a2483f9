// Tiles of a product in the matrix units (AMX) of a processor. For products.cpp.
//
// A unit multiplies two registers of 16 rows of 16 words. Four registers hold sums, of 32 rows and 32 columns.
//
// Units multiply bfloat16 and sum in float32. A float32 number is the sum of three numbers of bfloat16, the largest first,
// and six products of such parts make the product of two numbers to float32's precision (G. Henry, P. Tang, A. Heinecke,
// Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations, ARITH 2019). Units take
// numbers below 2^-126 for 0, so those below 1e-33 lose digits; and infinity times a number is no number.

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

// What the first PART parts of numbers leave.
template <int PART> vec rest(vec x) {
    if constexpr (PART == 0) return x;
    else {
        const vec before = rest<PART - 1>(x);
        return before - (vec)_mm512_cvtpbh_ps(_mm512_cvtneps_pbh(before));
    }
}

// Float32 as three numbers of bfloat16.
struct Whole {
    static constexpr int NUMBERS = Rounded::NUMBERS, PARTS = 3;
    template <int PART> static vec words(vec x, vec next) { return Rounded::words<0>(rest<PART>(x), rest<PART>(next)); }
    template <int PART> static vec line(const float *at) {
        return (vec)_mm512_cvtne2ps_pbh(rest<PART>(load(at + VEC)), rest<PART>(load(at)));
    }
};

// Packs 16 rows of the left side, square by square, with zeros beyond the last number of a sum. The parts of numbers are
// `apart` floats from each other.
template <class Way> void pack_squares(Matrix a, long rows, long inner, float *to, long apart) {
    for (long k = 0; k < inner; k += 2 * SIDE, to += SQUARE) {
        const Matrix from = a.from(0, k);
        const bool whole = inner - k >= 2 * SIDE;
        if (a.column != 1)
            for (long i = 2 * SIDE; i < 4 * SIDE; i++) __builtin_prefetch(from.from(0, i).at);
        each_part<Way>([&](auto part) {
            float *square = to + part * apart;
            if (whole && a.column == 1)
                for (long i = 0; i < rows; i++) store(square + i * SIDE, Way::template line<part>(from.at + i * a.row));
            else if (whole && rows == SIDE)
                transpose_lines([&](long w, long) {
                    const float *at = from.from(0, 2 * w).at;
                    return Way::template words<part>(load(at), load(at + a.column));
                }, SIDE, SIDE, square, SIDE);
            else
                for (long i = 0; i < rows; i++) {
                    const Matrix row{from.from(i, 0).at, a.column, a.row};
                    for (long w = 0; w < SIDE; w++)
                        square[i * SIDE + w] = 2 * w < inner - k ? word_of<Way, part>(row, w, 0, inner - k) : 0.0f;
                }
        });
    }
}

// Squares of a side of a product: those of part p begin `part` floats behind the first part's.
struct Squares {
    const float *at;
    long part;
};

// One square's depth of a product of 16 DOWN rows and 16 RIGHT columns, whose sums are in registers.
template <int DOWN, int RIGHT> struct Step {
    const float *a, *below, *b;
    long a_part, b_part;
    void left(long part) const {
        _tile_loadd(4, a + part * a_part, 4 * SIDE);
        if constexpr (DOWN > 1) _tile_loadd(5, below + part * a_part, 4 * SIDE);
    }
    void right(long part) const {
        _tile_loadd(6, b + part * b_part, 4 * SIDE * RIGHT);
        if constexpr (RIGHT > 1) _tile_loadd(7, b + part * b_part + SIDE, 4 * SIDE * RIGHT);
    }
    void multiply() const {
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (RIGHT > 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (DOWN > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (DOWN > 1 && RIGHT > 1) _tile_dpbf16ps(3, 5, 7);
    }
};

// c (16 DOWN rows, 16 RIGHT columns) = a b: `count` squares of the left side at `a` and, below them, at `below`.
template <class Way, int DOWN, int RIGHT>
void squares(long count, Squares a, const float *below, Squares b, float *c, long ldc) {
    written();
    _tile_zero(0);
    if constexpr (RIGHT > 1) _tile_zero(1);
    if constexpr (DOWN > 1) _tile_zero(2);
    if constexpr (DOWN > 1 && RIGHT > 1) _tile_zero(3);
    for (long k = 0; k < count; k++) {
        const Step<DOWN, RIGHT> step{a.at + k * SQUARE, below + k * SQUARE, b.at + k * RIGHT * SQUARE, a.part, b.part};
        step.left(0), step.right(Way::PARTS - 1), step.multiply();
        if constexpr (Way::PARTS == 3) {  // one side changes from product to product, and the largest comes last
            step.right(1), step.multiply();
            step.left(1), step.multiply();
            step.right(0), step.multiply();
            step.left(2), step.multiply();
            step.left(0), step.multiply();
        }
    }
    _tile_stored(0, c, 4 * ldc);
    if constexpr (RIGHT > 1) _tile_stored(1, c + SIDE, 4 * ldc);
    if constexpr (DOWN > 1) _tile_stored(2, c + SIDE * ldc, 4 * ldc);
    if constexpr (DOWN > 1 && RIGHT > 1) _tile_stored(3, c + SIDE * ldc + SIDE, 4 * ldc);
    written();
}

// c = a b, or += a b, for up to 32 rows and columns. Partial squares and what is added go through a copy: sums that go on
// from those of another part of a long sum would be less exact.
template <class Way>
void corner(long rows, long columns, long count, Squares a, Squares b, float *c, long ldc, bool add) {
    const bool tall = rows > SIDE, wide = columns > SIDE;
    const float *below = a.at + Way::PARTS * count * SQUARE;
    float copy[CORNER * CORNER];
    const bool whole = !add && rows % SIDE == 0 && columns % SIDE == 0;
    float *to = whole ? c : copy;
    const long ldt = whole ? ldc : CORNER;
    if (tall && wide) squares<Way, 2, 2>(count, a, below, b, to, ldt);
    else if (tall) squares<Way, 2, 1>(count, a, below, b, to, ldt);
    else if (wide) squares<Way, 1, 2>(count, a, below, b, to, ldt);
    else squares<Way, 1, 1>(count, a, below, b, to, ldt);
    if (whole) return;
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++) c[i * ldc + j] = copy[i * ldt + j] + (add ? c[i * ldc + j] : 0.0f);
}

}  // namespace
#endif
