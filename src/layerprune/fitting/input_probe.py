"""Records the inputs of layers while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import Batch, Sandbox, on_batch
from layerprune.channels import watching_functions
from layerprune.edits import Edit, Fold, name_before, renumbering
from layerprune.errors import CalibrationError
from layerprune.torch_internals import registry_of


class _Enough(BaseException):
    """Ends a forward when all inputs are recorded. Not an Exception, because the model's forward might catch it."""


@dataclass(frozen=True, eq=False)
class InputProbe:
    """Reads inputs of a model's layers by their names in the original; surgery may have renamed modules."""

    shade: Sandbox
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, shade: Sandbox, edits: Sequence[Edit]) -> InputProbe:
        shortens = renumbering(edits)
        names = {name_before(name, shortens): name for name, _ in shade.model.named_modules()} if shortens else {}
        return cls(shade, names)

    def name_of(self, name: str) -> str:
        """Present name of a module of the original."""
        return self.renamed.get(name, name)

    def module_of(self, name: str) -> nn.Module:
        return self.shade.model.get_submodule(self.name_of(name))

    def name_of_tensor(self, name: str) -> str:
        owner, _, key = name.rpartition(".")
        return f"{self.name_of(owner)}.{key}" if owner else key

    def tensor_of(self, name: str) -> Tensor:
        owner, _, key = self.name_of_tensor(name).rpartition(".")
        module = self.shade.model.get_submodule(owner)
        held: Tensor | None = registry_of(module, key)[key]
        assert held is not None
        return held

    @torch.no_grad()
    def put(self, edit: Fold, values: Mapping[str, Tensor]) -> None:
        """Write folded weights into a transform, whose tensors surgery has copied for the fold."""
        for name, value in named(edit, values).items():
            self.tensor_of(name).copy_(value)

    def see(self, batch: Batch, folds: Sequence[Fold]) -> dict[Fold, Tensor]:
        """Run until all transforms of ``folds`` were called, and return copies of their inputs, in order of execution.

        Raises:
            CalibrationError: the forward raises, or does not call one of them.
        """
        found: dict[Fold, Tensor] = {}

        def keep(edit: Fold, given: object) -> None:
            if isinstance(given, Tensor):
                found[edit] = given.detach().clone()  # because a later layer may write into it
            if len(found) == len(folds):
                raise _Enough

        by_weight = {edit.fqn: edit for edit in folds if edit.function}
        weights = {name: self.tensor_of(name) for name in by_weight}
        functions = watching_functions(weights, read=lambda name, given: keep(by_weight[name], given))
        asking = self.asking([edit for edit in folds if not edit.function], keep)
        with on_batch(self.shade.model, batch.inputs, "a calibration batch"), suppress(_Enough):
            self.shade.forward(batch.inputs, asking, functions)
        for edit in folds:
            if edit not in found:
                raise CalibrationError(
                    f"a calibration batch ({batch.inputs!r}) does not come to '{edit.fqn}', into which a projection is "
                    "to be folded: leave it out"
                )
        return found

    @contextmanager
    def asking(self, folds: Sequence[Fold], keep: Callable[[Fold, object], None]) -> Generator[None]:
        def hook(edit: Fold, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            keep(edit, args[0] if args else next(iter(kwargs.values()), None))

        hooks = [
            self.module_of(edit.fqn).register_forward_pre_hook(partial(hook, edit), with_kwargs=True) for edit in folds
        ]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()


def named(edit: Fold, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Folded tensors of a transform, by their names in the original."""
    names = {"weight": edit.weight_fqn, "constant": edit.constant}
    return {str(names[key]): value for key, value in values.items()}
