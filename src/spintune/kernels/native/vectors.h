// Vectors of floats as wide as the processor's, and the operations that all kernels need.
//
// These are the compiler's own vector types (GCC and Clang), so the same source becomes AVX-512, AVX2 or NEON.

#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <utility>

extern "C" int pool_take(void **result, std::size_t alignment, std::size_t size);
extern "C" void pool_give(void *place);

namespace {

#if defined(__AVX512F__)
constexpr int VEC = 16, WIDE = 4;  // floats per vector; vectors per panel: as many as registers hold for four rows
#elif defined(__AVX__)
constexpr int VEC = 8, WIDE = 2;
#else
constexpr int VEC = 4, WIDE = 4;
#endif

using vec = float __attribute__((vector_size(4 * VEC), aligned(4), may_alias));
using ints = int __attribute__((vector_size(4 * VEC), aligned(4), may_alias));
using lanes = std::make_integer_sequence<int, VEC>;

inline vec load(const float *at) { return *reinterpret_cast<const vec *>(at); }
inline void store(float *at, vec x) { *reinterpret_cast<vec *>(at) = x; }
inline long up(long n) { return (n + VEC - 1) / VEC * VEC; }

template <int... I> inline vec pick(vec a, vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, ints{I...});
#endif
}
template <int... I> inline vec low(vec a, vec b, std::integer_sequence<int, I...>) { return pick<I / 2 + I % 2 * VEC...>(a, b); }
template <int... I> inline vec high(vec a, vec b, std::integer_sequence<int, I...>) {
    return pick<VEC / 2 + I / 2 + I % 2 * VEC...>(a, b);
}
template <int HALF, int... I> inline vec fold(vec x, std::integer_sequence<int, I...>) { return x + pick<(I ^ HALF)...>(x, x); }

inline float sum(vec x) {
    if constexpr (VEC > 8) x = fold<8>(x, lanes{});
    if constexpr (VEC > 4) x = fold<4>(x, lanes{});
    return fold<1>(fold<2>(x, lanes{}), lanes{})[0];
}

inline float largest(vec x) {
    float top = x[0];
    for (int i = 1; i < VEC; i++) top = x[i] > top ? x[i] : top;
    return top;
}

// e^x for x <= 0, to 2 units in the last place: 2^n e^r with |r| <= ln(2) / 2, e^r by Cephes' polynomial. Below e^-87: 0.
inline vec exponential(vec x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
    const vec inside = x < -87.0f ? vec{} - 87.0f : x;
    const vec shifted = inside * 1.44269504f + magic;
    const vec n = shifted - magic;
    const vec r = inside - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const vec scaled = reinterpret_cast<vec>(reinterpret_cast<ints>(p) + (reinterpret_cast<ints>(shifted) << 23));
    return x <= -87.0f ? vec{} : x == x ? scaled : x;  // NaN stays NaN
}

// Writes the vectors line(i, d), which hold VEC floats from column d of row i on, as columns: to[d * ld + i]. Both counts
// are multiples of VEC.
template <class Line> inline void transpose_lines(const Line &line, long count, long width, float *to, long ld) {
    for (long i = 0; i < count; i += VEC)
        for (long d = 0; d < width; d += VEC) {
            vec x[VEC];
            for (int j = 0; j < VEC; j++) x[j] = line(i + j, d);
            for (int stage = 1; stage < VEC; stage *= 2) {  // log2(VEC) perfect shuffles are a transposition
                vec y[VEC];
                for (int j = 0; j < VEC / 2; j++) {
                    y[2 * j] = low(x[j], x[j + VEC / 2], lanes{});
                    y[2 * j + 1] = high(x[j], x[j + VEC / 2], lanes{});
                }
                for (int j = 0; j < VEC; j++) x[j] = y[j];
            }
            for (int j = 0; j < VEC; j++) store(to + (d + j) * ld + i, x[j]);
        }
}

// Writes rows of `width` floats as columns: to[d * ld + i] = from[i * token + d], with zeros up to a whole vector.
inline void transpose(const float *from, long token, long count, long width, float *to, long ld) {
    transpose_lines([&](long i, long d) { return i < count ? load(from + i * token + d) : vec{}; }, up(count), width, to, ld);
}

// Threads for work that takes one of them about so long: all, or one where it is done before the others are awake. Never a
// number between, because OpenMP ends the threads that a smaller team leaves over, and starts them again for the next.
inline int team(double nanoseconds, int threads) { return nanoseconds < 8'000 ? 1 : threads; }

// Memory for the duration of a call. Where there is none the process ends, as OutOfMemoryError does: no exception can leave
// a parallel region.
struct Scratch {
    float *at = nullptr;
    explicit Scratch(long floats) {
        void *found = nullptr;
        if (floats && pool_take(&found, 64, 4 * floats)) {
            std::fputs("spintune: out of memory in a compiled layer; lower tokens_per_forward or data.max_length\n", stderr);
            std::_Exit(12);
        }
        at = static_cast<float *>(found);
    }
    ~Scratch() { pool_give(at); }
    Scratch(const Scratch &) = delete;
};

}  // namespace
