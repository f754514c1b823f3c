// What frame properties say about a frame, as far as restoring it depends on them.
#pragma once

#include <optional>
#include <string>

#include "vs.h"

namespace diqp {

/// How samples mean colour, with nothing left unspecified. Mirrors vsdiqp.clip.FrameColour.
struct Colour {
    int matrix;          ///< H.273 matrix coefficients, 0 for RGB
    bool full_range;     ///< of integer samples; float clips have no range and say true
    int chroma_location; ///< VapourSynth's _ChromaLocation; 0 where chroma is not subsampled

    bool operator==(const Colour &other) const {
        return matrix == other.matrix && full_range == other.full_range && chroma_location == other.chroma_location;
    }
};

struct FrameFacts {
    Colour colour;
    bool matrix_guessed; ///< the frame did not say it
    bool interlaced;
    bool scene_start; ///< _SceneChangePrev
    bool scene_end;   ///< _SceneChangeNext
    std::optional<double> qp;
    std::string codec; ///< empty: the frame does not say

    static FrameFacts of(const VSFrame *frame, const VSVideoInfo &clip, const VSAPI *api);
};

/// Whether something begins with `next` that `previous` is no part of. Frames of another codec or another meaning of
/// colour cannot share an evaluation of the network, whatever the scene flags say.
bool is_cut(const FrameFacts &previous, const FrameFacts &next);

/// The matrix of a YUV clip that does not say it: BT.709, except for sizes of standard definition, which have BT.601's
/// coefficients (H.273 number 5 with 576 lines, 6 otherwise). The core's resizers refuse to guess; players do it so.
int guess_matrix(int width, int height);

} // namespace diqp
