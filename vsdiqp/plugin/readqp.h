#pragma once

#include "vs.h"

namespace diqp {

inline constexpr const char *kReadQpArguments = "clip:vnode;path:data;offset:int:opt;";

void VS_CC create_read_qp(const VSMap *in, VSMap *out, void *, VSCore *core, const VSAPI *api);

} // namespace diqp
