// Block matching and motion compensation on the CPU, as plain functions for ctypes: see motion.cuh and __init__.py.
//
// Every function writes only what it is given to write, keeps nothing, and may be called from several threads.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "motion.cuh"

using namespace diqp_motion;

#define DIQP_EXPORT extern "C" __attribute__((visibility("default")))

// The loops over samples gain several times from vector instructions that not every x86-64 has: the loader chooses.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define DIQP_FAST __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define DIQP_FAST
#endif

namespace {

constexpr int STRIDE_STEP = 64;
/// A window that starts left of the last block may end this far beyond the padding's start.
constexpr int PLANES = LEVELS + 3;

/// Planes of a prepared frame in one block of memory: the levels, then the three between samples.
struct Prepared {
    Plane planes[PLANES];
    std::size_t bytes = 0;

    Prepared(diqp_byte *memory, int width, int height) {
        for (int i = 0; i < PLANES; ++i) {
            const int level = i < LEVELS ? i : 0;
            const int w = size_at(width, level), h = size_at(height, level);
            const int stride = (w + 2 * PAD + BLOCK + STRIDE_STEP - 1) / STRIDE_STEP * STRIDE_STEP;
            const std::size_t first = bytes + static_cast<std::size_t>(PAD) * stride + PAD;
            planes[i] = {memory == nullptr ? nullptr : memory + first, w, h, stride};
            bytes += static_cast<std::size_t>(stride) * (h + 2 * PAD + BLOCK);
        }
    }

    static int size_at(int size, int level) { return (size + (1 << level) - 1) >> level; }

    HalfPlanes halves() const { return {planes[0], planes[LEVELS], planes[LEVELS + 1], planes[LEVELS + 2]}; }
};

diqp_byte *row(const Plane &plane, int y) {
    return plane.origin + static_cast<std::ptrdiff_t>(y) * plane.stride;
}

/// Blocks that reach beyond the edge are compared there too: BLOCK more samples than PAD to the right and below.
void extend(const Plane &plane) {
    for (int y = 0; y < plane.height; ++y) {
        diqp_byte *line = row(plane, y);
        std::memset(line - PAD, line[0], PAD);
        std::memset(line + plane.width, line[plane.width - 1], PAD + BLOCK);
    }
    const std::size_t bytes = static_cast<std::size_t>(plane.width + 2 * PAD + BLOCK);
    for (int y = 1; y <= PAD; ++y)
        std::memcpy(row(plane, -y) - PAD, row(plane, 0) - PAD, bytes);
    for (int y = 0; y < PAD + BLOCK; ++y)
        std::memcpy(row(plane, plane.height + y) - PAD, row(plane, plane.height - 1) - PAD, bytes);
}

/// Fill `out` between samples `step` apart (1: across, a stride: down), as far as the taps reach inside the padding.
DIQP_FAST void interpolate(const Plane &in, const Plane &out, std::ptrdiff_t step) {
    const int edge = TAPS_BEFORE + 1, last = in.width + PAD + BLOCK - edge;
    for (int y = edge - PAD; y < in.height + PAD + BLOCK - edge; ++y) {
        const diqp_byte *p = row(in, y);
        diqp_byte *q = row(out, y);
        int x = edge - PAD;
#if defined(__SSE2__)
        const __m128i none = _mm_setzero_si128(), half = _mm_set1_epi16(16);
        const auto eight = [&](int at) {
            return _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p + at)), none);
        };
        // As `between`, in 16 bits: ((c + d) * 4 - (b + e)) * 5 + a + f + 16 stays within -2534..10726.
        const auto eight_between = [&](int at) {
            const int s = static_cast<int>(step);
            const __m128i inner = _mm_add_epi16(eight(at), eight(at + s));
            const __m128i middle = _mm_add_epi16(eight(at - s), eight(at + 2 * s));
            const __m128i outer = _mm_add_epi16(eight(at - 2 * s), eight(at + 3 * s));
            const __m128i difference = _mm_sub_epi16(_mm_slli_epi16(inner, 2), middle);
            const __m128i five = _mm_add_epi16(_mm_slli_epi16(difference, 2), difference);
            return _mm_srai_epi16(_mm_add_epi16(_mm_add_epi16(five, outer), half), 5);
        };
        for (; x + 16 <= last; x += 16)
            _mm_storeu_si128(reinterpret_cast<__m128i *>(q + x),
                             _mm_packus_epi16(eight_between(x), eight_between(x + 8)));
#endif
        for (; x < last; ++x)
            q[x] = static_cast<diqp_byte>(
                between(p[x - 2 * step], p[x - step], p[x], p[x + step], p[x + 2 * step], p[x + 3 * step]));
    }
}

