// CUDA's launch grid on a CPU, as far as the kernels need it: the threads of a block are threads of the machine that
// meet at __syncthreads, blocks run one after another, __shared__ memory is static. For tests; slow by design.

#pragma once

#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

using std::size_t;

#define __global__
#define __host__
#define __device__ static
#define __shared__ static
#define __launch_bounds__(...)

struct HostDim {
    int x, y, z;
};

static thread_local HostDim threadIdx{0, 0, 0};
static thread_local HostDim blockIdx{0, 0, 0};
static HostDim blockDim{1, 1, 1};
static std::unique_ptr<std::barrier<>> host_barrier;

static inline void __syncthreads() {
    host_barrier->arrive_and_wait();
}

// One warp a block.
static inline void __syncwarp() {
    host_barrier->arrive_and_wait();
}

// Its lanes meet twice, so that nobody writes before everybody has read.
static inline unsigned __shfl_xor_sync(unsigned, unsigned value, int distance) {
    static unsigned values[32];
    values[threadIdx.x % 32] = value;
    host_barrier->arrive_and_wait();
    const unsigned found = values[(threadIdx.x % 32) ^ distance];
    host_barrier->arrive_and_wait();
    return found;
}

// Arithmetic that CUDA has instructions or exact definitions for (CUDA Math API, SIMD and single precision intrinsics).
static inline float __fmul_rn(float a, float b) {
    return a * b;
}

static inline float __fadd_rn(float a, float b) {
    return a + b;
}

struct uint1 {
    unsigned x;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

template <typename Value> static inline Value __ldg(const Value *at) {
    return *at;
}

static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31));
}

// Selectors without the sign's bit alone.
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
    unsigned chosen = 0;
    for (int shift = 0; shift < 32; shift += 8, selector >>= 4)
        chosen |= static_cast<unsigned>(bytes >> (selector & 7) * 8 & 255) << shift;
    return chosen;
}

static inline unsigned __vsadu4(unsigned a, unsigned b) {
    unsigned sum = 0;
    for (int shift = 0; shift < 32; shift += 8) {
        const int x = a >> shift & 255, y = b >> shift & 255;
        sum += x < y ? y - x : x - y;
    }
    return sum;
}

static inline unsigned __vavgu4(unsigned a, unsigned b) {
    unsigned means = 0;
    for (int shift = 0; shift < 32; shift += 8)
        means |= ((a >> shift & 255) + (b >> shift & 255) + 1) / 2 << shift;
    return means;
}

using std::isfinite;
using std::isnan;

// _Float16 converts in hardware or in the compiler's library; both round to nearest even, as cvt.rn does.
static inline float host_from_half(std::uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, sizeof(value));
    return static_cast<float>(value);
}

static inline std::uint16_t host_to_half(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    std::uint16_t bits;
    std::memcpy(&bits, &half, sizeof(bits));
    return bits;
}

static inline float host_from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// bfloat16 is the upper half of a float; to nearest even, as cvt.rn does.
static inline std::uint16_t host_to_brain(float value) {
    if (isnan(value))
        return 0x7fff;
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A thread that returns from the kernel early leaves the block, as on a GPU; it must not leave the others waiting for
// it.
#define HOST_LAUNCH(kernel, Arguments)                                                                                 \
    extern "C" int kernel##_size() {                                                                                   \
        return static_cast<int>(sizeof(Arguments));                                                                    \
    }                                                                                                                  \
    extern "C" void kernel##_launch(const Arguments *arguments, int gx, int gy, int gz, int threads) {                 \
        blockDim = {threads, 1, 1};                                                                                    \
        for (int z = 0; z < gz; ++z)                                                                                   \
            for (int y = 0; y < gy; ++y)                                                                               \
                for (int x = 0; x < gx; ++x) {                                                                         \
                    host_barrier = std::make_unique<std::barrier<>>(threads);                                          \
                    auto body = [=](int i) {                                                                           \
                        threadIdx = {i, 0, 0};                                                                         \
                        blockIdx = {x, y, z};                                                                          \
                        kernel(*arguments);                                                                            \
                        host_barrier->arrive_and_drop();                                                               \
                    };                                                                                                 \
                    std::vector<std::thread> others;                                                                   \
                    for (int i = 1; i < threads; ++i)                                                                  \
                        others.emplace_back(body, i);                                                                  \
                    body(0);                                                                                           \
                    for (auto &thread : others)                                                                        \
                        thread.join();                                                                                 \
                }                                                                                                      \
    }
