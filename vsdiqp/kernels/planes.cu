// Planes to network tiles and back, on the GPU: the whole pixel side of one group of frames in three kernels.
//
//   prepare_tiles  staged planes of four frames -> colour tiles, NCHW, in the network's number type
//   thumbnails     staged planes -> whole frames shrunk to the size of the guides
//   finish_planes  predictions of overlapping tiles -> blended residual -> planes, added to the original samples
//
// Numerics: ../planes.py and ../tiles.py are the reference; tests hold this file against them. Everything between a
// sample and a sample is fp32.

#include "pixels.cuh"

// ---------------------------------------------------------------------------------------------------------------
// What the host passes, by value. Mirrored field for field in layouts.py.

struct Source {
    const Sample *plane[FRAMES][3]; // frames n-1, n, n+1, look-ahead; null where a frame is not given
};

struct Prepare {
    Layout layout;
    Colour colour;
    Tiling tiling;
    Source source;
    int first_tile; // index of tile[0]; tiles run row by row
    Number *tile;   // tiles, colours, 3 frames, tile height, tile width
    Number *ahead;  // tiles, colours, 2 frames (n+1, look-ahead), tile height, tile width; null if not wanted
};

struct Shrink {
    Layout layout;
    Colour colour;
    Source source;
    int width, height;       // of a thumbnail
    const int *first_column; // width: the first of the four pixels that a result reads, from -2 up
    const int *first_row;    // height
    const float *weight_x;   // width x 4
    const float *weight_y;   // height x 4
    Number *around;          // colours, 2 frames (n-1, n+1), height, width; null if not wanted
    Number *ahead;           // colours, 2 frames (n+1, look-ahead), height, width; null if not wanted
};

struct Finish {
    Layout layout;
    Colour colour;
    Tiling tiling;
    Source source;
    const float *prediction;  // tiles, colours, 3 frames, tile height, tile width
    Sample *target[GROUP][3]; // laid out like the source; null where a frame is not wanted
    float strength;
};

// ---------------------------------------------------------------------------------------------------------------

// Grid: (tile height, frames, tiles). A block makes one row of one frame of one tile.
extern "C" __global__ void prepare_tiles(const Prepare p) {
    const int row = blockIdx.x, frame = blockIdx.y, tile = blockIdx.z;
    const int width = p.tiling.width, height = p.tiling.height;
    const int index = p.first_tile + tile;
    const int left = p.tiling.left[index % p.tiling.columns], y = p.tiling.top[index / p.tiling.columns] + row;
    const size_t plane = (size_t)height * width;
    for (int x = threadIdx.x; x < width; x += blockDim.x) {
        const Triple pixel = network_colour(p.source.plane[frame], p.layout, p.colour, left + x, y);
        for (int c = 0; c < COLOURS; ++c) {
            const Number value = to_network_number(pixel.v[c]);
            const size_t at = (size_t)row * width + x;
            if (frame < GROUP)
                p.tile[(((size_t)tile * COLOURS + c) * GROUP + frame) * plane + at] = value;
            if (p.ahead && frame >= GROUP - 1)
                p.ahead[(((size_t)tile * COLOURS + c) * 2 + (frame - (GROUP - 1))) * plane + at] = value;
        }
    }
}

