"""The shadow of a model: a copy that runs without touching the model, on fake tensors where that works."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.adapters import settle_config
from layerprune.inputs import Inputs
from layerprune.modules import AttributeSnapshot, ExternalState, Tree, clone, named_parameters
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


@dataclass(frozen=True)
class Sandbox:
    """A copy of a model in eval mode, for running its forward.

    Attributes:
        model: the copy. Its parameters and buffers are fake (no memory, no values), or the model's own parameters and
            copies of its buffers where ``mode`` is None.
        mode: the fake tensors' mode.
        start: the plain attributes of the model's modules before its first forward.
        integers: whether integers keep their values among the fake tensors.
        shares: whether the parameters are the user's own, which no forward may write into.
        outside: what its forwards may change beside parameters and plain attributes; None where nobody looked.
    """

    model: nn.Module
    mode: FakeTensorMode | None
    start: AttributeSnapshot
    integers: bool = False
    shares: bool = False
    outside: ExternalState | None = None

    @contextlib.contextmanager
    def running(self, *, grad: bool = False) -> Generator[None]:
        """Run the shadow's forward inside, uncompiled: without gradients unless asked for, the RNG states untouched."""
        self.start.put_back()
        whole = KeepsIntegers(self.mode) if self.integers and self.mode is not None else contextlib.nullcontext()
        hushed = quiet() if self.mode is not None else contextlib.nullcontext()
        modes = self.mode or contextlib.nullcontext()
        tree = Tree(self.model)
        alone = contextlib.nullcontext() if self.outside is None else self.outside.left_alone()
        try:
            with alone, _rng_kept(), uncompiled(), hushed, modes, whole, torch.set_grad_enabled(grad):
                yield
        finally:
            # Some forwards hang in other modules (BigBird's attention, where inputs are short), and say so in a flag:
            # what an edit has put into the old ones could not be taken back.
            if tree.put_back() and not self.start.moved:
                self.start.settle()
                self.start.put_back()

    def adapt(self, inputs: Inputs) -> Inputs:
        """Make inputs that the shadow's forward may take and change: fakes, or copies."""
        if self.mode is None:
            return inputs.map(lambda tensor: tensor.detach().clone())
        return inputs.map(lambda tensor: self.convert(tensor))

    def renew(self, adapted: Inputs) -> Inputs:
        """Make what :meth:`adapt` has made once more: a forward may write into its inputs, and into lists of them."""
        return adapted.map(
            lambda t: fake_like(t, self.mode) if type(t) is FakeTensor and self.mode else t.detach().clone()
        )

    def convert(self, tensor: Tensor) -> Tensor:
        """Make what stands for a tensor on the shadow."""
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


def real_sandbox(model: nn.Module, *, written: Collection[str] = ()) -> Sandbox:
    """Copy a model's structure and buffers; the parameters are the model's own.

    Args:
        model: the model; it is not touched.
        written: names of parameters that its forward writes into: these are copied, too.
    """
    return _sharing(model, written, lambda values, old: nn.Parameter(values, old.requires_grad), shares=not written)


def gradient_sandbox(model: nn.Module, *, written: Collection[str] = ()) -> Sandbox:
    """Copy a model for a backward: its parameters share the memory of the model's, not their gradients.

    All of them ask for gradients, so that the values that they lead to do, whatever is frozen in the user's model.

    Args:
        model: the model; it is not touched.
        written: names of parameters that its forward writes into: these are copied.
    """

    def asking(values: Tensor, old: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(values, old.is_floating_point() or old.is_complex())

    return _sharing(model, written, asking)


def _sharing(
    model: nn.Module,
    written: Collection[str],
    make: Callable[[Tensor, nn.Parameter], nn.Parameter],
    *,
    shares: bool = False,
) -> Sandbox:
    """Copy buffers, and make parameters of the model's own values or, where the forward writes into them, of copies."""
    own = {id(p) for name, p in named_parameters(model, every_name=True) if name in written}

    def convert(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.detach().clone()
        if id(tensor) in own:
            return make(tensor.detach().clone(), tensor)
        return tensor if shares else make(tensor.detach(), tensor)

    copy = clone(model, convert, apart=True)
    _settle(copy)
    return Sandbox(copy, None, AttributeSnapshot(copy), shares=shares, outside=ExternalState(copy))


def _settle(model: nn.Module) -> None:
    model.eval()
    settle_config(model)


def why_not(shade: Sandbox, inputs: Inputs) -> Exception | None:
    """What the forward raises on some inputs, with nobody watching; None if it runs."""
    adapted = shade.adapt(inputs)
    try:
        with shade.running():
            shade.model(*adapted.args, **adapted.kwargs)
    except Exception as error:  # the user's own forward
        return error
    return None


def runs_on(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model's forward takes some inputs: tried on fake tensors, and on real ones where those do not tell."""
    error = why_not(fake_sandbox(model), inputs)
    if error is not None and is_about_fakes(error):
        every = [name for name, _ in named_parameters(model, every_name=True)]
        error = why_not(real_sandbox(model, written=every), inputs)
    return error is None


def is_about_fakes(error: BaseException) -> bool:
    """Whether an exception says that a forward needs real values, rather than that it does not fit its inputs."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (*NEEDS_VALUES, UnknownValue)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _rng_kept() -> Generator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()  # stochastic depth is often drawn from these
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def short(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
