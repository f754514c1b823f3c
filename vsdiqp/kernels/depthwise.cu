// The depthwise step of a block over a wide map: convolution over (frame, y, x) with zeros around, bias, GELU; tokens
// of three frames in half precision, arithmetic in single. `depthwise` of blocks.py is the same in Triton.
//
// Why this shape: the step should be bound by memory, and on an H100 that leaves about 40 instructions an output. 21
// are the products themselves, so everything else has to be shared. A thread owns a pair of channels of ACROSS tokens
// and walks down a strip of the map. Each row's values are read and converted once, and go to the sums of the three
// rows of outputs that they are part of; these sums and all 27 pairs of weights stay in registers. For each output that
// is, with ACROSS 2: 21 FFMA, 2 conversions and 1 load (a token at each side is the neighbours' as well), 6 of the
// GELU, and 1/2 each to convert and to store; addresses come once a row, because CHANNELS is known to the compiler.
// Compiled for sm_90 the loop has 33 an output (Triton's kernel has 62), and nothing spills.
//   - Four channels of one token would convert 3 times as much as they own, and their weights alone are 108 registers.
//   - One channel of four tokens takes fewer registers, but loads and stores twice as often.
//   - The next row's values are asked for where this row's have been converted, in the same registers: a whole row of
//     arithmetic hides their way.
// Warps read runs of 4 LANES bytes. A block's STRIPS stand side by side, so that most tokens that two of them read come
// from the first-level cache once.
//
// Compile-time switches:
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
#ifndef LANES
#define LANES 32
#endif

#define THREADS 128
#define BLOCKS 4                 // at once on a multiprocessor: registers for so many threads and no more
#define STRIPS (THREADS / LANES) // that a block makes side by side
#define FRAMES 3
#define ACROSS 2          // tokens of a strip's row
#define READ (ACROSS + 2) // and those beside
#define PAIRS (CHANNELS / 2)
#define TOKEN (FRAMES * PAIRS)

typedef unsigned Packed; // two numbers of the map, the first in the low bits

struct Pair {
    float a, b;
};

// What the host passes, by value. Mirrored field for field in depthwise_cuda.py.
struct Depthwise {
    const Packed *x;    // images, height, width, FRAMES, PAIRS
    const Pair *weight; // frame before, same, after; 3, 3, PAIRS
    const Pair *bias;   // PAIRS
    Packed *out;        // as x
    int height, width;
    int rows; // of a strip: 1 more than a multiple of 3
};

// ---------------------------------------------------------------------------------------------------------------

__device__ inline Pair unpack(Packed both) {
#if defined(VSDIQP_HOST_GRID) && BRAIN
    return {host_from_bits(both << 16), host_from_bits(both & 0xffff0000u)};
#elif defined(VSDIQP_HOST_GRID)
    return {host_from_half(both & 0xffffu), host_from_half(both >> 16)};
#else
    Pair value;
#if BRAIN
    // In assembly too: compilers that understand the arithmetic move it to where it takes copies of what is read.
    asm("{ shl.b32 %0, %2, 16; and.b32 %1, %2, 0xffff0000; }" : "=f"(value.a), "=f"(value.b) : "r"(both));
#else
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(value.a), "=f"(value.b)
        : "r"(both));
#endif
    return value;
#endif
}

// Rounds to nearest even.
__device__ inline Packed pack(float a, float b) {
    Packed both;
#ifdef VSDIQP_HOST_GRID
#if BRAIN
    both = host_to_brain(a) | (Packed)host_to_brain(b) << 16;
#else
    both = host_to_half(a) | (Packed)host_to_half(b) << 16;
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

// ---------------------------------------------------------------------------------------------------------------

// Sums of a strip's row.
struct Sums {
    Pair v[ACROSS][FRAMES];
};

// What is read in place of a row above or below the map: wherever a thread reads from here on.
__device__ const Packed zeros[READ * TOKEN] = {};

// Where a thread is, and what it holds. What follows from these is not kept: that would be registers too many.
struct Walk {
    Pair weight[3][3][3]; // frame, y, x
    Pair bias;
    bool inside[READ];          // the tokens of a row that exist
    Packed value[READ][FRAMES]; // of the row that comes next; zeros where there is no token
    int at;                     // of the token left of the strip in the map's row 0
    int y;                      // the row after the one that comes next
};

__device__ inline const Packed *row_of(const Depthwise &p, const Walk &w) {
    return (unsigned)w.y < (unsigned)p.height ? p.x + (w.at + w.y * (p.width * TOKEN)) : zeros;
}

// Asks for a token of the row that comes next.
__device__ inline void ask(Walk &w, const Packed *row, int token) {
    if (w.inside[token]) {
#pragma unroll
        for (int frame = 0; frame < FRAMES; ++frame)
            w.value[token][frame] = __ldg(row + token * TOKEN + frame * PAIRS);
    }
}

__device__ inline void add(Pair &sum, Pair value, Pair weight) {
    sum.a = fmaf(value.a, weight.a, sum.a);
    sum.b = fmaf(value.b, weight.b, sum.b);
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
        Pair value[FRAMES];
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
                for (int time = 0; time < 3; ++time) {
                    const int source = frame + time - 1;
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
    for (int x = 0; x < ACROSS; ++x)
        if (w.inside[x + 1]) {
#pragma unroll
            for (int frame = 0; frame < FRAMES; ++frame)
                to[(x + 1) * TOKEN + frame * PAIRS] = pack(gelu(sums.v[x][frame].a), gelu(sums.v[x][frame].b));
        }
}

// What thread `item` of a block does.
__device__ inline void walk(const Depthwise &p, int item) {
    const int groups = (PAIRS + LANES - 1) / LANES;
    const int pair = (int)blockIdx.x % groups * LANES + item % LANES;
    const int left = ((int)blockIdx.x / groups * STRIPS + item / LANES) * ACROSS, top = (int)blockIdx.y * p.rows;
    if (pair >= PAIRS || left >= p.width)
        return;
    Walk w;
#pragma unroll
    for (int tap = 0; tap < 27; ++tap)
        w.weight[tap / 9][tap / 3 % 3][tap % 3] = p.weight[tap * PAIRS + pair];
    w.bias = p.bias[pair];
    w.at = ((int)blockIdx.z * p.height * p.width + left - 1) * TOKEN + pair;
    w.y = top - 1;
    const Packed *row = row_of(p, w);
#pragma unroll
    for (int token = 0; token < READ; ++token) {
        w.inside[token] = left + token > 0 && left + token <= p.width;
#pragma unroll
        for (int frame = 0; frame < FRAMES; ++frame)
            w.value[token][frame] = 0;
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

// Grid: (groups of channels * groups of strips side by side, strips down, images).
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
