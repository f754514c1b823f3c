// diqp.Restore: three nodes in a row, or twice three for networks with a first pass.
//
//   source -> Fetch -> Group -> Restore
//   source -> Fetch -> Group -> FirstPass -> Fetch -> Group -> Restore
//
// Fetch passes frames on and puts them into the sliding window before anybody can ask for them again. Group restores
// one group per "frame". Restore (and FirstPass) picks a frame out of its group. The nodes make the core do the
// waiting: it merges concurrent requests for one frame of an inner node into one evaluation, so each source frame is
// fetched once and each group restored once without a thread ever blocking on another's work, and an error reaches all
// who asked.
//
// Restored frames of a first pass carry the source's as a property, so that the second is handed both and the source is
// still asked for every frame once.

#include "restore.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "engine.h"
#include "window.h"

namespace diqp {

namespace {

constexpr const char *kFilterName = "diqp.Restore";

/// Frame property in which Group hands its restored frames to Restore.
constexpr const char *kMembersKey = "members";

/// Frame property in which a first pass hands on the source's frame.
constexpr const char *kSourceKey = "_diqp_source";

/// Restored frames of a group by position; empty where another group restores that frame.
using Members = std::shared_ptr<const std::array<FrameRef, kGroupSize>>;

/// What the three nodes share.
class Restorer {
  public:
    /// `is_first_pass`: the frames are for another pass.
    Restorer(const VSMap *arguments, const VSVideoInfo &clip, bool is_first_pass, VSCore *core, const VSAPI *api)
        : api(api), clip(clip), is_first_pass(is_first_pass), engine(arguments, clip, api),
          groups{clip.numFrames, engine.look_ahead(), engine.neighbours()},
          window(groups, groups_in_flight(core, api) + kSpareGroups),
          finished(static_cast<std::size_t>(std::max(kFinishedGroups, groups_in_flight(core, api) + kSpareGroups))) {}

    /// Says once what a user should know about how the frames are taken.
    void remark(const FrameFacts &facts, int frame, VSCore *core) {
        if (facts.matrix_guessed && engine.reads_matrix() && !told_matrix_.exchange(true))
            log(mtInformation, core,
                "frame %d does not say its colour matrix (_Matrix); taking %s, as usual for its size", frame,
                facts.colour.matrix == 1 ? "BT.709" : "BT.601");
        if (facts.interlaced && !told_interlaced_.exchange(true))
            log(mtWarning, core,
                "frame %d is interlaced (_FieldBased); deinterlace first, the networks know whole frames", frame);
    }

    /// What Fetch hands on, with the source's frame where a first pass came before it.
    SourceFrame source_frame(FrameRef frame) const {
        if (engine.first_pass().empty()) {
            const FrameFacts facts = FrameFacts::of(frame.get(), clip, api);
            return {std::move(frame), {}, facts};
        }
        const VSMap *properties = api->getFramePropertiesRO(frame.get());
        FrameRef source(api->mapGetFrame(properties, kSourceKey, 0, nullptr), api);
        const FrameFacts facts = FrameFacts::of(source.get(), clip, api);
        return {std::move(source), std::move(frame), facts};
    }

    /// Restores `group` from the frames of its window.
    Members restore(int group, const std::vector<SourceFrame> &frames, VSCore *core);

    const VSAPI *const api;
    const VSVideoInfo clip;
    const bool is_first_pass;
    Engine engine;
    const Groups groups;

    std::mutex mutex; ///< guards the two below
    SlidingWindow<SourceFrame> window;
    FinishedGroups<Members> finished;

  private:
    static constexpr int kSpareGroups = 4;
    static constexpr int kFinishedGroups = 8;

    /// Consumers ask for about as many frames at once as there are threads.
    static int groups_in_flight(VSCore *core, const VSAPI *api) {
        VSCoreInfo info{};
        api->getCoreInfo(core, &info);
        return std::max(info.numThreads, 1) / kGroupSize + 1;
    }

    template <typename... Values> void log(int type, VSCore *core, const char *format, Values... values) const {
        char text[256];
        const int prefix = std::snprintf(text, sizeof text, "%s: ", kFilterName);
        std::snprintf(text + prefix, sizeof text - static_cast<std::size_t>(prefix), format, values...);
        api->logMessage(type, text, core);
    }

