// The compiled functions against the same in double, without Python and torch: for processors that are only emulated.
// Prints what is wrong, and ends with 1; prints vector_floats() where all is right.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

using Floats = std::vector<float>;

struct Rows {
    const float *at;
    long token, head;
};
struct Segment {
    long begin, count, prefix, before;
};
struct Part {
    long segment, query;
};
struct Shape {
    long heads, key_heads, width, window;
    float scale;
    int threads;
};

extern "C" {
int vector_floats();
int rounds();
long query_chunk();
long norm_chunks(long rows);
void product(long, long, long, const float *, long, long, const float *, long, long, float *, int, int);
long packed_floats(long, long);
void pack_right(long, long, const float *, long, long, float *, int);
void product_of_packed(long, long, long, const float *, long, const float *, float *, int);
void rms_norm(const float *, const float *, long, long, float, float *, float *, int);
void rms_norm_backward(const float *, const float *, const float *, const float *, long, long, float *, float *, float *, int);
void swiglu(const float *, const float *, long, float *, int);
void swiglu_backward(const float *, const float *, const float *, long, float *, float *, int);
void rotate(const float *, long, long, const float *, const float *, long, long, long, bool, float *, int);
void attend_segments(const Rows *, const Rows *, const Rows *, const Rows *, const Rows *, const Segment *, long, const Part *,
                     long, const Shape *, long, float *, float *);
void attend_segments_backward(const Rows *, const Rows *, const Rows *, const Segment *, const long *, long, const Shape *,
                              long, const float *, const float *, const Rows *, float *, float *, float *);
void attend_slots(const Rows *, const Rows *, const Rows *, const Rows *, const Rows *, long, float *, float *, long,
                  const long *, long, const Shape *, float *);
}

static int wrong = 0;

static void near(const char *what, double found, double expected, double allowed) {
    if (std::abs(found - expected) <= allowed) return;  // false for what is no number
    if (wrong++ < 20) std::printf("%s: %.9g instead of %.9g, allowed is %.1e\n", what, found, expected, allowed);
}

static Floats drawn(long count, unsigned seed) {
    std::mt19937 draw(seed);
    Floats x(count);
    for (float &one : x) one = draw() / 2147483648.0f - 1.0f;
    return x;
}

static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The same as bfloat16 numbers, whose last 16 bits are zeros.
static Floats rounded(Floats x) {
    for (float &one : x) {
        unsigned bits;
        std::memcpy(&bits, &one, 4);
        bits &= 0xffff0000u;
        std::memcpy(&one, &bits, 4);
    }
    return x;
}

// Rows or columns of each side contiguous. Each number within the rounding of its own terms, and no bit of a row by the
// rows beside it or the threads.
enum { FLOAT32, ROUNDED, VECTORS };

static void products(int way) {
    const long sizes[][3] = {{1, 1, 1}, {7, 5, 3}, {16, 48, 40}, {37, 50, 1100}, {9, 100, 333}};
    for (const auto &[M, N, K] : sizes)
        for (int order = 0; order < 4; order++) {
            const bool left = order & 1, right = order & 2;
            const long ar = left ? 1 : K, ac = left ? M : 1, br = right ? 1 : N, bc = right ? K : 1;
            Floats a = drawn(M * K, 1), b = drawn(K * N, 2);
            if (way == ROUNDED) a = rounded(a), b = rounded(b);
            Floats c(M * N, NAN), other(M * N, NAN), row(N, NAN);
            product(M, N, K, a.data(), ar, ac, b.data(), br, bc, c.data(), way, 1);
            product(M, N, K, a.data(), ar, ac, b.data(), br, bc, other.data(), way, 3);
            product(1, N, K, a.data() + (M - 1) * ar, ar, ac, b.data(), br, bc, row.data(), way, 1);
            if (!left && way == VECTORS) {
                Floats packed(packed_floats(N, K)), same(M * N, NAN);
                pack_right(N, K, b.data(), br, bc, packed.data(), 2);
                product_of_packed(M, N, K, a.data(), ar, packed.data(), same.data(), 3);
                for (long i = 0; i < M * N; i++) near("product of a packed side", same[i], c[i], 0);
            }
            for (long i = 0; i < M; i++)
                for (long j = 0; j < N; j++) {
                    double exact = 0, terms = 0;
                    for (long k = 0; k < K; k++) {
                        const double term = (double)a[i * ar + k * ac] * b[k * br + j * bc];
                        exact += term, terms += std::abs(term);
                    }
                    near("product", c[i * N + j], exact, (K + 2) * std::ldexp(terms, -24));
                    near("product of three threads", other[i * N + j], c[i * N + j], 0);
                    if (i == M - 1) near("product of one row", row[j], c[i * N + j], 0);
                }
        }
}

