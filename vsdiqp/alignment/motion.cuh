// Block matching and motion compensation of luma, for one frame seen from another.
//
// One source for the CPU (library.cpp) and the GPU (kernels/): everything here works on one sample or one block and
// knows neither threads nor memory management. Matching is integer arithmetic in a fixed order, so that both find the
// same vectors to the bit.
//
// How: 8-bit luma, halved three times. At an eighth of the size every block is compared with all places around; each
// finer level starts from the vectors of the four nearest coarser blocks. At full size vectors are refined to quarter
// samples with the interpolation of H.264 (8.4.2.2.1: six taps at halves, means between). No block looks at another of
// its own level: all can be searched at once. Compensation interpolates with a windowed sinc instead, which keeps more
// of the texture than H.264's filter.
#pragma once

#ifdef __CUDACC_RTC__
typedef unsigned char diqp_byte;
typedef short diqp_short;
#define DIQP_MOTION __device__ __forceinline__
#else
#include <cstdint>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
typedef std::uint8_t diqp_byte;
typedef std::int16_t diqp_short;
#define DIQP_MOTION inline __attribute__((always_inline))
#endif

namespace diqp_motion {

/// Side of a block that has one vector, at every level.
constexpr int BLOCK = 8;
/// Side of the window around a block that is compared: larger, or flat blocks would follow their noise.
constexpr int WINDOW = 16;
/// Sizes searched: 1, 1/2, 1/4, 1/8.
constexpr int LEVELS = 4;
/// Longest vector along an axis, in samples of level 0. Frames farther apart in motion are not aligned.
constexpr int REACH = 72;
/// Samples that every plane goes on beyond its edges, repeating them: REACH, half a window's excess, the taps, and what
/// is gathered around.
constexpr int PAD = 96;
/// What a vector costs for every sample that it differs from where the search started, twice this for every two.
constexpr int PENALTY = 24;
/// Samples that compensation reads to the left of a sample's place, and one more to its right.
constexpr int TAPS_BEFORE = 2;
constexpr int TAPS = 6;

/// A padded plane: `origin` is sample (0, 0); PAD samples around may be read.
struct Plane {
    diqp_byte *origin;
    int width, height, stride;
};

struct Vector {
    int x, y;
};

DIQP_MOTION int absolute(int v) {
    return v < 0 ? -v : v;
}

DIQP_MOTION int limited(int v, int low, int high) {
    return v < low ? low : v > high ? high : v;
}

DIQP_MOTION const diqp_byte *at(const Plane &plane, int x, int y) {
    return plane.origin + static_cast<long long>(y) * plane.stride + x;
}

/// Sample (x, y) of the next smaller level.
DIQP_MOTION int halved(const Plane &larger, int x, int y) {
    const diqp_byte *p = at(larger, 2 * x, 2 * y);
    return (p[0] + p[1] + p[larger.stride] + p[larger.stride + 1] + 2) >> 2;
}

/// The sample between c and d.
DIQP_MOTION int between(int a, int b, int c, int d, int e, int f) {
    return limited((a - 5 * b + 20 * c + 20 * d - 5 * e + f + 16) >> 5, 0, 255);
}

#if defined(__SSE2__) && !defined(__CUDACC_RTC__)

DIQP_MOTION __m128i sixteen(const diqp_byte *p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
}

DIQP_MOTION int total(__m128i sums) {
    return _mm_cvtsi128_si32(sums) + _mm_cvtsi128_si32(_mm_srli_si128(sums, 8));
}

/// Sum of absolute differences of two windows.
DIQP_MOTION int difference(const diqp_byte *a, int a_stride, const diqp_byte *b, int b_stride) {
    static_assert(WINDOW == 16, "a row is one register");
    __m128i sums = _mm_setzero_si128();
    for (int y = 0; y < WINDOW; ++y, a += a_stride, b += b_stride)
        sums = _mm_add_epi64(sums, _mm_sad_epu8(sixteen(a), sixteen(b)));
    return total(sums);
}

/// The same with the rounded mean of b and c, as samples at quarters are made.
DIQP_MOTION int difference_of_mean(const diqp_byte *a, int a_stride, const diqp_byte *b, const diqp_byte *c,
                                   int stride) {
    __m128i sums = _mm_setzero_si128();
    for (int y = 0; y < WINDOW; ++y, a += a_stride, b += stride, c += stride)
        sums = _mm_add_epi64(sums, _mm_sad_epu8(sixteen(a), _mm_avg_epu8(sixteen(b), sixteen(c))));
    return total(sums);
}

#else

/// Sum of absolute differences of two windows.
DIQP_MOTION int difference(const diqp_byte *a, int a_stride, const diqp_byte *b, int b_stride) {
    int sum = 0;
    for (int y = 0; y < WINDOW; ++y, a += a_stride, b += b_stride)
        for (int x = 0; x < WINDOW; ++x)
            sum += absolute(a[x] - b[x]);
    return sum;
}

/// The same with the rounded mean of b and c, as samples at quarters are made.
DIQP_MOTION int difference_of_mean(const diqp_byte *a, int a_stride, const diqp_byte *b, const diqp_byte *c,
                                   int stride) {
    int sum = 0;
    for (int y = 0; y < WINDOW; ++y, a += a_stride, b += stride, c += stride)
        for (int x = 0; x < WINDOW; ++x)
            sum += absolute(a[x] - ((b[x] + c[x] + 1) >> 1));
    return sum;
}

#endif

/// Planes of the reference at full size: as it is, and between samples across, down, and both.
struct HalfPlanes {
    Plane whole, across, down, both;
};

DIQP_MOTION const diqp_byte *at_half(const HalfPlanes &planes, int x, int y, Vector v) {
    const Plane &plane =
        (v.y & 1) ? ((v.x & 1) ? planes.both : planes.down) : ((v.x & 1) ? planes.across : planes.whole);
    return at(plane, x + (v.x >> 1), y + (v.y >> 1));
}

/// First sample of the window around block `block` of an axis.
DIQP_MOTION int window_at(int block) {
    return block * BLOCK - (WINDOW - BLOCK) / 2;
}

/// A block's window beside those of the reference, read where they lie. What searches takes any class with these
/// members: one that works in another memory is told what will be looked at.
struct Windows {
    const Plane &current, &reference;
    int x, y; ///< first sample of the window

