// Norms, activations and rotations between the matrix products of a layer, each in one pass. Called by layers.py.

#include <cmath>

#include "vectors.h"

namespace {

constexpr long CHUNK = 64;  // rows per partial sum; fixed, so that sums do not depend on the number of threads

// 1 / (1 + e^-x), by the exponential that cannot overflow
vec sigmoid(vec x) {
    const vec e = exponential(x < 0.0f ? x : -x);
    return (x < 0.0f ? e : vec{} + 1.0f) / (1.0f + e);
}

}  // namespace

extern "C" {

// y = w x / sqrt(mean(x^2) + epsilon); `inverse` (rows) keeps 1 / sqrt(...) for the backward pass.
void rms_norm(const float *x, const float *w, long rows, long width, float epsilon, float *y, float *inverse, int threads) {
#pragma omp parallel for num_threads(team(0.3 * rows * width, threads)) schedule(static)
    for (long row = 0; row < rows; row++) {
        const float *mine = x + row * width;
        vec squares{};
        for (long d = 0; d < width; d += VEC) squares += load(mine + d) * load(mine + d);
        const float factor = 1.0f / std::sqrt(sum(squares) / width + epsilon);
        for (long d = 0; d < width; d += VEC) store(y + row * width + d, load(w + d) * (load(mine + d) * factor));
        inverse[row] = factor;
    }
}

long norm_chunks(long rows) { return (rows + CHUNK - 1) / CHUNK; }

// With n = x * inverse and g = w dy: dx = inverse (g - n mean(g n)), dw = sum over rows of n dy. `parts`
// (norm_chunks(rows), width) holds zeros.
void rms_norm_backward(const float *x, const float *w, const float *inverse, const float *dy, long rows, long width,
                       float *parts, float *dx, float *dw, int threads) {
    const long chunks = norm_chunks(rows);
#pragma omp parallel for num_threads(team(0.6 * rows * width, threads)) schedule(static)
    for (long chunk = 0; chunk < chunks; chunk++) {
        float *part = parts + chunk * width;
        for (long row = chunk * CHUNK; row < rows && row < (chunk + 1) * CHUNK; row++) {
            const float *mine = x + row * width, *slope = dy + row * width;
            const float factor = inverse[row];
            vec products{};
            for (long d = 0; d < width; d += VEC) products += load(w + d) * load(slope + d) * load(mine + d);
            const float mean = sum(products) * factor / width;
            for (long d = 0; d < width; d += VEC) {
                const vec n = load(mine + d) * factor, g = load(w + d) * load(slope + d);
                store(dx + row * width + d, factor * (g - n * mean));
                store(part + d, load(part + d) + n * load(slope + d));
            }
        }
    }
    for (long d = 0; d < width; d += VEC) {
        vec total{};
        for (long chunk = 0; chunk < chunks; chunk++) total += load(parts + chunk * width + d);
        store(dw + d, total);
    }
}

// y = gate sigmoid(gate) up; `count` is a multiple of VEC here and in the backward pass.
void swiglu(const float *gate, const float *up, long count, float *y, int threads) {
#pragma omp parallel for num_threads(team(0.8 * count, threads)) schedule(static)
    for (long i = 0; i < count; i += VEC) {
        const vec x = load(gate + i);
        store(y + i, x * sigmoid(x) * load(up + i));
    }
}

void swiglu_backward(const float *gate, const float *up, const float *dy, long count, float *dgate, float *dup,
                     int threads) {
#pragma omp parallel for num_threads(team(1.2 * count, threads)) schedule(static)
    for (long i = 0; i < count; i += VEC) {
        const vec x = load(gate + i), s = sigmoid(x), slope = load(dy + i);
        store(dup + i, slope * x * s);
        store(dgate + i, slope * load(up + i) * s * (1.0f + x * (1.0f - s)));
    }
}

// y (tokens, heads, width) = x with each pair (i, i + width / 2) rotated by its token's angle. Cosines and sines are
// (tokens, width); element (t, h, d) of x is at t * token + h * head + d. `back` rotates the gradient the other way.
void rotate(const float *x, long token, long head, const float *cosine, const float *sine, long tokens, long heads,
            long width, bool back, float *y, int threads) {
    const long half = width / 2;
#pragma omp parallel for num_threads(team(0.25 * tokens * heads * width, threads)) schedule(static)
    for (long t = 0; t < tokens; t++)
        for (long h = 0; h < heads; h++) {
            const float *from = x + t * token + h * head, *c = cosine + t * width, *s = sine + t * width;
            float *to = y + (t * heads + h) * width;
            for (long d = 0; d < half; d += VEC) {
                const vec one = load(from + d), other = load(from + half + d);
                const vec s1 = load(s + d), s2 = load(s + half + d);
                store(to + d, one * load(c + d) + other * (back ? s2 : -s1));
                store(to + half + d, other * load(c + half + d) + one * (back ? -s1 : s2));
            }
        }
}
}
