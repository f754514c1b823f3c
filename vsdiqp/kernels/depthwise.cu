// The depthwise step of a block: convolution over (frame, y, x) with zeros around, bias, GELU; tokens of three frames
// or one in half precision, arithmetic in single. `depthwise` of blocks.py is the same in Triton.
//
// Why this shape: the step should be bound by memory, and on an H100 that leaves about 40 instructions an output. Of
// three frames 21 are the products themselves, of one frame 9, so everything else has to be shared. A thread owns some
// channels of ACROSS tokens and walks down a strip of the map. Each row's values are read and converted once, and go to
// the sums of the three rows of outputs that they are part of; these sums and all weights stay in registers. For each
// output that is, with three frames / with one: 21 / 9 FFMA, 2 / 1.5 conversions and 1 / 0.4 loads (a token at each
// side is the neighbours' as well), 6 of the GELU, 0.5 to convert and 0.5 / 0.25 to store; addresses come once a row,
// because CHANNELS is known to the compiler. Compiled for sm_90 the loop has 33 / 19 an output (Triton's kernel has 62
// with three frames), and nothing spills.
//   - Three frames: two channels of two tokens. Four channels of one token would convert 3 times as much as they own,
//     and their weights alone are 108 registers. One channel of four tokens takes fewer registers, but loads and stores
//     twice as often.
//   - One frame has a third of the weights and of the sums: four channels of four tokens fit, so that more
//     is on its way from memory at once.
//   - The next row's values are asked for where this row's have been converted, in the same registers: a whole row of
//     arithmetic hides their way.
// Warps read runs of 2 NUMBERS LANES bytes. A block's STRIPS stand side by side, so that most tokens that two of them
// read come from the first-level cache once.
//
// Compile-time switches:
//   FRAMES    of a token, 3 or 1
//   CHANNELS  of a frame of a token, a multiple of 16
//   BRAIN     number type of the map: 0 half, 1 bfloat16
//   LANES     threads side by side in a token's channels

#ifdef VSDIQP_HOST_GRID
#include "host_grid.h"
#endif

#ifndef CHANNELS
#define CHANNELS 368
#endif
#ifndef BRAIN
#define BRAIN 0
#endif
#ifndef FRAMES
#define FRAMES 3
#endif
#ifndef LANES
#define LANES 32
#endif

#if FRAMES == 3
#define NUMBERS 2 // channels of a thread
#define ACROSS 2  // tokens of a strip's row
#define THREADS 128
#define BLOCKS 4 // at once on a multiprocessor: registers for so many and no more
#else
#define NUMBERS 4
#define ACROSS 4
#define THREADS 96 // 12, 16, 24 and 32 LANES leave none idle
#define BLOCKS 5
#endif
#define STRIPS (THREADS / LANES)    // that a block makes side by side
#define READ (ACROSS + 2)           // tokens of a strip's row and those beside
#define TIMES (FRAMES == 3 ? 3 : 1) // frames that a sum is made from
#define PARTS (CHANNELS / NUMBERS)
#define TOKEN (FRAMES * PARTS)

// A thread's numbers of one frame of a token, as they lie in memory: two a word, the first in the low bits.
#if NUMBERS == 4
typedef uint2 Packed;
#else
typedef uint1 Packed;
#endif

struct alignas(4 * NUMBERS) Numbers {
    float v[NUMBERS];
};

// What the host passes, by value. Mirrored field for field in depthwise_cuda.py.
struct Depthwise {
    const Packed *x;       // images, height, width, FRAMES, PARTS
    const Numbers *weight; // frame before, same, after (of one frame: same); 3, 3, PARTS
    const Numbers *bias;   // PARTS
    Packed *out;           // as x
    int height, width;
    int rows;   // of a strip: 1 more than a multiple of 3
    int strips; // of all images
};

// ---------------------------------------------------------------------------------------------------------------

__device__ inline void unpack_two(unsigned both, float &a, float &b) {
#if defined(VSDIQP_HOST_GRID) && BRAIN
    a = host_from_bits(both << 16);
    b = host_from_bits(both & 0xffff0000u);
#elif defined(VSDIQP_HOST_GRID)
    a = host_from_half(both & 0xffffu);
    b = host_from_half(both >> 16);
#elif BRAIN
    // In assembly too: compilers that understand the arithmetic move it to where it takes copies of what is read.
    asm("{ shl.b32 %0, %2, 16; and.b32 %1, %2, 0xffff0000; }" : "=f"(a), "=f"(b) : "r"(both));
#else
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(a), "=f"(b)
        : "r"(both));
