// Python from a plugin that is not linked to Python: stable-ABI symbols, found in the process when first needed.
//
// Declared here rather than taken from Python.h, so that building needs no Python headers and one library serves every
// Python from 3.12 on.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "vs.h"

extern "C" {
typedef struct _object PyObject;
}

namespace diqp::py {

/// The functions used, by their names in Python's documentation.
struct Api {
    int (*Py_IsInitialized)();
    int (*PyGILState_Ensure)();
    void (*PyGILState_Release)(int);
    void (*Py_IncRef)(PyObject *);
    void (*Py_DecRef)(PyObject *);
    PyObject *(*PyImport_ImportModule)(const char *);
    PyObject *(*PyObject_GetAttrString)(PyObject *, const char *);
    PyObject *(*PyObject_CallObject)(PyObject *, PyObject *);
    PyObject *(*PyObject_Str)(PyObject *);
    PyObject *(*PyTuple_New)(std::ptrdiff_t);
    int (*PyTuple_SetItem)(PyObject *, std::ptrdiff_t, PyObject *);
    PyObject *(*PyDict_New)();
    int (*PyDict_SetItemString)(PyObject *, const char *, PyObject *);
    std::ptrdiff_t (*PySequence_Size)(PyObject *);
    PyObject *(*PySequence_GetItem)(PyObject *, std::ptrdiff_t);
    PyObject *(*PyBool_FromLong)(long);
    PyObject *(*PyLong_FromLongLong)(long long);
    long long (*PyLong_AsLongLong)(PyObject *);
    PyObject *(*PyLong_FromVoidPtr)(void *);
    PyObject *(*PyFloat_FromDouble)(double);
    PyObject *(*PyUnicode_DecodeUTF8)(const char *, std::ptrdiff_t, const char *);
    const char *(*PyUnicode_AsUTF8AndSize)(PyObject *, std::ptrdiff_t *);
    PyObject *(*PyErr_GetRaisedException)();
    PyObject *(*PyErr_Occurred)();
    void (*PyErr_Clear)();
    PyObject *none;

    /// Resolved on the first call. Throws Error when there is no Python in the process, or one that is too old, or one
    /// that has ended.
    static const Api &get();

    /// The same for destructors: nullptr instead of an Error.
    static const Api *running() noexcept;
};

/// Holds the GIL.
class Gil {
  public:
    Gil() : state_(Api::get().PyGILState_Ensure()) {}
    Gil(const Gil &) = delete;
    Gil &operator=(const Gil &) = delete;

    ~Gil() {
        if (const Api *api = Api::running())
            api->PyGILState_Release(state_);
    }

  private:
    int state_;
};

/// A reference to a Python object; made, used and destroyed with the GIL held.
class Object {
  public:
    Object() = default;

    /// Takes over a new reference; nullptr means that Python raised, which becomes an Error.
    static Object own(PyObject *object);
    static Object none();

    Object(Object &&other) noexcept : object_(std::exchange(other.object_, nullptr)) {}

    Object &operator=(Object &&other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }

    ~Object() {
        const Api *api = object_ ? Api::running() : nullptr;
        if (api)
            api->Py_DecRef(object_);
    }

    PyObject *get() const { return object_; }

    /// Gives the reference to the caller.
    PyObject *release() { return std::exchange(object_, nullptr); }

    Object attribute(const char *name) const;
    Object call(Object arguments) const;
    Object item(std::ptrdiff_t index) const;
    std::ptrdiff_t size() const;
    long long as_integer() const;
    std::string as_text() const;

  private:
    explicit Object(PyObject *object) : object_(object) {}

    PyObject *object_ = nullptr;
};

/// The function `name` of vsdiqp.host; the Error says how to get the package where it is missing.
Object host_function(const char *name);
Object boolean(bool value);
Object integer(long long value);
Object real(double value);
Object address(const void *value);
Object text(const std::string &value);
void set_item(const Object &dict, const char *key, const Object &value);
Object dict();

namespace detail {
Object new_tuple(std::size_t size);
void set_tuple(const Object &tuple, std::size_t index, Object value);
} // namespace detail

template <typename... Items> Object tuple(Items... items) {
    Object result = detail::new_tuple(sizeof...(items));
    std::size_t index = 0;
    (detail::set_tuple(result, index++, std::move(items)), ...);
    return result;
}

/// A tuple of `size` items, item i being make(i).
template <typename Make> Object tuple_of(std::size_t size, const Make &make) {
    Object result = detail::new_tuple(size);
    for (std::size_t i = 0; i < size; ++i)
        detail::set_tuple(result, i, make(i));
    return result;
}

} // namespace diqp::py
