// The middle of a feed-forward on the CPU, forward and backward, as plain functions for ctypes: GELU, depthwise 3x3,
// GELU. See lewin.py, which says it in torch, and depthwise.py.
//
// There it is three passes over the widest maps of the network, and more to go back. Here a strip of rows stays in the
// cache from the first GELU to the second, and only the first one's input is kept for the way back. Maps are fp32 or
// bf16, arithmetic is fp32.

#include "lanes.h"
#include "native.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

/// Sizes of a call. The Python side has the same structure.
struct DiqpDepthwise {
    int batch, height, width, channels; ///< Of the map; channels a multiple of LANES.
    int bf16;                           ///< Whether maps are bf16 (else fp32).
    int threads;
};

namespace {

using namespace diqp;

constexpr int TAPS = 9;
/// Channels that a strip holds at once, and its rows.
constexpr int BLOCK = 64, STRIP = 16;

/// A row of GELUs of `count` tokens, channels `block` of `channels` each; a column of zeros before and behind.
template <class Value> void activate(const Value *map, int count, int channels, int block, float *row) {
    std::fill_n(row, block, 0.0f);
    std::fill_n(row + static_cast<std::ptrdiff_t>(count + 1) * block, block, 0.0f);
    for (int x = 0; x < count; ++x) {
        const Value *from = map + static_cast<std::ptrdiff_t>(x) * channels;
        float *to = row + static_cast<std::ptrdiff_t>(x + 1) * block;
        for (int c = 0; c < block; c += LANES) {
            Lane value;
            load(from + c, value);
            gelu_of<Value>(value);
            store(value, to + c);
        }
    }
}

/// A row of the convolution: `rows` are the three it reads, `weight` TAPS x block, by rows and columns.
void convolve(const float *const *rows, const float *weight, const float *bias, int count, int block, float *out) {
    for (int c = 0; c < block; c += LANES) {
        Lane taps[TAPS], offset;
        for (int k = 0; k < TAPS; ++k)
            load(weight + k * block + c, taps[k]);
        load(bias + c, offset);
        for (int x = 0; x < count; ++x) {
            Lane sum = offset;
            for (int y = 0; y < 3; ++y) {
                const float *from = rows[y] + static_cast<std::ptrdiff_t>(x) * block + c;
                for (int k = 0; k < 3; ++k) {
                    Lane value;
                    load(from + k * block, value);
                    sum += value * taps[3 * y + k];
                }
            }
            store(sum, out + static_cast<std::ptrdiff_t>(x) * block + c);
        }
    }
}

/// GELUs of a row, to the map.
template <class Value> void finish(const float *row, int count, int channels, int block, Value *map) {
    for (int x = 0; x < count; ++x)
        for (int c = 0; c < block; c += LANES) {
            Lane value;
            load(row + static_cast<std::ptrdiff_t>(x) * block + c, value);
            gelu_of<Value>(value);
            store(value, map + static_cast<std::ptrdiff_t>(x) * channels + c);
        }
}

/// The gradient of the map through the second GELU: `row` holds what that one read. A column of zeros before and
/// behind.
template <class Value>
void through_gelu(const float *row, const Value *gradient, int count, int channels, int block, float *out) {
    std::fill_n(out, block, 0.0f);
    std::fill_n(out + static_cast<std::ptrdiff_t>(count + 1) * block, block, 0.0f);
    for (int x = 0; x < count; ++x)
        for (int c = 0; c < block; c += LANES) {
            Lane value, change;
            load(row + static_cast<std::ptrdiff_t>(x) * block + c, value);
            load(gradient + static_cast<std::ptrdiff_t>(x) * channels + c, change);
            gelu_slope(value);
            store(change * value, out + static_cast<std::ptrdiff_t>(x + 1) * block + c);
        }
}

/// Adds a row's part to the gradients of weight and bias: `rows` as in `convolve`, `change` the gradient of its result
/// with a column before and behind.
void add_weights(const float *const *rows, const float *change, int count, int block, float *d_weight, float *d_bias) {
    for (int c = 0; c < block; c += LANES) {
        Lane taps[TAPS], offset;
        for (int k = 0; k < TAPS; ++k)
            load(d_weight + k * block + c, taps[k]);
        load(d_bias + c, offset);
        for (int x = 0; x < count; ++x) {
            Lane own;
            load(change + static_cast<std::ptrdiff_t>(x + 1) * block + c, own);
            offset += own;
            for (int y = 0; y < 3; ++y) {
                const float *from = rows[y] + static_cast<std::ptrdiff_t>(x) * block + c;
                for (int k = 0; k < 3; ++k) {
                    Lane value;
                    load(from + k * block, value);
                    taps[3 * y + k] += value * own;
                }
            }
        }
        for (int k = 0; k < TAPS; ++k)
            store(taps[k], d_weight + k * block + c);
        store(offset, d_bias + c);
    }
}

/// The gradient of a row of activations to that of the map.
template <class Value>
void through_first(const float *row, const Value *map, int count, int channels, int block, Value *out) {
    for (int x = 0; x < count; ++x)
        for (int c = 0; c < block; c += LANES) {
            Lane value, change;
            load(map + static_cast<std::ptrdiff_t>(x) * channels + c, value);
            load(row + static_cast<std::ptrdiff_t>(x) * block + c, change);
            gelu_slope(value);
            store(change * value, out + static_cast<std::ptrdiff_t>(x) * channels + c);
        }
}

/// Rows of one image and block of channels that are made when first asked for and kept as long as others are near.
template <class Make> class Rows {
  public:
    Rows(int kept, std::size_t size, int height, Make make)
        : kept_(kept), size_(size), height_(height), make_(make), memory_(size * static_cast<std::size_t>(kept + 1)),
          held_(static_cast<std::size_t>(kept), -1) {}

    /// Row `y`; zeros beyond the image.
    const float *at(int y) {
        if (y < 0 || y >= height_)
            return memory_.data() + size_ * static_cast<std::size_t>(kept_);
        const int place = y % kept_;
        float *row = memory_.data() + size_ * static_cast<std::size_t>(place);
        if (held_[static_cast<std::size_t>(place)] != y) {
            held_[static_cast<std::size_t>(place)] = y;
            make_(y, row);
        }
        return row;
    }

    /// The three rows around `y`.
    void around(int y, const float **rows) {
        for (int i = 0; i < 3; ++i)
            rows[i] = at(y + i - 1);
    }

  private:
    int kept_;
    std::size_t size_;
    int height_;
    Make make_;
    Floats memory_;
    std::vector<int> held_;
};

/// One block of channels of one image.
struct Part {
    const DiqpDepthwise &sizes;
    int image, first, block;

