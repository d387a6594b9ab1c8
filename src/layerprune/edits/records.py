"""Edits of the module tree as plain records that go to JSON and back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from layerprune.graph import without_numbers


class _Edit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fqn: str = Field(description="the module's dotted name")

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the modules or parameters concerned."""
        return (self.fqn,)

    @property
    def form(self) -> tuple[object, ...]:
        """What the same edit in another repeated block has in common with it: all but the numbers."""
        return type(self), *(without_numbers(name) for name in self.named)

    @property
    def named(self) -> tuple[str, ...]:
        """The names that tell it from other edits of its kind."""
        return (self.fqn,)


class Delete(_Edit):
    """Take an element out of its ``nn.Sequential``; the other elements keep their keys."""

    kind: Literal["delete"] = "delete"

    def __str__(self) -> str:
        return f"delete {self.fqn}"


class Pass(_Edit):
    """Put a pass-through in a module's place: it hands on one of its arguments."""

    kind: Literal["pass"] = "pass"
    position: int | None
    keyword: str | None
    structure: Any = "argument"
    copies: bool = False
    others: bool = Field(default=False, description="whether the module gets other arguments, too")
    shows: bool = Field(default=False, description="whether hosts may call methods of the module's beside its forward")

    @property
    def is_identity(self) -> bool:
        """Whether ``nn.Identity`` does it."""
        alone = self.position == 0 and self.keyword is None and not self.others
        return alone and self.structure == "argument" and not self.copies and not self.shows

    def __str__(self) -> str:
        return f"pass {self.fqn}"


class Drop(_Edit):
    """Put a dropped branch in a module's place: the merges named leave its output out."""

    kind: Literal["drop"] = "drop"
    merges: tuple[str, ...]
    structure: Any = "tensor"
    copies: bool = False

    def __str__(self) -> str:
        return f"drop {self.fqn}"


class Vacate(_Edit):
    """Take the parameters of a module out that no forward has run; what calls it later gets an error."""

    kind: Literal["vacate"] = "vacate"

    def __str__(self) -> str:
        return f"vacate {self.fqn}"


class Guard(_Edit):
    """Let a surviving module without parameters hand dropped tensors on unseen: it might ask for their shape."""

    kind: Literal["guard"] = "guard"

    def __str__(self) -> str:
        return f"guard {self.fqn}"


class DropParameter(_Edit):
    """Put a dropped tensor in the place of a parameter whose only readers are gone; ``fqn`` is the parameter's name."""

    kind: Literal["drop_parameter"] = "drop_parameter"
    merges: tuple[str, ...]
    copies: bool = False

    def __str__(self) -> str:
        return f"drop parameter {self.fqn}"


class Slice(_Edit):
    """Take channels out of a module that read a concat: input channels of a transform, or all that is per channel.

    ``side`` is ``in`` for a transform's input channels, of which every group loses as many, and ``channels`` for a
    layer that works channel by channel or group by group, which loses whole groups; ``dropped`` holds half-open ranges,
    numbered as the unpruned module's input channels.
    """

    kind: Literal["slice"] = "slice"
    side: Literal["in", "channels"]
    dropped: tuple[tuple[int, int], ...]

    @property
    def named(self) -> tuple[str, ...]:
        return self.side, self.fqn

    def __str__(self) -> str:
        return f"slice {sum(b - a for a, b in self.dropped)} {self.side} of {self.fqn}"


class Fold(_Edit):
    """Let a transform read an earlier tensor of other channels, a projection of which takes its input's place.

    The projection is fitted on calibration data and multiplied into the weight, which then has ``num_in`` input
    channels; until that is done the weight is zero. Of a convolution ``strides`` tells, for each axis, every how
    many-th place of what it reads stands for one of its former input's. One of several groups becomes one of one group.

    Attributes:
        value: the name of the tensor that is projected to; transforms with the same one share the projection.
        source: the name of the tensor that is projected.
        function: whether the transform is a function that a forward calls; ``fqn`` is the name of its weight then.
        axis: of the weight, along which the input channels lie.
        constant: the name of the bias, or of the running mean behind, that takes a constant in the projection; None
            where none can.
    """

    kind: Literal["fold"] = "fold"
    num_in: PositiveInt
    strides: tuple[PositiveInt, ...] = ()
    value: str
    source: str
    function: bool = False
    axis: Literal[0, 1] = 1
    constant: str | None = None

    @property
    def owner(self) -> str:
        """The name of the module that owns the weight."""
        return self.fqn.rpartition(".")[0] if self.function else self.fqn

    @property
    def weight(self) -> str:
        """The weight's name in its module."""
        return self.fqn.rpartition(".")[2] if self.function else "weight"

    @property
    def weight_fqn(self) -> str:
        """The weight's name in the model."""
        return self.fqn if self.function else f"{self.fqn}.weight"

    @property
    def named(self) -> tuple[str, ...]:
        return self.source, self.fqn

    def __str__(self) -> str:
        return f"fold a projection of {self.source} into {self.fqn}"