    std::atomic<bool> told_matrix_{false};
    std::atomic<bool> told_interlaced_{false};
};

Members Restorer::restore(int group, const std::vector<SourceFrame> &frames, VSCore *core) {
    const int first = groups.window_first(group);
    const auto source = [&](int frame) { return &frames[static_cast<std::size_t>(frame - first)]; };
    const auto cut = [&](int frame) { return is_cut(source(frame - 1)->facts, source(frame)->facts); };

    std::vector<EngineRun> runs;
    std::vector<std::pair<int, NewFrame>> restored;
    for (const RunPlan &plan : plan_runs(groups, group, cut)) {
        EngineRun run{plan, groups.middle(group), {}, source(plan.ahead), {}, {}, {}};
        for (int i = 0; i < kGroupSize; ++i) {
            run.frames[i] = source(plan.frames[i]);
            if (!plan.targets[i])
                continue;
            const VSFrame *original = run.frames[i]->frame.get();
            if (!is_first_pass)
                remark(run.frames[i]->facts, plan.frames[i], core);
            restored.emplace_back(
                i, NewFrame(api->newVideoFrame(&clip.format, clip.width, clip.height, original, core), api));
            if (is_first_pass) {
                VSMap *properties = api->getFramePropertiesRW(restored.back().second.get());
                api->mapSetFrame(properties, kSourceKey, original, maReplace);
            }
            run.targets[i] = restored.back().second.get();
        }
        std::transform(plan.before.begin(), plan.before.end(), std::back_inserter(run.before), source);
        std::transform(plan.after.begin(), plan.after.end(), std::back_inserter(run.after), source);
        runs.push_back(std::move(run));
    }

    engine.process(runs);

    auto members = std::make_shared<std::array<FrameRef, kGroupSize>>();
    for (auto &[position, frame] : restored)
        (*members)[position] = frame.finish();
    return members;
}

/// A node's instance data: what is shared, and the node it asks.
struct Stage {
    std::shared_ptr<Restorer> restorer;
    NodeRef input;
};

void VS_CC free_stage(void *instance, VSCore *, const VSAPI *) {
    delete static_cast<Stage *>(instance);
}

// ----------------------------------------------------------------------------------------------------------------
// Fetch

const VSFrame *fetch(int n, int reason, Stage &stage, VSFrameContext *context) {
    Restorer &restorer = *stage.restorer;
    if (reason == arInitial) {
        {
            const std::lock_guard<std::mutex> lock(restorer.mutex);
            if (const SourceFrame *held = restorer.window.find(n))
                return FrameRef(held->first ? held->first : held->frame).release();
        }
        restorer.api->requestFrameFilter(n, stage.input.get(), context);
        return nullptr;
    }
    FrameRef frame(restorer.api->getFrameFilter(n, stage.input.get(), context), restorer.api);
    SourceFrame source = restorer.source_frame(frame);
    const std::lock_guard<std::mutex> lock(restorer.mutex);
    restorer.window.put(n, std::move(source));
    return frame.release();
}

// ----------------------------------------------------------------------------------------------------------------
// Group

/// A group on its way: the frames of its window, taken as soon as they are known so that nothing can drop them.
class PendingGroup {
  public:
    PendingGroup(Restorer &restorer, int group)
        : restorer_(restorer), group_(group), first_(restorer.groups.window_first(group)),
          frames_(static_cast<std::size_t>(restorer.groups.window_last(group) - first_ + 1)) {
        const std::lock_guard<std::mutex> lock(restorer_.mutex);
        restorer_.window.enter(group_);
        for (std::size_t i = 0; i < frames_.size(); ++i) {
            if (const SourceFrame *held = restorer_.window.find(first_ + static_cast<int>(i)))
                frames_[i] = *held;
            else
                missing_.push_back(i);
        }
    }

    PendingGroup(const PendingGroup &) = delete;
    PendingGroup &operator=(const PendingGroup &) = delete;

    ~PendingGroup() {
        const std::lock_guard<std::mutex> lock(restorer_.mutex);
        restorer_.window.leave(group_);
    }

    bool complete() const { return missing_.empty(); }

    void request_missing(VSNode *node, VSFrameContext *context) const {
        for (const std::size_t i : missing_)
            restorer_.api->requestFrameFilter(first_ + static_cast<int>(i), node, context);
    }

    void take_missing(VSNode *node, VSFrameContext *context) {
        for (const std::size_t i : missing_) {
            FrameRef frame(restorer_.api->getFrameFilter(first_ + static_cast<int>(i), node, context), restorer_.api);
            frames_[i] = restorer_.source_frame(std::move(frame));
        }
        missing_.clear();
    }

    const std::vector<SourceFrame> &frames() const { return frames_; }

