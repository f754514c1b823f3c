// The plugin's entry point, and diqp.Version.

#include <string>

#include "python.h"
#include "readqp.h"
#include "restore.h"
#include "vs.h"

#define DIQP_TEXT_OF(value) #value
#define DIQP_TEXT(value) DIQP_TEXT_OF(value)

namespace diqp {

namespace {

void add_text(VSMap *out, const char *key, const std::string &value, const VSAPI *api) {
    api->mapSetData(out, key, value.data(), static_cast<int>(value.size()), dtUtf8, maAppend);
}

/// plugin and vapoursynth_api from here, the rest from vsdiqp.host.version().
void VS_CC version(const VSMap *, VSMap *out, void *, VSCore *, const VSAPI *api) {
    try {
        add_text(out, "plugin", DIQP_TEXT(DIQP_VERSION), api);
        const int vapoursynth = api->getAPIVersion();
        add_text(out, "vapoursynth_api", std::to_string(vapoursynth >> 16) + "." + std::to_string(vapoursynth & 0xffff),
                 api);
        const py::Gil gil;
        const py::Object pairs = py::host_function("version_pairs").call(py::tuple());
        for (std::ptrdiff_t i = 0; i < pairs.size(); ++i) {
            const py::Object pair = pairs.item(i);
            add_text(out, pair.item(0).as_text().c_str(), pair.item(1).as_text(), api);
        }
    } catch (const std::exception &error) {
        api->mapSetError(out, (std::string("diqp.Version: ") + error.what()).c_str());
    }
}

} // namespace

} // namespace diqp

VS_EXTERNAL_API(void) VapourSynthPluginInit2(VSPlugin *plugin, const VSPLUGINAPI *api) {
    api->configPlugin("org.vsdiqp.diqp", "diqp", "DiQP: restores video compressed with HEVC or AV1",
                      VS_MAKE_VERSION(DIQP_VERSION_MAJOR, DIQP_VERSION_MINOR), VAPOURSYNTH_API_VERSION, 0, plugin);
    api->registerFunction("Restore", diqp::kRestoreArguments, "clip:vnode;", diqp::create_restore, nullptr, plugin);
    api->registerFunction("ReadQP", diqp::kReadQpArguments, "clip:vnode;", diqp::create_read_qp, nullptr, plugin);
    api->registerFunction("Version", "", "any", diqp::version, nullptr, plugin);
}