#endif
}

// Rounds to nearest even.
__device__ inline unsigned pack_two(float a, float b) {
    unsigned both;
#ifdef VSDIQP_HOST_GRID
#if BRAIN
    both = host_to_brain(a) | (unsigned)host_to_brain(b) << 16;
#else
    both = host_to_half(a) | (unsigned)host_to_half(b) << 16;
#endif
#elif BRAIN && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
#elif BRAIN
    const unsigned low = __float_as_uint(a), high = __float_as_uint(b);
    const unsigned first = isnan(a) ? 0x7fffu : (low + 0x7fffu + (low >> 16 & 1)) >> 16;
    const unsigned second = isnan(b) ? 0x7fffu : (high + 0x7fffu + (high >> 16 & 1)) >> 16;
    both = first | second << 16;
#elif __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
#else
    asm("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high}; }"
        : "=r"(both)
        : "f"(a), "f"(b));
#endif
    return both;
}

__device__ inline float power_of_2(float exponent) {
#ifdef VSDIQP_HOST_GRID
    return exp2f(exponent);
#else
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(exponent));
    return value;
#endif
}

// The GELU, or what is within 6e-5 of it. x * distribution(x) is max(x, 0) less |x| times what the distribution leaves
// beyond |x|; of that, the logarithm is so smooth that a cubic is enough (a minimax fit of the GELU's own error). It
// falls for ever, so there is nothing to limit, and far below zero the result goes to zero as the GELU does.
__device__ inline float gelu(float x) {
    const float t = fabsf(x);
    float p = fmaf(-0.02488563f, t, -0.49882002f);
    p = fmaf(p, t, -1.12924598f);
    p = fmaf(p, t, -1.00353172f);
    return fmaf(-t, power_of_2(p), fmaxf(x, 0.0f));
}

__device__ inline Numbers unpack(const Packed &packed) {
    Numbers value;
    unpack_two(packed.x, value.v[0], value.v[1]);
#if NUMBERS == 4
    unpack_two(packed.y, value.v[2], value.v[3]);
#endif
    return value;
}

// Of the results' GELU.
__device__ inline Packed pack(const Numbers &sum) {
    Packed packed;
    packed.x = pack_two(gelu(sum.v[0]), gelu(sum.v[1]));
#if NUMBERS == 4
    packed.y = pack_two(gelu(sum.v[2]), gelu(sum.v[3]));
#endif
    return packed;
}

// ---------------------------------------------------------------------------------------------------------------

// Sums of a strip's row.
struct Sums {
    Numbers v[ACROSS][FRAMES];
};

// What is read in place of a row above or below the map: wherever a thread reads from here on.
__device__ const Packed zeros[READ * TOKEN] = {};

// Where a thread is, and what it holds. What follows from these is not kept: that would be registers too many.
struct Walk {
    Numbers weight[TIMES][3][3]; // frame, y, x
    Numbers bias;
    bool inside[READ];          // the tokens of a row that exist
    Packed value[READ][FRAMES]; // of the row that comes next; zeros where there is no token
    int at;                     // of the token left of the strip in the map's row 0
    int y;                      // the row after the one that comes next
};

__device__ inline const Packed *row_of(const Depthwise &p, const Walk &w) {
    return (unsigned)w.y < (unsigned)p.height ? p.x + (w.at + w.y * (p.width * TOKEN)) : zeros;
}

__device__ inline Packed load(const Packed *at) {
#if NUMBERS == 4
    return __ldg(at);
#else
    Packed packed;
    packed.x = __ldg(&at->x);
    return packed;
#endif
}

// Asks for a token of the row that comes next.
__device__ inline void ask(Walk &w, const Packed *row, int token) {
    if (w.inside[token]) {
#pragma unroll
        for (int frame = 0; frame < FRAMES; ++frame)
            w.value[token][frame] = load(row + token * TOKEN + frame * PARTS);
    }
}

__device__ inline void add(Numbers &sum, const Numbers &value, const Numbers &weight) {
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i)
        sum.v[i] = fmaf(value.v[i], weight.v[i], sum.v[i]);
}

