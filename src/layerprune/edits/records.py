"""Edits of the module tree as plain records, with JSON serialization."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from layerprune.graph import without_numbers
from layerprune.tables import brief


class _Edit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fqn: str = Field(description="the module's dotted name")

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.fqn,)

    @property
    def form(self) -> tuple[object, ...]:
        """The edit without numbers: the same for equal edits of repeated blocks."""
        return type(self), *(without_numbers(name) for name in self.named)

    @property
    def named(self) -> tuple[str, ...]:
        """The names that distinguish the edit from others of its kind."""
        return (self.fqn,)

    def __repr__(self) -> str:
        return brief(self, str(self))


class Delete(_Edit):
    """Remove an element from its ``nn.Sequential``; the other elements keep their keys."""

    kind: Literal["delete"] = "delete"

    def __str__(self) -> str:
        return f"delete {self.fqn}"


class Pass(_Edit):
    """Replace a module by a stand-in that returns one of its arguments."""

    kind: Literal["pass"] = "pass"
    position: int | None
    keyword: str | None
    structure: Any = "argument"
    copies: bool = False
    others: bool = Field(default=False, description="whether the module gets other arguments, too")
    shows: bool = Field(default=False, description="whether hosts may call methods of the module's beside its forward")

    @property
    def is_identity(self) -> bool:
        """Whether ``nn.Identity`` can be the stand-in."""
        alone = self.position == 0 and self.keyword is None and not self.others
        return alone and self.structure == "argument" and not self.copies and not self.shows

    def __str__(self) -> str:
        return f"pass {self.fqn}"


class Drop(_Edit):
    """Replace the module of a removed branch by a stand-in whose dropped tensor the named merges leave out."""

    kind: Literal["drop"] = "drop"
    merges: tuple[str, ...]
    structure: Any = "tensor"
    copies: bool = False

    def __str__(self) -> str:
        return f"drop {self.fqn}"


class Vacate(_Edit):
    """Remove the parameters of a module that no forward has run; later calls of it raise an error."""

    kind: Literal["vacate"] = "vacate"

    def __str__(self) -> str:
        return f"vacate {self.fqn}"


class Guard(_Edit):
    """Let a remaining module without parameters pass dropped tensors through: its forward might read their shape."""

    kind: Literal["guard"] = "guard"

    def __str__(self) -> str:
        return f"guard {self.fqn}"


class DropParameter(_Edit):
    """Replace a parameter whose readers are all gone by a dropped tensor; ``fqn`` is the parameter's name."""

    kind: Literal["drop_parameter"] = "drop_parameter"
    merges: tuple[str, ...]
    copies: bool = False

    def __str__(self) -> str:
        return f"drop parameter {self.fqn}"


class Slice(_Edit):
    """Remove channels from a module that reads a concat: a transform's input channels, or all per-channel tensors.

    ``side`` is ``in`` for a transform's input channels, of which every group loses as many. It is ``channels`` for a
    layer that works per channel or per group, which loses whole groups. ``dropped`` holds half-open ranges of the
    unpruned module's input channels.
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
    """Let a transform read an earlier tensor of other channels through a projection.

    The projection is fitted on calibration data and multiplied into the weight, which then has ``num_in`` input
    channels; before the fit the weight is zero. For a convolution ``strides`` tells, per axis, the step between places
    of the new input that stand for neighbouring places of the old input. A grouped convolution gets one group.

    Attributes:
        value: the name of the tensor that the projection approximates; transforms with the same ``value`` share the
            projection.
        source: the name of the tensor that is projected.
        function: whether the transform is a function that a forward calls; ``fqn`` is then the name of its weight.
        axis: the input axis of the weight.
        constant: the name of the bias, or of the following running mean, that takes the constant of the projection;
            None where none can.
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
        return self.fqn.rpartition(".")[0] if self.function else self.fqn

    @property
    def weight(self) -> str:
        return self.fqn.rpartition(".")[2] if self.function else "weight"

    @property
    def weight_fqn(self) -> str:
        return self.fqn if self.function else f"{self.fqn}.weight"

    @property
    def named(self) -> tuple[str, ...]:
        return self.source, self.fqn

    def __str__(self) -> str:
        return f"fold a projection of {self.source} into {self.fqn}"


