"""Base classes of the stand-ins for removed modules."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from layerprune.errors import RemovedPartError
from layerprune.stand_ins.class_members import bound


class Shown:
    """Keeps attributes of a removed module, and methods of its class that read no removed weight or submodule."""

    # Class of the removed module, names of the kept methods, name of the module in the model.
    _former: type[nn.Module] | None = None
    _kept: frozenset[str] = frozenset()
    _place: str = ""

    def missing(self, name: str) -> Any:
        """Look up an attribute that the object itself does not have.

        Raises:
            RemovedPartError: the attribute was removed with the module.
        """
        held = vars(self)
        former, kept = held.get("_former"), held.get("_kept", ())
        if former is not None and name in kept:
            member = next(vars(base)[name] for base in former.__mro__ if name in vars(base))
            return bound(member, self)
        place = held.get("_place", "")
        what = f"'{place}'" if place else "the module that was here"
        hint = f"; protect=['{place}'] keeps it" if place else ""
        raise RemovedPartError(f"layerprune removed {what}, and what stands in for it has no '{name}'{hint}")

    def portable(self) -> dict[str, Any]:
        """The object's attributes for pickle, without a class that pickle could not import."""
        held = dict(vars(self))
        former = held.get("_former")
        if former is not None:
            found: Any = sys.modules.get(former.__module__)
            for part in former.__qualname__.split("."):
                found = getattr(found, part, None)
            if found is not former:
                held["_former"], held["_kept"] = None, frozenset()
        return held


class StandIn(Shown, nn.Module):
    """A module in the place of a removed module."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
        return self.missing(name)

    def __getstate__(self) -> dict[str, Any]:
        return self.portable()

    def with_place(self, what: str) -> str:
        """Text for ``repr`` with the removed module's name: libraries print it if they reject the module's type."""
        return f"{what}; layerprune removed '{self._place}'" if self._place else what
