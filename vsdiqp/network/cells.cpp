// Cells of 2x2 samples on the CPU, as plain functions for ctypes: what goes into the first convolution of networks with
// neighbours, and what the last one's answer means for the picture. See stem.py, which says it in torch, and cells.py.
//
// There every step passes over all neighbours' samples in memory; here each is read once before the U and once after.

#include "native.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

/// Sizes of a call, and stem.py's constants. The Python side has the same structure.
struct DiqpCells {
    int batch, height, width;
    int near, far;        ///< Neighbours seen in full, and by how well they match; both sides together.
    int pattern;          ///< Channels of the location's pattern.
    int answer;           ///< Channels of the last convolution.
    int mean_size, quiet; ///< MEAN_SIZE, QUIET
    int bf16;             ///< Whether the network's side is bf16 (else fp32).
    int threads;
    float gain, near_clip, wide_clip, far_clip;
    float far_apart, between; ///< FAR_APART, BETWEEN
};

namespace {

using namespace diqp;

constexpr int FRAMES = 3, COLOURS = 3, SAMPLES = 4, PLAIN = 9, SIDE = 4;
constexpr int OUTPUTS = 6;

/// Planes of frames in a batch: colours of tiles, and neighbours.
struct Pictures {
    const DiqpCells &sizes;
    const float *tile, *beside;

