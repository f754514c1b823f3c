// What the compiled parts of the network have in common. They are plain functions for ctypes that write only what they
// are given to write, keep nothing, and may be called from several threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#define DIQP_EXPORT extern "C" __attribute__((visibility("default")))

// The loader chooses what this processor has; see alignment/library.cpp.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define DIQP_FAST __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define DIQP_FAST
#endif

namespace diqp {

/// Where part `part` of `parts` equal ones of 0..count begins.
inline int border(int count, int part, int parts) {
    return static_cast<int>(static_cast<long long>(count) * part / parts);
}

/// Calls work(first, last) for parts of 0..count, each in a thread of its own, as far as there are threads to be had.
template <class Work> void in_parallel(int count, int threads, const Work &work) {
    const int parts = std::max(1, std::min(threads, count));
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(parts));
    int own = parts;
    try {
        for (; own > 1; --own)
            others.emplace_back([&work, first = border(count, own - 1, parts), last = border(count, own, parts)] {
                work(first, last);
            });
    } catch (const std::system_error &) {
        // What no thread could be started for is done here.
    }
    work(0, border(count, own, parts));
    for (std::thread &other : others)
        other.join();
}

/// Memory that begins with a line of the cache: lanes that straddle two take twice as long.
template <class Value> struct Lines {
    using value_type = Value;
    static constexpr std::align_val_t LINE{64};
    Lines() = default;
    template <class Other> Lines(const Lines<Other> &) {}
    Value *allocate(std::size_t count) { return static_cast<Value *>(::operator new(count * sizeof(Value), LINE)); }
    void deallocate(Value *memory, std::size_t) { ::operator delete(memory, LINE); }
    friend bool operator==(const Lines &, const Lines &) { return true; }
    friend bool operator!=(const Lines &, const Lines &) { return false; }
};

using Floats = std::vector<float, Lines<float>>;

/// To bf16, ties to even.
inline std::uint16_t rounded(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : even);
}

/// From bf16.
inline float widened(std::uint16_t value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

} // namespace diqp
