#include "facts.h"

#include <algorithm>

#include <VSConstants4.h>

namespace diqp {

namespace {

std::optional<int64_t> read_int(const VSMap *properties, const char *key, const VSAPI *api) {
    int error = 0;
    const int64_t value = api->mapGetInt(properties, key, 0, &error);
    return error ? std::nullopt : std::optional<int64_t>(value);
}

std::optional<double> read_number(const VSMap *properties, const char *key, const VSAPI *api) {
    if (const auto whole = read_int(properties, key, api))
        return static_cast<double>(*whole);
    int error = 0;
    const double value = api->mapGetFloat(properties, key, 0, &error);
    return error ? std::nullopt : std::optional<double>(value);
}

std::string read_text(const VSMap *properties, const char *key, const VSAPI *api) {
    int error = 0;
    const char *value = api->mapGetData(properties, key, 0, &error);
    return error ? std::string() : std::string(value, api->mapGetDataSize(properties, key, 0, nullptr));
}

/// `_Range` took the place of `_ColorRange`, whose numbers mean the opposite.
std::optional<bool> read_full_range(const VSMap *properties, const VSAPI *api) {
    if (const auto range = read_int(properties, "_Range", api))
        return *range == 1;
    if (const auto range = read_int(properties, "_ColorRange", api))
        return *range == 0;
    return std::nullopt;
}

} // namespace

int guess_matrix(int width, int height) {
    if (width > 1024 || height > 576)
        return VSC_MATRIX_BT709;
    return height == 576 ? VSC_MATRIX_BT470_BG : VSC_MATRIX_ST170_M;
}

FrameFacts FrameFacts::of(const VSFrame *frame, const VSVideoInfo &clip, const VSAPI *api) {
    const VSMap *properties = api->getFramePropertiesRO(frame);
    const VSVideoFormat &format = clip.format;
    FrameFacts facts{};

    if (format.colorFamily == cfRGB) {
        facts.colour.matrix = VSC_MATRIX_RGB;
    } else {
        const auto matrix = read_int(properties, "_Matrix", api);
        // Gray made from one plane of RGB still says RGB, and 3 is reserved: neither says how luma was made.
        const bool says =
            matrix && *matrix > VSC_MATRIX_RGB && *matrix != VSC_MATRIX_UNSPECIFIED && *matrix != 3 && *matrix <= 255;
        facts.colour.matrix = says ? static_cast<int>(*matrix) : guess_matrix(clip.width, clip.height);
        // Gray needs the matrix for nothing but the weights of a residual's luma.
        facts.matrix_guessed = !says && format.colorFamily == cfYUV;
    }

    facts.colour.full_range =
        format.sampleType == stFloat || read_full_range(properties, api).value_or(format.colorFamily == cfRGB);

    if (format.subSamplingW || format.subSamplingH) {
        const auto location = read_int(properties, "_ChromaLocation", api).value_or(VSC_CHROMA_LEFT);
        facts.colour.chroma_location =
            location >= VSC_CHROMA_LEFT && location <= VSC_CHROMA_BOTTOM ? static_cast<int>(location) : VSC_CHROMA_LEFT;
    }

    facts.interlaced = read_int(properties, "_FieldBased", api).value_or(0) > 0;
    facts.scene_start = read_int(properties, "_SceneChangePrev", api).value_or(0) != 0;
    facts.scene_end = read_int(properties, "_SceneChangeNext", api).value_or(0) != 0;
    facts.codec = read_text(properties, "_Codec", api);
    facts.qp = read_number(properties, "_QP", api);
    if (facts.qp)
        if (const auto offset = read_number(properties, "_QPOffset", api)) {
            // To the ends of the scale at most. A QP that was off it before stays so, for the engine to complain about.
            const double highest = facts.codec == "av1" ? 255.0 : 51.0;
            facts.qp = std::clamp(*facts.qp + *offset, std::min(0.0, *facts.qp), std::max(highest, *facts.qp));
        }
    return facts;
}

bool is_cut(const FrameFacts &previous, const FrameFacts &next) {
    return previous.scene_end || next.scene_start || previous.codec != next.codec || !(previous.colour == next.colour);
}

} // namespace diqp
