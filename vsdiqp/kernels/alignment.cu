// The frames around each frame of a group, on the GPU: motion between them found, and their luma moved onto the
// group's.
//
//   read_luma       staged planes -> the network's luma of whole frames
//   search_planes   luma -> the 8-bit luma that is searched, edges repeated
//   halve_planes    -> the next smaller level
//   between_planes  -> samples at halves: across and down, then both
//   search_blocks   a vector for every block of a level, from those of the next smaller one; at full size to quarters
//   move_luma       luma and vectors -> the neighbours as the frames of a batch of tiles see them
//
// The arithmetic is ../alignment/motion.cuh; its library.cpp and ../neighbours.py are the reference, which tests hold
// this file against: vectors are the same to the bit.
//
// Compile-time switches, besides those of pixels.cuh:
//   SEEN   frames that each frame is seen beside: neighbours on both sides, and where odd the frame itself
//   LANES  threads that compare a block's windows together: a warp of 32; 1 where a CPU stands in

#include "pixels.cuh"

#ifndef SEEN
#define SEEN 4
#endif
#ifndef LANES
#define LANES 32
#endif

#include "motion.cuh"

#define SEQUENCE (GROUP + SEEN / 2 * 2)  // frames of a run: before the group, the group, after it
#define PAIRS (GROUP * SEEN)             // every frame of the group and each that it is seen beside
#define PLANES (diqp_motion::LEVELS + 3) // of a frame that is searched: the levels, then across, down, both

// ---------------------------------------------------------------------------------------------------------------
// What the host passes, by value. Mirrored field for field in layouts.py.

struct ReadLuma {
    Layout layout;
    Colour colour;
    const Sample *plane[SEQUENCE][3]; // of each distinct frame; chroma is null where luma does not need it
    float *luma;                      // frames, height, pitch
    int pitch;                        // samples a row
};

struct SearchPlane {
    long long origin; // of sample (0, 0), in bytes from the frame's first
    int width, height, stride;
};

struct Motion {
    SearchPlane plane[PLANES];
    long long bytes; // of a frame
    const float *luma;
    int pitch;
    u8 *memory;                        // frames, bytes
    short *found[diqp_motion::LEVELS]; // pairs, rows of blocks, blocks, x and y: samples; of level 0 quarters
    int own[PAIRS], other[PAIRS];      // the two frames of each pair
    int plane_index;                   // the plane that is made, or the level that is searched
};

struct Move {
    Tiling tiling;
    int width, height; // of a frame
    const float *luma;
    int pitch;
    const short *vectors; // Motion.found[0]
    int wide, high;       // blocks
    int frame[PAIRS];     // whose luma is seen
    int pair[PAIRS];      // by which vectors; -1: as it lies
    int first_tile;       // index of beside[0]; tiles run row by row
    float *beside;        // tiles, 3 frames, SEEN, tile height, tile width
};

// ---------------------------------------------------------------------------------------------------------------

