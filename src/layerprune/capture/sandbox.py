"""A copy of the user's model that runs without touching the user's model, on fake tensors where possible."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.adapters import settle_config
from layerprune.capture.writes import Writes
from layerprune.environment import SharedContext, exclusive
from layerprune.errors import CalibrationError, InputsError, LayerPruneError, ended_by
from layerprune.inputs import Inputs, describe, why_mismatched
from layerprune.modules import (
    AttributeSnapshot,
    ExternalState,
    Tree,
    buffers,
    clone,
    named_parameters,
    no_fast_path,
    parameters,
)
from layerprune.tensors import KeepsIntegers, holds_values
from layerprune.torch_internals import (
    NEEDS_VALUES,
    FakeTensor,
    FakeTensorMode,
    UnknownValue,
    fake_like,
    quiet,
    to_fake,
    uncompiled,
)

_T = TypeVar("_T")

_uncompiled = SharedContext(uncompiled)


@dataclass(frozen=True)
class Sandbox:
    """A copy of a model in eval mode, for running its forward.

    Attributes:
        model: the copy. Its parameters and buffers are fake (no memory, no values), or lie in the memory of the model's
            own parameters and in copies of its buffers where ``mode`` is None.
        mode: the fake tensors' mode.
        start: the plain attributes of the model's modules before its first forward.
        integers: whether integers keep their values among the fake tensors.
        outside: what its forwards may change beside parameters and plain attributes; None where nobody looked.
        writes: takes back what its forwards write into parameters and buffers; None where they have no values.
    """

    model: nn.Module
    mode: FakeTensorMode | None
    start: AttributeSnapshot
    integers: bool = False
    outside: ExternalState | None = None
    writes: Writes | None = None

    @contextlib.contextmanager
    def running(self, *, grad: bool = False, timed: bool = False) -> Generator[None]:
        """Run the forward inside, uncompiled, while no other thread does.

        At the end all is as it was: parameters and buffers, attributes, hooks and modules, the RNG states, torch's
        switches, and what the forward's code changes elsewhere.

        Args:
            grad: whether with gradients.
            timed: whether a clock runs. Nothing looks at the operations then, and only those tensors are put back that
                an earlier forward has written into.
        """
        whole = KeepsIntegers(self.mode) if self.integers and self.mode is not None else contextlib.nullcontext()
        hushed = quiet() if self.mode is not None else contextlib.nullcontext()
        modes = self.mode or contextlib.nullcontext()
        alone = contextlib.nullcontext() if self.outside is None else self.outside.left_alone()
        written = contextlib.nullcontext() if self.writes is None else self.writes.taken_back(seen_only=timed)
        with exclusive():
            self.start.put_back()
            tree = Tree(self.model)
            try:
                with alone, _process_kept(), _uncompiled(), hushed, written, modes, whole, torch.set_grad_enabled(grad):
                    yield
            finally:
                # Some forwards hang in other modules (BigBird's attention, where inputs are short), and say so in a
                # flag: what an edit has put into the old ones could not be taken back.
                if tree.put_back() and not self.start.moved:
                    self.start.settle()
                    self.start.put_back()

    def forward(
        self,
        inputs: Inputs,
        *inside: contextlib.AbstractContextManager[Any],
        fast_path: bool = True,
        seed: int | None = None,
    ) -> Any:
        """Run the forward once, on copies of its inputs, and leave all as it was; see :meth:`running`.

        Args:
            inputs: its arguments, as the model takes them.
            inside: what to enter around the call.
            fast_path: whether torch's transformer modules may run as one fused operation, in which no value shows up.
            seed: of torch's generators; None to leave them as they are.
        """
        adapted = self.adapt(inputs)  # under no mode that would see it
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.running())
            for one in inside if fast_path else (no_fast_path(), *inside):
                stack.enter_context(one)
            if seed is not None:
                torch.manual_seed(seed)
            return self.model(*adapted.args, **adapted.kwargs)

    def call(self, inputs: Inputs) -> Any:
        """Call the model on copies of its inputs, inside :meth:`running` of a sandbox of real tensors."""
        adapted = self.adapt(inputs)
        return self.model(*adapted.args, **adapted.kwargs)

    def adapt(self, inputs: Inputs) -> Inputs:
        """Make inputs that the forward may take and change: fakes, or copies."""
        if self.mode is None:
            return inputs.map(lambda tensor: tensor.detach().clone())
        return inputs.map(lambda tensor: self.convert(tensor))

    def renew(self, adapted: Inputs) -> Inputs:
        """Make what :meth:`adapt` has made once more: a forward may write into its inputs, and into lists of them."""
        return adapted.map(
            lambda t: fake_like(t, self.mode) if type(t) is FakeTensor and self.mode else t.detach().clone()
        )

    def convert(self, tensor: Tensor) -> Tensor:
        """Make what stands for a tensor in the sandbox."""
        if self.mode is None or (self.integers and holds_values(tensor)):
            return tensor.detach().clone()
        return to_fake(tensor, self.mode)


def fake_sandbox(model: nn.Module, *, integers: bool = False) -> Sandbox:
    """Copy a model with fake parameters and buffers; the model is not touched.

    Args:
        model: the model.
        integers: let integers, buffers and inputs, keep their values; see :class:`KeepsIntegers`.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shade = Sandbox(model, mode, AttributeSnapshot(nn.Module()), integers)
    copy = clone(model, shade.convert, apart=True)
    _settle(copy)
    return replace(shade, model=copy, start=AttributeSnapshot(copy), outside=ExternalState(copy))