DIQP_FAST void halve(const Plane &larger, const Plane &smaller) {
    for (int y = 0; y < smaller.height; ++y) {
        diqp_byte *line = row(smaller, y);
        for (int x = 0; x < smaller.width; ++x)
            line[x] = static_cast<diqp_byte>(halved(larger, x, y));
    }
}

/// Blocks at a level, from the first to the one after the last.
struct Blocks {
    int left, top, right, bottom;
};

DIQP_FAST void search_blocks(const Plane &current, const Plane &reference, int level, const Blocks &blocks,
                             const diqp_short *coarse, int coarse_wide, int coarse_high, diqp_short *found, int wide) {
    for (int by = blocks.top; by < blocks.bottom; ++by)
        for (int bx = blocks.left; bx < blocks.right; ++bx) {
            const Windows windows{current, reference, window_at(bx), window_at(by)};
            const Vector v = coarse == nullptr ? search_smallest(windows)
                                               : search_level(windows, level, bx, by, coarse, coarse_wide, coarse_high);
            diqp_short *out = found + 2 * (static_cast<std::ptrdiff_t>(by) * wide + bx);
            out[0] = static_cast<diqp_short>(v.x);
            out[1] = static_cast<diqp_short>(v.y);
        }
}

DIQP_FAST void refine_blocks(const Plane &current, const HalfPlanes &reference, const Blocks &blocks,
                             diqp_short *vectors, int wide) {
    for (int by = blocks.top; by < blocks.bottom; ++by)
        for (int bx = blocks.left; bx < blocks.right; ++bx) {
            diqp_short *v = vectors + 2 * (static_cast<std::ptrdiff_t>(by) * wide + bx);
            const HalfWindows windows{current, reference, window_at(bx), window_at(by)};
            const Vector refined = refine(windows, {v[0], v[1]});
            v[0] = static_cast<diqp_short>(refined.x);
            v[1] = static_cast<diqp_short>(refined.y);
        }
}

int blocks_of(int size) {
    return (size + BLOCK - 1) / BLOCK;
}

/// Interpolates one block, whose taps are all inside `source` (its sample for the block's first, whole vector added).
DIQP_FAST void interpolate_block(const float *source, std::ptrdiff_t stride, int quarter_x, int quarter_y, float *out,
                                 std::ptrdiff_t out_stride) {
    float weights_x[TAPS], weights_y[TAPS], lines[BLOCK + TAPS - 1][BLOCK];
    for (int k = 0; k < TAPS; ++k) {
        weights_x[k] = tap_weight(quarter_x, k);
        weights_y[k] = tap_weight(quarter_y, k);
    }
    const float *line = source - TAPS_BEFORE * stride - TAPS_BEFORE;
    for (int y = 0; y < BLOCK + TAPS - 1; ++y, line += stride) {
        float sums[BLOCK] = {};
        for (int k = 0; k < TAPS; ++k)
            for (int x = 0; x < BLOCK; ++x)
                sums[x] += weights_x[k] * line[x + k];
        for (int x = 0; x < BLOCK; ++x)
            lines[y][x] = sums[x];
    }
    for (int y = 0; y < BLOCK; ++y) {
        float sums[BLOCK] = {};
        for (int k = 0; k < TAPS; ++k)
            for (int x = 0; x < BLOCK; ++x)
                sums[x] += weights_y[k] * lines[y + k][x];
        for (int x = 0; x < BLOCK; ++x)
            out[y * out_stride + x] = sums[x];
    }
}

} // namespace

/// Bytes of a prepared frame.
DIQP_EXPORT long long diqp_motion_bytes(int width, int height) {
    return static_cast<long long>(Prepared(nullptr, width, height).bytes);
}

/// Prepares 8-bit luma, rows `stride` bytes apart, in `memory` of diqp_motion_bytes.
DIQP_EXPORT void diqp_motion_prepare(const diqp_byte *luma, long long stride, int width, int height,
                                     diqp_byte *memory) {
    const Prepared frame(memory, width, height);
    for (int y = 0; y < height; ++y)
        std::memcpy(row(frame.planes[0], y), luma + y * stride, static_cast<std::size_t>(width));
    extend(frame.planes[0]);
    for (int level = 1; level < LEVELS; ++level) {
        halve(frame.planes[level - 1], frame.planes[level]);
        extend(frame.planes[level]);
    }
    const HalfPlanes halves = frame.halves();
    // What the taps cannot reach at the padding's own edge is never looked at, but must not be undefined.
    for (int i = LEVELS; i < PLANES; ++i)
        std::memcpy(row(frame.planes[i], -PAD) - PAD, row(frame.planes[0], -PAD) - PAD,
                    static_cast<std::size_t>(frame.planes[0].stride) * (height + 2 * PAD + BLOCK - 1));
    interpolate(halves.whole, halves.across, 1);
    interpolate(halves.whole, halves.down, halves.whole.stride);
    interpolate(halves.across, halves.both, halves.across.stride);
}

