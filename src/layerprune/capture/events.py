"""The operations and module calls that a recorder writes down of one forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layerprune.graph import Read, Value
from layerprune.modules import CallKey
from layerprune.tensors import OpCall, OutputTree


@dataclass
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
    site: str = ""  # of a merge: from where it is called
    has_data_calls: bool = False
    raised: bool = False
    custom: str = ""  # the autograd.Function in whose forward it is called
    functions: list[str] = field(default_factory=list[str])
    steps: list[str] = field(default_factory=list[str])


@dataclass
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
    """What a recorder wrote down; ``capture/capture`` makes the layer graph of it."""

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
        self.registered: list[OpCall] = []  # calls of ops of which users have said what is to be checked
        self.writes_arguments = False
