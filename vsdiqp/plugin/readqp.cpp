// diqp.ReadQP: sets _QP, _Codec and, where it is not 0, _QPOffset on every frame, from the file the clip was read from.

#include "readqp.h"

#include <memory>
#include <string>
#include <vector>

#include "engine.h"

namespace diqp {

namespace {

constexpr const char *kFilterName = "diqp.ReadQP";

struct ReadQp {
    NodeRef input;
    std::string codec;
    std::vector<int64_t> qps; ///< one for each frame of the clip
    int64_t offset = 0;       ///< what Restore adds to them
};

/// What vsdiqp.host.read_qp answers; it checks the arguments.
void read_qps(const VSMap *in, const VSVideoInfo &clip, ReadQp &result, const VSAPI *api) {
    const py::Gil gil;
    const int frames = clip.numFrames;
    const py::Object answer = py::host_function("read_qp").call(
        py::tuple(arguments_dict(in, api), py::integer(frames), py::integer(clip.width), py::integer(clip.height)));
    result.codec = answer.item(0).as_text();
    const py::Object qps = answer.item(1);
    if (qps.size() != frames)
        throw Error("the file has " + std::to_string(qps.size()) + " QPs, the clip " + std::to_string(frames) +
                    " frames");
    result.qps.reserve(static_cast<std::size_t>(frames));
    for (int n = 0; n < frames; ++n)
        result.qps.push_back(qps.item(n).as_integer());
    result.offset = answer.item(2).as_integer();
}

const VSFrame *VS_CC get_frame(int n, int reason, void *instance, void **, VSFrameContext *context, VSCore *core,
                               const VSAPI *api) {
    const ReadQp &data = *static_cast<const ReadQp *>(instance);
    if (reason == arInitial)
        api->requestFrameFilter(n, data.input.get(), context);
    if (reason != arAllFramesReady)
        return nullptr;
    const FrameRef source(api->getFrameFilter(n, data.input.get(), context), api);
    VSFrame *frame = api->copyFrame(source.get(), core);
    VSMap *properties = api->getFramePropertiesRW(frame);
    api->mapSetInt(properties, "_QP", data.qps[static_cast<std::size_t>(n)], maReplace);
    if (data.offset != 0)
        api->mapSetInt(properties, "_QPOffset", data.offset, maReplace);
    else
        api->mapDeleteKey(properties, "_QPOffset");
    api->mapSetData(properties, "_Codec", data.codec.data(), static_cast<int>(data.codec.size()), dtUtf8, maReplace);
    return frame;
}

void VS_CC free_read_qp(void *instance, VSCore *, const VSAPI *) {
    delete static_cast<ReadQp *>(instance);
}

} // namespace

void VS_CC create_read_qp(const VSMap *in, VSMap *out, void *, VSCore *core, const VSAPI *api) {
    try {
        auto data = std::make_unique<ReadQp>(ReadQp{NodeRef(api->mapGetNode(in, "clip", 0, nullptr), api), {}, {}, 0});
        const VSVideoInfo *clip = api->getVideoInfo(data->input.get());
        read_qps(in, *clip, *data, api);
        const VSFilterDependency dependency{data->input.get(), rpStrictSpatial};
        api->createVideoFilter(out, "ReadQP", clip, get_frame, free_read_qp, fmParallel, &dependency, 1, data.release(),
                               core);
    } catch (const std::exception &error) {
        api->mapSetError(out, (std::string(kFilterName) + ": " + error.what()).c_str());
    }
}

} // namespace diqp
