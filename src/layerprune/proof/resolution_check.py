"""Checks that layers with a new input keep their number of positions, at any input size."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn

from layerprune.capture import Sandbox, ShapeCache
from layerprune.channels import reader_of, watching_functions
from layerprune.edits import Fold
from layerprune.errors import short
from layerprune.graph import Refusal, RefusalCode
from layerprune.inputs import Inputs
from layerprune.modules import named_parameters

_Shapes = dict[str, tuple[int, ...]]


class ResolutionCheck:
    """Runs a sandbox on other input sizes and compares the output shapes of transforms.

    A tensor twice as large as another at one resolution may not be so at the next: strides of 2 round sizes up, pooling
    rounds down. Sizes of n + 1 and 2 n - 1 give odd numbers at every stage of a network that halves either way.

    Args:
    ``memo`` is None where the sandbox runs on real tensors. ``notes`` receives a note on sizes that the model refuses.
    """

    def __init__(self, shade: Sandbox, inputs: Inputs, memo: ShapeCache | None, notes: list[str]) -> None:
        self.shade = shade
        self.inputs = inputs
        self.memo = memo
        self.notes = notes
        self.expected: list[tuple[Inputs, _Shapes]] | None = None

    def prepare(self) -> None:
        """Run the untouched sandbox, once; a size that the model does not take is skipped and noted."""
        if self.expected is not None:
            return
        self.expected = []
        able = [name for name, module in self.shade.model.named_modules() if _reads(module)]
        weights = [name for name, held in named_parameters(self.shade.model) if held.dim() > 1]
        if self.memo is not None:
            self.memo.opening([*able, *weights])
        refused: dict[str, str] = {}
        for grown in (_one_more, _nearly_twice):
            inputs = self.inputs.map(grown)
            if all(a is b for a, b in zip(inputs.tensors(), self.inputs.tensors(), strict=True)):
                continue
            try:
                shapes = self.run(inputs, able, weights)
            except Exception as error:  # user code may accept one size only
                refused[_sizes(inputs)] = short(error)
                continue
            self.expected.append((inputs, shapes))
        if refused:
            why = next(iter(refused.values()))
            also = "no other size" if not self.expected else "only one other size"
            self.notes.append(
                f"the untouched model does not run on inputs of {' and of '.join(refused)} ({why}): that a projection "
                f"stands for as many places as what it replaces was proven on {also} than the example inputs'"
            )

    def check(self, folds: Sequence[Fold]) -> None:
        """Check the edited sandbox.

        Raises:
            Refusal: at another input size a transform's output has another shape than before.
        """
        modules = [fold.fqn for fold in folds if not fold.function]
        weights = [fold.fqn for fold in folds if fold.function]
        for inputs, shapes in self.expected or ():
            try:
                found = self.run(inputs, modules, weights)
            except Exception as error:  # user code in an edited model may raise any exception
                raise Refusal(RefusalCode.OTHER_SIZE_FAILS, error=error) from error
            for name, shape in found.items():
                if shape != shapes.get(name):
                    made, wanted = ("×".join(map(str, s)) for s in (shape, shapes.get(name, ())))
                    raise Refusal(RefusalCode.OTHER_SIZE_DIFFERS, name, found=made, wanted=wanted)

    def run(self, inputs: Inputs, modules: Sequence[str], weights: Sequence[str]) -> _Shapes:
        """Run the sandbox and return the output shapes of modules, and of functions by their weights."""
        found: _Shapes = {}

        def see(name: str, out: object) -> None:
            if isinstance(out, Tensor):
                found[name] = tuple(out.shape)

        held = dict(named_parameters(self.shade.model)) if weights else {}
        functions = watching_functions({name: held[name] for name in weights}, made=see) if weights else nullcontext()
        self.shade.forward(inputs, _hooked(self.shade.model, modules, see), functions)
        return found


def _reads(module: nn.Module) -> bool:
    try:
        return bool(reader_of(module))
    except Refusal:
        return False


def _sizes(inputs: Inputs) -> str:
    return ", ".join("×".join(map(str, tensor.shape)) for tensor in inputs.tensors())


@contextmanager
def _hooked(model: nn.Module, names: Sequence[str], see: Callable[[str, object], None]) -> Generator[None]:
    """Report what modules return; the last call of each counts."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())

    def hook(name: str, _module: nn.Module, _args: object, out: object) -> None:
        see(name, out)

    hooks = [modules[name].register_forward_hook(partial(hook, name)) for name in names if name in modules]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def _grown(tensor: Tensor, size: Callable[[int], int]) -> Tensor:
    """Resize a tensor along its image or signal axes, or along a sequence's length."""
    axes = range(2, tensor.dim()) if tensor.is_floating_point() else range(1, 2 if tensor.dim() == 2 else 1)
    for axis in axes:
        length = tensor.shape[axis]
        wanted = size(length)
        copies = [1] * tensor.dim()
        copies[axis] = -(-wanted // length)
        tensor = tensor.repeat(copies).narrow(axis, 0, wanted)
    return tensor


def _one_more(tensor: Tensor) -> Tensor:
    return _grown(tensor, lambda length: length + 1)


def _nearly_twice(tensor: Tensor) -> Tensor:
    return _grown(tensor, lambda length: max(2 * length - 1, 1))