namespace diqp_motion {

// Eight bytes from any address. Reads whole words around them: planes go on there.
__device__ inline void eight(const diqp_byte *p, unsigned *out) {
    const unsigned beyond = (unsigned)(size_t)p & 3, shift = 8 * beyond;
    const unsigned *words = (const unsigned *)(p - beyond);
    // Through the read-only path: nothing here writes planes.
    const unsigned first = __ldg(words), second = __ldg(words + 1), third = __ldg(words + 2);
    out[0] = __funnelshift_r(first, second, shift);
    out[1] = __funnelshift_r(second, third, shift);
}

// Every lane's sum over all lanes.
__device__ inline int total(unsigned sum) {
#if LANES == 32 && __CUDA_ARCH__ >= 800
    // One instruction, and the compiler learns that all lanes go the same way from here.
    return (int)__reduce_add_sync(0xffffffffu, sum);
#elif LANES > 1
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
#endif
    return (int)sum;
}

// A lane compares half a row.
#define PIECES (2 * WINDOW)

// Words that hold so many bytes wherever in a word they begin.
__host__ __device__ constexpr int words_for(int bytes) {
    return (bytes + 6) / 4;
}

static_assert(WINDOW == 16, "half a row is eight bytes");
constexpr int FARTHEST = WINDOW + 2 * (REACH >> (LEVELS - 1)), HALVES = WINDOW + 2;
// Words of a half plane's surroundings, and of shared memory for those who search a block together.
constexpr int HALF_WORDS = HALVES * words_for(HALVES);
constexpr int STORE = FARTHEST * words_for(FARTHEST) > 4 * HALF_WORDS ? FARTHEST * words_for(FARTHEST) : 4 * HALF_WORDS;

// A block's window in registers, and the surroundings of where it is looked for in shared memory: reads of planes go
// to sixteen lines at once, which the first-level cache takes one by one, and most windows are compared with many that
// overlap. Members as of `Windows` and `HalfWindows`.
struct Gathered {
    HalfPlanes reference; // of levels but the first: `whole` alone
    int x, y;
    unsigned *store;
    unsigned own[PIECES / LANES][2];
    // What is stored: its first sample, words a row, bytes before the sample in its word.
    int left, top, pitch, before;

    DIQP_MOTION Gathered(const Plane &current, const HalfPlanes &planes, int bx, int by, unsigned *memory)
        : reference(planes), x(window_at(bx)), y(window_at(by)), store(memory), left(0), top(0), pitch(0), before(0) {
        for (int i = 0; i < PIECES / LANES; ++i)
            eight(at(current, x + column(i), y + row(i)), own[i]);
    }

    // Of the piece that is a lane's i-th.
    static DIQP_MOTION int row(int i) { return (threadIdx.x % LANES + i * LANES) / 2; }
    static DIQP_MOTION int column(int i) { return (threadIdx.x % LANES + i * LANES) % 2 * 8; }

    static DIQP_MOTION void meet() {
#if LANES > 1
        __syncwarp();
#endif
    }

    // Store SIDE rows of as many samples from (left, top) on.
    template <int SIDE> DIQP_MOTION void copy(const Plane &plane, unsigned *to) const {
        constexpr int wide = words_for(SIDE);
        const unsigned *from = (const unsigned *)(at(plane, left, top) - before);
        for (int i = threadIdx.x % LANES; i < SIDE * wide; i += LANES)
            to[i] = __ldg(from + i / wide * (plane.stride / 4) + i % wide);
    }

    DIQP_MOTION void place(int sample_x, int sample_y, int wide) {
        left = sample_x;
        top = sample_y;
        pitch = wide;
        // Planes begin alike: what holds for one of a size holds for all.
        before = (int)((size_t)at(reference.whole, left, top) & 3);
        meet(); // nobody reads what was there any more
    }

    template <int AROUND> DIQP_MOTION void gather(Vector centre) {
        constexpr int side = WINDOW + 2 * AROUND;
        static_assert(side * words_for(side) <= STORE, "the surroundings fit");
        place(x + centre.x - AROUND, y + centre.y - AROUND, words_for(side));
        copy<side>(reference.whole, store);
        meet();
    }

    DIQP_MOTION void gather_halves(Vector whole) {
        place(x + whole.x - 1, y + whole.y - 1, words_for(HALVES));
        copy<HALVES>(reference.whole, store);
        copy<HALVES>(reference.across, store + HALF_WORDS);
        copy<HALVES>(reference.down, store + 2 * HALF_WORDS);
        copy<HALVES>(reference.both, store + 3 * HALF_WORDS);
        meet();
    }

    // Eight samples of what is stored for a lane's i-th piece of the window at (sample_x, sample_y).
    DIQP_MOTION void stored(const unsigned *from, int sample_x, int sample_y, int i, unsigned *out) const {
        const unsigned byte = before + sample_x - left;
        const unsigned *words = from + (sample_y - top + row(i)) * pitch + byte / 4 + column(i) / 4;
        const unsigned shift = 8 * (byte & 3), second = words[1];
        out[0] = __funnelshift_r(words[0], second, shift);
        out[1] = __funnelshift_r(second, words[2], shift);
    }

