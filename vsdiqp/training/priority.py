"""Keeps encoders from taking real-time priority.

SVT-AV1 asks for real-time scheduling for all of its threads and, in a process of root's (most containers), gets it:
every other program on the machine then waits for the encode.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522  # linux/capability.h
_SYS_NICE = 1 << 23


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def ordinary_threads() -> Iterator[None]:
    """Threads started by this thread inside the context can't raise their priority. Does nothing outside Linux."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(_VERSION_3, 0)
    sets = (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets) != 0 or not sets[0].effective & _SYS_NICE:
        yield
        return
    sets[0].effective &= ~_SYS_NICE
    libc.capset(ctypes.byref(header), sets)
    try:
        yield
    finally:
        sets[0].effective |= _SYS_NICE
        libc.capset(ctypes.byref(header), sets)
