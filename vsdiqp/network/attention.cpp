// Attention inside windows on the CPU, forward and backward, as plain functions for ctypes. See lewin.py, which says it
// in torch, and attention.py.
//
// There the windows are copied out of the map, every product of a head is a call on matrices of odd sizes, and scores
// and what the shift forbids pass through memory several times. Here a window of one head stays in the caches from
// start to end, read from the map and written back in place, and arithmetic is fp32 whatever the map's precision.

#include "lanes.h"
#include "native.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

/// Sizes of a call. The Python side has the same structure.
struct DiqpAttention {
    int batch, height, width; ///< Of the map.
    int heads, size;          ///< Heads and channels of each.
    int shift;                ///< The map is read as if rolled by so many tokens up and left.
    int bf16;                 ///< Whether maps are bf16 (else fp32).
    int threads;
    float penalty; ///< Added to scores between tokens that only the roll made neighbours.
};

namespace {

using namespace diqp;

constexpr int SIDE = 8, TOKENS = SIDE * SIDE;

/// out (TOKENS, columns) = a b; a's entry (i, k) is a[i * down + k * along], b is (inner, columns), columns a multiple
/// of LANES.
void product(const float *a, int down, int along, const float *b, int inner, int columns, float *out) {
    constexpr int ROWS = 4;
    for (int i = 0; i < TOKENS; i += ROWS) {
        const float *left = a + static_cast<std::ptrdiff_t>(i) * down;
        int j = 0;
        for (; j + 2 * LANES <= columns; j += 2 * LANES) {
            Lane sum[ROWS][2] = {};
            for (int k = 0; k < inner; ++k) {
                const float *right = b + static_cast<std::ptrdiff_t>(k) * columns + j;
                Lane first, second;
                load(right, first);
                load(right + LANES, second);
                for (int r = 0; r < ROWS; ++r) {
                    const float value = left[r * down + k * along];
                    sum[r][0] += first * value;
                    sum[r][1] += second * value;
                }
            }
            for (int r = 0; r < ROWS; ++r) {
                float *to = out + static_cast<std::ptrdiff_t>(i + r) * columns + j;
                store(sum[r][0], to);
                store(sum[r][1], to + LANES);
            }
        }
        for (; j < columns; j += LANES) {
            Lane sum[ROWS] = {};
            for (int k = 0; k < inner; ++k) {
                Lane first;
                load(b + static_cast<std::ptrdiff_t>(k) * columns + j, first);
                for (int r = 0; r < ROWS; ++r)
                    sum[r] += first * left[r * down + k * along];
            }
            for (int r = 0; r < ROWS; ++r)
                store(sum[r], out + static_cast<std::ptrdiff_t>(i + r) * columns + j);
        }
    }
}

/// Scores (TOKENS, TOKENS) to weights: bias and penalty added, then the softmax of every row. `region` of every token,
/// or null where all see each other.
void to_weights(float *scores, const float *bias, const float *region, float penalty) {
    for (int i = 0; i < TOKENS; ++i, scores += TOKENS, bias += TOKENS) {
        if (region != nullptr)
            for (int j = 0; j < TOKENS; ++j)
                scores[j] += bias[j] + (region[j] == region[i] ? 0.0f : penalty);
        else
            for (int j = 0; j < TOKENS; ++j)
                scores[j] += bias[j];
        Lane most;
        load(scores, most);
        for (int j = LANES; j < TOKENS; j += LANES) {
            Lane others;
            load(scores + j, others);
            most = others > most ? others : most;
        }
        const float top = highest(most);
        Lane sums = {};
        for (int j = 0; j < TOKENS; j += LANES) {
            Lane value;
            load(scores + j, value);
            value -= top;
            exponential(value);
            store(value, scores + j);
            sums += value;
        }
        const float share = 1 / total(sums);
        for (int j = 0; j < TOKENS; ++j)
            scores[j] *= share;
    }
}

/// Gradients of weights to gradients of scores, in place; also added to `bias`.
void to_scores(const float *weights, float *gradient, float *bias) {
    for (int i = 0; i < TOKENS; ++i, weights += TOKENS, gradient += TOKENS, bias += TOKENS) {
        Lane sums = {};
        for (int j = 0; j < TOKENS; j += LANES) {
            Lane weight, change;
            load(weights + j, weight);
            load(gradient + j, change);
            sums += weight * change;
        }
        const float sum = total(sums);
        for (int j = 0; j < TOKENS; ++j) {
            gradient[j] = weights[j] * (gradient[j] - sum);
            bias[j] += gradient[j];
        }
    }
}

void read(const std::uint16_t *from, int count, float scale, float *to) {
    for (int i = 0; i < count; ++i)
        to[i] = widened(from[i]) * scale;
}

void read(const float *from, int count, float scale, float *to) {
    for (int i = 0; i < count; ++i)
        to[i] = from[i] * scale;
}

void write(const float *from, int count, float scale, std::uint16_t *to) {
    for (int i = 0; i < count; ++i)
        to[i] = rounded(from[i] * scale);
}

void write(const float *from, int count, float scale, float *to) {
    for (int i = 0; i < count; ++i)
        to[i] = from[i] * scale;
}

/// (TOKENS, columns) -> (columns, TOKENS)
void transpose(const float *from, int columns, float *to) {
    for (int i = 0; i < TOKENS; ++i)
        for (int j = 0; j < columns; ++j)
            to[j * TOKENS + i] = from[i * columns + j];
}

/// One head's part of one window after the other. Value: of maps.
template <class Value> class Windows {
  public:
    explicit Windows(const DiqpAttention &sizes)
        : sizes_(sizes), channels_(sizes.heads * sizes.size), columns_((sizes.size + LANES - 1) / LANES * LANES),
          memory_(static_cast<std::size_t>(TOKENS) * (6 * columns_ + 2 * TOKENS)) {}

    static int count(const DiqpAttention &sizes) { return sizes.batch * (sizes.height / SIDE) * (sizes.width / SIDE); }

    void go_to(int window) {
        const int across = sizes_.width / SIDE, windows = across * (sizes_.height / SIDE);
        const int place = window % windows, top = place / across * SIDE, left = place % across * SIDE;
        const auto part = [&](int at, int length) { return (at >= length - SIDE) + (at >= length - sizes_.shift); };
        // Only in the last row and column of windows there is anything that the roll brought from elsewhere.
        divided_ = sizes_.shift > 0 && (top + SIDE == sizes_.height || left + SIDE == sizes_.width);
        for (int token = 0; token < TOKENS; ++token) {
            const int y = top + token / SIDE, x = left + token % SIDE;
            region_[token] = static_cast<float>(3 * part(y, sizes_.height) + part(x, sizes_.width));
            rows_[token] = (static_cast<std::size_t>(window / windows) * sizes_.height +
                            static_cast<std::size_t>((y + sizes_.shift) % sizes_.height)) *
                               static_cast<std::size_t>(sizes_.width) +
                           static_cast<std::size_t>((x + sizes_.shift) % sizes_.width);
        }
    }

    void forward(int head, const Value *q, const Value *kv, const float *bias, Value *out) {
        weigh(head, q, kv, bias);
        gather(kv, 2, channels_, head, 1, v());
        product(weights(), TOKENS, 1, v(), TOKENS, columns_, result());
        scatter(result(), 1, 0, head, 1, out);
    }

    /// `d_bias` is added to, (TOKENS, TOKENS).
    void backward(int head, const Value *q, const Value *kv, const float *bias, const Value *d_out, Value *d_q,
                  Value *d_kv, float *d_bias) {
        weigh(head, q, kv, bias);
        gather(kv, 2, channels_, head, 1, v());
        gather(d_out, 1, 0, head, 1, gradient());
        product(weights(), 1, TOKENS, gradient(), TOKENS, columns_, result());
        scatter(result(), 2, channels_, head, 1, d_kv);
        transpose(v(), columns_, turned());
        product(gradient(), columns_, 1, turned(), sizes_.size, TOKENS, d_weights());
        to_scores(weights(), d_weights(), d_bias);
        product(d_weights(), TOKENS, 1, k(), TOKENS, columns_, result());
        scatter(result(), 1, 0, head, scale(), d_q);
        product(d_weights(), 1, TOKENS, this->q(), TOKENS, columns_, result());
        scatter(result(), 2, 0, head, 1, d_kv);
    }

  private:
    float scale() const { return 1 / std::sqrt(static_cast<float>(sizes_.size)); }

    /// What every token gives to every other.
    void weigh(int head, const Value *q, const Value *kv, const float *bias) {
        gather(q, 1, 0, head, scale(), this->q());
        gather(kv, 2, 0, head, 1, k());
        transpose(k(), columns_, turned());
        product(this->q(), columns_, 1, turned(), sizes_.size, TOKENS, weights());
        to_weights(weights(), bias + static_cast<std::size_t>(head) * TOKENS * TOKENS, divided_ ? region_ : nullptr,
                   sizes_.penalty);
    }

    /// A head's channels of a map whose tokens hold `parts` times the channels, of which `first` precede.
    void gather(const Value *map, int parts, int first, int head, float scale, float *to) const {
        for (int token = 0; token < TOKENS; ++token, to += columns_)
            read(map + rows_[token] * static_cast<std::size_t>(parts * channels_) + first + head * sizes_.size,
                 sizes_.size, scale, to);
    }

    void scatter(const float *from, int parts, int first, int head, float scale, Value *map) const {
        for (int token = 0; token < TOKENS; ++token, from += columns_)
            write(from, sizes_.size, scale,
                  map + rows_[token] * static_cast<std::size_t>(parts * channels_) + first + head * sizes_.size);
    }

    // (TOKENS, columns) each, their padding zero from the start; `turned` is (columns, TOKENS).
    float *q() { return memory_.data(); }
    float *k() { return q() + TOKENS * columns_; }
    float *v() { return k() + TOKENS * columns_; }
    float *gradient() { return v() + TOKENS * columns_; }
    float *result() { return gradient() + TOKENS * columns_; }
    float *turned() { return result() + TOKENS * columns_; }
    // (TOKENS, TOKENS)
    float *weights() { return turned() + TOKENS * columns_; }
    float *d_weights() { return weights() + TOKENS * TOKENS; }

    const DiqpAttention &sizes_;
    int channels_, columns_;
    Floats memory_;
    bool divided_ = false;
    float region_[TOKENS] = {};
    std::size_t rows_[TOKENS] = {};
};

template <class Value>
void forward(const DiqpAttention &sizes, const Value *q, const Value *kv, const float *bias, Value *out) {
    in_parallel(Windows<Value>::count(sizes), sizes.threads, [&](int first, int last) {
        Windows<Value> windows(sizes);
        for (int window = first; window < last; ++window) {
            windows.go_to(window);
            for (int head = 0; head < sizes.heads; ++head)
                windows.forward(head, q, kv, bias, out);
        }
    });
}

template <class Value>
void backward(const DiqpAttention &sizes, const Value *q, const Value *kv, const float *bias, const Value *d_out,
              Value *d_q, Value *d_kv, float *d_bias) {
    const int count = Windows<Value>::count(sizes), parts = std::max(1, std::min(sizes.threads, count));
    const std::size_t size = static_cast<std::size_t>(sizes.heads) * TOKENS * TOKENS;
    // Summed in a fixed order, whichever thread is first; how many there are tells in the last bits.
    Floats sums(size * static_cast<std::size_t>(parts));
    in_parallel(parts, parts, [&](int from, int to) {
        Windows<Value> windows(sizes);
        for (int part = from; part < to; ++part) {
            float *own = sums.data() + size * static_cast<std::size_t>(part);
            for (int window = border(count, part, parts); window < border(count, part + 1, parts); ++window) {
                windows.go_to(window);
                for (int head = 0; head < sizes.heads; ++head)
                    windows.backward(head, q, kv, bias, d_out, d_q, d_kv,
                                     own + static_cast<std::size_t>(head) * TOKENS * TOKENS);
            }
        }
    });
    std::fill_n(d_bias, size, 0.0f);
    for (std::size_t part = 0; part < static_cast<std::size_t>(parts); ++part)
        for (std::size_t i = 0; i < size; ++i)
            d_bias[i] += sums[size * part + i];
}

} // namespace