    DIQP_MOTION const unsigned *half_plane(Vector v) const { return store + ((v.y & 1) * 2 + (v.x & 1)) * HALF_WORDS; }

    DIQP_MOTION int compare(Vector v) const {
        unsigned sum = 0;
        for (int i = 0; i < PIECES / LANES; ++i) {
            unsigned p[2];
            eight(at(reference.whole, x + v.x + column(i), y + v.y + row(i)), p);
            sum += __vsadu4(own[i][0], p[0]) + __vsadu4(own[i][1], p[1]);
        }
        return total(sum);
    }

    DIQP_MOTION int compare_near(Vector v) const { return compare_stored(store, x + v.x, y + v.y); }

    DIQP_MOTION int compare_half(Vector v) const {
        return compare_stored(half_plane(v), x + (v.x >> 1), y + (v.y >> 1));
    }

    DIQP_MOTION int compare_stored(const unsigned *from, int sample_x, int sample_y) const {
        unsigned sum = 0;
        for (int i = 0; i < PIECES / LANES; ++i) {
            unsigned p[2];
            stored(from, sample_x, sample_y, i, p);
            sum += __vsadu4(own[i][0], p[0]) + __vsadu4(own[i][1], p[1]);
        }
        return total(sum);
    }

    DIQP_MOTION int compare_mean(Vector v, Vector w) const {
        unsigned sum = 0;
        for (int i = 0; i < PIECES / LANES; ++i) {
            unsigned p[2], q[2];
            stored(half_plane(v), x + (v.x >> 1), y + (v.y >> 1), i, p);
            stored(half_plane(w), x + (w.x >> 1), y + (w.y >> 1), i, q);
            sum += __vsadu4(own[i][0], __vavgu4(p[0], q[0])) + __vsadu4(own[i][1], __vavgu4(p[1], q[1]));
        }
        return total(sum);
    }
};

} // namespace diqp_motion

using diqp_motion::BLOCK;
using diqp_motion::LEVELS;
using diqp_motion::PAD;
using diqp_motion::TAPS;
using diqp_motion::TAPS_BEFORE;

__device__ inline diqp_motion::Plane plane_of(const Motion &m, int frame, int index) {
    const SearchPlane &p = m.plane[index];
    return {m.memory + frame * m.bytes + p.origin, p.width, p.height, p.stride};
}

__device__ inline int blocks_of(int size) {
    return (size + BLOCK - 1) / BLOCK;
}

// Grid: (height, frames). A block makes one row.
extern "C" __global__ void read_luma(const ReadLuma p) {
    const Layout &l = p.layout;
    const int y = blockIdx.x, frame = blockIdx.y;
    float *row = p.luma + ((size_t)frame * l.height + y) * p.pitch;
    for (int x = threadIdx.x; x < l.width; x += blockDim.x) {
        float planes[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < 3; ++i)
            if (p.plane[frame][i])
                planes[i] = plane_at(p.plane[frame], l, p.colour, i, x, y);
        row[x] = combine(p.colour, 0, planes);
    }
}

// Rows and columns of a plane with its padding: as many before sample 0 as PAD, and BLOCK more at the other end, where
// blocks may reach beyond the edge.
__device__ inline int padded(int size) {
    return size + 2 * PAD + BLOCK;
}

// Grid: (padded height, frames). A block makes one row.
extern "C" __global__ void search_planes(const Motion m) {
    const int frame = blockIdx.y;
    const diqp_motion::Plane out = plane_of(m, frame, 0);
    const int y = (int)blockIdx.x - PAD;
    const float *row = m.luma + ((size_t)frame * out.height + clamp_index(y, out.height)) * m.pitch;
    u8 *line = out.origin + (long long)y * out.stride;
    for (int x = (int)threadIdx.x - PAD; x < out.width + PAD + BLOCK; x += blockDim.x) {
        // As search_luma of ../alignment rounds: twice, never fused.
        const float code = __fadd_rn(__fmul_rn(row[clamp_index(x, out.width)], 219.0f), 16.501f);
        line[x] = (u8)limit(code, 0.0f, 255.0f);
    }
}