    std::size_t plane() const { return static_cast<std::size_t>(sizes.height) * sizes.width; }
    /// B, 3 colours, 3 frames, H, W
    const float *colour(int item, int frame, int which) const {
        return tile + ((static_cast<std::size_t>(item) * COLOURS + which) * FRAMES + frame) * plane();
    }
    /// B, 3 frames, neighbours, H, W
    const float *neighbour(int item, int frame, int which) const {
        const int count = sizes.near + sizes.far;
        return beside + ((static_cast<std::size_t>(item) * FRAMES + frame) * count + which) * plane();
    }
};

/// Means of the 2x2 samples of a row of cells.
DIQP_FAST void cell_means(const float *upper, const float *lower, int wide, float *out) {
    for (int x = 0; x < wide; ++x)
        out[x] = (upper[2 * x] + upper[2 * x + 1] + lower[2 * x] + lower[2 * x + 1]) * 0.25f;
}

/// Means over a square of cells, as far as they are in the picture: `rows` are the `count` rows there are.
DIQP_FAST void local_means(const float *const *rows, int count, int wide, int reach, float *column, float *out) {
    for (int x = 0; x < wide; ++x)
        column[x] = rows[0][x];
    for (int i = 1; i < count; ++i)
        for (int x = 0; x < wide; ++x)
            column[x] += rows[i][x];
    const float whole = 1.0f / static_cast<float>(count);
    for (int x = 0; x < wide; ++x)
        column[x] *= whole;
    const auto edge = [&](int x) {
        const int first = std::max(x - reach, 0), last = std::min(x + reach, wide - 1);
        float sum = 0;
        for (int i = first; i <= last; ++i)
            sum += column[i];
        out[x] = sum / static_cast<float>(last - first + 1);
    };
    const int from = std::min(reach, wide), to = std::max(wide - reach, from);
    for (int x = 0; x < from; ++x)
        edge(x);
    const float share = 1.0f / static_cast<float>(2 * reach + 1);
    for (int x = from; x < to; ++x)
        out[x] = 0;
    for (int i = -reach; i <= reach; ++i)
        for (int x = from; x < to; ++x)
            out[x] += column[x + i];
    for (int x = from; x < to; ++x)
        out[x] *= share;
    for (int x = to; x < wide; ++x)
        edge(x);
}

/// Differences of a row's samples to the means, times `gain`: even samples, then odd ones.
DIQP_FAST void to_means(const float *samples, const float *mean, float gain, int wide, float *even, float *odd) {
    for (int x = 0; x < wide; ++x) {
        even[x] = (samples[2 * x] - mean[x]) * gain;
        odd[x] = (samples[2 * x + 1] - mean[x]) * gain;
    }
}

DIQP_FAST void to_frame(const float *other, const float *own, float gain, int wide, float *even, float *odd) {
    for (int x = 0; x < wide; ++x) {
        even[x] = (other[2 * x] - own[2 * x]) * gain;
        odd[x] = (other[2 * x + 1] - own[2 * x + 1]) * gain;
    }
}

DIQP_FAST void add_distance(const float *other, const float *own, float gain, int wide, float *out) {
    for (int x = 0; x < wide; ++x)
        out[x] += std::abs((other[2 * x] - own[2 * x]) * gain) + std::abs((other[2 * x + 1] - own[2 * x + 1]) * gain);
}

/// Rows of channels to cells of channels, in the network's precision.
DIQP_FAST void interleave(const float *rows, int channels, int wide, std::uint16_t *half, std::uint16_t *out) {
    for (int i = 0; i < channels * wide; ++i)
        half[i] = rounded(rows[i]);
    for (int x = 0; x < wide; ++x)
        for (int c = 0; c < channels; ++c)
            out[x * channels + c] = half[c * wide + x];
}

void interleave(const float *rows, int channels, int wide, float *out) {
    for (int x = 0; x < wide; ++x)
        for (int c = 0; c < channels; ++c)
            out[x * channels + c] = rows[c * wide + x];
}

/// Cells of channels to rows of channels.
template <class Value> void separate(const Value *cells, int channels, int wide, float *rows) {
    for (int c = 0; c < channels; ++c)
        for (int x = 0; x < wide; ++x) {
            if constexpr (sizeof(Value) == 2)
                rows[c * wide + x] = widened(cells[x * channels + c]);
            else
                rows[c * wide + x] = cells[x * channels + c];
        }
}

float between(float value, float limit) {
    return std::min(std::max(value, -limit), limit);
}

/// Adds a neighbour's clipped differences, so weighted: even samples of a row, then odd ones.
DIQP_FAST void add_clipped(const float *other, const float *own, float gain, const float *weight, float limit, int wide,
                           float *even, float *odd) {
    for (int x = 0; x < wide; ++x) {
        even[x] += between((other[2 * x] - own[2 * x]) * gain, limit) * weight[x];
        odd[x] += between((other[2 * x + 1] - own[2 * x + 1]) * gain, limit) * weight[x];
    }
}

DIQP_FAST void add_clipped_twice(const float *other, const float *own, float gain, const float *narrow, float limit,
                                 const float *broad, float wide_limit, int wide, float *even, float *odd) {
    for (int x = 0; x < wide; ++x) {
        const float first = (other[2 * x] - own[2 * x]) * gain, second = (other[2 * x + 1] - own[2 * x + 1]) * gain;
        even[x] += between(first, limit) * narrow[x] + between(first, wide_limit) * broad[x];
        odd[x] += between(second, limit) * narrow[x] + between(second, wide_limit) * broad[x];
    }
}

/// Even and odd samples back to a row, scaled by the damage and by how lively the surroundings are.
DIQP_FAST void write_row(const float *even, const float *odd, float damage, const float *live, int wide, float *out) {
    for (int x = 0; x < wide; ++x) {
        out[2 * x] = even[x] * damage * live[x];
        out[2 * x + 1] = odd[x] * damage * live[x];
    }
}

/// Smallest and largest sample of every `side` samples of a row, taken into what was found in the rows above.
DIQP_FAST void take_extremes(const float *row, int count, int side, float *low, float *high) {
    for (int i = 0; i < count; ++i)
        for (int x = 0; x < side; ++x) {
            low[i] = std::min(low[i], row[i * side + x]);
            high[i] = std::max(high[i], row[i * side + x]);
        }
}

/// Of every `side` samples of a row the largest distance to the nearer extreme of their block, added as above.
DIQP_FAST void take_inner(const float *row, int count, int side, const float *low, const float *high, float *inner) {
    for (int i = 0; i < count; ++i)
        for (int x = 0; x < side; ++x)
            inner[i] = std::max(inner[i], std::min(row[i * side + x] - low[i], high[i] - row[i * side + x]));
}

/// stem.liveliness, block by block: B, 3 colours, 3 frames, rows of blocks, blocks.
class Liveliness {
  public:
    Liveliness(const Pictures &pictures)
        : rows_(pictures.sizes.height / pictures.sizes.quiet), columns_(pictures.sizes.width / pictures.sizes.quiet) {
        const DiqpCells &sizes = pictures.sizes;
        const int planes = sizes.batch * COLOURS * FRAMES, side = sizes.quiet;
        shares_.resize(static_cast<std::size_t>(planes) * rows_ * columns_);
        std::vector<float> lows(shares_.size()), highs(shares_.size()), inners(shares_.size());
        in_parallel(planes * rows_, sizes.threads, [&](int first, int last) {
            for (int at = first; at < last; ++at) {
                const float *samples = pictures.tile + static_cast<std::size_t>(at) * side * sizes.width;
                float *low = lows.data() + static_cast<std::size_t>(at) * columns_;
                float *high = highs.data() + static_cast<std::size_t>(at) * columns_;
                for (int x = 0; x < columns_; ++x)
                    low[x] = high[x] = samples[x * side];
                for (int y = 0; y < side; ++y)
                    take_extremes(samples + static_cast<std::size_t>(y) * sizes.width, columns_, side, low, high);
                float *inner = inners.data() + static_cast<std::size_t>(at) * columns_;
                for (int y = 0; y < side; ++y)
                    take_inner(samples + static_cast<std::size_t>(y) * sizes.width, columns_, side, low, high, inner);
            }
        });
        for (int plane = 0; plane < planes; ++plane)
            for (int row = 0; row < rows_; ++row)
                for (int x = 0; x < columns_; ++x) {
                    float low = lows[index(plane, row, x)], high = highs[index(plane, row, x)], inner = 0;
                    for (int i = std::max(row - 1, 0); i <= std::min(row + 1, rows_ - 1); ++i)
                        for (int j = std::max(x - 1, 0); j <= std::min(x + 1, columns_ - 1); ++j) {
                            low = std::min(low, lows[index(plane, i, j)]);
                            high = std::max(high, highs[index(plane, i, j)]);
                            inner = std::max(inner, inners[index(plane, i, j)]);
                        }
                    const float span = (high - low) * 255.0f;
                    const float apart = std::clamp((span - sizes.far_apart) / 4, 0.0f, 1.0f);
                    const float filled = std::clamp((inner * 255.0f - sizes.between) / 2, 0.0f, 1.0f);
                    shares_[index(plane, row, x)] = std::min(span, 1.0f) * (1 - apart * (1 - filled));
                }
    }

