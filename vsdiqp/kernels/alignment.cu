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

// Four bytes that begin anywhere in the first of two words.
__device__ inline unsigned four(unsigned first, unsigned second, unsigned byte) {
    return __funnelshift_r(first, second, 8 * byte); // which looks at the last five bits alone
}

// Four bytes from any address, and from those below it, so many words a row. Reads whole words around them: planes go
// on there.
template <int ROWS_READ> __device__ inline void below(const diqp_byte *p, int stride, unsigned (&out)[ROWS_READ]) {
    const unsigned *words = (const unsigned *)((size_t)p & ~(size_t)3);
#pragma unroll
    for (int k = 0; k < ROWS_READ; ++k, words += stride)
        // Through the read-only path: nothing here writes planes.
        out[k] = four(__ldg(words), __ldg(words + 1), (unsigned)(size_t)p);
}

// Adds the absolute differences of four bytes.
__device__ inline unsigned add_differences(unsigned a, unsigned b, unsigned sum) {
#ifdef __CUDACC_RTC__
    // __vsadu4 has no sum to add to, though its instruction has.
    asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(sum));
    return sum;
#else
    return sum + __vsadu4(a, b);
#endif
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

// The same of many sums of windows, which are of 16 bits (take_least_difference): two in a word at a time.
template <int COUNT> __device__ inline void totals(const unsigned (&sums)[COUNT], int (&out)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
        const unsigned two = (unsigned)total(i + 1 < COUNT ? sums[i] + (sums[i + 1] << 16) : sums[i]);
        out[i] = (int)(two & 0xffff);
        if (i + 1 < COUNT)
            out[i + 1] = (int)(two >> 16);
    }
}

// A lane compares words of the window: pieces of one column, and of as many rows, below each other.
#define ROWS 2
#define PIECES (WINDOW / 4 * WINDOW / ROWS)

// Words that hold so many bytes wherever in a word they begin. What lanes read together, four words of every second
// row, then lies in all banks of shared memory.
__host__ __device__ constexpr int words_for(int bytes) {
    return ((bytes + 6) / 4 + 1) / 4 * 4 + 2;
}

constexpr int FARTHEST = WINDOW + 2 * (REACH >> (LEVELS - 1)), HALVES = WINDOW + 2;
// Words of a half plane's surroundings, and of shared memory for those who search a block together.
constexpr int HALF_WORDS = HALVES * words_for(HALVES);
constexpr int STORE = FARTHEST * words_for(FARTHEST) > 4 * HALF_WORDS ? FARTHEST * words_for(FARTHEST) : 4 * HALF_WORDS;

// A block's window in registers, and the surroundings of where it is looked for in shared memory: reads of planes go
// to many lines at once, which the first-level cache takes one by one, and most windows are compared with many that
// overlap. Members as of `Windows` and `HalfWindows`; what neighbouring places have in common is read once.
struct Gathered {
    HalfPlanes reference; // of levels but the first: `whole` alone
    int x, y;
    unsigned *store;
    unsigned own[PIECES / LANES][ROWS];
    // What is stored: where its first sample is, seen from the window's; and how many bytes of its word are before it.
    int left, top, before;

    DIQP_MOTION Gathered(const Plane &current, const HalfPlanes &planes, int bx, int by, unsigned *memory)
        : reference(planes), x(window_at(bx)), y(window_at(by)), store(memory), left(0), top(0), before(0) {
        for (int i = 0; i < PIECES / LANES; ++i)
            below(current.origin + offset(i), current.stride / 4, own[i]);
    }

    // Where a lane's i-th piece of the window is, in all planes of a size: a plane has less than 2 GiB.
    DIQP_MOTION int offset(int i) const { return (y + row(i)) * reference.whole.stride + x + 4 * word(i); }

    static DIQP_MOTION int lane() { return threadIdx.x % LANES; }

    // Of the piece that is a lane's i-th.
    static DIQP_MOTION int row(int i) { return (lane() + i * LANES) / (WINDOW / 4) * ROWS; }
    static DIQP_MOTION int word(int i) { return (lane() + i * LANES) % (WINDOW / 4); }

    static DIQP_MOTION void meet() {
#if LANES > 1
        __syncwarp();
#endif
    }