// Grid: (padded height of the level made, frames). A block makes one row.
extern "C" __global__ void halve_planes(const Motion m) {
    const int frame = blockIdx.y;
    const diqp_motion::Plane larger = plane_of(m, frame, m.plane_index - 1), out = plane_of(m, frame, m.plane_index);
    const int y = (int)blockIdx.x - PAD;
    u8 *line = out.origin + (long long)y * out.stride;
    for (int x = (int)threadIdx.x - PAD; x < out.width + PAD + BLOCK; x += blockDim.x)
        line[x] = (u8)diqp_motion::halved(larger, clamp_index(x, out.width), clamp_index(y, out.height));
}

// Grid: (padded height, frames, planes made). A block makes one row of a plane between samples, from plane_index on;
// first across and down, then both.
extern "C" __global__ void between_planes(const Motion m) {
    const int frame = blockIdx.y, index = m.plane_index + blockIdx.z;
    const diqp_motion::Plane in = plane_of(m, frame, index == LEVELS + 2 ? LEVELS : 0), out = plane_of(m, frame, index);
    const diqp_motion::Plane whole = plane_of(m, frame, 0);
    const int step = index == LEVELS ? 1 : in.stride;
    const int edge = TAPS_BEFORE + 1, y = (int)blockIdx.x - PAD;
    const bool row_inside = y >= edge - PAD && y < in.height + PAD + BLOCK - edge;
    const long long row = (long long)y * out.stride;
    for (int x = (int)threadIdx.x - PAD; x < out.width + PAD + BLOCK; x += blockDim.x) {
        const u8 *p = in.origin + row + x;
        // What the taps cannot reach is never looked at, but must not be undefined.
        const bool inside = row_inside && x >= edge - PAD && x < in.width + PAD + BLOCK - edge;
        out.origin[row + x] =
            inside ? (u8)diqp_motion::between(p[-2 * step], p[-step], p[0], p[step], p[2 * step], p[3 * step])
                   : whole.origin[row + x];
    }
}

// Motion blocks that a block of threads searches, and the most that it searches at once.
#define BATCH 8

// Grid: (blocks of the level / BATCH rounded up, pairs). LANES threads search a block together.
extern "C" __global__ void search_blocks(const Motion m) {
    __shared__ unsigned store[BATCH][diqp_motion::STORE];
    const int pair = blockIdx.y, level = m.plane_index, other = m.other[pair];
    const diqp_motion::Plane current = plane_of(m, m.own[pair], level), reference = plane_of(m, other, level);
    const int wide = blocks_of(current.width), count = wide * blocks_of(current.height);
    short *found = m.found[level] + 2 * (size_t)pair * count;
    const int searchers = blockDim.x / LANES < BATCH ? blockDim.x / LANES : BATCH, searcher = threadIdx.x / LANES;
    if (searcher >= searchers)
        return;
    for (int i = searcher; i < BATCH; i += searchers) {
        const int block = blockIdx.x * BATCH + i;
        if (block >= count)
            break;
        const int bx = block % wide, by = block / wide;
        const diqp_motion::HalfPlanes planes{reference, plane_of(m, other, LEVELS), plane_of(m, other, LEVELS + 1),
                                             plane_of(m, other, LEVELS + 2)};
        diqp_motion::Gathered windows(current, planes, bx, by, store[searcher]);
        diqp_motion::Vector v;
        if (level == LEVELS - 1) {
            v = diqp_motion::search_smallest(windows);
        } else {
            const SearchPlane &smaller = m.plane[level + 1];
            const int coarse_wide = blocks_of(smaller.width), coarse_high = blocks_of(smaller.height);
            const short *coarse = m.found[level + 1] + 2 * (size_t)pair * coarse_wide * coarse_high;
            v = diqp_motion::search_level(windows, level, bx, by, coarse, coarse_wide, coarse_high);
        }
        if (level == 0)
            v = diqp_motion::refine(windows, v);
        if (threadIdx.x % LANES == 0) {
            found[2 * block] = (short)v.x;
            found[2 * block + 1] = (short)v.y;
        }
    }
}