def real_sandbox(
    model: nn.Module, *, written: Collection[str] | None = None, copied: Collection[str] = (), settled: bool = True
) -> Sandbox:
    """Copy a model's structure and buffers; parameters lie in the memory of the model's own.

    Args:
        model: the model; it is not touched.
        written: names of parameters that its forward is known to write into, and of no others: these are copied. None
            where that is not known: operations are looked at then, which takes some microseconds for each.
        copied: names of other parameters to copy.
        settled: whether its config is settled, so that it runs as it is recorded.
    """

    def make(values: Tensor, old: nn.Parameter) -> nn.Parameter:
        parameter = nn.Parameter(values, old.requires_grad)
        vars(parameter).update(vars(old))
        return parameter

    return _sharing(model, written, copied, make, settled=settled)


def gradient_sandbox(model: nn.Module, *, written: Collection[str] = ()) -> Sandbox:
    """Copy a model for a backward: its parameters share the memory of the model's, not their gradients.

    All of them ask for gradients, so that the values that they lead to do, whatever is frozen in the user's model.

    Args:
        model: the model; it is not touched.
        written: names of parameters that its forward writes into: these are copied.
    """

    def asking(values: Tensor, old: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(values, old.is_floating_point() or old.is_complex())

    return _sharing(model, written, (), asking)


def _sharing(
    model: nn.Module,
    written: Collection[str] | None,
    copied: Collection[str],
    make: Callable[[Tensor, nn.Parameter], nn.Parameter],
    *,
    settled: bool = True,
) -> Sandbox:
    """Copy buffers, and make parameters of the model's own values or, where the forward writes into them, of copies."""
    names = {*(written or ()), *copied}
    own = {id(p) for name, p in named_parameters(model, every_name=True) if name in names}

    def convert(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.detach().clone()
        if id(tensor) in own:
            return make(tensor.detach().clone(), tensor)
        # Of another class, it may be more than its values: a quantised weight holds scales in attributes.
        return make(tensor.data, tensor) if type(tensor) is nn.Parameter else tensor

    copy = clone(model, convert, apart=True)
    if settled:
        _settle(copy)
    copy.eval()
    tensors = named_parameters(copy, every_name=True)
    held = (
        [*parameters(copy), *buffers(copy)] if written is None else [held for name, held in tensors if name in written]
    )
    writes = Writes(held, known=written is not None) if held else None
    return Sandbox(copy, None, AttributeSnapshot(copy), outside=ExternalState(copy), writes=writes)


def _settle(model: nn.Module) -> None:
    model.eval()
    settle_config(model)


class ValuesNeededError(Exception):
    """A forward does not run on fake tensors, and the meta device has no values.

    Attributes:
        failure: what it raised.
    """

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


def attempt(
    model: nn.Module, inputs: Inputs, use: Callable[[Sandbox], _T], *, guessed: bool = False
) -> tuple[_T, Exception | None]:
    """Use a sandbox of a model: on fake tensors, on fake ones whose integers have values, or on real ones.

    Args:
        model: the model; it is not touched.
        inputs: what its forward is to take.
        use: runs it; it is called again, on the next kind of sandbox, where it raises.
        guessed: whether the inputs are a guess. Real tensors are tried only after an error about fake ones then.

    Returns:
        What the first call to come through returned; for real tensors, also what was raised on fake ones.

    Raises:
        ValuesNeededError: there are no real tensors to try.
        Exception: what the last call raised.
    """
    try:
        return use(fake_sandbox(model)), None
    except Exception as error:  # the user's own forward: anything may come
        failure = error
    if is_about_fakes(failure):
        try:
            return use(fake_sandbox(model, integers=True)), None
        except Exception as error:
            failure = error
    elif guessed:
        raise failure
    if has_no_values([*parameters(model), *buffers(model), *inputs.tensors()]):
        raise ValuesNeededError(failure) from failure
    return use(real_sandbox(model)), failure


def has_no_values(tensors: Iterable[Tensor]) -> bool:
    """Whether a tensor is on the meta device."""
    return any(tensor.is_meta for tensor in tensors)


def runs_on(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model's forward takes some inputs: tried on fake tensors, and on real ones where those do not tell."""
    try:
        attempt(model, inputs, lambda sandbox: sandbox.forward(inputs), guessed=True)
    except Exception:  # the user's own forward
        return False
    return True


#: How :func:`forward_error` speaks of example inputs.
EXAMPLE_INPUTS: Mapping[str, Any] = {
    "where": "the example inputs",
    "raises": InputsError,
    "what": "example_inputs",
    "otherwise": "pass example_inputs= a tensor, tuple, dict or object that forward takes",
}


def forward_error(
    error: Exception,
    model: nn.Module,
    inputs: Inputs,
    where: str,
    raises: type[LayerPruneError] = CalibrationError,
    *,
    who: str = "",
    what: str = "the batch",
    otherwise: str = "",
) -> LayerPruneError:
    """Say of an error that a user's forward raised on which inputs it did, and what may be wrong with these.

    Args:
        error: what it raised.
        model: the model.
        inputs: its arguments.
        where: which inputs they are, as ``batch 3 of the calibration data``.
        raises: the class of the error.
        who: what raised; the model's forward if empty.
        what: the name of the inputs, where they have another device or dtype than the model.
        otherwise: what to do where that is not so.
    """
    why = why_mismatched(model, inputs, what, error) or otherwise
    text = f"{who or f'{type(model).__name__}.forward'} raised on {where} ({describe(inputs)})"
    return raises(ended_by(f"{text}; {why}" if why else text, error))


@contextlib.contextmanager
def on_batch(
    model: nn.Module, inputs: Inputs, where: str, raises: type[LayerPruneError] = CalibrationError, **saying: str
) -> Generator[None]:
    """Name a batch, and what may be wrong with it, where the user's forward raises inside; see :func:`forward_error`.

    Raises:
        LayerPruneError: of the class ``raises``. Errors of the library itself pass as they are.
    """
    try:
        yield
    except LayerPruneError:
        raise
    except Exception as error:  # the user's own forward
        raise forward_error(error, model, inputs, where, raises, **saying) from error


def is_about_fakes(error: BaseException) -> bool:
    """Whether an exception says that a forward needs real values, rather than that it does not fit its inputs."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (*NEEDS_VALUES, UnknownValue)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _process_kept() -> Generator[None]:
    """Put back what a forward may change for all of the process: states of generators, and torch's switches."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()  # stochastic depth is often drawn from these
    fast_path, dtype = torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_default_dtype(dtype)
