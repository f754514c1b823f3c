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

/// Places around one.
constexpr int NEIGHBOURS = 8;

/// Where the i-th of them is, in the order in which they are looked at: row by row.
DIQP_MOTION Vector neighbour(int i) {
    const int place = i < NEIGHBOURS / 2 ? i : i + 1;
    return {place % 3 - 1, place / 3 - 1};
}

DIQP_MOTION bool same(Vector v, Vector w) {
    return ((v.x ^ w.x) | (v.y ^ w.y)) == 0;
}

/// Whether a vector is no longer than `reach` along either axis.
DIQP_MOTION bool within(Vector v, int reach) {
    return (absolute(v.x) <= reach) & (absolute(v.y) <= reach); // no branch between the two
}

DIQP_MOTION Vector moved(Vector v, Vector by) {
    return {v.x + by.x, v.y + by.y};
}

/// A block's window beside those of the reference, read where they lie. What searches takes any class with these
/// members: they ask for all places of a neighbourhood at once, which one that has a GPU's warp reads once for all.
struct Windows {
    const Plane &current, &reference;
    int x, y; ///< first sample of the window

    /// From here on `compare_row` and `compare_around` look no farther than AROUND samples from `centre` along an axis.
    template <int AROUND> DIQP_MOTION void gather(Vector) const {}

    DIQP_MOTION int compare(Vector v) const {
        return difference(at(current, x, y), current.stride, at(reference, x + v.x, y + v.y), reference.stride);
    }

    /// A row of places, the middle one at (0, down).
    template <int PLACES> DIQP_MOTION void compare_row(int down, int (&differences)[PLACES]) const {
        for (int i = 0; i < PLACES; ++i)
            differences[i] = compare({i - PLACES / 2, down});
    }

    /// Of places beyond `reach` any number will do.
    DIQP_MOTION void compare_around(Vector centre, int reach, int (&differences)[NEIGHBOURS]) const {
        for (int i = 0; i < NEIGHBOURS; ++i) {
            const Vector v = moved(centre, neighbour(i));
            differences[i] = within(v, reach) ? compare(v) : 0;
        }
    }
};

/// The same at full size, with what lies between the reference's samples.
struct HalfWindows {
    const Plane &current;
    const HalfPlanes &reference;
    int x, y;

    /// From here on everything within a sample of `whole` is compared.
    DIQP_MOTION void gather_halves(Vector) const {}

    /// Of `centre` itself; and of the places half a sample from it. It is in halves.
    DIQP_MOTION int compare_halves(Vector centre, int (&differences)[NEIGHBOURS]) const {
        for (int i = 0; i < NEIGHBOURS; ++i)
            differences[i] = compare_half(moved(centre, neighbour(i)));
        return compare_half(centre);
    }

    /// Of the places a quarter of a sample from `centre`, which is in halves: means of two of these.
    DIQP_MOTION void compare_quarters(Vector centre, int (&differences)[NEIGHBOURS]) const {
        for (int i = 0; i < NEIGHBOURS; ++i) {
            const Vector v{2 * centre.x + neighbour(i).x, 2 * centre.y + neighbour(i).y};
            differences[i] =
                difference_of_mean(at(current, x, y), current.stride, at_half(reference, x, y, {v.x >> 1, v.y >> 1}),
                                   at_half(reference, x, y, {(v.x + 1) >> 1, (v.y + 1) >> 1}), reference.whole.stride);
        }
    }

    /// v in halves of a sample.
    DIQP_MOTION int compare_half(Vector v) const {
        return difference(at(current, x, y), current.stride, at_half(reference, x, y, v), reference.whole.stride);
    }
};

/// Takes the least of `costs` for `cost` if it is less. Which it is, counted from 1, the first of equal ones; or 0.
/// Costs are of less than 32 - BITS bits, and none is negative: what is below them all may be so, and stays as 0.
template <int BITS, int COUNT> DIQP_MOTION int take_least(const int (&costs)[COUNT], int &cost) {
    // The order is in the bits below the costs: one minimum each, and no branch.
    static_assert(COUNT < 1 << BITS, "every place has its number");
    unsigned least = static_cast<unsigned>(cost < 0 ? 0 : cost) << BITS;
    for (int i = 0; i < COUNT; ++i) {
        const unsigned found = (static_cast<unsigned>(costs[i]) << BITS) + (i + 1);
        least = found < least ? found : least;
    }
    cost = static_cast<int>(least >> BITS);
    return static_cast<int>(least & ((1u << BITS) - 1));
}

/// The same of differences alone. Sums of a GPU's warp lie two in a word, and half a word's number beside them as they
/// are.
DIQP_MOTION int take_least_difference(const int (&differences)[NEIGHBOURS], int &cost) {
    static_assert(255 * WINDOW * WINDOW < 1 << 16, "differences are of 16 bits");
    return take_least<16>(differences, cost);
}

