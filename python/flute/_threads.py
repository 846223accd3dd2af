"""The pool of threads that quantizing and multiplying share."""

import ctypes
import os
import threading
from typing import SupportsIndex

from ._arrays import integer
from ._library import Handle, check, lib

_lock = threading.Lock()
_pool: Handle | None = None


def set_threads(count: SupportsIndex) -> None:
    """Works with `count` threads from now on, the caller's included; 0: as many as the machine offers this process,
    which is where it starts. Results never depend on the number of threads. Calls from several Python threads are
    safe, and take turns.

    Raises TypeError and ValueError (expected 0..4096).
    """
    global _pool
    pool = _make(integer(count, "set_threads: count", 0, 4096))
    with _lock:
        _pool = pool


def get_threads() -> int:
    """The number of threads, the caller's included."""
    return int(lib.flute_threads_size(pool().pointer))


def pool() -> Handle:
    """The pool, made when it is first needed. Hold on to the handle during a call: set_threads replaces it."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = _make(0)
        return _pool


def _make(count: int) -> Handle:
    pointer = ctypes.c_void_p()
    check(lib.flute_threads_create(count, pointer), "set_threads")
    return Handle(pointer, lib.flute_threads_destroy)


def _after_fork() -> None:
    """A forked child has none of its parent's threads: it must not wait for them, not even in order to end them."""
    global _lock, _pool
    _lock = threading.Lock()
    if _pool is not None:
        _pool.abandon()
        _pool = None


os.register_at_fork(after_in_child=_after_fork)
