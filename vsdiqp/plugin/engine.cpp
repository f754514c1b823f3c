#include "engine.h"

namespace diqp {

namespace {

py::Object clip_dict(const VSVideoInfo &clip) {
    const VSVideoFormat &format = clip.format;
    const char *family = format.colorFamily == cfGray ? "GRAY" : format.colorFamily == cfRGB ? "RGB" : "YUV";
    py::Object dict = py::dict();
    py::set_item(dict, "family", py::text(family));
    py::set_item(dict, "sample_type", py::text(format.sampleType == stFloat ? "float" : "integer"));
    py::set_item(dict, "bits", py::integer(format.bitsPerSample));
    py::set_item(dict, "subsampling_w", py::integer(format.subSamplingW));
    py::set_item(dict, "subsampling_h", py::integer(format.subSamplingH));
    py::set_item(dict, "width", py::integer(clip.width));
    py::set_item(dict, "height", py::integer(clip.height));
    py::set_item(dict, "frames", py::integer(clip.numFrames));
    return dict;
}

} // namespace

py::Object arguments_dict(const VSMap *map, const VSAPI *api) {
    py::Object dict = py::dict();
    for (int k = 0; k < api->mapNumKeys(map); ++k) {
        const char *key = api->mapGetKey(map, k);
        const int type = api->mapGetType(map, key);
        if (type != ptInt && type != ptFloat && type != ptData)
            continue;
        const int size = api->mapNumElements(map, key);
        py::set_item(dict, key, py::tuple_of(size, [&](std::size_t index) {
                         const int i = static_cast<int>(index);
                         if (type == ptInt)
                             return py::integer(api->mapGetInt(map, key, i, nullptr));
                         if (type == ptFloat)
                             return py::real(api->mapGetFloat(map, key, i, nullptr));
                         return py::text(std::string(api->mapGetData(map, key, i, nullptr),
                                                     api->mapGetDataSize(map, key, i, nullptr)));
                     }));
    }
    return dict;
}

Engine::Engine(const VSMap *arguments, const VSVideoInfo &clip, const VSAPI *api)
    : api_(api), planes_(clip.format.numPlanes) {
    const py::Gil gil;
    py::Object engine = py::host_function("create").call(py::tuple(arguments_dict(arguments, api), clip_dict(clip)));
    look_ahead_ = static_cast<int>(engine.attribute("look_ahead").as_integer());
    neighbours_ = static_cast<int>(engine.attribute("neighbours").as_integer());
    reads_matrix_ = engine.attribute("reads_matrix").as_integer() != 0;
    first_pass_ = engine.attribute("first_pass").as_text();
    // Last, so that the member is never destroyed without the GIL because something above has thrown.
    engine_ = std::move(engine);
}

Engine::~Engine() {
    try {
        const py::Gil gil;
        py::Object engine = std::move(engine_);
        engine.attribute("close").call(py::tuple());
    } catch (const Error &) {
        // Python has ended, and the engine with it; or close() failed, which nobody is left to be told.
        engine_.release();
    }
}

py::Object Engine::planes_tuple(const VSFrame *frame) const {
    return py::tuple_of(planes_, [&](std::size_t index) {
        const int plane = static_cast<int>(index);
        return py::tuple(py::address(api_->getReadPtr(frame, plane)), py::integer(api_->getStride(frame, plane)));
    });
}

py::Object Engine::writable_planes_tuple(VSFrame *frame) const {
    return py::tuple_of(planes_, [&](std::size_t index) {
        const int plane = static_cast<int>(index);
        return py::tuple(py::address(api_->getWritePtr(frame, plane)), py::integer(api_->getStride(frame, plane)));
    });
}

py::Object Engine::frames_tuple(const std::vector<const SourceFrame *> &frames) const {
    return py::tuple_of(frames.size(), [&](std::size_t i) { return planes_tuple(frames[i]->frame.get()); });
}

py::Object Engine::first_tuple(const EngineRun &run) const {
    if (first_pass_.empty())
        return py::tuple();
    std::vector<const SourceFrame *> sequence(run.before);
    sequence.insert(sequence.end(), run.frames.begin(), run.frames.end());
    sequence.insert(sequence.end(), run.after.begin(), run.after.end());
    return py::tuple_of(sequence.size(), [&](std::size_t i) { return planes_tuple(sequence[i]->first.get()); });
}

py::Object Engine::run_tuple(const EngineRun &run) const {
    // All frames of a run agree in colour and codec: a change of either is a cut.
    const FrameFacts &facts = run.frames[0]->facts;
    return py::tuple(py::tuple_of(kGroupSize, [&](std::size_t i) { return planes_tuple(run.frames[i]->frame.get()); }),
                     planes_tuple(run.ahead->frame.get()),
                     py::tuple_of(kGroupSize,
                                  [&](std::size_t i) {
                                      return run.targets[i] ? writable_planes_tuple(run.targets[i])
                                                            : py::Object::none();
                                  }),
                     py::tuple(py::integer(facts.colour.matrix), py::boolean(facts.colour.full_range),
                               py::integer(facts.colour.chroma_location)),
                     py::tuple_of(kGroupSize,
                                  [&](std::size_t i) {
                                      const auto qp = run.frames[i]->facts.qp;
                                      return qp ? py::real(*qp) : py::Object::none();
                                  }),
                     py::text(facts.codec),
                     py::tuple(py::integer(run.plan.frames[0]), py::integer(run.plan.frames[1]),
                               py::integer(run.plan.frames[2]), py::integer(run.plan.ahead)),
                     py::integer(run.middle), frames_tuple(run.before), frames_tuple(run.after), first_tuple(run));
}

void Engine::process(const std::vector<EngineRun> &runs) {
    const py::Gil gil;
    engine_.attribute("process").call(
        py::tuple(py::tuple_of(runs.size(), [&](std::size_t i) { return run_tuple(runs[i]); })));
}

} // namespace diqp
