// What all kernels share: number types, the structures that say how planes mean colour and where tiles lie, and the
// network's colours of a pixel.
//
// Compile-time switches:
//   SAMPLE   number type of a plane: 8, 16 (unsigned integers), 116 (half), 132 (float)
//   NETWORK  number type of tiles and thumbnails: 0 float, 1 half
//
// Every kernel walks its block's work in a block-stride loop, so it is right for any block size. That lets the same
// source run on a CPU: with VSDIQP_HOST_GRID, host_grid.h of the tests stands in for CUDA's launch grid. No CUDA header
// is included, and sources.py puts in what is: NVRTC needs no include path.
#pragma once

#ifdef VSDIQP_HOST_GRID
#include "host_grid.h"
#endif

#ifndef SAMPLE
#define SAMPLE 16
#endif
#ifndef NETWORK
#define NETWORK 1
#endif

#define GROUP 3  // frames restored together
#define FRAMES 4 // and the look-ahead frame
#define COLOURS 3

typedef unsigned char u8;
typedef unsigned short u16;

// Half travels as its 16 bits.
__device__ inline float from_half(u16 bits) {
#ifdef VSDIQP_HOST_GRID
    return host_from_half(bits);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#endif
}

__device__ inline u16 to_half(float value) {
#ifdef VSDIQP_HOST_GRID
    return host_to_half(value);
#else
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#endif
}

#if SAMPLE == 8
typedef u8 Sample;
#elif SAMPLE == 16 || SAMPLE == 116
typedef u16 Sample;
#elif SAMPLE == 132
typedef float Sample;
#else
#error "SAMPLE is 8, 16, 116 or 132"
#endif

__device__ inline float load(const Sample *sample) {
#if SAMPLE == 116
    return from_half(*sample);
#else
    return (float)*sample;
#endif
}

#if NETWORK == 0
typedef float Number;
__device__ inline Number to_network_number(float value) {
    return value;
}
#elif NETWORK == 1
typedef u16 Number;
__device__ inline Number to_network_number(float value) {
    return to_half(value);
}
#else
#error "NETWORK is 0 or 1"
#endif

// ---------------------------------------------------------------------------------------------------------------
// What the host passes, by value. Mirrored field for field in layouts.py.

struct Layout {
    int width, height;            // luma samples
    int planes;                   // 1 or 3
    int step_x, step_y;           // luma samples a chroma sample, 1, 2 or 4
    float site_x, site_y;         // position of chroma sample 0 on the luma grid
    int luma_pitch, chroma_pitch; // samples a row in staging
};

struct Colour {
    float zero[3];       // code value that means zero, a plane
    float scale[3];      // code values a unit, a plane
    float to_network[9]; // network colour = to_network * planes + bias
    float bias[3];
    float from_network[9]; // residual of planes = from_network * residual of the network
    float low, high;       // limits of the network's colours
    float wild;            // float samples are read no further from zero than this, so that arithmetic stays finite
    float least, most;     // what a residual may make of a sample, at most
};

struct Tiling {
    int width, height; // of a tile
    int columns, rows;
    const int *left;         // columns: position of each tile column in the frame
    const int *top;          // rows
    const int *first_column; // layout.width: first tile column that covers x
    const int *first_row;    // layout.height
    const float *weight_x;   // columns x tile width; sums to one over the columns that cover an x
    const float *weight_y;   // rows x tile height
};

// ---------------------------------------------------------------------------------------------------------------

__device__ inline int clamp_index(int i, int count) {
    return i < 0 ? 0 : (i >= count ? count - 1 : i);
}

__device__ inline float limit(float value, float low, float high) {
    return fminf(fmaxf(value, low), high);
}

struct Triple {
    float v[3];
};

// What a sample of a plane means.
__device__ inline float decode(const Sample *sample, const Colour &c, int plane) {
    const float code = load(sample);
#if SAMPLE >= 100
    return isnan(code) ? 0.0f : limit(code, -c.wild, c.wild);
#else
    return (code - c.zero[plane]) * (1.0f / c.scale[plane]);
#endif
}

// Chroma at a luma position: linear between the four samples around it, edges repeated.
__device__ inline float chroma_at(const Sample *samples, const Layout &l, const Colour &c, int plane, int x, int y) {
    const int columns = l.width / l.step_x, rows = l.height / l.step_y;
    const float u = (x - l.site_x) / l.step_x, v = (y - l.site_y) / l.step_y;
    const float fu = floorf(u), fv = floorf(v);
    const float tx = u - fu, ty = v - fv;
    const int x0 = clamp_index((int)fu, columns), x1 = clamp_index((int)fu + 1, columns);
    const Sample *row0 = samples + (size_t)clamp_index((int)fv, rows) * l.chroma_pitch;
    const Sample *row1 = samples + (size_t)clamp_index((int)fv + 1, rows) * l.chroma_pitch;
    const float a0 = decode(row0 + x0, c, plane), a1 = decode(row0 + x1, c, plane);
    const float b0 = decode(row1 + x0, c, plane), b1 = decode(row1 + x1, c, plane);
    const float above = a0 + tx * (a1 - a0), below = b0 + tx * (b1 - b0);
    return above + ty * (below - above);
}

// One of the network's colours from the values of a pixel's planes.
__device__ inline float combine(const Colour &c, int channel, const float *planes) {
    const float *m = c.to_network + 3 * channel;
    return limit(m[0] * planes[0] + m[1] * planes[1] + m[2] * planes[2] + c.bias[channel], c.low, c.high);
}

// The value of a plane at a luma position inside the frame.
__device__ inline float plane_at(const Sample *const *plane, const Layout &l, const Colour &c, int i, int x, int y) {
    if (i == 0)
        return decode(plane[0] + (size_t)y * l.luma_pitch + x, c, 0);
    return l.step_x == 1 && l.step_y == 1 ? decode(plane[i] + (size_t)y * l.chroma_pitch + x, c, i)
                                          : chroma_at(plane[i], l, c, i, x, y);
}

// The network's colour at a pixel; positions past the right or bottom edge repeat it.
__device__ inline Triple network_colour(const Sample *const *plane, const Layout &l, const Colour &c, int x, int y) {
    x = clamp_index(x, l.width);
    y = clamp_index(y, l.height);
    float p[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 3; ++i)
        if (i < l.planes)
            p[i] = plane_at(plane, l, c, i, x, y);
    Triple out;
#pragma unroll
    for (int i = 0; i < COLOURS; ++i)
        out.v[i] = combine(c, i, p);
    return out;
}