static void layers() {
    const long rows = 70, width = 96, count = rows * width;
    const Floats x = drawn(count, 3), w = drawn(width, 4), dy = drawn(count, 5);
    Floats y(count), inverse(rows), dx(count), dw(width), parts(norm_chunks(rows) * width);
    rms_norm(x.data(), w.data(), rows, width, 1e-5f, y.data(), inverse.data(), 2);
    rms_norm_backward(x.data(), w.data(), inverse.data(), dy.data(), rows, width, parts.data(), dx.data(), dw.data(), 2);
    std::vector<double> slope(width);
    for (long r = 0; r < rows; r++) {
        double squares = 0, mean = 0;
        for (long d = 0; d < width; d++) squares += (double)x[r * width + d] * x[r * width + d];
        const double factor = 1 / std::sqrt(squares / width + 1e-5);
        for (long d = 0; d < width; d++) mean += (double)w[d] * dy[r * width + d] * x[r * width + d] * factor / width;
        for (long d = 0; d < width; d++) {
            const double n = x[r * width + d] * factor;
            near("norm", y[r * width + d], w[d] * n, 1e-5);
            near("norm's dx", dx[r * width + d], factor * ((double)w[d] * dy[r * width + d] - n * mean), 1e-5);
            slope[d] += n * dy[r * width + d];
        }
    }
    for (long d = 0; d < width; d++) near("norm's dw", dw[d], slope[d], 1e-4);

    Floats gate = drawn(count, 6), dgate(count), dup(count);
    for (float &one : gate) one *= 20;
    gate[0] = 200, gate[1] = -200;
    swiglu(gate.data(), x.data(), count, y.data(), 2);
    swiglu_backward(gate.data(), x.data(), dy.data(), count, dgate.data(), dup.data(), 2);
    for (long i = 0; i < count; i++) {
        const double g = gate[i], s = sigmoid(g);
        near("gate", y[i], g * s * x[i], 2e-6 * (1 + std::abs(g)));
        near("gate's dup", dup[i], dy[i] * g * s, 2e-6 * (1 + std::abs(g)));
        near("gate's dgate", dgate[i], dy[i] * (double)x[i] * s * (1 + g * (1 - s)), 2e-6 * (1 + std::abs(g)));
    }

    const long tokens = 11, heads = 3, wide = 64;
    const Floats q = drawn(tokens * heads * wide, 7), c = drawn(tokens * wide, 8), s = drawn(tokens * wide, 9);
    Floats to(q.size());
    for (const bool back : {false, true}) {
        rotate(q.data(), heads * wide, wide, c.data(), s.data(), tokens, heads, wide, back, to.data(), 2);
        for (long t = 0; t < tokens; t++)
            for (long h = 0; h < heads; h++)
                for (long d = 0; d < wide; d++) {
                    const long half = wide / 2, pair = d < half ? d + half : d - half, at = (t * heads + h) * wide;
                    const double sine = back ? s[t * wide + pair] : s[t * wide + d], sign = (d < half) == back ? 1 : -1;
                    near("rotation", to[at + d], (double)q[at + d] * c[t * wide + d] + sign * sine * q[at + pair], 1e-6);
                }
    }
}

// Keys that a query sees: the segment's prefix and itself, causally, or only the last `window` of them.
static std::vector<long> seen(const Segment &segment, long query, long window) {
    std::vector<long> keys;
    for (long i = 0; i < segment.before; i++) keys.push_back(segment.prefix + i);
    for (long i = segment.begin; i <= query; i++) keys.push_back(i);
    const long extra = (long)keys.size() - window;
    if (extra > 0) keys.erase(keys.begin(), keys.begin() + extra);
    return keys;
}

