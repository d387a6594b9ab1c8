"""The data of a layer graph: layers, values, module calls, and what reads what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch

from layerprune.modules import CallKey
from layerprune.tables import brief
from layerprune.tensors import OutputTree

#: The values that one operand of a layer reads: several where a view was written through an alias in between.
Read: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor that passes between layers.

    Attributes:
        index: its number, in the order of creation.
        layer: the layer that made it; -1 for a model input.
        shape: its shape in the recorded forward.
        storage: number of its memory; views share one.
    """

    index: int
    layer: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A leaf module's call, or a function called in a non-leaf module's forward.

    Attributes:
        index: its number, in the order of execution.
        name: ``features.0`` for a module, ``layer1.0.add`` for a function; ``#k`` marks the k-th call.
        type_name: the module's class or the function's name, after the name of an ``autograd.Function`` around it.
        kind: kind of the layer; see ``graph/op_kinds``.
        fqn: the module that is called, or whose forward calls the function.
        call: number of this call of that module.
        frame: the frame that the layer is (module) or lies in (function).
        function: the function's name; None for a module.
        nth: number of this call of the function in its frame; below 0 for an operation outside of functions.
        operands: values that each tensor argument reads, in order; none for a parameter or a constant.
        outputs: the values it makes.
        params: names of its parameters.
        param_only: whether it depends on parameters and constants only, never on the model's input.
        literals: the function's arguments, with None in place of tensors.
        functions: the functions inside a module's call.
        writes: the storages it wrote into in place.
        results: a value for each tensor that it returns, in order, whether a layer reads it or not.
        site: for a merge, its place in the model's code; empty where that is not known.
    """

    index: int
    name: str
    type_name: str
    kind: str
    fqn: str
    call: int
    frame: int
    function: str | None
    nth: int
    operands: tuple[Read, ...]
    outputs: tuple[int, ...]
    params: tuple[str, ...]
    param_only: bool
    literals: tuple[tuple[Any, ...], Mapping[str, Any]]
    functions: tuple[str, ...] = ()
    writes: frozenset[int] = frozenset()
    results: tuple[int, ...] = ()
    site: str = ""

    @property
    def is_module(self) -> bool:
        return self.function is None

    @property
    def key(self) -> CallKey:
        return CallKey(self.fqn, self.call, self.function or "", self.nth)

    def __repr__(self) -> str:
        return brief(self, f"{self.index}: {self.name}, {self.kind} {self.type_name}")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One call of a module.

    Attributes:
        fqn: the module's name; ``""`` for the model.
        call: number of this call of the module.
        parent: the frame in whose forward it was called; -1 for the model's own.
        arguments: (position, keyword, value) for each argument that is a tensor.
        arity: number of arguments, tensors or not.
        result: its output, with a read in place of each tensor; None if it raised.
        outputs: the values in the output, in order.
        steps: the calls in its forward, in order: functions by name, and modules as ``:`` and their first name.
        raised: whether its forward raised and the caller continued.
    """

    index: int
    fqn: str
    call: int
    parent: int
    arguments: tuple[tuple[int | None, str | None, int], ...]
    arity: int
    result: OutputTree[Read] | None
    outputs: tuple[int, ...]
    steps: tuple[str, ...] = ()
    raised: bool = False

    @property
    def key(self) -> CallKey:
        return CallKey(self.fqn, self.call)

    def __repr__(self) -> str:
        return brief(self, f"{self.index}: call {self.call} of {self.fqn or 'the model'}, {len(self.steps)} steps")


@dataclass(frozen=True, kw_only=True)
class GraphData:
    """The fields of a :class:`LayerGraph`, which documents them, and the lookups that checks and liveness need."""

    layers: tuple[Layer, ...]
    values: Mapping[int, Value]
    frames: tuple[Frame, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    param_sizes: Mapping[str, int]
    param_ids: Mapping[str, int]
    aliases: Mapping[str, tuple[str, ...]]
    shape_reads: frozenset[tuple[int, int]] = frozenset()
    written_params: frozenset[str] = frozenset()
    hooked: frozenset[str] = frozenset()
    implicit_inputs: frozenset[int] = frozenset()
    writes_arguments: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def readers(self) -> Mapping[int, tuple[int, ...]]:
        """Value → the live layers that read it, each once."""
        return self._liveness[1]

    @cached_property
    def live(self) -> frozenset[int]:
        """The layers that reach an output of the model."""
        return self._liveness[0]

    @cached_property
    def num_params(self) -> int:
        """Number of parameters; tied ones once."""
        return sum({self.param_ids[name]: size for name, size in self.param_sizes.items()}.values())

    @cached_property
    def _liveness(self) -> tuple[frozenset[int], dict[int, tuple[int, ...]]]:
        live: set[int] = set()
        stack = [self.values[value].layer for value in self.outputs]
        while stack:
            index = stack.pop()
            if index >= 0 and index not in live:
                live.add(index)
                stack += [self.values[v].layer for read in self.layers[index].operands for v in read]
        readers: dict[int, dict[int, None]] = {}
        for index in sorted(live):
            for value in self.read_by(index):
                readers.setdefault(value, {})[index] = None
        return frozenset(live), {value: tuple(layers) for value, layers in readers.items()}

    def read_by(self, layer: int) -> set[int]:
        """Return the values that a layer reads."""
        return {value for read in self.layers[layer].operands for value in read}

    def sources(self, layer: int) -> set[int]:
        """Return the layers whose values a layer reads; -1 stands for the model's inputs."""
        return {self.values[value].layer for value in self.read_by(layer)}

    @cached_property
    def size_of_param(self) -> Mapping[int, int]:
        """Parameter number → number of elements."""
        return {self.param_ids[name]: size for name, size in self.param_sizes.items()}