// Grid: (height, 3). A block makes one row of the thumbnail of frame n-1, n+1 or look-ahead, reading the 4 x 4 pixels
// a result needs and nothing else of the frame.
extern "C" __global__ void thumbnails(const Shrink p) {
    const int row = blockIdx.x, which = blockIdx.y;
    const int frame = which == 0 ? 0 : GROUP - 2 + which;
    const size_t plane = (size_t)p.height * p.width;
    const int y0 = p.first_row[row];
    const float *wy = p.weight_y + 4 * row;
    for (int x = threadIdx.x; x < p.width; x += blockDim.x) {
        const int x0 = p.first_column[x];
        const float *wx = p.weight_x + 4 * x;
        float sum[COLOURS] = {0.0f, 0.0f, 0.0f};
        for (int j = 0; j < 4; ++j) {
            float line[COLOURS] = {0.0f, 0.0f, 0.0f};
            for (int i = 0; i < 4; ++i) {
                const int sx = clamp_index(x0 + i, p.layout.width), sy = clamp_index(y0 + j, p.layout.height);
                const Triple pixel = network_colour(p.source.plane[frame], p.layout, p.colour, sx, sy);
                for (int c = 0; c < COLOURS; ++c)
                    line[c] += wx[i] * pixel.v[c];
            }
            for (int c = 0; c < COLOURS; ++c)
                sum[c] += wy[j] * line[c];
        }
        for (int c = 0; c < COLOURS; ++c) {
            const Number value = to_network_number(limit(sum[c], 0.0f, 1.0f));
            const size_t at = (size_t)row * p.width + x;
            if (p.around && which < 2)
                p.around[((size_t)c * 2 + which) * plane + at] = value;
            if (p.ahead && which > 0)
                p.ahead[((size_t)c * 2 + which - 1) * plane + at] = value;
        }
    }
}

// The residual of the planes at a luma position: predictions of the tiles that cover it, blended, then the inverse
// matrix.
__device__ inline Triple plane_residual(const Finish &p, int frame, int x, int y) {
    const Tiling &t = p.tiling;
    const size_t plane = (size_t)t.height * t.width;
    float sum[COLOURS] = {0.0f, 0.0f, 0.0f};
    for (int row = t.first_row[y]; row < t.rows && t.top[row] <= y; ++row) {
        const int ty = y - t.top[row];
        if (ty >= t.height)
            continue;
        const float wy = t.weight_y[(size_t)row * t.height + ty];
        for (int column = t.first_column[x]; column < t.columns && t.left[column] <= x; ++column) {
            const int tx = x - t.left[column];
            if (tx >= t.width)
                continue;
            const float weight = wy * t.weight_x[(size_t)column * t.width + tx];
            const size_t at =
                ((size_t)(row * t.columns + column) * COLOURS * GROUP + frame) * plane + (size_t)ty * t.width + tx;
            for (int c = 0; c < COLOURS; ++c) {
                const float value = p.prediction[at + c * GROUP * plane];
                if (isfinite(value))
                    sum[c] += weight * value; // one that overflowed means no change
            }
        }
    }
    Triple out;
    for (int i = 0; i < 3; ++i) {
        const float *m = p.colour.from_network + 3 * i;
        out.v[i] = m[0] * sum[0] + m[1] * sum[1] + m[2] * sum[2];
    }
    return out;
}

// A sample of a plane with its residual added. A residual of zero returns the sample's own bits, also those of -0.0.
// What lies outside of the legal range already is carried no farther, but not brought in either.
__device__ inline Sample add_residual(const Sample *sample, float residual, float strength, const Colour &colour,
                                      int plane) {
    const float change = residual * (strength * colour.scale[plane]);
    if (change == 0.0f)
        return *sample;
    const float old = load(sample);
#if SAMPLE == 132 || SAMPLE == 116
    float value = old + change;
#else
    float value = floorf(old + change + 0.5f);
#endif
    const float most = fmaxf(old, colour.most), least = fminf(old, colour.least);
    if (value > most) // not so where it is NaN, which stays
        value = most;
    if (value < least)
        value = least;
#if SAMPLE == 116
    return to_half(value);
#else
    return (Sample)value;
#endif
}

// How much of luma position x belongs to chroma sample i: the transpose of chroma_at, along one axis, before its sum is
// made one. Luma positions outside the outermost chroma samples belong to those alone.
__device__ inline float chroma_weight(int i, int count, int step, float site, int x) {
    const float distance = x - (i * step + site);
    if ((i == 0 && distance < 0.0f) || (i == count - 1 && distance > 0.0f))
        return 1.0f;
    return fmaxf(0.0f, 1.0f - fabsf(distance) / step);
}