class Shorten(_Edit):
    """Take elements out of a container and renumber the rest; of a transformers model config and modules follow.

    ``fqn`` is the container's name, ``removed`` holds the numbers of the elements that go. What else has to change is
    read off the model; where vanilla transformers would not load what is left of a model of its own, the edit does not
    fit.
    """

    kind: Literal["shorten"] = "shorten"
    removed: tuple[NonNegativeInt, ...] = Field(min_length=1)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{i}" for i in self.removed)

    @property
    def prefix(self) -> str:
        """What the names of the elements begin with; nothing where the model is the container."""
        return f"{self.fqn}." if self.fqn else ""

    @property
    def form(self) -> tuple[object, ...]:
        return *super().form, len(self.removed)

    def __str__(self) -> str:
        return f"take {', '.join(map(str, self.removed))} out of {self.fqn}"


class TakePlace(_Edit):
    """Give a module the place in the key-value cache that another one of its kind leaves, whose name is ``of``."""

    kind: Literal["take_place"] = "take_place"
    of: str

    @property
    def named(self) -> tuple[str, ...]:
        return self.fqn, self.of

    def __str__(self) -> str:
        return f"give {self.fqn} the cache place of {self.of}"


_TAKING = frozenset({"drop", "pass", "delete", "shorten", "vacate"})

#: Half-open ranges, ascending.
Ranges: TypeAlias = tuple[tuple[int, int], ...]

Edit: TypeAlias = Annotated[
    Delete | Pass | Drop | Vacate | Guard | DropParameter | Slice | Fold | Shorten | TakePlace,
    Field(discriminator="kind"),
]


def folds_of(edits: Iterable[Edit]) -> list[Fold]:
    """The edits that fold projections, whose weights have to be fitted."""
    return [edit for edit in edits if isinstance(edit, Fold)]


def taken_out(edits: Iterable[Edit]) -> list[str]:
    """The names of the modules that edits take out with all their parameters."""
    return [name for edit in edits if edit.kind in _TAKING for name in edit.targets]


def is_under(name: str, holders: Collection[str]) -> bool:
    """Whether a module's or parameter's name lies below one of others."""
    end = name.rfind(".")
    while end > 0:
        if name[:end] in holders:
            return True
        end = name.rfind(".", 0, end)
    return False


def joined(shortens: Iterable[Shorten]) -> list[Shorten]:
    """Shorten each container once, by all the elements that it loses."""
    gone: dict[str, set[int]] = {}
    for edit in shortens:
        gone.setdefault(edit.fqn, set()).update(edit.removed)
    return [Shorten(fqn=fqn, removed=tuple(sorted(some))) for fqn, some in gone.items()]


def name_before(name: str, shortens: Iterable[Shorten]) -> str:
    """The name that a module or parameter had before containers were shortened.

    >>> name_before("layers.2.weight", [Shorten(fqn="layers", removed=(0, 3))])
    'layers.4.weight'
    """
    for edit in sorted(shortens, key=lambda edit: edit.prefix.count(".")):
        key, dot, below = name.removeprefix(edit.prefix).partition(".")
        if name.startswith(edit.prefix) and key.isdigit():
            place = int(key)
            for gone in sorted(edit.removed):
                place += gone <= place
            name = f"{edit.prefix}{place}{dot}{below}"
    return name


def ranges(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Write sorted indices as half-open ranges.

    >>> ranges([0, 1, 2, 7])
    ((0, 3), (7, 8))
    """
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and found[-1][1] == index:
            found[-1][1] = index + 1
        else:
            found.append([index, index + 1])
    return tuple((a, b) for a, b in found)


def kept_ranges(dropped: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return the half-open ranges that remain of ``size`` elements.

    >>> kept_ranges([(2, 4)], 6)
    [(0, 2), (4, 6)]
    """
    kept: list[tuple[int, int]] = []
    start = 0
    for first, last in sorted(dropped):
        if first > start:
            kept.append((start, first))
        start = max(start, last)
    if start < size:
        kept.append((start, size))
    return kept