// Grid: (rows of blocks in a tile, neighbours of all frames, tiles). A block makes one row of the frame's blocks of one
// neighbour in one tile. A thread makes a column of a block: what its lines are across is summed once for all rows that
// they go into, which are next to each other.
extern "C" __global__ void move_luma(const Move p) {
    const int seen = blockIdx.y, tile = blockIdx.z;
    const int width = p.tiling.width, height = p.tiling.height;
    const int index = p.first_tile + tile, pair = p.pair[seen];
    const int left = p.tiling.left[index % p.tiling.columns], top = p.tiling.top[index / p.tiling.columns];
    const int down = top / BLOCK + (int)blockIdx.x, above = down * BLOCK - top;
    if (above >= height)
        return;
    const float *luma = p.luma + (size_t)p.frame[seen] * p.height * p.pitch;
    const short *vectors = p.vectors;
    if (pair >= 0)
        vectors += 2 * ((size_t)pair * p.high + clamp_index(down, p.high)) * p.wide;
    float *out = p.beside + ((size_t)tile * PAIRS + seen) * height * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const int x = left + i, block = 2 * clamp_index(x / BLOCK, p.wide);
        const int vx = pair < 0 ? 0 : vectors[block], vy = pair < 0 ? 0 : vectors[block + 1];
        const int from_x = x + (vx >> 2), from_y = down * BLOCK + (vy >> 2);
        float made[BLOCK];
        if (((vx | vy) & 3) == 0) {
            const int column = clamp_index(from_x, p.width);
#pragma unroll
            for (int r = 0; r < BLOCK; ++r)
                made[r] = __ldg(luma + (size_t)clamp_index(from_y + r, p.height) * p.pitch + column);
        } else {
            int column[TAPS];
            float weight[TAPS], weight_down[TAPS];
#pragma unroll
            for (int k = 0; k < TAPS; ++k) {
                column[k] = clamp_index(from_x - TAPS_BEFORE + k, p.width);
                weight[k] = diqp_motion::tap_weight(vx & 3, k);
                weight_down[k] = diqp_motion::tap_weight(vy & 3, k);
            }
#pragma unroll
            for (int r = 0; r < BLOCK; ++r)
                made[r] = 0.0f;
#pragma unroll
            for (int n = 0; n < BLOCK + TAPS - 1; ++n) {
                const float *line = luma + (size_t)clamp_index(from_y - TAPS_BEFORE + n, p.height) * p.pitch;
                float across = 0.0f;
#pragma unroll
                for (int k = 0; k < TAPS; ++k)
                    across += weight[k] * __ldg(line + column[k]);
#pragma unroll
                for (int j = 0; j < TAPS; ++j)
                    if (n - j >= 0 && n - j < BLOCK)
                        made[n - j] += weight_down[j] * across;
            }
        }
#pragma unroll
        for (int r = 0; r < BLOCK; ++r)
            if (above + r >= 0 && above + r < height)
                out[(size_t)(above + r) * width + i] = made[r];
    }
}

#ifdef VSDIQP_HOST_GRID
HOST_LAUNCH(read_luma, ReadLuma)
HOST_LAUNCH(search_planes, Motion)
HOST_LAUNCH(halve_planes, Motion)
HOST_LAUNCH(between_planes, Motion)
HOST_LAUNCH(search_blocks, Motion)
HOST_LAUNCH(move_luma, Move)
#endif