    /// For every cell of row `row` of blocks of a plane.
    void expand(int plane, int row, int cells_a_block, float *out) const {
        for (int x = 0; x < columns_; ++x)
            std::fill_n(out + x * cells_a_block, cells_a_block, shares_[index(plane, row, x)]);
    }

  private:
    std::size_t index(int plane, int row, int column) const {
        return (static_cast<std::size_t>(plane) * rows_ + row) * columns_ + column;
    }

    int rows_, columns_;
    std::vector<float> shares_;
};

/// The rows of cells of one frame's first convolution's input, one after the other.
class InputRows {
  public:
    InputRows(const Pictures &pictures, int item, int frame, float gain, const float *pattern)
        : sizes_(pictures.sizes), pictures_(pictures), item_(item), frame_(frame), wide_(sizes_.width / 2),
          high_(sizes_.height / 2), gain_(gain), pattern_(pattern) {
        means_.resize(static_cast<std::size_t>(COLOURS) * sizes_.mean_size * wide_);
        column_.resize(static_cast<std::size_t>(wide_));
        held_.assign(static_cast<std::size_t>(sizes_.mean_size), -1);
    }

    /// Row `y`: `rows` gets all channels.
    void fill(int y, float *rows) {
        const int reach = sizes_.mean_size / 2;
        const int first = std::max(y - reach, 0), last = std::min(y + reach, high_ - 1);
        for (int row = first; row <= last; ++row)
            hold(row);
        const auto channel = [&](int c) { return rows + static_cast<std::size_t>(c) * wide_; };
        const auto line = [&](const float *plane, int below) {
            return plane + static_cast<std::size_t>(2 * y + below) * sizes_.width;
        };
        for (int colour = 0; colour < COLOURS; ++colour) {
            std::vector<const float *> around;
            for (int row = first; row <= last; ++row)
                around.push_back(mean(colour, row));
            float *found = channel(SAMPLES + 2 + colour);
            local_means(around.data(), static_cast<int>(around.size()), wide_, reach, column_.data(), found);
        }
        const float *luma = pictures_.colour(item_, frame_, 0);
        for (int below = 0; below < 2; ++below)
            to_means(line(luma, below), channel(SAMPLES + 2), gain_, wide_, channel(2 * below), channel(2 * below + 1));
        for (int colour = 1; colour < COLOURS; ++colour) {
            float *out = channel(SAMPLES + colour - 1);
            const float *own = mean(colour, y), *around = channel(SAMPLES + 2 + colour);
            for (int x = 0; x < wide_; ++x)
                out[x] = (own[x] - around[x]) * gain_;
        }
        for (int i = 0; i < COLOURS * wide_; ++i)
            channel(SAMPLES + 2)[i] -= 0.5f;
        int next = PLAIN;
        for (int n = 0; n < sizes_.near; ++n, next += SAMPLES) {
            const float *other = pictures_.neighbour(item_, frame_, n);
            for (int below = 0; below < 2; ++below)
                to_frame(line(other, below), line(luma, below), gain_, wide_, channel(next + 2 * below),
                         channel(next + 2 * below + 1));
        }
        for (int n = sizes_.near; n < sizes_.near + sizes_.far; ++n, ++next) {
            const float *other = pictures_.neighbour(item_, frame_, n);
            float *out = channel(next);
            std::fill_n(out, wide_, 0.0f);
            for (int below = 0; below < 2; ++below)
                add_distance(line(other, below), line(luma, below), gain_, wide_, out);
            for (int x = 0; x < wide_; ++x)
                out[x] = std::min(out[x] * 0.25f, 4 * sizes_.gain);
        }
        for (int k = 0; k < sizes_.pattern; ++k, ++next)
            for (int x = 0; x < wide_; ++x)
                channel(next)[x] = pattern_[((y % SIDE) * SIDE + x % SIDE) * sizes_.pattern + k];
    }