/// Vectors (x, y in quarters of a sample) from blocks of `current` to where they are in `reference`, both prepared:
/// rows of blocks, in `vectors`. Of the region left, top, right, bottom (samples, multiples of BLOCK or the edge) only.
DIQP_EXPORT void diqp_motion_search(diqp_byte *current, diqp_byte *reference, int width, int height, int left, int top,
                                    int right, int bottom, diqp_short *vectors) {
    const Prepared own(current, width, height), other(reference, width, height);
    std::vector<diqp_short> coarse, found;
    int coarse_wide = 0, coarse_high = 0;
    for (int level = LEVELS - 1; level >= 0; --level) {
        const Plane &plane = own.planes[level];
        const int wide = blocks_of(plane.width), high = blocks_of(plane.height);
        const int step = BLOCK << level;
        // One block more around for the next level's neighbours.
        const int more = level == 0 ? 0 : 1;
        const Blocks blocks{std::max(left / step - more, 0), std::max(top / step - more, 0),
                            std::min((right + step - 1) / step + more, wide),
                            std::min((bottom + step - 1) / step + more, high)};
        diqp_short *out = vectors;
        if (level > 0) {
            found.assign(2 * static_cast<std::size_t>(wide) * high, 0);
            out = found.data();
        }
        search_blocks(plane, other.planes[level], level, blocks, coarse.empty() ? nullptr : coarse.data(), coarse_wide,
                      coarse_high, out, wide);
        if (level == 0)
            refine_blocks(plane, other.halves(), blocks, vectors, wide);
        coarse.swap(found);
        coarse_wide = wide;
        coarse_high = high;
    }
}

/// A region of `width` x `height` samples at (left, top) of a frame of blocks `wide` x `high`, each from where its
/// vector points to. `source` holds the frame's samples from (source_left, source_top) on, source_width x
/// source_height of them; beyond these its edge goes on. The region starts at multiples of BLOCK.
DIQP_EXPORT void diqp_motion_compensate(const float *source, long long source_stride, int source_left, int source_top,
                                        int source_width, int source_height, const diqp_short *vectors, int wide,
                                        int high, float *out, long long out_stride, int left, int top, int width,
                                        int height) {
    constexpr int SIDE = BLOCK + TAPS - 1;
    float edge[SIDE * SIDE], block[BLOCK * BLOCK];
    for (int y = 0; y < height; y += BLOCK)
        for (int x = 0; x < width; x += BLOCK) {
            const int by = std::min((top + y) / BLOCK, high - 1), bx = std::min((left + x) / BLOCK, wide - 1);
            const diqp_short *v = vectors + 2 * (static_cast<std::ptrdiff_t>(by) * wide + bx);
            const int from_x = left + x + (v[0] >> 2) - source_left, from_y = top + y + (v[1] >> 2) - source_top;
            const int first_x = from_x - TAPS_BEFORE, first_y = from_y - TAPS_BEFORE;
            const float *taps = source + from_y * source_stride + from_x;
            std::ptrdiff_t stride = source_stride;
            if (first_x < 0 || first_y < 0 || first_x + SIDE > source_width || first_y + SIDE > source_height) {
                for (int j = 0; j < SIDE; ++j)
                    for (int i = 0; i < SIDE; ++i)
                        edge[j * SIDE + i] = source[limited(first_y + j, 0, source_height - 1) * source_stride +
                                                    limited(first_x + i, 0, source_width - 1)];
                taps = edge + TAPS_BEFORE * SIDE + TAPS_BEFORE;
                stride = SIDE;
            }
            float *target = out + y * out_stride + x;
            if (x + BLOCK <= width && y + BLOCK <= height) {
                interpolate_block(taps, stride, v[0] & 3, v[1] & 3, target, out_stride);
                continue;
            }
            interpolate_block(taps, stride, v[0] & 3, v[1] & 3, block, BLOCK);
            for (int j = 0; j < std::min(BLOCK, height - y); ++j)
                std::memcpy(target + j * out_stride, block + j * BLOCK,
                            sizeof(float) * static_cast<std::size_t>(std::min(BLOCK, width - x)));
        }
}
