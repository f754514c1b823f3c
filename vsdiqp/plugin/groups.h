// Which frames belong together: groups of three, their look-ahead, and what scene cuts do to both.
//
// Frame numbers only, no VapourSynth and no Python, so that the rules can be read and tested on their own.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

namespace diqp {

/// Frames the network restores together.
inline constexpr int kGroupSize = 3;

/// A clip of `frames` frames seen as groups: group g restores frames 3g..3g+2. The last group of a clip whose length is
/// no multiple of three looks at the clip's last three frames and restores only those no other group has; clips of one
/// or two frames repeat their last frame.
struct Groups {
    int frames;     ///< length of the clip, at least 1
    int look_ahead; ///< frames between a group's last frame and the frame it looks ahead to; 0 is its own last frame

    int count() const { return (frames + kGroupSize - 1) / kGroupSize; }

    static int containing(int frame) { return frame / kGroupSize; }

    /// First frame `group` looks at.
    int first(int group) const { return std::max(std::min(group * kGroupSize, frames - kGroupSize), 0); }

    /// Last frame `group` looks at, look-ahead left aside.
    int last(int group) const { return std::min(first(group) + kGroupSize - 1, frames - 1); }

    /// Last frame of the window of `group`: where its look-ahead lies unless a cut is nearer.
    int window_last(int group) const { return reach(last(group)); }

    /// The frame `look_ahead` frames after `frame`, as far as the clip goes.
    int reach(int frame) const { return look_ahead < frames - 1 - frame ? frame + look_ahead : frames - 1; }

    int middle(int group) const { return std::min(first(group) + 1, frames - 1); }
};

/// One evaluation of the network.
struct RunPlan {
    std::array<int, kGroupSize> frames{};   ///< the frames it is given
    std::array<bool, kGroupSize> targets{}; ///< which of them it restores
    int ahead = 0;                          ///< the look-ahead frame
};

/// What the network is run on to restore `group`. `cut(j)` says whether frame j starts something that frame j - 1 is no
/// part of; it is asked about frames of the group's window only. Each side of a cut that has frames to restore is one
/// run, in which frames beyond the cut are replaced by the nearest one on this side and the look-ahead stops at the
/// last frame before the next cut.
template <typename Cut> std::vector<RunPlan> plan_runs(const Groups &groups, int group, const Cut &cut) {
    const int first = groups.first(group);
    const int last = groups.last(group);
    std::vector<RunPlan> runs;
    for (int begin = first, end; begin <= last; begin = end + 1) {
        end = begin;
        while (end < last && !cut(end + 1))
            ++end;

        RunPlan run;
        for (int i = 0; i < kGroupSize; ++i) {
            const int frame = first + i;
            run.frames[i] = std::clamp(frame, begin, end);
            run.targets[i] = frame >= begin && frame <= end && Groups::containing(frame) == group;
        }
        run.ahead = end;
        for (const int reach = groups.reach(end); run.ahead < reach && !cut(run.ahead + 1);)
            ++run.ahead;

        if (std::find(run.targets.begin(), run.targets.end(), true) != run.targets.end())
            runs.push_back(run);
    }
    return runs;
}

} // namespace diqp
