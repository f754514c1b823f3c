// Owners of VapourSynth references: what is taken is given back.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include <VapourSynth4.h>

namespace diqp {

/// What a user is told; the filter puts its name before it.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// A reference to a frame that nobody writes to any more. Copies are references to the same frame.
class FrameRef {
  public:
    FrameRef() = default;

    /// Takes over the caller's reference.
    FrameRef(const VSFrame *frame, const VSAPI *api) : frame_(frame), api_(api) {}

    FrameRef(const FrameRef &other)
        : frame_(other.frame_ ? other.api_->addFrameRef(other.frame_) : nullptr), api_(other.api_) {}

    FrameRef(FrameRef &&other) noexcept : frame_(std::exchange(other.frame_, nullptr)), api_(other.api_) {}

    FrameRef &operator=(FrameRef other) noexcept {
        std::swap(frame_, other.frame_);
        std::swap(api_, other.api_);
        return *this;
    }

    ~FrameRef() {
        if (frame_)
            api_->freeFrame(frame_);
    }

    const VSFrame *get() const { return frame_; }
    explicit operator bool() const { return frame_ != nullptr; }

    /// Gives the reference to the caller.
    const VSFrame *release() { return std::exchange(frame_, nullptr); }

  private:
    const VSFrame *frame_ = nullptr;
    const VSAPI *api_ = nullptr;
};

/// A frame that is being filled.
class NewFrame {
  public:
    NewFrame(VSFrame *frame, const VSAPI *api) : frame_(frame), api_(api) {
        if (!frame_)
            throw Error("out of memory");
    }

    NewFrame(NewFrame &&other) noexcept : frame_(std::exchange(other.frame_, nullptr)), api_(other.api_) {}
    NewFrame &operator=(NewFrame &&) = delete;

    ~NewFrame() {
        if (frame_)
            api_->freeFrame(frame_);
    }

    VSFrame *get() const { return frame_; }

    /// The frame is complete.
    FrameRef finish() { return FrameRef(std::exchange(frame_, nullptr), api_); }

  private:
    VSFrame *frame_;
    const VSAPI *api_;
};

class NodeRef {
  public:
    /// Takes over the caller's reference.
    NodeRef(VSNode *node, const VSAPI *api) : node_(node), api_(api) {}
    NodeRef(NodeRef &&other) noexcept : node_(std::exchange(other.node_, nullptr)), api_(other.api_) {}

    NodeRef &operator=(NodeRef &&other) noexcept {
        std::swap(node_, other.node_);
        std::swap(api_, other.api_);
        return *this;
    }

    ~NodeRef() {
        if (node_)
            api_->freeNode(node_);
    }

    VSNode *get() const { return node_; }

  private:
    VSNode *node_;
    const VSAPI *api_;
};

/// A map that ends with its owner.
class MapRef {
  public:
    explicit MapRef(const VSAPI *api) : map_(api->createMap()), api_(api) {}
    MapRef(const MapRef &) = delete;
    MapRef &operator=(const MapRef &) = delete;
    ~MapRef() { api_->freeMap(map_); }

    VSMap *get() const { return map_; }

  private:
    VSMap *map_;
    const VSAPI *api_;
};

} // namespace diqp
