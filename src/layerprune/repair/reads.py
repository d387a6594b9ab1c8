"""Reads: what transforms get, as a model comes to them; by their names in the original, whatever surgery calls them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.calibration import Batch
from layerprune.edits import Edit, Shorten, name_before
from layerprune.errors import CalibrationError
from layerprune.shadow import Shadow, short
from layerprune.watch import FunctionWatch


class _Enough(BaseException):
    """All that was to be seen of a forward has been seen. No Exception, which a model's own forward might catch."""


@dataclass(frozen=True, eq=False)
class Reads:
    """One of two models, and what its modules are called where surgery gave them other names."""

    shade: Shadow
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, shade: Shadow, edits: Sequence[Edit]) -> Reads:
        """A shadow on which edits have been made."""
        shortens = [edit for edit in edits if isinstance(edit, Shorten)]
        names = {name_before(name, shortens): name for name, _ in shade.model.named_modules()} if shortens else {}
        return cls(shade, names)

    def name_of(self, name: str) -> str:
        """What a module of the original is called now."""
        return self.renamed.get(name, name)

    def module_of(self, name: str) -> nn.Module:
        """The module of that name in the original."""
        return self.shade.model.get_submodule(self.name_of(name))

    @torch.no_grad()
    def put(self, name: str, values: Mapping[str, Tensor]) -> None:
        """Write new weights into a transform that has taken a projection in, and so has parameters of its own."""
        for key, value in values.items():
            held = self.module_of(name)._parameters[key]
            assert held is not None
            held.copy_(value)

    def see(self, batch: Batch, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Run until some transforms were called, and return what they got, in order.

        Raises:
            CalibrationError: the forward raises, or does not call them.
        """
        found: dict[str, Tensor] = {}
        try:
            with _asking(self.module_of, wanted, found), self.shade.running(), _no_fused_paths():
                inputs = self.shade.adapt(batch.inputs)
                self.shade.model(*inputs.args, **inputs.kwargs)
        except _Enough:
            pass
        except Exception as error:  # the user's own forward
            raise CalibrationError(
                f"{type(self.shade.model).__name__}.forward raised on a calibration batch ({batch.inputs!r}): "
                f"{short(error)}"
            ) from error
        for name in wanted:
            if name not in found:
                raise CalibrationError(
                    f"a calibration batch ({batch.inputs!r}) does not come to '{name}', into which a projection is to "
                    "be folded: leave it out"
                )
        return found


@contextmanager
def _asking(module_of: Callable[[str], nn.Module], wanted: Sequence[str], found: dict[str, Tensor]) -> Generator[None]:
    """Copy what modules get, and stop the forward once all have got it."""

    def keep(name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor):
            found[name] = given.detach().clone()  # a later layer may write into it
        if len(found) == len(wanted):
            raise _Enough

    hooks = [module_of(name).register_forward_pre_hook(partial(keep, name), with_kwargs=True) for name in wanted]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _no_fused_paths() -> FunctionWatch:
    """Have torch's transformer layers call the modules inside them."""
    return FunctionWatch(lambda name, func, args, kwargs: func(*args, **kwargs))