    // Store SIDE rows of as many samples from where what is stored begins, of as many planes.
    template <int SIDE, int PLANES_STORED> DIQP_MOTION void copy(const Plane (&planes)[PLANES_STORED]) {
        constexpr int wide = words_for(SIDE), words = SIDE * wide;
        // So many rows at once, of each so many words.
        constexpr int high = LANES < wide ? 1 : LANES / wide, across = LANES < wide ? LANES : wide;
        static_assert(PLANES_STORED * words <= STORE, "the surroundings fit");
        // Planes begin alike: what holds for one of a size holds for all.
        before = (int)((size_t)at(planes[0], x + left, y + top) & 3);
        meet(); // nobody reads what was there any more
        if (lane() < high * across) {
            const int stride = planes[0].stride, first = lane() / across, column = lane() % across;
            const int from = (y + top + first) * stride + x + left - before + 4 * column;
            unsigned *to = store + first * wide + column;
#pragma unroll
            for (int i = 0; i < PLANES_STORED; ++i) {
                const diqp_byte *line = planes[i].origin + from;
#pragma unroll
                for (int r = 0; r < SIDE; r += high, line += high * stride)
                    if (r + high <= SIDE || r + first < SIDE)
                        for (int c = 0; c < wide; c += across)
                            to[i * words + r * wide + c] = __ldg((const unsigned *)line + c);
            }
        }
        meet();
    }

    template <int AROUND> DIQP_MOTION void gather(Vector centre) {
        left = centre.x - AROUND;
        top = centre.y - AROUND;
        copy<WINDOW + 2 * AROUND>({reference.whole});
    }

    DIQP_MOTION void gather_halves(Vector whole) {
        left = whole.x - 1;
        top = whole.y - 1;
        copy<HALVES>({reference.whole, reference.across, reference.down, reference.both});
    }

    // The word of what is stored, rows `pitch` words apart, that a lane's i-th piece of a window there begins in.
    DIQP_MOTION const unsigned *stored(int pitch, int i) const { return store + row(i) * pitch + word(i); }

    DIQP_MOTION int compare(Vector v) const {
        const int stride = reference.whole.stride;
        unsigned sum = 0;
        for (int i = 0; i < PIECES / LANES; ++i) {
            unsigned seen[ROWS];
            below(reference.whole.origin + (offset(i) + v.y * stride + v.x), stride / 4, seen);
            for (int k = 0; k < ROWS; ++k)
                sum = add_differences(own[i][k], seen[k], sum);
        }
        return total(sum);
    }

    template <int PLACES> DIQP_MOTION void compare_row(int down, int (&differences)[PLACES]) const {
        constexpr int pitch = words_for(WINDOW + PLACES - 1), wide = (PLACES + 2) / 4 + 1;
        const unsigned byte = before - PLACES / 2 - left;
        unsigned sums[PLACES] = {};
        for (int i = 0; i < PIECES / LANES; ++i) {
            const unsigned *words = stored(pitch, i) + (down - top) * pitch + byte / 4;
#pragma unroll
            for (int k = 0; k < ROWS; ++k) {
                unsigned line[wide + 1];
#pragma unroll
                for (int c = 0; c < wide; ++c)
                    line[c] = four(words[k * pitch + c], words[k * pitch + c + 1], byte);
                line[wide] = 0;
#pragma unroll
                for (int place = 0; place < PLACES; ++place)
                    sums[place] =
                        add_differences(own[i][k], four(line[place / 4], line[place / 4 + 1], place), sums[place]);
            }
        }
        totals(sums, differences);
    }

    // After gather<2>.
    DIQP_MOTION void compare_around(Vector centre, int, int (&differences)[NEIGHBOURS]) const {
        constexpr int pitch = words_for(WINDOW + 4);
        const unsigned byte = before + centre.x - 1 - left;
        unsigned sums[NEIGHBOURS] = {};
        for (int i = 0; i < PIECES / LANES; ++i) {
            const unsigned *words = stored(pitch, i) + (centre.y - 1 - top) * pitch + byte / 4;
            unsigned seen[ROWS + 2][3];
#pragma unroll
            for (int r = 0; r < ROWS + 2; ++r, words += pitch) {
                const unsigned first = four(words[0], words[1], byte), second = four(words[1], words[2], byte);
#pragma unroll
                for (int c = 0; c < 3; ++c)
                    seen[r][c] = four(first, second, c);
            }
#pragma unroll
            for (int n = 0; n < NEIGHBOURS; ++n)
#pragma unroll
                for (int k = 0; k < ROWS; ++k)
                    sums[n] = add_differences(own[i][k], seen[neighbour(n).y + 1 + k][neighbour(n).x + 1], sums[n]);
        }
        totals(sums, differences);
    }

