// As many numbers at once as a register holds, and the functions that networks need. Everything takes references: how
// whole lanes are handed over depends on the processor.
//
// What includes this is compiled once for every kind of processor, with DIQP_LANES and the compiler's flags to match
// (see setup.py): lanes that are wider than a register would be kept in memory, and be slower than torch.
#pragma once

#include <cstdint>

namespace diqp {

constexpr int LANES = DIQP_LANES;

/// A register. Anywhere in memory.
typedef float Lane __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef std::int32_t Whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef std::uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef std::uint16_t Half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#define DIQP_INLINE inline __attribute__((always_inline))

DIQP_INLINE void load(const float *from, Lane &lane) {
    lane = *reinterpret_cast<const Lane *>(from);
}

/// From bf16.
DIQP_INLINE void load(const std::uint16_t *from, Lane &lane) {
    lane = (Lane)(__builtin_convertvector(*reinterpret_cast<const Half *>(from), Bits) << 16);
}

DIQP_INLINE void store(const Lane &lane, float *to) {
    *reinterpret_cast<Lane *>(to) = lane;
}

/// To bf16, ties to even; what is no number stays none.
DIQP_INLINE void store(const Lane &lane, std::uint16_t *to) {
    const Bits bits = (Bits)lane;
    const Bits even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Bits half = (bits & 0x7fffffffu) > 0x7f800000u ? Bits{} + 0x7fc0u : even;
    *reinterpret_cast<Half *>(to) = __builtin_convertvector(half, Half);
}

DIQP_INLINE float highest(const Lane &lane) {
    float found = lane[0];
    for (int i = 1; i < LANES; ++i)
        found = lane[i] > found ? lane[i] : found;
    return found;
}

DIQP_INLINE float total(const Lane &lane) {
    float sum = 0;
    for (int i = 0; i < LANES; ++i)
        sum += lane[i];
    return sum;
}

/// exp of numbers up to 0, in place: a power of two and a polynomial (Taylor's, to the sixth power) over half a step
/// around it. Below -87 as at -87.
DIQP_INLINE void exponential(Lane &x) {
    x = x < -87.0f ? Lane{} - 87.0f : x;                                        // what is no number stays none
    const Whole whole = __builtin_convertvector(x * 1.44269504f - 0.5f, Whole); // towards zero
    const Lane back = __builtin_convertvector(whole, Lane);
    const Lane rest = (x - back * 0.693359375f) + back * 2.12194440e-4f; // log 2 in two parts
    Lane value = rest * (1.0f / 720) + (1.0f / 120);
    value = value * rest + (1.0f / 24);
    value = value * rest + (1.0f / 6);
    value = value * rest + 0.5f;
    value = value * rest + 1.0f;
    value = value * rest + 1.0f;
    x = value * (Lane)((whole + 127) << 23);
}

/// Of a normal distribution: `below`, the share below x, to 2e-7 (Abramowitz and Stegun 1964, 7.1.26); `density` at x.
DIQP_INLINE void normal(const Lane &x, Lane &below, Lane &density) {
    const Lane size = x < 0.0f ? -x : x;
    const Lane t = 1.0f / (size * (0.3275911f * 0.70710678f) + 1.0f);
    Lane bell = x * x * -0.5f;
    exponential(bell);
    Lane tail = t * 1.061405429f - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = tail * t * bell * 0.5f;
    below = x < 0.0f ? tail : 1.0f - tail;
    density = bell * 0.39894228f;
}

/// In place.
DIQP_INLINE void gelu(Lane &x) {
    Lane below, density;
    normal(x, below, density);
    x *= below;
}

/// What is within 8e-5 of it, a fiftieth of bf16's step at 1, for a third of the work; the polynomial is that of
/// kernels/blocks.py.
DIQP_INLINE void short_gelu(Lane &x) {
    constexpr float REACH = 4.2f;
    Lane t = x > REACH ? Lane{} + REACH : x;
    t = t < -REACH ? Lane{} - REACH : t; // what is no number stays none
    const Lane square = t * t;
    Lane share = square * -9.01736296743394e-10f + 7.941220303564478e-08f;
    share = share * square - 3.0378976134670665e-06f;
    share = share * square + 6.689019210170954e-05f;
    share = share * square - 0.000950653397012502f;
    share = share * square + 0.009298211894929409f;
    share = share * square - 0.06552816182374954f;
    share = share * square + 0.3984658420085907f;
    share = share * t + 0.5f;
    share = share < 0.0f ? Lane{} : share;
    share = share > 1.0f ? Lane{} + 1.0f : share;
    x *= share;
}

/// The GELU of what is kept as a Value.
template <class Value> DIQP_INLINE void gelu_of(Lane &x) {
    if constexpr (sizeof(Value) < sizeof(float))
        short_gelu(x);
    else
        gelu(x);
}

/// The derivative of GELU, in place.
DIQP_INLINE void gelu_slope(Lane &x) {
    Lane below, density;
    normal(x, below, density);
    x = below + x * density;
}

} // namespace diqp
