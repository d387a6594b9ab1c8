"""The operations and module calls of one recorded forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layerprune.graph import Read, Value
from layerprune.modules import CallKey
from layerprune.tensors import OpCall, OutputTree


@dataclass(kw_only=True)
class Call:
    """One call of a module, or of a function directly in a module's forward."""

    index: int
    key: CallKey
    parent: int
    start: int = 0
    operands: tuple[Read, ...] = ()
    literals: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
    arguments: tuple[tuple[int | None, str | None, int], ...] = ()
    arity: int = 0
    result: OutputTree[Read] | None = None
    outputs: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    site: str = ""  # of a merge: its place in the model's code
    has_data_calls: bool = False
    raised: bool = False
    custom: str = ""  # the autograd.Function in whose forward it is called
    functions: list[str] = field(default_factory=list[str])
    steps: list[str] = field(default_factory=list[str])


@dataclass(kw_only=True)
class Operation:
    """One dispatched operation."""

    index: int
    name: str
    frame: int
    function: int
    reads: tuple[Read, ...]
    outputs: list[int]
    params: tuple[str, ...]
    data: bool
    writes: frozenset[int]


class Recording:
    """The events of one forward; ``capture/graph_builder`` makes the layer graph of them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.functions: list[Call] = []
        self.operations: list[Operation] = []
        self.values: dict[int, Value] = {}
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.scalar_reads: list[str] = []
        self.constants: list[str] = []
        self.shape_reads: set[tuple[int, int]] = set()
        self.written_params: set[str] = set()
        self.hooked: set[str] = set()
        self.implicit_inputs: set[int] = set()
        self.registered: list[OpCall] = []  # calls of registered ops, whose claims are to be checked
        self.writes_arguments = False