// Adds a row of values to the rows of outputs that stand below, at and above it, and asks for the row after it.
template <bool BELOW, bool AT, bool ABOVE>
__device__ inline void take(const Depthwise &p, Walk &w, Sums &below, Sums &at, Sums &above) {
    if (BELOW) {
#pragma unroll
        for (int i = 0; i < ACROSS * FRAMES; ++i)
            below.v[i / FRAMES][i % FRAMES] = w.bias;
    }
    const Packed *row = row_of(p, w);
#pragma unroll
    for (int token = 0; token < READ; ++token) {
        Numbers value[FRAMES];
#pragma unroll
        for (int frame = 0; frame < FRAMES; ++frame)
            value[frame] = unpack(w.value[token][frame]);
        if (BELOW) // else it was the last
            ask(w, row, token);
#pragma unroll
        for (int tap = 0; tap < 3; ++tap) {
            const int x = token - tap;
            if (x < 0 || x >= ACROSS)
                continue;
#pragma unroll
            for (int frame = 0; frame < FRAMES; ++frame) {
#pragma unroll
                for (int time = 0; time < TIMES; ++time) {
                    const int source = frame + time - TIMES / 2;
                    if (source < 0 || source >= FRAMES)
                        continue;
                    if (ABOVE)
                        add(above.v[x][frame], value[source], w.weight[time][2][tap]);
                    if (AT)
                        add(at.v[x][frame], value[source], w.weight[time][1][tap]);
                    if (BELOW)
                        add(below.v[x][frame], value[source], w.weight[time][0][tap]);
                }
            }
        }
    }
    ++w.y;
}

// Writes a row of outputs, the one above the row that was taken last.
__device__ inline void put(const Depthwise &p, const Walk &w, const Sums &sums) {
    const int y = w.y - 3;
    if (y >= p.height)
        return;
    Packed *to = p.out + (w.at + y * (p.width * TOKEN));
#pragma unroll
    for (int x = 0; x < ACROSS; ++x) {
#pragma unroll
        for (int frame = 0; frame < FRAMES; ++frame) {
            // Not where it is only needed if there is such a token: what is made in a branch is made one by one.
            const Packed made = pack(sums.v[x][frame]);
            if (w.inside[x + 1])
                to[(x + 1) * TOKEN + frame * PARTS] = made;
        }
    }
}

// What thread `item` of a block does.
__device__ inline void walk(const Depthwise &p, int item) {
    const int groups = (PARTS + LANES - 1) / LANES;
    const int part = (int)blockIdx.x % groups * LANES + item % LANES;
    const int strip = (int)blockIdx.x / groups * STRIPS + item / LANES;
    if (item >= STRIPS * LANES || part >= PARTS || strip >= p.strips)
        return;
    // Strips are counted along the map, then down, then image after image, so that no block's stand beside the map.
    const int across = (p.width + ACROSS - 1) / ACROSS, down = (p.height + p.rows - 1) / p.rows;
    const int left = strip % across * ACROSS, top = strip / across % down * p.rows, image = strip / across / down;
    Walk w;
#pragma unroll
    for (int tap = 0; tap < TIMES * 9; ++tap)
        w.weight[tap / 9][tap / 3 % 3][tap % 3] = p.weight[tap * PARTS + part];
    w.bias = p.bias[part];
    w.at = (image * p.height * p.width + left - 1) * TOKEN + part;
    w.y = top - 1;
    const Packed *row = row_of(p, w);
#pragma unroll
    for (int token = 0; token < READ; ++token) {
        w.inside[token] = left + token > 0 && left + token <= p.width;
#pragma unroll
        for (int frame = 0; frame < FRAMES; ++frame)
            w.value[token][frame] = Packed();
        ask(w, row, token);
    }
    w.y = top;

    // Three rows of outputs are under way, in sums that take turns.
    Sums one, two, three;
    take<true, false, false>(p, w, one, three, two);
    take<true, true, false>(p, w, two, one, three);
    const int end = top + p.rows < p.height + 1 ? top + p.rows : p.height + 1;
    while (w.y < end) {
        take<true, true, true>(p, w, three, two, one);
        put(p, w, one);
        take<true, true, true>(p, w, one, three, two);
        put(p, w, two);
        take<true, true, true>(p, w, two, one, three);
        put(p, w, three);
    }
    take<false, false, true>(p, w, three, two, one);
    put(p, w, one);
}

// Grid: groups of channels * blocks of strips.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) depthwise(const Depthwise p) {
#ifdef VSDIQP_HOST_GRID
    // A block of any size does a block's work.
    for (int item = threadIdx.x; item < THREADS; item += blockDim.x)
        walk(p, item);
#else
    walk(p, threadIdx.x);
#endif
}

#ifdef VSDIQP_HOST_GRID
HOST_LAUNCH(depthwise, Depthwise)
#endif