/// q B, H, W, C; kv B, H, W, 2 C, keys first; bias heads, 64, 64, fp32 -> out B, H, W, C. H and W multiples of 8.
DIQP_EXPORT void diqp_attention_forward(const DiqpAttention *sizes, const void *q, const void *kv, const float *bias,
                                        void *out) {
    if (sizes->bf16)
        forward(*sizes, static_cast<const std::uint16_t *>(q), static_cast<const std::uint16_t *>(kv), bias,
                static_cast<std::uint16_t *>(out));
    else
        forward(*sizes, static_cast<const float *>(q), static_cast<const float *>(kv), bias, static_cast<float *>(out));
}

/// As above, and the gradient of out -> those of q, kv and bias.
DIQP_EXPORT void diqp_attention_backward(const DiqpAttention *sizes, const void *q, const void *kv, const float *bias,
                                         const void *d_out, void *d_q, void *d_kv, float *d_bias) {
    if (sizes->bf16)
        backward(*sizes, static_cast<const std::uint16_t *>(q), static_cast<const std::uint16_t *>(kv), bias,
                 static_cast<const std::uint16_t *>(d_out), static_cast<std::uint16_t *>(d_q),
                 static_cast<std::uint16_t *>(d_kv), d_bias);
    else
        backward(*sizes, static_cast<const float *>(q), static_cast<const float *>(kv), bias,
                 static_cast<const float *>(d_out), static_cast<float *>(d_q), static_cast<float *>(d_kv), d_bias);
}
