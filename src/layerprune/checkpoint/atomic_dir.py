"""Writes a folder beside its target and puts it in place in one step, or not at all.

The writer holds a lock (``flock``) on the staging folder until its process ends, so an unlocked staging folder is the
rest of a crash; the next save or load of the target removes it. An existing target is exchanged with the staging folder
in one step (``renameat2``). Without this call the old folder is moved aside first; if the process dies between the two
renames, the next save or load moves the old folder back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from layerprune.errors import CheckpointError, LayerPruneError

if sys.platform != "win32":
    import fcntl

_STAGING, _OLD = ".staging", ".old"
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_AT_FDCWD = -100
_TRIES = 100
_PATIENCE_S = 10.0  # of a load whose target is moved aside by a running save

Read = TypeVar("Read")


@contextmanager
def staged(target: Path) -> Generator[Path]:
    """Yield a folder that replaces ``target`` when the block ends, or is removed if the block fails.

    Raises:
        CheckpointError: the folder cannot be written, or is a symbolic link; ``target`` is as it was.
    """
    if target.is_symlink():
        raise CheckpointError(f"{target} is a symbolic link: name the folder that it points to ({target.resolve()})")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        staging, lock = _make(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}") from error
    try:
        yield staging
        sync_folder(staging)
        _put_in_place(staging, target)
        sync_folder(target.parent)
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else target.name
        raise CheckpointError(
            f"{target} was not written ({name}: {error.strerror or error}); what was there is as it was"
        ) from error
    finally:
        # The unfinished folder, or the old folder after the exchange.
        shutil.rmtree(staging, ignore_errors=True)
        _unlock(lock)


def steadily(target: Path, read: Callable[[], Read]) -> Read:
    """Read a folder that another process may replace, again until one version was read from start to end.

    Raises:
        CheckpointError: the folder is replaced without a pause, or ``read`` fails on a folder that did not change.
    """
    for _ in range(_TRIES):
        sweep(target)
        before = _stamp(target)
        try:
            result = read()
        except LayerPruneError:
            if _stamp(target) == before:
                raise
        else:
            if _stamp(target) == before:
                return result
    raise CheckpointError(f"{target} was replaced {_TRIES} times while it was read; load it when nobody saves there")


def _stamp(target: Path) -> tuple[int, ...]:
    """Identify the folder that currently has a name."""
    try:
        found = target.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def sweep(target: Path) -> None:
    """Remove staging folders of dead processes beside ``target``, and restore an old folder that was moved aside."""
    _recover(target)
    for path in _beside(target, _STAGING):
        if (lock := _lock(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            _unlock(lock)
    if target.exists():
        for path in _beside(target, _OLD):
            shutil.rmtree(path, ignore_errors=True)


def _recover(target: Path) -> None:
    """Move the old folder back after a process died between the two renames."""
    deadline = time.monotonic() + _PATIENCE_S
    while not os.path.lexists(target) and (old := next(_beside(target, _OLD), None)) is not None:
        locks = [_lock(path) for path in _beside(target, _STAGING)]
        living = any(lock is None for lock in locks)
        for lock in locks:
            _unlock(lock)
        if living and time.monotonic() < deadline:
            time.sleep(0.01)
            continue
        with suppress(FileNotFoundError, FileExistsError):  # another process was quicker
            old.rename(target)


def _beside(target: Path, suffix: str) -> Iterator[Path]:
    """Staging or old folders of a target."""
    start = f".{target.name}."
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(target.parent) as entries:
        names = sorted(entry.name for entry in entries)
        yield from (target.parent / n for n in names if n.startswith(start) and n.endswith(suffix) and _is_ours(n))


def _is_ours(name: str) -> bool:
    """Whether a name has the token of :func:`_make`."""
    token = name.rsplit(".", 2)[-2]
    return len(token) == 16 and not set(token) - set("0123456789abcdef")


def _make(target: Path) -> tuple[Path, int]:
    """Create and lock a staging folder; another process may remove it before the lock."""
    while True:
        staging = target.with_name(f".{target.name}.{secrets.token_hex(8)}{_STAGING}")
        staging.mkdir()
        with suppress(FileNotFoundError):
            lock = _lock(staging)
            if lock is not None and staging.exists():
                return staging, lock
            _unlock(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder; None where a living process holds it, or where it is gone."""
    if sys.platform == "win32":  # no flock on Windows: a folder counts as dead after one day
        with suppress(OSError):
            return -1 if time.time() - folder.stat().st_mtime > 86_400 or not any(folder.iterdir()) else None
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None and lock >= 0:
        os.close(lock)


def _put_in_place(staging: Path, target: Path) -> None:
    """Rename a folder to ``target``; an existing target gets the old name of the folder, or is removed."""
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        old = staging.with_suffix(_OLD)
        target.rename(old)
        try:
            staging.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library older than the call
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def set_usual_mode(path: Path) -> None:
    """Give a file the usual mode of new files, since safetensors' own writer denies other users to read it."""
    probe = path.with_name(f"{path.name}.mode")
    probe.touch()
    path.chmod(stat.S_IMODE(probe.stat().st_mode))
    probe.unlink()


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until a folder's names are on the disk, where the system does not do so itself."""
    if sys.platform != "win32":
        sync_file(path)