/// One block of one level under search.
template <class Compared> struct Search {
    Compared &windows;
    int reach;    ///< longest vector along an axis
    Vector start; ///< where deviations are counted from
    int weight;   ///< PENALTY's multiple for deviations, in quarters
    Vector best;
    int cost;

    /// What a vector's part along an axis costs.
    DIQP_MOTION int deviation(int v, int from) const {
        static_assert(PENALTY % 4 == 0, "the parts of both axes add up");
        return PENALTY / 4 * weight * absolute(v - from);
    }

    /// The same of the parts before, at and after v, which is within reach itself.
    DIQP_MOTION void deviations(int v, int from, int (&around)[3]) const {
        // More than any difference: what is out of reach is never taken.
        constexpr int FAR = 1 << 20;
        around[0] = v > -reach ? deviation(v - 1, from) : FAR;
        around[1] = deviation(v, from);
        around[2] = v < reach ? deviation(v + 1, from) : FAR;
    }

    /// A place within reach.
    DIQP_MOTION void consider(Vector v) {
        const int found = windows.compare(v) + deviation(v.x, start.x) + deviation(v.y, start.y);
        if (found < cost) {
            cost = found;
            best = v;
        }
    }

    /// All places of a row around (0, down), which are within reach.
    template <int PLACES> DIQP_MOTION void consider_row(int down) {
        int costs[PLACES];
        windows.compare_row(down, costs);
        for (int i = 0; i < PLACES; ++i)
            costs[i] += deviation(i - PLACES / 2, start.x) + deviation(down, start.y);
        const int taken = take_least<5>(costs, cost);
        if (taken != 0)
            best = {taken - 1 - PLACES / 2, down};
    }

    /// Whether a place around the best one is better.
    DIQP_MOTION bool consider_around() {
        int costs[NEIGHBOURS], across[3], down[3];
        windows.compare_around(best, reach, costs);
        deviations(best.x, start.x, across);
        deviations(best.y, start.y, down);
        for (int i = 0; i < NEIGHBOURS; ++i)
            costs[i] += across[neighbour(i).x + 1] + down[neighbour(i).y + 1];
        const int taken = take_least<4>(costs, cost);
        if (taken != 0)
            best = moved(best, neighbour(taken - 1));
        return taken != 0;
    }
};

/// A block's vector at the smallest level: every place within reach.
template <class Compared> DIQP_MOTION Vector search_smallest(Compared &windows) {
    constexpr int reach = REACH >> (LEVELS - 1);
    Search<Compared> search{windows, reach, {0, 0}, 1, {0, 0}, windows.compare({0, 0}) - PENALTY};
    windows.template gather<reach>({0, 0});
    for (int down = -reach; down <= reach; ++down)
        search.template consider_row<2 * reach + 1>(down);
    return search.best;
}

/// The vector of block (bx, by) at a larger level, from `coarse`, the vectors of the next smaller one (x, y; `wide` x
/// `high`).
template <class Compared>
DIQP_MOTION Vector search_level(Compared &windows, int level, int bx, int by, const diqp_short *coarse, int wide,
                                int high) {
    // The block's own coarse block, and those next to it on the side where the block lies.
    const int cx = bx >> 1, cy = by >> 1;
    const int nx = limited(cx + ((bx & 1) ? 1 : -1), 0, wide - 1), ny = limited(cy + ((by & 1) ? 1 : -1), 0, high - 1);
    const int nearest[4] = {cy * wide + cx, cy * wide + nx, ny * wide + cx, ny * wide + nx};
    Vector starts[4];
    for (int i = 0; i < 4; ++i) {
        const diqp_short *v = coarse + 2 * nearest[i];
        starts[i] = {2 * v[0], 2 * v[1]};
    }
    Search<Compared> search{windows, REACH >> level, starts[0], 2, {0, 0}, windows.compare({0, 0}) - PENALTY};
    for (int i = 0; i < 4; ++i) {
        // What was compared is not better than itself; the first of all, which did not move, least.
        bool known = same(starts[i], {0, 0});
        for (int j = 0; j < i; ++j)
            known |= same(starts[i], starts[j]);
        if (!known & within(starts[i], search.reach))
            search.consider(starts[i]);
    }
    constexpr int steps = 2;
    windows.template gather<steps>(search.best);
    for (int step = 0; step < steps; ++step)
        if (!search.consider_around())
            break;
    return search.best;
}

/// `whole`, a block's vector in samples, refined: in quarters of a sample.
template <class Compared> DIQP_MOTION Vector refine(Compared &windows, Vector whole) {
    windows.gather_halves(whole);
    int differences[NEIGHBOURS];
    Vector half{2 * whole.x, 2 * whole.y};
    int cost = windows.compare_halves(half, differences) - PENALTY / 2;
    const int halves = take_least_difference(differences, cost);
    if (halves != 0)
        half = moved(half, neighbour(halves - 1));
    windows.compare_quarters(half, differences);
    cost -= PENALTY / 2;
    const Vector quarter{2 * half.x, 2 * half.y};
    const int quarters = take_least_difference(differences, cost);
    return quarters != 0 ? moved(quarter, neighbour(quarters - 1)) : quarter;
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
