// Which frames belong together: groups of three, their neighbours and look-ahead, and what scene cuts do to them.
//
// Frame numbers only, no VapourSynth and no Python, so that the rules can be read and tested on their own.
#pragma once

#include <algorithm>
#include <array>
#include <utility>
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
    int neighbours; ///< frames that are seen on each side of a group

    int count() const { return frames / kGroupSize + (frames % kGroupSize != 0); }

    static int containing(int frame) { return frame / kGroupSize; }

    /// First frame `group` looks at, neighbours left aside.
    int first(int group) const { return std::max(std::min(group * kGroupSize, frames - kGroupSize), 0); }

    /// Last frame `group` looks at, neighbours and look-ahead left aside.
    int last(int group) const { return std::min(first(group) + kGroupSize - 1, frames - 1); }

    /// First frame of the window of `group`: its first neighbour unless a cut is nearer.
    int window_first(int group) const { return std::max(first(group) - neighbours, 0); }

    /// Last frame of the window of `group`: its last neighbour or where its look-ahead lies unless a cut is nearer.
    int window_last(int group) const { return later(last(group), std::max(neighbours, look_ahead)); }

    /// The frame `steps` frames after `frame`, as far as the clip goes.
    int later(int frame, int steps) const { return steps < frames - 1 - frame ? frame + steps : frames - 1; }

    int middle(int group) const { return std::min(first(group) + 1, frames - 1); }
};

/// One evaluation of the network.
struct RunPlan {
    std::array<int, kGroupSize> frames{};   ///< the frames it is given
    std::array<bool, kGroupSize> targets{}; ///< which of them it restores
    int ahead = 0;                          ///< the look-ahead frame
    std::vector<int> before{};              ///< the neighbours before the group, in the clip's order
    std::vector<int> after{};               ///< the neighbours after the group, in the clip's order
};

/// What the network is run on to restore `group`. `cut(j)` says whether frame j starts something that frame j - 1 is no
/// part of; it is asked about j where both are frames of the group's window. Each side of a cut that has frames to
/// restore is one run, in which frames beyond the cut are replaced by the nearest one on this side and the look-ahead
/// stops at the last frame before the next cut. Neighbours beyond a cut or an end of the clip are replaced in the same
/// way.
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

        // The run's scene, as far as the window shows it.
        int scene_first = begin;
        while (scene_first > groups.window_first(group) && !cut(scene_first))
            --scene_first;
        int scene_last = end;
        while (scene_last < groups.window_last(group) && !cut(scene_last + 1))
            ++scene_last;

        run.ahead = std::min(groups.later(end, groups.look_ahead), scene_last);
        for (int step = groups.neighbours; step >= 1; --step)
            run.before.push_back(std::max(first - step, scene_first));
        for (int step = 1; step <= groups.neighbours; ++step)
            run.after.push_back(std::min(groups.later(last, step), scene_last));

        if (std::find(run.targets.begin(), run.targets.end(), true) != run.targets.end())
            runs.push_back(std::move(run));
    }
    return runs;
}

} // namespace diqp