    /// From here on `compare_near` has vectors within AROUND samples of `centre` along both axes.
    template <int AROUND> DIQP_MOTION void gather(Vector) const {}

    DIQP_MOTION int compare(Vector v) const {
        return difference(at(current, x, y), current.stride, at(reference, x + v.x, y + v.y), reference.stride);
    }

    DIQP_MOTION int compare_near(Vector v) const { return compare(v); }
};

/// The same at full size, with what lies between the reference's samples.
struct HalfWindows {
    const Plane &current;
    const HalfPlanes &reference;
    int x, y;

    /// From here on everything within a sample of `whole` is compared.
    DIQP_MOTION void gather_halves(Vector) const {}

    /// v in halves of a sample.
    DIQP_MOTION int compare_half(Vector v) const {
        return difference(at(current, x, y), current.stride, at_half(reference, x, y, v), reference.whole.stride);
    }

    /// The mean of two places in halves of a sample.
    DIQP_MOTION int compare_mean(Vector v, Vector w) const {
        return difference_of_mean(at(current, x, y), current.stride, at_half(reference, x, y, v),
                                  at_half(reference, x, y, w), reference.whole.stride);
    }
};

/// One block of one level under search.
template <class Compared> struct Search {
    Compared &windows;
    int reach;    ///< longest vector along an axis
    Vector start; ///< where deviations are counted from
    int weight;   ///< PENALTY's multiple for deviations, in quarters
    Vector best;
    int cost;

    DIQP_MOTION bool reachable(Vector v) const { return absolute(v.x) <= reach && absolute(v.y) <= reach; }

    DIQP_MOTION bool weigh(Vector v, int difference) {
        const int found = difference + PENALTY * weight * (absolute(v.x - start.x) + absolute(v.y - start.y)) / 4;
        if (found >= cost)
            return false;
        cost = found;
        best = v;
        return true;
    }

    DIQP_MOTION void consider(Vector v) {
        if (reachable(v))
            weigh(v, windows.compare(v));
    }

    DIQP_MOTION bool consider_near(Vector v) { return reachable(v) && weigh(v, windows.compare_near(v)); }
};

/// A block's vector at the smallest level: every place within reach.
template <class Compared> DIQP_MOTION Vector search_smallest(Compared &windows) {
    constexpr int reach = REACH >> (LEVELS - 1);
    windows.template gather<reach>({0, 0});
    Search<Compared> search{windows, reach, {0, 0}, 1, {0, 0}, windows.compare_near({0, 0}) - PENALTY};
    for (int dy = -reach; dy <= reach; ++dy)
        for (int dx = -reach; dx <= reach; ++dx)
            search.consider_near({dx, dy});
    return search.best;
}

/// The vector of block (bx, by) at a larger level, from `coarse`, the vectors of the next smaller one (x, y; `wide` x
/// `high`).
template <class Compared>
DIQP_MOTION Vector search_level(Compared &windows, int level, int bx, int by, const diqp_short *coarse, int wide,
                                int high) {
    // The block's own coarse block, and those next to it on the side where the block lies.
    const int cx = bx / 2, cy = by / 2;
    const int nx = limited(cx + ((bx & 1) ? 1 : -1), 0, wide - 1), ny = limited(cy + ((by & 1) ? 1 : -1), 0, high - 1);
    const int nearest[4] = {cy * wide + cx, cy * wide + nx, ny * wide + cx, ny * wide + nx};
    const Vector start{2 * coarse[2 * nearest[0]], 2 * coarse[2 * nearest[0] + 1]};
    Search<Compared> search{windows, REACH >> level, start, 2, {0, 0}, windows.compare({0, 0}) - PENALTY};
    for (int i = 0; i < 4; ++i) {
        bool known = false;
        for (int j = 0; j < i; ++j)
            known = known || (coarse[2 * nearest[j]] == coarse[2 * nearest[i]] &&
                              coarse[2 * nearest[j] + 1] == coarse[2 * nearest[i] + 1]);
        if (!known)
            search.consider({2 * coarse[2 * nearest[i]], 2 * coarse[2 * nearest[i] + 1]});
    }
    constexpr int steps = 2;
    windows.template gather<steps>(search.best);
    for (int step = 0; step < steps; ++step) {
        const Vector centre = search.best;
        bool better = false;
        for (int dy = -1; dy <= 1; ++dy)
            for (int dx = -1; dx <= 1; ++dx)
                if (dx != 0 || dy != 0)
                    better = search.consider_near({centre.x + dx, centre.y + dy}) || better;
        if (!better)
            break;
    }
    return search.best;
}

/// `whole`, a block's vector in samples, refined: in quarters of a sample.
template <class Compared> DIQP_MOTION Vector refine(Compared &windows, Vector whole) {
    windows.gather_halves(whole);
    Vector half{2 * whole.x, 2 * whole.y};
    int cost = windows.compare_half(half) - PENALTY / 2;
    Vector centre = half;
    for (int dy = -1; dy <= 1; ++dy)
        for (int dx = -1; dx <= 1; ++dx) {
            const Vector v{centre.x + dx, centre.y + dy};
            if (dx == 0 && dy == 0)
                continue;
            const int found = windows.compare_half(v);
            if (found < cost) {
                cost = found;
                half = v;
            }
        }
    Vector quarter{2 * half.x, 2 * half.y};
    centre = quarter;
    cost -= PENALTY / 2;
    for (int dy = -1; dy <= 1; ++dy)
        for (int dx = -1; dx <= 1; ++dx) {
            if (dx == 0 && dy == 0)
                continue;
            const Vector v{centre.x + dx, centre.y + dy};
            const int found = windows.compare_mean({v.x >> 1, v.y >> 1}, {(v.x + 1) >> 1, (v.y + 1) >> 1});
            if (found < cost) {
                cost = found;
                quarter = v;
            }
        }
    return quarter;
}

/// Weight of tap `tap` (0..5, place -2..3) at `quarter` quarters of a sample: sinc under a sinc of three samples
/// (Lanczos), sums 1.
DIQP_MOTION float tap_weight(int quarter, int tap) {
    constexpr float WEIGHTS[4][TAPS] = {
        {0.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0.0f},
        {0.03011229f, -0.13327464f, 0.89277077f, 0.27101057f, -0.06799726f, 0.00737827f},
        {0.02445652f, -0.13586957f, 0.61141304f, 0.61141304f, -0.13586957f, 0.02445652f},
        {0.00737827f, -0.06799726f, 0.27101057f, 0.89277077f, -0.13327464f, 0.03011229f},
    };
    return WEIGHTS[quarter][tap];
}

} // namespace diqp_motion
