"""Layer graphs made by hand: a few lines for a graph of a few layers."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import torch

from layerprune.graph import Frame, Layer, LayerGraph, Read, Value, kind_of_function
from layerprune.tensors import OutputTree

Shape: TypeAlias = Sequence[int]
Operand: TypeAlias = "int | Read"


class HandBuiltGraph:
    """Makes a layer graph by hand, in the order of execution.

    >>> from models.hand_built import HandBuiltGraph
    >>> net = HandBuiltGraph()
    >>> x = net.input(2, 8)
    >>> branch = net.module("fc", "transform", x, params={"fc.weight": (8, 8)})
    >>> print(net.graph(net.function("add", x, branch)))
    inputs: %0 2×8
    [0]  fc   transform Module  %0 -> %1 2×8  params: fc.weight  in: model
    [1]  add  merge add         %0, %1 -> %2 2×8  in: model
    outputs: %2 2×8

    A value is the number that the method which makes it returns. An operand is one value, or a tuple of those that a
    tensor stands for: none for a parameter or a constant.
    """

    def __init__(self) -> None:
        self._layers: list[Layer] = []
        self._values: dict[int, Value] = {}
        self._frames: list[Frame] = [_frame(0, "", 0, -1, ())]
        self._open: list[int] = [0]
        self._inputs: list[int] = []
        self._param_sizes: dict[str, int] = {}
        self._param_ids: dict[str, int] = {}
        self._matrices: set[str] = set()

    def input(self, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        """Add an input of the model, of a shape, and return its value."""
        value = self._new_value(-1, shape, dtype)
        self._inputs.append(value)
        arguments = tuple((position, None, one) for position, one in enumerate(self._inputs))
        self._frames[0] = replace(self._frames[0], arguments=arguments, arity=len(arguments))
        return value

    def tie(self, name: str, to: str) -> None:
        """Give a parameter another name, under which layers may use it, too."""
        self._param_ids[name], self._param_sizes[name] = self._param_ids[to], self._param_sizes[to]
        self._matrices |= {name} if to in self._matrices else set()

    def module(
        self,
        fqn: str,
        kind: str,
        *operands: Operand,
        shape: Shape | None = None,
        params: Mapping[str, Shape] | None = None,
        type_name: str = "Module",
        functions: Sequence[str] = (),
    ) -> int:
        """Add the call of a leaf module, and return its value.

        Args:
            fqn: the module's dotted name.
            kind: what it does; one of ``tensors.KINDS``.
            operands: what it reads.
            shape: of its output; the first operand's unless given.
            params: the parameters that it uses, by their dotted names, with shapes.
            type_name: the module's class.
            functions: the functions that run in it.
        """
        call = sum(frame.fqn == fqn for frame in self._frames)
        with self.frame(fqn, *(read[0] for read in self._reads(operands) if len(read) == 1)):
            frame = self._open[-1]
            (value,) = self._layer(
                operands, [shape], params, frame=frame, name=_numbered(fqn, call), kind=kind, type_name=type_name,
                functions=tuple(functions),
            )  # fmt: skip
            self.returns(value)
        return value

    def function(
        self,
        name: str,
        *operands: Operand,
        shape: Shape | None = None,
        params: Mapping[str, Shape] | None = None,
        kind: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> int:
        """Add the call of a function in the module that is open, and return its value.

        Args:
            name: the function's, without underscores around it (``iadd``).
            operands: the tensors that it is called with.
            shape: of its output; the first operand's unless given.
            params: the parameters that it uses, by their dotted names, with shapes.
            kind: what it does; told by its name unless given.
            args: what is passed by position behind the tensors.
            kwargs: what is passed by keyword.
        """
        return self.split(name, *operands, shapes=[shape], params=params, kind=kind, args=args, kwargs=kwargs)[0]

    def split(
        self,
        name: str,
        *operands: Operand,
        shapes: Sequence[Shape | None],
        params: Mapping[str, Shape] | None = None,
        kind: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Add the call of a function that returns several tensors, of these shapes; else as :meth:`function`."""
        frame = self._frames[self._open[-1]]
        nth = sum(layer.frame == frame.index and layer.function == name for layer in self._layers)
        local = f"{frame.fqn}.{name}" if frame.fqn else name
        self._step(name)
        return self._layer(
            operands, shapes, params, frame=frame.index, name=_numbered(local + (f"_{nth}" if nth else ""), frame.call),
            kind=kind or "", type_name=name, function=name, nth=nth, functions=(name,),
            literals=((*([None] * len(operands)), *args), dict(kwargs or {})),
        )  # fmt: skip

    def cat(self, *operands: int, dim: int = 1) -> int:
        """Add a concat of values along a dimension, called with a list as torch's is, and return its value."""
        shape = list(self._values[self._reads(operands)[0][0]].shape)
        shape[dim] = sum(self._values[value].shape[dim] for value in operands)
        value = self.function("cat", *operands, shape=shape)
        literals: Any = ((tuple(None for _ in operands), dim), {})
        self._layers[-1] = replace(self._layers[-1], literals=literals)
        return value

    @contextmanager
    def frame(self, fqn: str, *arguments: int) -> Generator[None]:
        """Open the call of a module: what is added until it closes is called in its forward.

        Args:
            fqn: the module's dotted name.
            arguments: the values that it is called with, by position.
        """
        call = sum(frame.fqn == fqn for frame in self._frames)
        self._step(f":{fqn}")
        index = len(self._frames)
        self._frames.append(_frame(index, fqn, call, self._open[-1], arguments))
        self._open.append(index)
        yield
        self._open.pop()

    def returns(self, *values: int) -> None:
        """Say what the call of the module that is open returns: one tensor, or a tuple of several."""
        index = self._open[-1]
        tensors = tuple(OutputTree[Read](kind="tensor", leaf=(value,)) for value in values)
        result = tensors[0] if len(values) == 1 else OutputTree[Read](kind="tuple", items=tensors)
        self._frames[index] = replace(self._frames[index], result=result, outputs=values)

    def graph(self, *outputs: int) -> LayerGraph:
        """Return the graph of a model that returns these values, checked by :meth:`LayerGraph.lint`."""
        self.returns(*outputs)
        names = {frame.fqn for frame in self._frames} | {name.rpartition(".")[0] for name in self._param_ids}
        graph = LayerGraph(
            layers=tuple(self._layers),
            values=dict(self._values),
            frames=tuple(self._frames),
            inputs=tuple(self._inputs),
            outputs=outputs,
            param_sizes=dict(self._param_sizes),
            param_ids=dict(self._param_ids),
            aliases={name: (name,) for name in sorted(names)},
        )
        graph.lint()
        return graph

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _new_value(self, layer: int, shape: Shape, dtype: torch.dtype) -> int:
        index = len(self._values)
        self._values[index] = Value(index=index, layer=layer, shape=tuple(shape), dtype=dtype, storage=index)
        return index

    def _step(self, step: str) -> None:
        frame = self._frames[self._open[-1]]
        self._frames[frame.index] = replace(frame, steps=(*frame.steps, step))

    def _reads(self, operands: Sequence[Operand]) -> tuple[Read, ...]:
        reads = tuple((operand,) if isinstance(operand, int) else operand for operand in operands)
        unknown = [value for read in reads for value in read if value not in self._values]
        assert not unknown, f"no value has the number {unknown[0]}: pass what input(), module() … returned"
        return reads

    def _layer(
        self,
        operands: Sequence[Operand],
        shapes: Sequence[Shape | None],
        params: Mapping[str, Shape] | None,
        **attributes: Any,
    ) -> tuple[int, ...]:
        """Add a layer, its values and its parameters."""
        index, reads = len(self._layers), self._reads(operands)
        for name, sizes in (params or {}).items():
            self._param_ids.setdefault(name, len(set(self._param_ids.values())))
            self._param_sizes.setdefault(name, prod(sizes))
            self._matrices |= {name} if len(sizes) > 1 else set()
        first = next((self._values[read[0]] for read in reads if read), None)
        data = [read for read in reads if any(self._depends(value) for value in read)]
        dtype = torch.float32 if first is None else first.dtype
        made = tuple(
            self._new_value(index, shape if shape is not None else first.shape if first else (), dtype)
            for shape in shapes
        )
        frame = self._frames[attributes["frame"]]
        has_matrix = any(name in self._matrices for name in params or ())
        kind = attributes.pop("kind") or kind_of_function(attributes["type_name"], len(data), has_matrix)
        parts: dict[str, Any] = {"function": None, "nth": 0, "literals": ((), {}), **attributes}
        self._layers.append(
            Layer(
                index=index,
                kind=kind,
                fqn=frame.fqn,
                call=frame.call,
                operands=reads,
                outputs=made,
                params=tuple(params or ()),
                param_only=not data,
                results=made,
                **parts,
            )
        )
        return made

    def _depends(self, value: int) -> bool:
        """Whether a value depends on the model's input."""
        made = self._values[value].layer
        return value in self._inputs if made < 0 else not self._layers[made].param_only


def _frame(index: int, fqn: str, call: int, parent: int, arguments: Sequence[int]) -> Frame:
    taken = tuple((position, None, value) for position, value in enumerate(arguments))
    return Frame(
        index=index, fqn=fqn, call=call, parent=parent, arguments=taken, arity=len(arguments), result=None, outputs=()
    )


def _numbered(name: str, call: int) -> str:
    return name if call == 0 else f"{name}#{call}"