static void attention(long window) {
    const long heads = 6, key_heads = 2, width = 32, groups = heads / key_heads, tokens = 70;
    const Shape shape{heads, key_heads, width, window, 0.3f, 2};
    const std::vector<Segment> segments{{0, 21, 0, 0}, {21, 37, 0, 21}, {58, 4, 0, 21}, {62, 8, 0, 0}};
    const std::vector<long> bounds{0, 3, 4};
    std::vector<Part> parts;
    for (long s = 0; s < 4; s++) parts.push_back({s, 0});
    const Floats q = drawn(tokens * heads * width, 1), k = drawn(tokens * key_heads * width, 2);
    const Floats v = drawn(tokens * key_heads * width, 3), grad = drawn(tokens * heads * width, 4);
    const Rows rq{q.data(), heads * width, width}, rk{k.data(), key_heads * width, width};
    const Rows rv{v.data(), key_heads * width, width}, rg{grad.data(), heads * width, width};
    Floats out(q.size()), lse(heads * tokens), gq(q.size()), gk(k.size()), gv(k.size());
    attend_segments(&rq, &rk, &rv, &rk, &rv, segments.data(), 4, parts.data(), 4, &shape, tokens, out.data(), lse.data());
    attend_segments_backward(&rq, &rk, &rv, segments.data(), bounds.data(), 2, &shape, tokens, out.data(), lse.data(), &rg,
                             gq.data(), gk.data(), gv.data());
    std::vector<double> dk(k.size()), dv(v.size());
    for (const Segment &segment : segments)
        for (long t = segment.begin; t < segment.begin + segment.count; t++)
            for (long h = 0; h < heads; h++) {
                const std::vector<long> keys = seen(segment, t, window);
                const float *mine = &q[(t * heads + h) * width], *slope = &grad[(t * heads + h) * width];
                const auto at = [&](long key) { return (key * key_heads + h / groups) * width; };
                std::vector<double> weight(keys.size()), y(width), dq(width);
                double total = 0, mean = 0;
                for (size_t j = 0; j < keys.size(); j++) {
                    double score = 0;
                    for (long d = 0; d < width; d++) score += (double)mine[d] * k[at(keys[j]) + d];
                    total += weight[j] = std::exp(score * shape.scale);
                }
                for (size_t j = 0; j < keys.size(); j++)
                    for (long d = 0; d < width; d++) y[d] += (weight[j] /= d ? 1 : total) * v[at(keys[j]) + d];
                for (long d = 0; d < width; d++) {
                    near("attention", out[(t * heads + h) * width + d], y[d], 1e-5);
                    mean += y[d] * slope[d];
                }
                for (size_t j = 0; j < keys.size(); j++) {
                    double dot = 0;
                    for (long d = 0; d < width; d++) dot += (double)slope[d] * v[at(keys[j]) + d];
                    const double ds = weight[j] * (dot - mean) * shape.scale;
                    for (long d = 0; d < width; d++) {
                        dq[d] += ds * k[at(keys[j]) + d];
                        dk[at(keys[j]) + d] += ds * mine[d];
                        dv[at(keys[j]) + d] += weight[j] * slope[d];
                    }
                }
                for (long d = 0; d < width; d++) near("attention's dq", gq[(t * heads + h) * width + d], dq[d], 1e-4);
            }
    for (size_t i = 0; i < k.size(); i++) near("attention's dk", gk[i], dk[i], 1e-4);
    for (size_t i = 0; i < v.size(); i++) near("attention's dv", gv[i], dv[i], 1e-4);

    // The same keys in slots: slot s holds `lengths[s]` tokens and gets one more, behind a prefix that all share.
    const long prefix = 5, room = 24;
    const std::vector<long> lengths{0, 1, 22, 9};
    Floats keys(lengths.size() * key_heads * room * width), values(keys.size()), told(lengths.size() * heads * width);
    for (size_t i = 0; i < keys.size(); i++) keys[i] = k[i % k.size()], values[i] = v[(i + 7) % v.size()];
    attend_slots(&rq, &rk, &rv, &rk, &rv, prefix, keys.data(), values.data(), room, lengths.data(), lengths.size(), &shape,
                 told.data());
    for (size_t s = 0; s < lengths.size(); s++)
        for (long h = 0; h < heads; h++) {
            const long all = prefix + lengths[s] + 1, head = h / groups, store = (s * key_heads + head) * room * width;
            double total = 0;
            std::vector<double> y(width);
            for (long j = all > window ? all - window : 0; j < all; j++) {
                const long shared = (j * key_heads + head) * width, own = store + (j - prefix) * width;
                const float *key = j < prefix ? &k[shared] : &keys[own], *value = j < prefix ? &v[shared] : &values[own];
                double score = 0;
                for (long d = 0; d < width; d++) score += (double)q[(s * heads + h) * width + d] * key[d];
                const double weight = std::exp(score * shape.scale);
                total += weight;
                for (long d = 0; d < width; d++) y[d] += weight * value[d];
            }
            for (long d = 0; d < width; d++) {
                near("slots", told[(s * heads + h) * width + d], y[d] / total, 1e-5);
                const long last = store + lengths[s] * width + d, given = (s * key_heads + head) * width + d;
                near("slots' key", keys[last], k[given], 0);
                near("slots' value", values[last], v[given], 0);
            }
        }
}

int main() {
    products(FLOAT32);
    products(VECTORS);
    if (rounds()) products(ROUNDED);
    layers();
    attention(1000);
    attention(9);
    if (wrong) return std::printf("%d numbers are wrong\n", wrong), 1;
    std::printf("%d\n", vector_floats());
}
