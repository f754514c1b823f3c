#pragma once

#include "vs.h"

namespace diqp {

inline constexpr const char *kRestoreArguments =
    "clip:vnode;qp:float[]:opt;codec:data:opt;model:data:opt;look_ahead:int:opt;tile:int[]:opt;overlap:int:opt;"
    "strength:float:opt;backend:data:opt;device:int[]:opt;precision:data:opt;batch:int:opt;qp_offset:float:opt;";

void VS_CC create_restore(const VSMap *in, VSMap *out, void *, VSCore *core, const VSAPI *api);

} // namespace diqp