    // What a piece is compared with at the places half a sample around one, and there: [down][across].
    typedef unsigned Halves[3][3][ROWS];

    DIQP_MOTION void halves_around(Vector centre, int i, Halves &seen) const {
        constexpr int pitch = words_for(HALVES);
        // Along an axis places lie in two planes by turns: those at both sides of `centre` in the same, a sample apart.
#pragma unroll
        for (int beside_y = 0; beside_y < 2; ++beside_y)
#pragma unroll
            for (int beside_x = 0; beside_x < 2; ++beside_x) {
                const int px = centre.x - beside_x, py = centre.y - beside_y;
                const unsigned byte = before + (px >> 1) - left;
                const int across = (px & 1) * HALF_WORDS + byte / 4;
                const int down = (py & 1) * 2 * HALF_WORDS + ((py >> 1) - top) * pitch;
                const unsigned *words = stored(pitch, i) + across + down;
#pragma unroll
                for (int r = 0; r < ROWS + beside_y; ++r, words += pitch)
#pragma unroll
                    for (int side_x = 0; side_x <= beside_x; ++side_x) {
                        // One byte farther is at most at the second word's begin.
                        const unsigned found = side_x == 0
                                                   ? four(words[0], words[1], byte)
                                                   : __byte_perm(words[0], words[1], 0x4321 + 0x1111 * (byte & 3));
#pragma unroll
                        for (int side_y = 0; side_y <= beside_y; ++side_y)
                            if (r - side_y >= 0 && r - side_y < ROWS)
                                seen[1 - beside_y + 2 * side_y][1 - beside_x + 2 * side_x][r - side_y] = found;
                    }
            }
    }

    DIQP_MOTION int compare_halves(Vector centre, int (&differences)[NEIGHBOURS]) const {
        unsigned sums[NEIGHBOURS] = {}, sum = 0;
        for (int i = 0; i < PIECES / LANES; ++i) {
            Halves seen;
            halves_around(centre, i, seen);
#pragma unroll
            for (int k = 0; k < ROWS; ++k) {
                sum = add_differences(own[i][k], seen[1][1][k], sum);
#pragma unroll
                for (int n = 0; n < NEIGHBOURS; ++n)
                    sums[n] = add_differences(own[i][k], seen[neighbour(n).y + 1][neighbour(n).x + 1][k], sums[n]);
            }
        }
        totals(sums, differences);
        return total(sum);
    }

    DIQP_MOTION void compare_quarters(Vector centre, int (&differences)[NEIGHBOURS]) const {
        unsigned sums[NEIGHBOURS] = {};
        for (int i = 0; i < PIECES / LANES; ++i) {
            Halves seen;
            halves_around(centre, i, seen);
#pragma unroll
            for (int n = 0; n < NEIGHBOURS; ++n) {
                const Vector v = neighbour(n);
#pragma unroll
                for (int k = 0; k < ROWS; ++k)
                    sums[n] = add_differences(own[i][k],
                                              __vavgu4(seen[1 + (v.y >> 1)][1 + (v.x >> 1)][k],
                                                       seen[1 + ((v.y + 1) >> 1)][1 + ((v.x + 1) >> 1)][k]),
                                              sums[n]);
            }
        }
        totals(sums, differences);
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
// Blocks of threads that a multiprocessor is to hold: many warps wait for memory. Turing has threads for four.
#if __CUDA_ARCH__ >= 800
#define RESIDENT 5
#else
#define RESIDENT 4
#endif

// Grid: (blocks of the level / BATCH rounded up, pairs). LANES threads search a block together.
extern "C" __global__ void __launch_bounds__(BATCH *LANES, RESIDENT) search_blocks(const Motion m) {
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
        const int by = (unsigned)block / (unsigned)wide, bx = block - by * wide;
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
