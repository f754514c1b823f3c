#include "python.h"

#include <dlfcn.h>

namespace diqp::py {

namespace {

template <typename Function> void resolve(Function &function, const char *name) {
    function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    if (!function)
        throw Error(std::string("this filter runs on Python 3.12 or newer, which this process does not provide (no ") +
                    name + "): load it from a script in python or vspipe");
}

Api resolve_all() {
    Api api{};
#define DIQP_RESOLVE(name) resolve(api.name, #name)
    DIQP_RESOLVE(Py_IsInitialized);
    DIQP_RESOLVE(PyGILState_Ensure);
    DIQP_RESOLVE(PyGILState_Release);
    DIQP_RESOLVE(Py_IncRef);
    DIQP_RESOLVE(Py_DecRef);
    DIQP_RESOLVE(PyImport_ImportModule);
    DIQP_RESOLVE(PyObject_GetAttrString);
    DIQP_RESOLVE(PyObject_CallObject);
    DIQP_RESOLVE(PyObject_Str);
    DIQP_RESOLVE(PyTuple_New);
    DIQP_RESOLVE(PyTuple_SetItem);
    DIQP_RESOLVE(PyDict_New);
    DIQP_RESOLVE(PyDict_SetItemString);
    DIQP_RESOLVE(PySequence_Size);
    DIQP_RESOLVE(PySequence_GetItem);
    DIQP_RESOLVE(PyBool_FromLong);
    DIQP_RESOLVE(PyLong_FromLongLong);
    DIQP_RESOLVE(PyLong_AsLongLong);
    DIQP_RESOLVE(PyLong_FromVoidPtr);
    DIQP_RESOLVE(PyFloat_FromDouble);
    DIQP_RESOLVE(PyUnicode_DecodeUTF8);
    DIQP_RESOLVE(PyUnicode_AsUTF8AndSize);
    DIQP_RESOLVE(PyErr_GetRaisedException);
    DIQP_RESOLVE(PyErr_Occurred);
    DIQP_RESOLVE(PyErr_Clear);
#undef DIQP_RESOLVE
    resolve(api.none, "_Py_NoneStruct");
    return api;
}

/// The text of the exception Python has raised, which is cleared. vsdiqp.host words it when it can be imported.
std::string raised() {
    const Api &api = Api::get();
    PyObject *exception = api.PyErr_GetRaisedException();
    if (!exception)
        return "an unknown error in Python";
    std::string message = "an error in Python that has no text";
    PyObject *host = api.PyImport_ImportModule("vsdiqp.host");
    PyObject *explain = host ? api.PyObject_GetAttrString(host, "explain") : nullptr;
    PyObject *arguments = explain ? api.PyTuple_New(1) : nullptr;
    PyObject *worded = nullptr;
    if (arguments) {
        api.Py_IncRef(exception);
        api.PyTuple_SetItem(arguments, 0, exception);
        worded = api.PyObject_CallObject(explain, arguments);
    }
    if (!worded) {
        api.PyErr_Clear();
        worded = api.PyObject_Str(exception);
    }
    std::ptrdiff_t size = 0;
    const char *characters = worded ? api.PyUnicode_AsUTF8AndSize(worded, &size) : nullptr;
    if (characters)
        message.assign(characters, static_cast<std::size_t>(size));
    api.PyErr_Clear();
    for (PyObject *object : {worded, arguments, explain, host, exception})
        if (object)
            api.Py_DecRef(object);
    return message;
}

const Api &resolved() {
    static const Api api = resolve_all();
    return api;
}

} // namespace

const Api &Api::get() {
    const Api &api = resolved();
    // Taking the GIL of an interpreter that is going away would end or hang the thread.
    if (!api.Py_IsInitialized())
        throw Error("Python is shutting down");
    return api;
}

const Api *Api::running() noexcept {
    // Only objects that get() has made reach this, so everything is resolved. Python ends the threads that wait for the
    // GIL while it shuts down; the destructors that then run must not touch it.
    const Api &api = resolved();
    return api.Py_IsInitialized() ? &api : nullptr;
}

Object Object::own(PyObject *object) {
    if (!object)
        throw Error(raised());
    return Object(object);
}

Object Object::none() {
    const Api &api = Api::get();
    api.Py_IncRef(api.none);
    return Object(api.none);
}

Object Object::attribute(const char *name) const {
    return own(Api::get().PyObject_GetAttrString(object_, name));
}

Object Object::call(Object arguments) const {
    return own(Api::get().PyObject_CallObject(object_, arguments.get()));
}

Object Object::item(std::ptrdiff_t index) const {
    return own(Api::get().PySequence_GetItem(object_, index));
}

std::ptrdiff_t Object::size() const {
    const std::ptrdiff_t size = Api::get().PySequence_Size(object_);
    if (size < 0)
        throw Error(raised());
    return size;
}

long long Object::as_integer() const {
    const Api &api = Api::get();
    const long long value = api.PyLong_AsLongLong(object_);
    if (value == -1 && api.PyErr_Occurred())
        throw Error(raised());
    return value;
}

std::string Object::as_text() const {
    std::ptrdiff_t size = 0;
    const char *characters = Api::get().PyUnicode_AsUTF8AndSize(object_, &size);
    if (!characters)
        throw Error(raised());
    return {characters, static_cast<std::size_t>(size)};
}

Object host_function(const char *name) {
    PyObject *host = Api::get().PyImport_ImportModule("vsdiqp.host");
    if (!host)
        throw Error("the Python package vsdiqp cannot be imported here (" + raised() +
                    "): install it for the Python that runs the script, with pip install . in its clone");
    return Object::own(host).attribute(name);
}

Object boolean(bool value) {
    return Object::own(Api::get().PyBool_FromLong(value));
}

Object integer(long long value) {
    return Object::own(Api::get().PyLong_FromLongLong(value));
}

Object real(double value) {
    return Object::own(Api::get().PyFloat_FromDouble(value));
}

Object address(const void *value) {
    return Object::own(Api::get().PyLong_FromVoidPtr(const_cast<void *>(value)));
}

Object text(const std::string &value) {
    // VapourSynth takes any bytes for text; whoever has to say that they are not accepted has to be able to show them.
    return Object::own(
        Api::get().PyUnicode_DecodeUTF8(value.data(), static_cast<std::ptrdiff_t>(value.size()), "backslashreplace"));
}

Object dict() {
    return Object::own(Api::get().PyDict_New());
}

void set_item(const Object &dict, const char *key, const Object &value) {
    if (Api::get().PyDict_SetItemString(dict.get(), key, value.get()) != 0)
        throw Error(raised());
}

namespace detail {

Object new_tuple(std::size_t size) {
    return Object::own(Api::get().PyTuple_New(static_cast<std::ptrdiff_t>(size)));
}

void set_tuple(const Object &tuple, std::size_t index, Object value) {
    // PyTuple_SetItem takes the reference over, even when it fails.
    if (Api::get().PyTuple_SetItem(tuple.get(), static_cast<std::ptrdiff_t>(index), value.release()) != 0)
        throw Error(raised());
}

} // namespace detail

} // namespace diqp::py