  private:
    Restorer &restorer_;
    int group_;
    int first_;
    std::vector<SourceFrame> frames_;
    std::vector<std::size_t> missing_;
};

/// The smallest frame there is, carrying restored frames.
const VSFrame *wrap(const Members &members, const VSVideoInfo &carrier, VSCore *core, const VSAPI *api) {
    NewFrame frame(api->newVideoFrame(&carrier.format, carrier.width, carrier.height, nullptr, core), api);
    VSMap *properties = api->getFramePropertiesRW(frame.get());
    for (const FrameRef &member : *members)
        if (member)
            api->mapSetFrame(properties, kMembersKey, member.get(), maAppend);
    return frame.finish().release();
}

VSVideoInfo carrier_info(const Groups &groups, const VSVideoInfo &clip, VSCore *core, const VSAPI *api) {
    VSVideoInfo info = clip;
    api->queryVideoFormat(&info.format, cfGray, stInteger, 8, 0, 0, core);
    info.width = info.height = 1;
    info.numFrames = groups.count();
    return info;
}

const VSFrame *restore_group(int group, int reason, Stage &stage, void **frame_data, VSFrameContext *context,
                             VSCore *core) {
    Restorer &restorer = *stage.restorer;
    const VSAPI *api = restorer.api;
    const VSVideoInfo carrier = carrier_info(restorer.groups, restorer.clip, core, api);

    std::unique_ptr<PendingGroup> pending(static_cast<PendingGroup *>(std::exchange(*frame_data, nullptr)));
    if (reason == arInitial) {
        // Between Restore's look at the finished groups and its request, another request may have finished this one:
        // the core merges requests only while they are under way.
        std::optional<Members> made;
        {
            const std::lock_guard<std::mutex> lock(restorer.mutex);
            made = restorer.finished.find(group);
        }
        if (made)
            return wrap(*made, carrier, core, api);
        pending = std::make_unique<PendingGroup>(restorer, group);
        if (!pending->complete()) {
            pending->request_missing(stage.input.get(), context);
            *frame_data = pending.release();
            return nullptr;
        }
    } else {
        pending->take_missing(stage.input.get(), context);
    }

    const Members members = restorer.restore(group, pending->frames(), core);
    const auto count = std::count_if(members->begin(), members->end(), [](const FrameRef &m) { return bool(m); });
    {
        const std::lock_guard<std::mutex> lock(restorer.mutex);
        restorer.finished.put(group, members, static_cast<std::size_t>(count));
    }
    return wrap(members, carrier, core, api);
}

// --------------------------------------------------------------------------------------------------------------
// Restore

const VSFrame *pick(int n, int reason, Stage &stage, VSFrameContext *context) {
    Restorer &restorer = *stage.restorer;
    const int group = Groups::containing(n);
    const int member = n - group * kGroupSize;
    if (reason == arInitial) {
        {
            const std::lock_guard<std::mutex> lock(restorer.mutex);
            if (const auto members = restorer.finished.take(group, member))
                return FrameRef((**members)[static_cast<std::size_t>(n - restorer.groups.first(group))]).release();
        }
        restorer.api->requestFrameFilter(group, stage.input.get(), context);
        return nullptr;
    }
    const FrameRef carrier(restorer.api->getFrameFilter(group, stage.input.get(), context), restorer.api);
    {
        const std::lock_guard<std::mutex> lock(restorer.mutex);
        restorer.finished.hand_out(group, member);
    }
    return restorer.api->mapGetFrame(restorer.api->getFramePropertiesRO(carrier.get()), kMembersKey, member, nullptr);
}

// ---------------------------------------------------------------------------------------------- what the core calls

template <typename Work> const VSFrame *guarded(const Stage &stage, VSFrameContext *context, const Work &work) {
    try {
        return work();
    } catch (const std::exception &error) {
        stage.restorer->api->setFilterError((std::string(kFilterName) + ": " + error.what()).c_str(), context);
        return nullptr;
    }
}

const VSFrame *VS_CC get_fetch(int n, int reason, void *instance, void **, VSFrameContext *context, VSCore *,
                               const VSAPI *) {
    Stage &stage = *static_cast<Stage *>(instance);
    if (reason == arError)
        return nullptr;
    return guarded(stage, context, [&] { return fetch(n, reason, stage, context); });
}

const VSFrame *VS_CC get_group(int n, int reason, void *instance, void **frame_data, VSFrameContext *context,
                               VSCore *core, const VSAPI *) {
    Stage &stage = *static_cast<Stage *>(instance);
    if (reason == arError) {
        delete static_cast<PendingGroup *>(std::exchange(*frame_data, nullptr));
        return nullptr;
    }
    return guarded(stage, context, [&] { return restore_group(n, reason, stage, frame_data, context, core); });
}

const VSFrame *VS_CC get_restore(int n, int reason, void *instance, void **, VSFrameContext *context, VSCore *,
                                 const VSAPI *) {
    Stage &stage = *static_cast<Stage *>(instance);
    if (reason == arError)
        return nullptr;
    return guarded(stage, context, [&] { return pick(n, reason, stage, context); });
}

/// A node that asks `input`; its own results are kept by what is shared, not by the core's cache.
NodeRef make_inner(const char *name, const VSVideoInfo &info, VSFilterGetFrame get_frame,
                   const std::shared_ptr<Restorer> &restorer, NodeRef input, VSCore *core) {
    const VSAPI *api = restorer->api;
    const VSFilterDependency dependency{input.get(), rpGeneral};
    auto stage = std::make_unique<Stage>(Stage{restorer, std::move(input)});
    VSNode *node =
        api->createVideoFilter2(name, &info, get_frame, free_stage, fmParallel, &dependency, 1, stage.get(), core);
    // The core has taken the stage over, or freed it when it made no node.
    stage.release();
    if (!node)
        throw Error("the core could not make a node");
    api->setCacheMode(node, cmForceDisable);
    return {node, api};
}

/// Fetch and Group in front of a Restore or FirstPass node, with a first pass before them where the network has one:
/// Group, and what the nodes share.
std::pair<NodeRef, std::shared_ptr<Restorer>> make_groups(const VSMap *arguments, NodeRef source, bool is_first_pass,
                                                          VSCore *core, const VSAPI *api);

/// Frames as the model `name` restores them, each with the source's.
NodeRef make_first_pass(const VSMap *arguments, const std::string &name, NodeRef source, VSCore *core,
                        const VSAPI *api) {
    const MapRef own(api);
    api->copyMap(arguments, own.get());
    api->mapSetData(own.get(), "model", name.data(), static_cast<int>(name.size()), dtUtf8, maReplace);
    api->mapSetFloat(own.get(), "strength", 1.0, maReplace);
    auto [groups, restorer] = make_groups(own.get(), std::move(source), true, core, api);
    return make_inner("FirstPass", restorer->clip, get_restore, restorer, std::move(groups), core);
}

std::pair<NodeRef, std::shared_ptr<Restorer>> make_groups(const VSMap *arguments, NodeRef source, bool is_first_pass,
                                                          VSCore *core, const VSAPI *api) {
    const VSVideoInfo clip = *api->getVideoInfo(source.get());
    auto restorer = std::make_shared<Restorer>(arguments, clip, is_first_pass, core, api);
    const std::string &first_pass = restorer->engine.first_pass();
    if (!first_pass.empty())
        source = make_first_pass(arguments, first_pass, std::move(source), core, api);
    NodeRef fetched = make_inner("Fetch", clip, get_fetch, restorer, std::move(source), core);
    NodeRef groups = make_inner("Group", carrier_info(restorer->groups, clip, core, api), get_group, restorer,
                                std::move(fetched), core);
    return {std::move(groups), std::move(restorer)};
}

void check(const VSVideoInfo &clip) {
    if (clip.format.colorFamily == cfUndefined || clip.width == 0 || clip.height == 0)
        throw Error("the clip changes its format or size, and only constant ones are accepted: convert it first, for "
                    "example with core.resize.Bicubic(clip, width=..., height=..., format=...)");
}

} // namespace

void VS_CC create_restore(const VSMap *in, VSMap *out, void *, VSCore *core, const VSAPI *api) {
    try {
        NodeRef source(api->mapGetNode(in, "clip", 0, nullptr), api);
        check(*api->getVideoInfo(source.get()));
        auto [groups, restorer] = make_groups(in, std::move(source), false, core, api);

        const VSFilterDependency dependency{groups.get(), rpGeneral};
        auto stage = std::make_unique<Stage>(Stage{restorer, std::move(groups)});
        api->createVideoFilter(out, "Restore", &restorer->clip, get_restore, free_stage, fmParallel, &dependency, 1,
                               stage.release(), core);
    } catch (const std::exception &error) {
        api->mapSetError(out, (std::string(kFilterName) + ": " + error.what()).c_str());
    }
}

} // namespace diqp