class Shorten(_Edit):
    """Remove elements from a container and renumber the rest; the config of a transformers model changes with it.

    ``fqn`` is the container's name, ``removed`` holds the numbers of the removed elements. Further changes are read off
    the model. The edit does not fit where unmodified transformers could not load its pruned model.
    """

    kind: Literal["shorten"] = "shorten"
    removed: tuple[NonNegativeInt, ...] = Field(min_length=1)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{i}" for i in self.removed)

    @property
    def prefix(self) -> str:
        """The prefix of the elements' names; empty where the model is the container."""
        return f"{self.fqn}." if self.fqn else ""

    @property
    def form(self) -> tuple[object, ...]:
        return *super().form, len(self.removed)

    def __str__(self) -> str:
        return f"take {', '.join(map(str, self.removed))} out of {self.fqn}"


class TakePlace(_Edit):
    """Give a module the place in the key-value cache of the removed module ``of``."""

    kind: Literal["take_place"] = "take_place"
    of: str

    @property
    def named(self) -> tuple[str, ...]:
        return self.fqn, self.of

    def __str__(self) -> str:
        return f"give {self.fqn} the cache place of {self.of}"


class Boundary(_Edit):
    """Ends a pruning round: the edits behind it name modules of the model that the edits before it left."""

    kind: Literal["next_round"] = "next_round"
    fqn: str = Field(default="", max_length=0)

    @property
    def targets(self) -> tuple[str, ...]:
        return ()

    def __str__(self) -> str:
        return "begin another round"


_TAKING = frozenset({"drop", "pass", "delete", "shorten", "vacate"})

#: Half-open ranges, ascending.
Ranges: TypeAlias = tuple[tuple[int, int], ...]

Edit: TypeAlias = Annotated[
    Delete | Pass | Drop | Vacate | Guard | DropParameter | Slice | Fold | Shorten | TakePlace | Boundary,
    Field(discriminator="kind"),
]


def folds_of(edits: Iterable[Edit]) -> list[Fold]:
    """The edits that fold projections, whose weights have to be fitted."""
    return [edit for edit in edits if isinstance(edit, Fold)]


def leave_stand_ins(edits: Iterable[Edit]) -> bool:
    """Whether edits leave modules in the tree that only layerprune defines."""
    plain = ("delete", "slice", "fold", "shorten", "take_place")
    return any(edit.kind not in plain and not (isinstance(edit, Pass) and edit.is_identity) for edit in edits)


def taken_out(edits: Iterable[Edit]) -> list[str]:
    """The names of the modules that edits remove with all their parameters."""
    return [name for edit in edits if edit.kind in _TAKING for name in edit.targets]


def is_under(name: str, holders: Collection[str]) -> bool:
    """Whether a dotted name lies below one of ``holders``."""
    end = name.rfind(".")
    while end > 0:
        if name[:end] in holders:
            return True
        end = name.rfind(".", 0, end)
    return False


def joined(shortens: Iterable[Shorten]) -> list[Shorten]:
    """Merge edits of the same container into one."""
    gone: dict[str, set[int]] = {}
    for edit in shortens:
        gone.setdefault(edit.fqn, set()).update(edit.removed)
    return [Shorten(fqn=fqn, removed=tuple(sorted(some))) for fqn, some in gone.items()]


def rounds_of(edits: Iterable[Edit]) -> tuple[tuple[Edit, ...], ...]:
    """Split edits at their boundaries; edits of one round come back as one tuple."""
    rounds: list[list[Edit]] = [[]]
    for edit in edits:
        if isinstance(edit, Boundary):
            rounds.append([])
        else:
            rounds[-1].append(edit)
    return tuple(map(tuple, rounds))


def name_before(name: str, edits: Iterable[Edit]) -> str:
    """The name of a module or parameter before edits shortened containers, in one round or in several.

    >>> name_before("layers.2.weight", [Shorten(fqn="layers", removed=(0, 3))])
    'layers.4.weight'
    >>> name_before("layers.1", [Shorten(fqn="layers", removed=(2,)), Boundary(), Shorten(fqn="layers", removed=(0,))])
    'layers.3'
    """
    for some in reversed(rounds_of(edits)):
        shortens = [edit for edit in some if isinstance(edit, Shorten)]
        for edit in sorted(shortens, key=lambda edit: edit.prefix.count(".")):
            key, dot, below = name.removeprefix(edit.prefix).partition(".")
            if name.startswith(edit.prefix) and key.isdigit():
                index = int(key)
                for gone in sorted(edit.removed):
                    index += gone <= index
                name = f"{edit.prefix}{index}{dot}{below}"
    return name


def renumbering(edits: Iterable[Edit]) -> Sequence[Edit]:
    """The edits that :func:`name_before` looks at; empty where no container is shortened."""
    found = [edit for edit in edits if isinstance(edit, (Shorten, Boundary))]
    return found if any(isinstance(edit, Shorten) for edit in found) else []


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
