"""Runs jobs in worker processes: one job at a time each, within limits of time and memory that the parent enforces."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from menagerie.worker import Job, serve

_POLL = 0.1  # seconds
_START_LIMIT = 180.0  # seconds for a worker to import its library
_JOBS_PER_WORKER = 60  # then a fresh one takes over, as Python's memory only grows
_PAGE = os.sysconf("SC_PAGE_SIZE")
_GIB = 2**30


class Runner:
    """Hands jobs to workers and yields their rows as they come.

    Args:
        num_workers: how many run at a time.
        seconds: the time limit of a job; its worker is killed then.
        gib: the memory limit of a worker.
    """

    def __init__(self, num_workers: int, seconds: float, gib: float) -> None:
        self.num_workers = num_workers
        self.seconds = seconds
        self.bytes = gib * _GIB
        self.workers: list[_Worker] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Run all jobs; closing the iterator ends the workers."""
        waiting = deque(jobs)
        try:
            while waiting or any(worker.job for worker in self.workers):
                self.staff(waiting)
                pipes = {worker.pipe: worker for worker in self.workers}
                wait(list(pipes), timeout=_POLL)
                for worker in list(self.workers):
                    yield from self.attend(worker)
        finally:
            for worker in self.workers:
                worker.kill()
            self.workers = []

    def staff(self, waiting: deque[Job]) -> None:
        """Give every idle worker its next job; one that has served long, or another library, gives way to a new one."""
        for worker in [worker for worker in self.workers if worker.job is None]:
            if not waiting or worker.library != waiting[0].library or worker.num_jobs >= _JOBS_PER_WORKER:
                worker.kill()
                self.workers.remove(worker)
            else:
                worker.take(waiting.popleft())
        while waiting and len(self.workers) < self.num_workers:
            self.workers.append(_Worker(waiting.popleft()))

    def attend(self, worker: _Worker) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Hear what a worker has to say, and see whether it is within its limits."""
        row = worker.hear()
        job = worker.job
        if row is None and job is not None:
            resident = worker.resident()
            if not worker.process.is_alive():
                row = {"outcome": f"crashed: exit code {worker.process.exitcode} in {worker.stage}"}
            elif resident > self.bytes:
                row = {"outcome": f"killed (memory): {resident / _GIB:.1f} GiB in {worker.stage}"}
            elif worker.elapsed() > (self.seconds if worker.ready else _START_LIMIT):
                row = {"outcome": f"timeout: {self.seconds:.0f} s, in {worker.stage}"}
            if row is not None:
                row["seconds"] = round(worker.elapsed(), 2)
                worker.kill()
                self.workers.remove(worker)
        if row is not None and job is not None:
            row["peak_gib"] = round(worker.peak / _GIB, 2)
            worker.job = None
            yield job, row


class _Worker:
    """A process, and what the parent knows of it."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.library = job.library
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, job.library), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.num_jobs = 0
        self.take(job)

    def take(self, job: Job) -> None:
        self.job: Job | None = job
        self.stage = "build" if self.ready else "start"
        self.since = time.monotonic()
        self.peak = 0
        self.num_jobs += 1
        if self.ready:
            _send(self.pipe, job)

    def hear(self) -> dict[str, Any] | None:
        """Read what has come through the pipe; returns a row once there is one."""
        try:
            while self.pipe.poll():
                kind, said = self.pipe.recv()
                if kind == "row":
                    return said
                if kind == "stage":
                    self.stage = said
                else:
                    self.ready, self.since = True, time.monotonic()
                    _send(self.pipe, self.job)
        except (EOFError, OSError):  # it died; its exit code says how
            self.process.join(timeout=5)
        return None

    def elapsed(self) -> float:
        return time.monotonic() - self.since

    def resident(self) -> int:
        """The process's resident memory in bytes, 0 where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        self.peak = max(self.peak, pages * _PAGE)
        return pages * _PAGE

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _send(pipe: Connection, message: Any) -> None:
    with contextlib.suppress(OSError):  # it died; the next look at it tells
        pipe.send(message)