// Luma samples a block covers. A chroma sample reaches step - 1 luma samples past its own on every side.
#define BLOCK_WIDTH 64
#define BLOCK_HEIGHT 16
#define MAX_REACH 3
#define REGION_WIDTH (BLOCK_WIDTH + 2 * MAX_REACH)
#define REGION_HEIGHT (BLOCK_HEIGHT + 2 * MAX_REACH)

// Grid: (width / BLOCK_WIDTH, height / BLOCK_HEIGHT, 3 frames), rounded up.
extern "C" __global__ void finish_planes(const Finish p) {
    __shared__ float chroma[2][REGION_HEIGHT * REGION_WIDTH];
    const Layout &l = p.layout;
    const int frame = blockIdx.z;
    if (!p.target[frame][0])
        return;
    const int x0 = blockIdx.x * BLOCK_WIDTH, y0 = blockIdx.y * BLOCK_HEIGHT;
    const int reach_x = l.step_x - 1, reach_y = l.step_y - 1;
    const int region_width = BLOCK_WIDTH + 2 * reach_x, region_height = BLOCK_HEIGHT + 2 * reach_y;

    for (int i = threadIdx.x; i < region_width * region_height; i += blockDim.x) {
        const int x = x0 - reach_x + i % region_width, y = y0 - reach_y + i / region_width;
        if (x < 0 || y < 0 || x >= l.width || y >= l.height)
            continue;
        const Triple residual = plane_residual(p, frame, x, y);
        if (l.planes > 1) {
            chroma[0][i] = residual.v[1];
            chroma[1][i] = residual.v[2];
        }
        if (x < x0 || y < y0 || x >= x0 + BLOCK_WIDTH || y >= y0 + BLOCK_HEIGHT)
            continue;
        const size_t at = (size_t)y * l.luma_pitch + x;
        p.target[frame][0][at] = add_residual(p.source.plane[frame][0] + at, residual.v[0], p.strength, p.colour, 0);
    }
    if (l.planes == 1)
        return;
    __syncthreads();

    const int columns = l.width / l.step_x, rows = l.height / l.step_y;
    const int block_columns = BLOCK_WIDTH / l.step_x, block_rows = BLOCK_HEIGHT / l.step_y;
    for (int i = threadIdx.x; i < block_columns * block_rows; i += blockDim.x) {
        const int cx = x0 / l.step_x + i % block_columns, cy = y0 / l.step_y + i / block_columns;
        if (cx >= columns || cy >= rows)
            continue;
        float sum[2] = {0.0f, 0.0f}, total_x = 0.0f, total_y = 0.0f;
        for (int dx = -reach_x; dx < l.step_x + reach_x; ++dx) {
            const int x = cx * l.step_x + dx;
            if (x >= 0 && x < l.width)
                total_x += chroma_weight(cx, columns, l.step_x, l.site_x, x);
        }
        for (int dy = -reach_y; dy < l.step_y + reach_y; ++dy) {
            const int y = cy * l.step_y + dy;
            if (y < 0 || y >= l.height)
                continue;
            const float wy = chroma_weight(cy, rows, l.step_y, l.site_y, y);
            total_y += wy;
            for (int dx = -reach_x; dx < l.step_x + reach_x; ++dx) {
                const int x = cx * l.step_x + dx;
                if (x < 0 || x >= l.width)
                    continue;
                const float weight = wy * chroma_weight(cx, columns, l.step_x, l.site_x, x);
                const int at = (y - y0 + reach_y) * region_width + (x - x0 + reach_x);
                sum[0] += weight * chroma[0][at];
                sum[1] += weight * chroma[1][at];
            }
        }
        const size_t at = (size_t)cy * l.chroma_pitch + cx;
        for (int c = 0; c < 2; ++c)
            p.target[frame][c + 1][at] = add_residual(p.source.plane[frame][c + 1] + at, sum[c] / (total_x * total_y),
                                                      p.strength, p.colour, c + 1);
    }
}

#ifdef VSDIQP_HOST_GRID
HOST_LAUNCH(prepare_tiles, Prepare)
HOST_LAUNCH(thumbnails, Shrink)
HOST_LAUNCH(finish_planes, Finish)
#endif
