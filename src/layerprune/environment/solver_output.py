"""Keeps debug lines of scipy's compiled solver away from standard output."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

#: HiGHS writes this with ``printf``, whatever its options say (https://github.com/ERGO-Code/HiGHS/issues/2783).
_DEBUG = b"HighsMipSolverData::"
_STDOUT = 1
_LOCK = threading.Lock()


@contextmanager
def quiet_solver() -> Generator[None]:
    """Drop the solver's debug lines on standard output; whatever else is written there meanwhile follows at the end.

    The lines come from compiled code, so that the file descriptor is exchanged, not ``sys.stdout``.
    """
    with _LOCK:
        flush = _c_flush()
        try:
            own = os.dup(_STDOUT)
        except OSError:  # standard output is closed: nothing can appear there
            yield
            return
        with tempfile.TemporaryFile() as written:
            _flush_all(flush)
            os.dup2(written.fileno(), _STDOUT)
            try:
                yield
            finally:
                _flush_all(flush)
                os.dup2(own, _STDOUT)
                os.close(own)
                written.seek(0)
                rest = b"".join(line for line in written if not line.startswith(_DEBUG))
                if rest:
                    with suppress(OSError):  # a closed pipe is reported by the next print
                        os.write(_STDOUT, rest)


def _flush_all(flush: ctypes._NamedFuncPointer | None) -> None:  # pyright: ignore[reportPrivateUsage]
    """Write out the buffers of Python and of the C library, so that each line goes to where it belongs."""
    with suppress(OSError, ValueError, AttributeError):  # closed, detached or None
        sys.stdout.flush()
    if flush is not None:
        flush(None)


def _c_flush() -> ctypes._NamedFuncPointer | None:  # pyright: ignore[reportPrivateUsage]
    """``fflush`` of the C library, which buffers what is no terminal; None where it is not found."""
    try:
        return ctypes.CDLL(None).fflush
    except (OSError, TypeError, AttributeError):  # Windows has no library of that name
        return None
