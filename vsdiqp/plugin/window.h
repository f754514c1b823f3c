// What the filter keeps between requests: source frames that later groups need, and restored frames not yet asked for.
//
// Both are plain containers without locks; the filter guards them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "groups.h"

namespace diqp {

/// Source frames of a sliding window, so that a linear run asks the source for every frame once, whatever the core's
/// caches do and in whatever order threads finish.
///
/// Groups tell when they start and end. All groups from `low_` up are taken to be wanted still, so frames are dropped
/// when every group that looks at them has ended; a request far from the others moves the window there. Consumers that
/// skip groups would let it grow: `capacity` ends that, at the price of asking the source again.
template <typename Frame> class SlidingWindow {
  public:
    /// `spread`: how many groups apart those in flight may be.
    SlidingWindow(Groups groups, int spread)
        : groups_(groups), spread_(spread),
          capacity_(static_cast<std::size_t>(groups.neighbours) +
                    static_cast<std::size_t>(std::max(groups.neighbours, groups.look_ahead)) +
                    kGroupSize * static_cast<std::size_t>(spread + 1)) {}

    /// Group `group` starts asking for its frames.
    void enter(int group) {
        recent_ = group;
        if (high_ < 0 || group < low_ - spread_ || group > high_ + spread_) {
            low_ = high_ = group;
            ended_.clear();
            held_.erase(held_.begin(), held_.lower_bound(groups_.window_first(group)));
            held_.erase(held_.upper_bound(groups_.window_last(group)), held_.end());
        }
        low_ = std::min(low_, group);
        high_ = std::max(high_, group);
        ended_.erase(group);
    }

    /// Group `group` has its result, or has failed.
    void leave(int group) {
        if (group >= low_)
            ended_.insert(group);
        while (ended_.erase(low_) != 0)
            ++low_;
        drop_before_low();
    }

    const Frame *find(int frame) const {
        const auto held = held_.find(frame);
        return held == held_.end() ? nullptr : &held->second;
    }

    /// Keep `frame` when the window needs it.
    void put(int number, Frame frame) {
        if (number < groups_.window_first(low_) || number > groups_.window_last(high_))
            return;
        held_.insert_or_assign(number, std::move(frame));
        while (held_.size() > capacity_)
            drop_farthest();
    }

    std::size_t size() const { return held_.size(); }

  private:
    void drop_before_low() {
        // Groups share frames with those before them, which window_first() takes into account.
        const int keep = low_ < groups_.count() ? groups_.window_first(low_) : groups_.frames;
        held_.erase(held_.begin(), held_.lower_bound(keep));
    }

    /// Make room at the end that is farther from where frames are asked for.
    void drop_farthest() {
        const int below = groups_.window_first(recent_) - held_.begin()->first;
        const int above = held_.rbegin()->first - groups_.window_last(recent_);
        if (above > below) {
            held_.erase(std::prev(held_.end()));
            high_ = recent_;
        } else {
            ended_.erase(low_++);
            drop_before_low();
        }
    }

    Groups groups_;
    int spread_;
    std::size_t capacity_;
    std::map<int, Frame> held_;
    int low_ = 0;         ///< the first group that has not ended
    int high_ = -1;       ///< the last group that has started; -1: none has
    int recent_ = 0;      ///< the group that started most recently
    std::set<int> ended_; ///< groups after low_ that have ended
};

/// Restored frames by group. A group goes once all its frames have been handed out and two newer such groups exist
/// (somebody stepping back and forth finds them), or when `capacity` groups have been stored after it.
template <typename Frames> class FinishedGroups {
  public:
    explicit FinishedGroups(std::size_t capacity) : capacity_(capacity) {}

    /// `members`: how many of its frames may be asked for.
    void put(int group, Frames frames, std::size_t members) {
        groups_.insert_or_assign(group, Entry{std::move(frames), members, {}, ++clock_});
        while (groups_.size() > capacity_)
            erase_oldest([](const Entry &) { return true; });
    }

    /// The frames of `group` when they are kept; nothing is handed out.
    std::optional<Frames> find(int group) const {
        const auto found = groups_.find(group);
        return found == groups_.end() ? std::nullopt : std::optional<Frames>(found->second.frames);
    }

    /// The frames of `group` when they are kept; `member` says which of them is handed out.
    std::optional<Frames> take(int group, int member) {
        const auto found = groups_.find(group);
        if (found == groups_.end())
            return std::nullopt;
        Frames frames = found->second.frames;
        hand_out(group, member);
        return frames;
    }

    /// Member `member` of `group` has been handed out.
    void hand_out(int group, int member) {
        const auto found = groups_.find(group);
        if (found == groups_.end())
            return;
        found->second.handed_out.insert(member);
        const auto spent = [](const Entry &entry) { return entry.handed_out.size() == entry.members; };
        if (std::count_if(groups_.begin(), groups_.end(), [&](const auto &item) { return spent(item.second); }) >
            kSpent)
            erase_oldest(spent);
    }

  private:
    static constexpr int kSpent = 2;

    struct Entry {
        Frames frames;
        std::size_t members;
        std::set<int> handed_out;
        long age;
    };

    template <typename Wanted> void erase_oldest(const Wanted &wanted) {
        auto oldest = groups_.end();
        for (auto item = groups_.begin(); item != groups_.end(); ++item)
            if (wanted(item->second) && (oldest == groups_.end() || item->second.age < oldest->second.age))
                oldest = item;
        if (oldest != groups_.end())
            groups_.erase(oldest);
    }

    std::size_t capacity_;
    std::map<int, Entry> groups_;
    long clock_ = 0;
};

} // namespace diqp