    Part(const DiqpDepthwise &all, int index)
        : sizes(all), image(index / blocks(all)), first(index % blocks(all) * BLOCK),
          block(std::min(BLOCK, all.channels - first)) {}

    static int blocks(const DiqpDepthwise &sizes) { return (sizes.channels + BLOCK - 1) / BLOCK; }

    std::size_t row(int y) const {
        return (static_cast<std::size_t>(image) * sizes.height + y) * sizes.width * sizes.channels + first;
    }
    std::size_t padded() const { return static_cast<std::size_t>(sizes.width + 2) * block; }
    /// (TAPS, channels) -> (TAPS, block), rows and columns turned around if the way is back.
    Floats taps(const float *weight, bool back) const {
        Floats own(static_cast<std::size_t>(TAPS) * block);
        for (int k = 0; k < TAPS; ++k)
            std::copy_n(weight + (back ? TAPS - 1 - k : k) * sizes.channels + first, block, own.data() + k * block);
        return own;
    }
};

template <class Value>
void forward(const DiqpDepthwise *sizes, const Value *map, const float *weight, const float *bias, Value *out) {
    const int strips = (sizes->height + STRIP - 1) / STRIP;
    in_parallel(sizes->batch * Part::blocks(*sizes) * strips, sizes->threads, [&](int first, int last) {
        Floats made(static_cast<std::size_t>(sizes->width) * BLOCK);
        for (int at = first; at < last; ++at) {
            const Part part(*sizes, at / strips);
            const Floats taps = part.taps(weight, false);
            Rows rows(3, part.padded(), sizes->height, [&](int y, float *row) {
                activate(map + part.row(y), sizes->width, sizes->channels, part.block, row);
            });
            const int top = at % strips * STRIP, bottom = std::min(top + STRIP, sizes->height);
            for (int y = top; y < bottom; ++y) {
                const float *around[3];
                rows.around(y, around);
                convolve(around, taps.data(), bias + part.first, sizes->width, part.block, made.data());
                finish(made.data(), sizes->width, sizes->channels, part.block, out + part.row(y));
            }
        }
    });
}

template <class Value>
void backward(const DiqpDepthwise *sizes, const Value *map, const float *weight, const float *bias, const Value *d_out,
              Value *d_map, float *d_weight, float *d_bias) {
    const int blocks = Part::blocks(*sizes), parts = sizes->batch * blocks;
    // Of every part, added up in a fixed order.
    constexpr std::size_t SUMS = static_cast<std::size_t>(TAPS + 1) * BLOCK;
    Floats sums(SUMS * static_cast<std::size_t>(parts));
    in_parallel(parts, sizes->threads, [&](int from, int to) {
        Floats made(static_cast<std::size_t>(sizes->width) * BLOCK);
        const Floats nothing(BLOCK);
        for (int at = from; at < to; ++at) {
            const Part part(*sizes, at);
            const Floats taps = part.taps(weight, false), back = part.taps(weight, true);
            float *own = sums.data() + SUMS * static_cast<std::size_t>(at);
            const float *around[3];
            Rows rows(3, part.padded(), sizes->height, [&](int y, float *row) {
                activate(map + part.row(y), sizes->width, sizes->channels, part.block, row);
            });
            Rows changes(3, part.padded(), sizes->height, [&](int y, float *row) {
                rows.around(y, around);
                convolve(around, taps.data(), bias + part.first, sizes->width, part.block, made.data());
                through_gelu(made.data(), d_out + part.row(y), sizes->width, sizes->channels, part.block, row);
                add_weights(around, row, sizes->width, part.block, own, own + TAPS * part.block);
            });
            for (int y = 0; y < sizes->height; ++y) {
                const float *near[3];
                changes.around(y, near);
                convolve(near, back.data(), nothing.data(), sizes->width, part.block, made.data());
                through_first(made.data(), map + part.row(y), sizes->width, sizes->channels, part.block,
                              d_map + part.row(y));
            }
        }
    });
    std::fill_n(d_weight, TAPS * sizes->channels, 0.0f);
    std::fill_n(d_bias, sizes->channels, 0.0f);
    for (int at = 0; at < parts; ++at) {
        const Part part(*sizes, at);
        const float *own = sums.data() + SUMS * static_cast<std::size_t>(at);
        for (int k = 0; k <= TAPS; ++k)
            for (int c = 0; c < part.block; ++c)
                (k < TAPS ? d_weight + k * sizes->channels : d_bias)[part.first + c] += own[k * part.block + c];
    }
}

} // namespace

/// map B, H, W, C; weight 9, C and bias C, fp32 -> out B, H, W, C.
DIQP_EXPORT void diqp_depthwise_forward(const DiqpDepthwise *sizes, const void *map, const float *weight,
                                        const float *bias, void *out) {
    if (sizes->bf16)
        forward(sizes, static_cast<const std::uint16_t *>(map), weight, bias, static_cast<std::uint16_t *>(out));
    else
        forward(sizes, static_cast<const float *>(map), weight, bias, static_cast<float *>(out));
}

/// As above, and the gradient of out -> those of map, weight and bias.
DIQP_EXPORT void diqp_depthwise_backward(const DiqpDepthwise *sizes, const void *map, const float *weight,
                                         const float *bias, const void *d_out, void *d_map, float *d_weight,
                                         float *d_bias) {
    if (sizes->bf16)
        backward(sizes, static_cast<const std::uint16_t *>(map), weight, bias,
                 static_cast<const std::uint16_t *>(d_out), static_cast<std::uint16_t *>(d_map), d_weight, d_bias);
    else
        backward(sizes, static_cast<const float *>(map), weight, bias, static_cast<const float *>(d_out),
                 static_cast<float *>(d_map), d_weight, d_bias);
}
