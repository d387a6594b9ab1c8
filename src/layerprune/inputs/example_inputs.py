"""Example inputs, given by the user or inferred from the model."""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from layerprune.errors import InputsError
from layerprune.inputs.shape_guesses import TensorSpec, guesses
from layerprune.modules import buffers, parameters
from layerprune.tensors import attributes_of, map_tensors, tensors_in
from layerprune.torch_internals import NEEDS_VALUES

_MAX_TRIES = 120
_MIN_TRIES = 8
_MOST_MODULES = 20_000  # module calls of all tries together: a large model gets fewer tries
_MOST_BESIDE = 20  # guesses after an adapter's candidates failed, which are better informed
_MOST_WANTING = 4  # tries that failed because a tensor has no values; later ones would, too
_WANTING = (
    "Its forward may depend on values of weights or activations; the meta device has none: "
    "load the model to the CPU or a GPU first."
)
_SHOWN = 5
_MOST_DESCRIBED = 8  # arguments in a description
_SPEAKS_OF_DTYPES = re.compile(r"(?i)\bd?types?\b")


@dataclass(frozen=True, eq=False, repr=False)
class Inputs:
    """The arguments of one forward call.

    Attributes:
        args: the positional arguments.
        kwargs: the keyword arguments.
        origin: "given", or a sentence on how they were inferred, which the plan shows.
        notes: parts of the user's batch that were left out or read in one of several ways.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origin: str = "given"
    notes: tuple[str, ...] = ()

    @property
    def inferred(self) -> bool:
        return self.origin != "given"

    @property
    def batch_size(self) -> int | None:
        """Number of samples: the common first dimension of the tensors, or the length of a list of images.

        Tensors of one dimension count only if there are no others. A first dimension of 1 counts as broadcast.
        ``None`` if the tensors disagree or there are none.
        """
        images = next((value for value in self._values() if is_list_of_images(value)), None)
        if images is not None:
            return len(images)
        shapes = [tensor.shape for tensor in self.tensors() if tensor.ndim]
        sizes = {shape[0] for shape in shapes if len(shape) > 1} or {shape[0] for shape in shapes}
        if len(sizes) > 1:
            sizes.discard(1)
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def is_empty(self) -> bool:
        """Whether there are tensors, but no sample or no element in them."""
        tensors = self.tensors()
        return bool(tensors) and (self.batch_size == 0 or not any(tensor.numel() for tensor in tensors))

    def tensors(self) -> list[Tensor]:
        """All tensors at any depth, each once."""
        return tensors_in([self.args, self.kwargs])

    def map(self, fn: Callable[[Tensor], Tensor]) -> Inputs:
        """Copy with ``fn`` applied to every tensor at any depth, once per tensor."""
        args, kwargs = map_tensors((self.args, self.kwargs), fn)
        return replace(self, args=args, kwargs=kwargs)

    def repeat(self, times: int) -> Inputs | None:
        """Repeat the samples, or return ``None`` if the batch dimension is unknown.

        Every tensor whose first dimension is the batch size is repeated along it. A list with one item per sample
        (a detector's images and targets) is repeated as a list.
        """
        return self._with_samples(
            lambda tensor: tensor.repeat(times, *[1] * (tensor.ndim - 1)), lambda items: items * times
        )

    def samples(self, start: int, stop: int) -> Inputs | None:
        """Samples from ``start`` up to ``stop`` as views, or ``None`` if a tensor may not have one row per sample.

        A list of tensors is ambiguous: each may be an image of one sample, or a batch.
        """
        listed = [value for value in self._values() if _lists_tensors(value)]
        by_item = any(is_list_of_images(value) for value in listed)
        if listed and not (by_item and all(_is_list(value, self.batch_size) for value in listed)):
            return None
        return self._with_samples(lambda tensor: tensor[start:stop], lambda items: items[start:stop])

    def _with_samples(self, of_tensor: Callable[[Tensor], Tensor], of_list: Callable[[Any], Any]) -> Inputs | None:
        """Apply ``of_tensor`` to tensors with one row per sample, or ``of_list`` to lists with one item per sample."""
        size = self.batch_size
        if size is None:
            return None

        def changed(tensor: Tensor) -> Tensor:
            return of_tensor(tensor) if tensor.ndim and tensor.shape[0] == size else tensor

        if not any(is_list_of_images(value) for value in self._values()):
            return self.map(changed)

        def changed_argument(value: Any) -> Any:
            if _is_list(value, size):
                return of_list(value)
            return map_tensors(value, changed)

        args = tuple(changed_argument(value) for value in self.args)
        return replace(self, args=args, kwargs={name: changed_argument(value) for name, value in self.kwargs.items()})

    def __repr__(self) -> str:
        return f"Inputs({describe(self)}; {self.origin})"

    def _values(self) -> Iterator[Any]:
        yield from self.args
        yield from self.kwargs.values()


def floating_dtype(model: nn.Module) -> torch.dtype:
    """Dtype of a model's weights; norms count only if it has no matrix, because mixed models keep them in float32."""
    tensors = [*parameters(model), *buffers(model)]
    floating = [t for t in tensors if t.is_floating_point() and t.dtype.itemsize > 1]  # float8 is only for storage
    return next((t.dtype for t in (*(t for t in floating if t.ndim > 1), *floating)), torch.float32)


def why_mismatched(model: nn.Module, inputs: Inputs, what: str, error: BaseException) -> str:
    """Why inputs do not fit a model by device or dtype; empty if they do.

    Args:
        model: the model.
        inputs: the arguments on which the forward raised.
        what: name of the inputs in the message, such as ``calibration``.
        error: the error; a dtype is the cause only if the error names dtypes, because many models cast.
    """
    tensors = [tensor for tensor in inputs.tensors() if not tensor.is_meta]
    homes = [str(parameter.device) for parameter in parameters(model) if not parameter.is_meta]
    astray = [str(tensor.device) for tensor in tensors if homes and str(tensor.device) not in homes]
    if astray:
        return f"{what} is on {astray[0]}, the model on {homes[0]}"
    if not _SPEAKS_OF_DTYPES.search(str(error)):
        return ""
    wanted = floating_dtype(model)
    found = next((t.dtype for t in tensors if t.is_floating_point() and t.dtype != wanted), None)
    found = found or next((t.dtype for t in tensors if not t.is_floating_point() and t.ndim > 2), None)
    return "" if found is None else f"{what} is {_name(found)}, the model {_name(wanted)}; cast one of them"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Sampler:
    """Draws values for a model, on its device and in its dtype, from a fixed seed without use of the global RNG.

    A model on the meta device gets meta tensors, but integers with values.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*parameters(model), *buffers(model)]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.dtype = floating_dtype(model)
        self._generator = torch.Generator("cpu").manual_seed(0)

    def floats(self, *shape: int) -> Tensor:
        """Draw from the standard normal distribution; ``shape`` in the model's dtype."""
        if self.device.type == "meta":
            return torch.empty(shape, dtype=self.dtype, device="meta")
        return torch.randn(shape, generator=self._generator, device="cpu").to(self.device, self.dtype)

    def integers(self, choices: range, *shape: int) -> Tensor:
        """Draw evenly from a range, as int64; with values even on the meta device, because sizes may depend on them."""
        drawn = torch.randint(choices.start, choices.stop, shape, generator=self._generator, device="cpu")
        return drawn if self.device.type == "meta" else drawn.to(self.device)

    def make(self, spec: TensorSpec) -> Tensor:
        return self.floats(*spec.shape) if spec.integers is None else self.integers(spec.integers, *spec.shape)


def as_inputs(example_inputs: Any) -> Inputs:
    """Read the user's example inputs as arguments of one forward.

    Args:
        example_inputs: a tuple holds the positional arguments, a mapping with string keys (a dict, a ``BatchEncoding``)
            the keyword arguments. A tensor, a list, a named tuple or any other object is the only positional argument;
            so is a dict in ``({...},)``. An ``Inputs`` is returned unchanged.

    Raises:
        InputsError: the value is ``None``, a model, or a loader of batches.
    """
    if isinstance(example_inputs, Inputs):
        return example_inputs
    if example_inputs is None:
        raise InputsError(
            "example_inputs is None; leave it out to have it inferred, or pass (None,) if forward takes None"
        )
    if isinstance(example_inputs, nn.Module):
        raise InputsError(f"example_inputs is a model ({type(example_inputs).__name__}); pass what its forward takes")
    if isinstance(example_inputs, (DataLoader, Iterator)):
        raise InputsError(
            f"example_inputs is a {type(example_inputs).__name__}; pass one batch of it here, such as "
            "next(iter(loader))[0], and the whole as calibration="
        )
    if type(example_inputs) is tuple:
        return Inputs(cast("tuple[Any, ...]", example_inputs))
    if isinstance(example_inputs, Mapping):
        mapping = cast("Mapping[Any, Any]", example_inputs)
        if all(isinstance(key, str) for key in mapping):
            return Inputs((), dict(mapping))
    return Inputs((example_inputs,))


def infer_inputs(
    model: nn.Module, attempt: Callable[[Inputs], Exception | None], candidates: Iterable[Inputs] = ()
) -> Inputs:
    """Find arguments that the model's forward accepts, by trial.

    Args:
        model: its parameters and the signature of its forward are read; it does not run here.
        attempt: runs the model once and returns the exception, or ``None`` if it ran. It runs on real tensors if fake
            ones fail, because this does not show that the inputs are wrong.
        candidates: first candidates, such as the adapters' proposals; guesses from the first layers follow.

    Returns:
        The first inputs that ran, with batch size 1 and values from a fixed seed; ``origin`` describes them.

    Raises:
        InputsError: no candidate ran; the message lists them, and says how to pass inputs.
    """
    failures: list[_Failure] = []
    wanting = 0

    def guessed() -> Iterator[Inputs]:
        yield from islice(_guessed(model), _MOST_BESIDE if failures else None)

    tries = max(_MIN_TRIES, min(_MAX_TRIES, _MOST_MODULES // sum(1 for _ in model.modules())))
    for inputs in islice(chain(candidates, guessed()), tries):
        error = attempt(inputs)
        if error is None:
            return inputs
        failures.append(_Failure(describe(inputs), *_explain(error, model)))
        wanting += isinstance(error, NEEDS_VALUES)
        if wanting == _MOST_WANTING:
            raise InputsError(f"{_nothing_fits(model, failures)}\n{_WANTING}")
    raise InputsError(_nothing_fits(model, failures))


def describe(inputs: Inputs) -> str:
    """Arguments with the shapes of their tensors: ``1×3×224×224``, or ``input_ids 1×16 int64, use_cache False``."""
    named = [("", value) for value in inputs.args] + list(inputs.kwargs.items())
    shown = [f"{name} {_describe_value(value)}".strip() for name, value in named[:_MOST_DESCRIBED]]
    return ", ".join([*shown, "…"] if len(named) > _MOST_DESCRIBED else shown) or "no arguments"


def _describe_value(value: Any) -> str:
    if isinstance(value, Tensor):
        shape = "×".join(str(size) for size in value.shape) or "scalar"
        return shape if value.is_floating_point() else f"{shape} {str(value.dtype).removeprefix('torch.')}"
    tensors = tensors_in(value)
    if tensors:
        inside = ", ".join(_describe_value(tensor) for tensor in tensors[:4]) + (", …" if len(tensors) > 4 else "")
        return f"{type(value).__name__}({inside})"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def _is_list(value: Any, length: int | None) -> bool:
    return type(value) in (list, tuple) and len(value) == length


def is_list_of_images(value: Any) -> bool:
    """Whether a value is a detector's input: a list or tuple of (channel, height, width) tensors."""
    items = cast("Sequence[Any]", value) if type(value) in (list, tuple) else []
    return bool(items) and all(
        isinstance(item, Tensor) and item.ndim == 3 and item.shape[0] in (1, 3, 4) and min(item.shape[1:]) >= 16
        for item in items
    )


def _lists_tensors(root: Any) -> bool:
    seen: set[int] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor) or id(value) in seen or not tensors_in(value):
            continue
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return True
        seen.add(id(value))
        held = list(cast("Mapping[Any, Any]", value).values()) if isinstance(value, Mapping) else []
        stack += [*held, *attributes_of(value).values()]
    return False


def _guessed(model: nn.Module) -> Iterator[Inputs]:
    for guess in guesses(model):
        sampler = Sampler(model)
        args = tuple(sampler.make(spec) for spec in guess.args)
        inputs = Inputs(args, {name: sampler.make(spec) for name, spec in guess.kwargs.items()})
        yield replace(inputs, origin=f"inferred: {describe(inputs)} from {guess.source}")


@dataclass(frozen=True)
class _Failure:
    """One candidate that did not run: its shapes, the module that failed, and the error."""

    tried: str
    where: str
    error: str


def _explain(error: Exception, model: nn.Module) -> tuple[str, str]:
    """The module in which a forward failed, by the traceback, and the first line of the error."""
    modules: list[nn.Module] = []
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            modules.append(owner)
        trace = trace.tb_next
    where = ""
    root = next((module for module in modules if type(module) is type(model)), None)  # because a copy may have run
    if root is not None:
        names = {id(module): name for name, module in root.named_modules()}
        where = next((f"'{names[id(m)]}'" for m in reversed(modules) if names.get(id(m))), "forward")
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    line = line if len(line) <= 160 else line[:157] + "…"
    return where, f"{type(error).__name__}: {line}" if line else type(error).__name__


def _nothing_fits(model: nn.Module, failures: list[_Failure]) -> str:
    """Text of the error: the candidates, how they failed, and how to pass inputs."""
    name = type(model).__name__
    try:
        signature = str(inspect.signature(model.forward))
    except (TypeError, ValueError):
        signature = "(…)"
    call = f"Pass example_inputs=: a tensor, tuple, dict or object that forward takes:\n  {name}.forward{signature}"
    if not failures:
        return f"no example inputs could be inferred for {name}: no layer tells what it reads.\n{call}"
    first = failures[0]
    if len(failures) > 1 and all(failure.error == first.error for failure in failures):
        where = f", in {first.where}" if first.where else ""
        return (
            f"{name}'s forward raises whatever it is given, {len(failures)} inputs such as {first.tried}{where}:\n"
            f"  {first.error}\nMake it run first. {call}"
        )
    groups: dict[tuple[str, str], list[_Failure]] = {}
    for failure in failures:
        groups.setdefault((failure.where, failure.error.partition(":")[0]), []).append(failure)
    lines = [_line(group) for group in list(groups.values())[:_SHOWN]]
    if len(groups) > _SHOWN:
        lines.append(f"  and {len(groups) - _SHOWN} other ways to fail")
    return "\n".join([f"no example inputs could be inferred for {name}; tried {len(failures)}:", *lines, call])


def _line(group: list[_Failure]) -> str:
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    where = f" in {group[0].where}" if group[0].where else ""
    return f"  {group[0].tried}{more}: {group[0].error}{where}"
