// The Python side as the filter sees it: vsdiqp.host.Engine.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "facts.h"
#include "groups.h"
#include "python.h"

namespace diqp {

/// A frame handed to the engine, with what its properties say.
struct SourceFrame {
    FrameRef frame;
    FrameRef first; ///< the same frame after a first pass, where there is one
    FrameFacts facts;
};

/// A run with its frames; the plan's numbers name them.
struct EngineRun {
    RunPlan plan;
    int middle;
    std::array<const SourceFrame *, kGroupSize> frames;
    const SourceFrame *ahead;
    std::array<VSFrame *, kGroupSize> targets; ///< nullptr where nothing is wanted
    std::vector<const SourceFrame *> before;
    std::vector<const SourceFrame *> after;
};

class Engine {
  public:
    /// Checks `arguments`, those of the filter, and makes what restores frames of `clip`. Throws Error.
    Engine(const VSMap *arguments, const VSVideoInfo &clip, const VSAPI *api);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    /// Frames between a group's last frame and the one it looks ahead to.
    int look_ahead() const { return look_ahead_; }

    /// Frames on each side of a group that its runs are given.
    int neighbours() const { return neighbours_; }

    /// Whether the colour matrix of YUV clips makes a difference to the result.
    bool reads_matrix() const { return reads_matrix_; }

    /// The model that restores frames before the engine sees them as neighbours; empty: none does.
    const std::string &first_pass() const { return first_pass_; }

    /// Fills the targets of `runs`. Any thread may call it, several at once; it returns when they are filled. The GIL
    /// is free while the engine works or waits. Throws Error.
    void process(const std::vector<EngineRun> &runs);

  private:
    py::Object run_tuple(const EngineRun &run) const;
    py::Object frames_tuple(const std::vector<const SourceFrame *> &frames) const;
    py::Object first_tuple(const EngineRun &run) const;
    py::Object planes_tuple(const VSFrame *frame) const;
    py::Object writable_planes_tuple(VSFrame *frame) const;

    const VSAPI *api_;
    int planes_;
    py::Object engine_;
    int look_ahead_ = 0;
    int neighbours_ = 0;
    bool reads_matrix_ = true;
    std::string first_pass_;
};

/// The arguments in `map` but for its nodes, as a Python dict of tuples.
py::Object arguments_dict(const VSMap *map, const VSAPI *api);

} // namespace diqp
