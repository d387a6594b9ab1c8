"""Forwards that pause, each in its own thread, so that many batches advance together."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Collection, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import Probe, Sandbox, See
from layerprune.environment import exclusive
from layerprune.graph import LayerGraph
from layerprune.inputs import Inputs
from layerprune.modules import no_fast_path

_STACK_BYTES = 16 * 2**20  # the size of main threads on most systems: a deep model's forward may need it


class _Enough(BaseException):
    """Ends a forward. Not an Exception, which a model's own forward might catch."""


class SuspendedForward:
    """One forward that stops at given values and continues on request.

    The forward has its own thread, which runs only while :meth:`next` waits for it: one forward runs at a time. Changes
    made to a tensor while its forward waits are read by the rest of the forward. A forward that takes other steps than
    those of the graph ends there, unless it has not shown a value yet.

    Args:
        shade: a real sandbox; no other suspended forward may run on it.
        graph: its layer graph.
        values: where to stop. The forward ends after the last of them.
        inputs: of the forward.
        to_end: whether the forward may go on behind the last value, for :meth:`finish`.
        passes: gets each value and its tensor in the forward's thread, and returns whether to go on without stopping:
            switching threads twice takes as long as a small layer.

    Attributes:
        inputs: its inputs.
        output: the model's output; None until the forward has returned.
    """

    def __init__(
        self,
        shade: Sandbox,
        graph: LayerGraph,
        values: Collection[int],
        inputs: Inputs,
        *,
        to_end: bool = False,
        passes: Callable[[int, Tensor], bool] | None = None,
    ) -> None:
        self.output: Any = None
        self._shade = shade
        self._to_end = to_end
        self._passes = passes
        self._is_free = False
        self._observer = Probe(shade, graph, values)
        self._num_left = len(set(values))
        self.inputs = inputs
        self._turn, self._told = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._found: tuple[int, Tensor] | None = None
        self._error: Exception | None = None
        self._is_closed = self._has_shown = False

    def next(self) -> tuple[int, Tensor] | None:
        """Run on to the next value, and return it with its tensor; None at the end. Raises what the forward raises."""
        if self._is_closed:
            return None
        if self._thread is None:
            self._start()
        else:
            self._turn.release()
        self._told.acquire()
        if self._error is not None:
            raise self._error
        return self._found

    def finish(self) -> None:
        """Run a forward that has begun to its end, for the output. Raises what the forward raises."""
        if self._thread is not None and self._to_end:
            self._is_free = True
            self.next()

    def close(self) -> None:
        self._is_closed, self._found = True, None
        if self._thread is not None:
            self._turn.release()
            self._thread.join()

    def _start(self) -> None:
        settings, context = _settings(), contextvars.copy_context()
        before = threading.stack_size(_STACK_BYTES)
        try:
            self._thread = threading.Thread(target=context.run, args=(self._run, settings), daemon=True)
            self._thread.start()
        finally:
            threading.stack_size(before)

    def _run(self, settings: Callable[[ExitStack], None]) -> None:
        try:
            with ExitStack() as stack:
                settings(stack)
                self._observer.run(self.inputs, self._begin, forward=self._forward)
        except _Enough:
            pass
        except Exception as error:  # the user's own forward: raised again by next()
            self._error = error
        self._is_closed, self._found = True, None
        self._told.release()

    def _forward(self, _model: nn.Module) -> Any:
        out = self._shade.call(self.inputs)
        if self._to_end:
            self.output = out
        return out

    def _begin(self) -> See:
        """End a forward that starts again after it has shown values: they may have been changed."""
        if self._has_shown:
            raise _Enough
        return self._see

    def _see(self, value: int, tensor: Tensor) -> None:
        if self._is_free:
            return
        self._has_shown = True
        self._num_left -= 1
        if self._passes is None or not self._passes(value, tensor):
            self._found = value, tensor
            self._told.release()
            self._turn.acquire()
        if self._is_closed or not (self._num_left or self._to_end):
            raise _Enough


def _settings() -> Callable[[ExitStack], None]:
    """Capture this thread's torch settings; the result sets them in another thread."""
    inference, device = torch.is_inference_mode_enabled(), torch.get_default_device()
    kinds = ["cpu", *(kind for kind in ("cuda", "mps", "xpu") if getattr(torch, kind).is_available())]
    cast = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]
    current = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def enter(stack: ExitStack) -> None:
        stack.enter_context(torch.inference_mode(inference))
        for kind, dtype in cast:
            stack.enter_context(torch.autocast(kind, dtype))
        if device.type != "cpu":
            stack.enter_context(device)
        if current is not None:
            stack.enter_context(torch.cuda.device(current))

    return enter


@contextmanager
def closing(suspended_forwards: Collection[SuspendedForward]) -> Generator[None]:
    """End all waiting forwards on exit; forwards that begin inside share the process lock."""
    with exclusive(), no_fast_path():
        try:
            yield
        finally:
            for lane in suspended_forwards:
                lane.close()