  private:
    float *mean(int colour, int row) {
        return means_.data() + (static_cast<std::size_t>(colour) * sizes_.mean_size + row % sizes_.mean_size) * wide_;
    }

    void hold(int row) {
        int &held = held_[static_cast<std::size_t>(row % sizes_.mean_size)];
        if (held == row)
            return;
        held = row;
        for (int colour = 0; colour < COLOURS; ++colour) {
            const float *upper =
                pictures_.colour(item_, frame_, colour) + static_cast<std::size_t>(2 * row) * sizes_.width;
            cell_means(upper, upper + sizes_.width, wide_, mean(colour, row));
        }
    }

    const DiqpCells &sizes_;
    const Pictures &pictures_;
    int item_, frame_, wide_, high_;
    float gain_;
    const float *pattern_;
    std::vector<float> means_, column_;
    std::vector<int> held_;
};

/// The residual of one row of cells.
class ResidualRows {
  public:
    ResidualRows(const Pictures &pictures, const Liveliness &liveliness)
        : sizes_(pictures.sizes), pictures_(pictures), liveliness_(liveliness), wide_(sizes_.width / 2),
          rows_(static_cast<std::size_t>(sizes_.answer) * wide_), sums_(static_cast<std::size_t>(SAMPLES) * wide_),
          live_(static_cast<std::size_t>(wide_)) {}

