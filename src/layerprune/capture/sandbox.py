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


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A copy of a model in eval mode, for running its forward.

    Attributes:
        model: the copy. Its parameters and buffers are fake (no memory, no values). Where ``mode`` is None, its
            parameters share the memory of the model's, and its buffers are copies.
        mode: the fake tensors' mode.
        start: the plain attributes of the model's modules before its first forward.
        integers: whether integers keep their values among the fake tensors.
        outside: objects beside parameters and plain attributes that its forwards may change; None if not searched.
        writes: undoes writes of its forwards into parameters and buffers; None where they have no values.
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

        At the end all state is restored: parameters and buffers, attributes, hooks and modules, the RNG states, torch's
        switches, and changes that the forward's code makes elsewhere.

        Args:
            grad: whether to compute gradients.
            timed: whether the run is timed. Then operations are not observed, and only tensors that an earlier forward
                has written into are restored.
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
                # Some forwards replace modules (BigBird's attention, for short inputs) and set a flag: edits of the
                # replaced modules could then not be undone.
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
        """Run the forward once, on copies of its inputs, and restore all state; see :meth:`running`.

        Args:
            inputs: its arguments, as the model takes them.
            inside: contexts to enter around the call.
            fast_path: whether torch's transformer modules may run as one fused operation, which hides all values.
            seed: seed of torch's generators; None to leave them unchanged.
        """
        adapted = self.adapt(inputs)  # before any mode can observe it
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
        """Make inputs that the forward may take and change: fake tensors, or copies."""
        if self.mode is None:
            return inputs.map(lambda tensor: tensor.detach().clone())
        return inputs.map(lambda tensor: self.convert(tensor))

    def renew(self, adapted: Inputs) -> Inputs:
        """Repeat :meth:`adapt` on its result: a forward may write into its inputs, and into lists of them."""
        return adapted.map(
            lambda t: fake_like(t, self.mode) if type(t) is FakeTensor and self.mode else t.detach().clone()
        )

    def convert(self, tensor: Tensor) -> Tensor:
        """Make the sandbox's counterpart of a tensor."""
        if self.mode is None or (self.integers and holds_values(tensor)):
            return tensor.detach().clone()
        return to_fake(tensor, self.mode)


def fake_sandbox(model: nn.Module, *, integers: bool = False) -> Sandbox:
    """Copy a model with fake parameters and buffers; the model is not touched.

    With ``integers``, integer buffers and inputs keep their values; see :class:`KeepsIntegers`.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shade = Sandbox(model=model, mode=mode, start=AttributeSnapshot(nn.Module()), integers=integers)
    copy = clone(model, shade.convert, apart=True)
    _settle(copy)
    return replace(shade, model=copy, start=AttributeSnapshot(copy), outside=ExternalState(copy))


def real_sandbox(
    model: nn.Module, *, written: Collection[str] | None = None, copied: Collection[str] = (), settled: bool = True
) -> Sandbox:
    """Copy a model's structure and buffers; parameters share the memory of the model's own.

    Args:
        model: the model; it is not touched.
        written: names of all parameters that its forward writes into; these are copied. None where they are not known:
            then operations are observed, at some microseconds each.
        copied: names of other parameters to copy.
        settled: whether its config is settled, so that it runs as it is recorded.
    """

    def make(values: Tensor, old: nn.Parameter) -> nn.Parameter:
        # A tensor made in inference mode may require gradients there only.
        with torch.inference_mode() if values.is_inference() else contextlib.nullcontext():
            parameter = nn.Parameter(values, old.requires_grad)
        vars(parameter).update(vars(old))
        return parameter

    return _sharing(model, written, copied, make, settled=settled)


def gradient_sandbox(model: nn.Module, *, written: Collection[str] = ()) -> Sandbox:
    """Copy a model for a backward: its parameters share the memory of the model's, not their gradients.

    All parameters require gradients, so that values do, too, whatever the user has frozen. Parameters that the forward
    writes into (``written``, by name) are copied.
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
    """Copy buffers; parameters get the model's values or, where the forward writes into them, copies."""
    names = {*(written or ()), *copied}
    own = {id(p) for name, p in named_parameters(model, every_name=True) if name in names}

    def convert(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.detach().clone()
        if id(tensor) in own:
            return make(tensor.detach().clone(), tensor)
        # Other classes may hold more than values: a quantized weight has scales in attributes.
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
    return Sandbox(model=copy, mode=None, start=AttributeSnapshot(copy), outside=ExternalState(copy), writes=writes)


def _settle(model: nn.Module) -> None:
    model.eval()
    settle_config(model)


class ValuesNeededError(Exception):
    """A forward does not run on fake tensors, with error ``failure``, and the meta device has no values."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


def attempt(
    model: nn.Module, inputs: Inputs, use: Callable[[Sandbox], _T], *, guessed: bool = False
) -> tuple[_T, Exception | None]:
    """Use a sandbox of a model: on fake tensors, on fake ones whose integers have values, or on real ones.

    Where ``use`` raises, it is called again with the next kind of sandbox. For inputs that are a guess, real tensors
    are tried only after an error about fake ones.

    Returns:
        The result of the first call that succeeds; for real tensors, also the error on fake ones.

    Raises:
        ValuesNeededError: the model has no real tensors.
        Exception: the error of the last call.
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
    """Whether a model's forward takes inputs: tried on fake tensors, and on real ones where fake ones do not decide."""
    try:
        attempt(model, inputs, lambda sandbox: sandbox.forward(inputs), guessed=True)
    except Exception:  # the user's own forward
        return False
    return True


#: Wording of :func:`forward_error` for example inputs.
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
    """Make the error for a user's forward that raised, with its inputs and a likely cause.

    ``where`` names the inputs, such as ``batch 3 of the calibration data``, ``who`` the code that raised, if it is not
    the model's forward. ``what`` names the inputs whose device or dtype differs from the model's; other causes get the
    advice ``otherwise``.
    """
    why = why_mismatched(model, inputs, what, error) or otherwise
    text = f"{who or f'{type(model).__name__}.forward'} raised on {where} ({describe(inputs)})"
    return raises(ended_by(f"{text}; {why}" if why else text, error))


@contextlib.contextmanager
def on_batch(
    model: nn.Module, inputs: Inputs, where: str, raises: type[LayerPruneError] = CalibrationError, **saying: str
) -> Generator[None]:
    """Raise errors of a user's forward inside with the batch's name and a likely cause; see :func:`forward_error`.

    Raises:
        LayerPruneError: of the class ``raises``. Errors of the library itself pass unchanged.
    """
    try:
        yield
    except LayerPruneError:
        raise
    except Exception as error:  # the user's own forward
        raise forward_error(error, model, inputs, where, raises, **saying) from error


def is_about_fakes(error: BaseException) -> bool:
    """Whether an error is due to fake tensors, and not to inputs that do not fit."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (*NEEDS_VALUES, UnknownValue)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _process_kept() -> Generator[None]:
    """Restore the state of the process that a forward may change: random generators and torch's switches."""
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
