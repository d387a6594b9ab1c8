"""The picture of a network as plain records: nested regions of boxes with edges, repeated blocks once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from layerprune.environment import write_text
from layerprune.graph import GroupVerdict

#: What a box stands for: a group, or a layer (or several that belong together) that lies in no group.
BoxKind: TypeAlias = Literal[
    "group", "merge", "concat", "attention", "normalization", "embedding", "pooling", "other", "input", "output"
]


@dataclass(frozen=True, kw_only=True)
class PictureGroup:
    """What the picture says of a group.

    Attributes:
        name: the group's name.
        type_name: class of its lead transform.
        layers: names of its layers, the lead first.
        verdict: as of :class:`Group`.
        impact: as of :class:`Group`; infinite for critical groups, ``nan`` where it is not known.
        num_params: number of its parameters.
        goes: whether the plan removes it.
    """

    name: str
    type_name: str
    layers: tuple[str, ...]
    verdict: GroupVerdict
    impact: float
    num_params: int
    goes: bool = False


@dataclass(frozen=True, kw_only=True)
class Box:
    """A group, a merge, or another layer that is drawn.

    Attributes:
        name: the full name of the first layer.
        label: the name inside the region.
        kind: what it stands for.
        detail: type of the layer, or the functions that it stands for.
        group: place of its group in :attr:`Picture.groups`; None for a layer in no group.
        num_calls: how often the forward calls it.
    """

    name: str
    label: str
    kind: BoxKind
    detail: str = ""
    group: int | None = None
    num_calls: int = 1


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Data flow between two blocks of a region.

    The target stands behind the source, unless two modules run in turns: then an edge leads back.

    Attributes:
        source: place of a block in :attr:`Region.blocks`; ``-1 - p`` for entry ``p`` of the region.
        target: place of a block; the number of blocks for the exit of the region.
        entry: the target's entry, where it is a region.
    """

    source: int
    target: int
    entry: int = 0


@dataclass(frozen=True, kw_only=True)
class Region:
    """A module with children, as a frame around its blocks.

    Attributes:
        name: the module's dotted name; empty for the model.
        label: the name inside the region around it.
        type_name: the module's class, where known.
        blocks: what is inside, in order of execution.
        edges: data flow between its blocks, its entries and its exit.
        num_entries: number of places where tensors come in.
        has_exit: whether a tensor goes out.
    """

    name: str
    label: str
    type_name: str
    blocks: tuple[Block, ...]
    edges: tuple[Edge, ...]
    num_entries: int
    has_exit: bool


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Many groups as small cells without edges, where boxes would be too many.

    Attributes:
        name: the module's dotted name.
        label: the name inside the region around it.
        type_name: the module's class, where known.
        groups: places in :attr:`Picture.groups`, in order of execution.
    """

    name: str
    label: str
    type_name: str
    groups: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Blocks of equal structure, one after the other: the first is drawn, all are cells.

    Attributes:
        shown: the first block.
        labels: the name of each block, inside the region around them.
        columns: for each block its groups, in the order of :func:`groups_in` of ``shown``.
        reads_earlier: whether a block reads tensors of blocks before the previous one.
    """

    shown: Region | Box | Cells
    labels: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]
    reads_earlier: bool = False


Block: TypeAlias = Box | Region | Cells | Repeat


@dataclass(frozen=True, kw_only=True, repr=False)
class Picture:
    """A network as it is drawn by :func:`to_svg`.

    Attributes:
        model: class of the model.
        root: the model.
        groups: the groups, in the order in which they were given.
        impact_unit: the unit of the impacts; empty where not known.
    """

    model: str
    root: Region
    groups: tuple[PictureGroup, ...]
    impact_unit: str = ""

    def __repr__(self) -> str:
        going = sum(group.goes for group in self.groups)
        return f"Picture({self.model}: {len(self.groups)} groups, {going} go)"

    def to_svg(self) -> str:
        """The drawing: one ``svg`` element with its own style, light or dark as the reader's system is."""
        from layerprune.picture.svg import to_svg  # the drawing is made of the records

        return to_svg(self)

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the drawing as an SVG file.

        Raises:
            ReportError: the file cannot be written.
        """
        return write_text(path, self.to_svg(), "the picture")


def groups_in(block: Block) -> tuple[int, ...]:
    """The groups of a block, in order of execution; of repeated blocks all."""
    if isinstance(block, Box):
        return () if block.group is None else (block.group,)
    if isinstance(block, Region):
        return tuple(group for inner in block.blocks for group in groups_in(inner))
    if isinstance(block, Cells):
        return block.groups
    return tuple(group for column in block.columns for group in column)