    template <class Value> void write(const Value *answer, int item, int frame, int y, float damage, float *out) {
        separate(answer, sizes_.answer, wide_, rows_.data());
        const auto channel = [&](int c) { return rows_.data() + static_cast<std::size_t>(c) * wide_; };
        const auto line = [&](const float *plane, int below) {
            return plane + static_cast<std::size_t>(2 * y + below) * sizes_.width;
        };
        // In stem.py differences are scaled for the stem first, then to units of damage.
        const float gain = sizes_.gain / damage * (1.0f / sizes_.gain);
        const float *luma = pictures_.colour(item, frame, 0);
        std::copy_n(rows_.data(), static_cast<std::size_t>(SAMPLES) * wide_, sums_.data());
        for (int below = 0; below < 2; ++below) {
            float *even = sums_.data() + static_cast<std::size_t>(2 * below) * wide_, *odd = even + wide_;
            for (int n = 0; n < sizes_.near; ++n)
                add_clipped_twice(line(pictures_.neighbour(item, frame, n), below), line(luma, below), gain,
                                  channel(OUTPUTS + n), sizes_.near_clip, channel(OUTPUTS + sizes_.near + n),
                                  sizes_.wide_clip, wide_, even, odd);
            for (int n = 0; n < sizes_.far; ++n)
                add_clipped(line(pictures_.neighbour(item, frame, sizes_.near + n), below), line(luma, below), gain,
                            channel(OUTPUTS + 2 * sizes_.near + n), sizes_.far_clip, wide_, even, odd);
        }
        for (int colour = 0; colour < COLOURS; ++colour) {
            const int plane = (item * COLOURS + colour) * FRAMES + frame, cells = sizes_.quiet / 2;
            liveliness_.expand(plane, y / cells, cells, live_.data());
            float *target = out + (static_cast<std::size_t>(plane) * sizes_.height + 2 * y) * sizes_.width;
            for (int below = 0; below < 2; ++below, target += sizes_.width) {
                const float *even =
                    colour ? channel(SAMPLES + colour - 1) : sums_.data() + static_cast<std::size_t>(2 * below) * wide_;
                write_row(even, colour ? even : even + wide_, damage, live_.data(), wide_, target);
            }
        }
    }

  private:
    const DiqpCells &sizes_;
    const Pictures &pictures_;
    const Liveliness &liveliness_;
    int wide_;
    std::vector<float> rows_, sums_, live_;
};

} // namespace

/// tile B, 3, 3, H, W; beside B, 3, N, H, W; pattern B, 4, 4, K and damage B, all fp32 -> out B * 3, H / 2, W / 2,
/// channels.
DIQP_EXPORT void diqp_cells_inputs(const DiqpCells *sizes, const float *tile, const float *beside, const float *pattern,
                                   const float *damage, void *out) {
    const Pictures pictures{*sizes, tile, beside};
    const int wide = sizes->width / 2, high = sizes->height / 2;
    const int channels = PLAIN + SAMPLES * sizes->near + sizes->far + sizes->pattern;
    const std::size_t row_size = static_cast<std::size_t>(channels) * wide;
    in_parallel(sizes->batch * FRAMES * high, sizes->threads, [&](int first, int last) {
        std::vector<float> rows(row_size);
        std::vector<std::uint16_t> half(sizes->bf16 ? row_size : 0);
        for (int at = first; at < last;) {
            const int image = at / high, item = image / FRAMES, end = std::min(last, (image + 1) * high);
            InputRows source(pictures, item, image % FRAMES, sizes->gain / damage[item],
                             pattern + static_cast<std::size_t>(item) * SIDE * SIDE * sizes->pattern);
            for (; at < end; ++at) {
                source.fill(at % high, rows.data());
                if (sizes->bf16)
                    interleave(rows.data(), channels, wide, half.data(),
                               static_cast<std::uint16_t *>(out) + row_size * at);
                else
                    interleave(rows.data(), channels, wide, static_cast<float *>(out) + row_size * at);
            }
        }
    });
}

/// answer B * 3, H / 2, W / 2, channels of the last convolution -> out, the residual B, 3, 3, H, W, fp32.
DIQP_EXPORT void diqp_cells_residual(const DiqpCells *sizes, const float *tile, const float *beside, const void *answer,
                                     const float *damage, float *out) {
    const Pictures pictures{*sizes, tile, beside};
    const Liveliness liveliness(pictures);
    const int high = sizes->height / 2;
    const std::size_t row_size = static_cast<std::size_t>(sizes->answer) * (sizes->width / 2);
    in_parallel(sizes->batch * FRAMES * high, sizes->threads, [&](int first, int last) {
        ResidualRows rows(pictures, liveliness);
        for (int at = first; at < last; ++at) {
            const int image = at / high, item = image / FRAMES;
            if (sizes->bf16)
                rows.write(static_cast<const std::uint16_t *>(answer) + row_size * at, item, image % FRAMES, at % high,
                           damage[item], out);
            else
                rows.write(static_cast<const float *>(answer) + row_size * at, item, image % FRAMES, at % high,
                           damage[item], out);
        }
    });
}
