"""Builds the layer graph from a recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerprune.capture.events import Call, Operation, Recording
from layerprune.capture.recorder import Recorder
from layerprune.errors import CaptureError
from layerprune.graph import Frame, Layer, LayerGraph, Read, Value, kind_of_function, kind_of_module
from layerprune.modules import named_parameters, names_by_module
from layerprune.tensors import check_claims


class GraphBuilder:
    """Contracts a recording's operations into layers."""

    def __init__(self, recorder: Recorder, recording: Recording, notes: list[str]) -> None:
        self.model = recorder.model
        self.recorder = recorder
        self.recording = recording
        self.notes = notes
        self.modules = dict(recorder.model.named_modules(remove_duplicate=False))
        held = list(named_parameters(recorder.model, every_name=True))
        self.kernels = {name for name, p in held if p.dim() >= 3}  # convolution kernels, also depthwise ones
        self.matrices = {name for name, p in held if p.dim() >= 2 and min(p.shape[:2]) > 1}  # a scale has a size of 1
        self.leaf_of: dict[int, int] = {}
        self.op_counts: dict[tuple[int, str], int] = {}

    def build(self) -> LayerGraph:
        bundles = self.bundles()
        layer_of = {op.index: index for index, ops in enumerate(bundles) for op in ops}
        self.visible = self.visible_values(layer_of)
        values = {
            v.index: Value(
                index=v.index,
                layer=layer_of[v.layer] if v.layer >= 0 else -1,
                shape=v.shape,
                dtype=v.dtype,
                storage=v.storage,
            )
            for v in self.recording.values.values()
        }
        self.values = values
        layers = tuple(self.layer(index, ops) for index, ops in enumerate(bundles))
        outputs = tuple(v for v in self.recording.outputs)
        if not any(values[v].layer >= 0 for v in outputs):
            raise CaptureError(
                f"{type(self.model).__name__}.forward returns no tensor that a layer computes: return one"
            )
        check_claims(self.recording.registered)
        self.add_notes(values)
        return LayerGraph(
            layers=layers,
            values=values,
            frames=tuple(self.frame(call) for call in self.recording.calls),
            inputs=tuple(self.recording.inputs),
            outputs=outputs,
            param_sizes={n: p.numel() for n, p in named_parameters(self.model, every_name=True)},
            param_ids=self.param_ids(),
            aliases={names[0]: tuple(names) for names in names_by_module(self.model).values()},
            shape_reads=frozenset(self.recording.shape_reads),
            written_params=frozenset(self.recording.written_params),
            hooked=frozenset(self.recording.hooked),
            implicit_inputs=frozenset(self.recording.implicit_inputs),
            writes_arguments=self.recording.writes_arguments,
            notes=tuple(self.notes),
        )

    def param_ids(self) -> dict[str, int]:
        numbers: dict[int, int] = {}
        return {
            name: numbers.setdefault(id(p), len(numbers)) for name, p in named_parameters(self.model, every_name=True)
        }

    def bundles(self) -> list[list[Operation]]:
        """Group operations into layers: by leaf call, else by function call, else each alone."""
        found: dict[tuple[str, int], list[Operation]] = {}
        for op in self.recording.operations:
            leaf = self.leaf(op.frame)
            key = ("leaf", leaf) if leaf >= 0 else ("function", op.function) if op.function >= 0 else ("op", op.index)
            found.setdefault(key, []).append(op)
        return list(found.values())

    def visible_values(self, layer_of: dict[int, int]) -> frozenset[int]:
        made = {v: layer_of[op.index] for op in self.recording.operations for v in op.outputs}
        seen = set(self.recording.outputs)
        for call in self.recording.calls:
            seen.update(call.outputs)
        for op in self.recording.operations:
            seen.update(v for read in op.reads for v in read if made.get(v) != layer_of[op.index])
        return frozenset(seen)

    def leaf(self, frame: int) -> int:
        """The outermost call around an operation that contains no further calls on data; -1 if there is none."""
        if frame not in self.leaf_of:
            call = self.recording.calls[frame]
            above = self.leaf(call.parent) if call.parent >= 0 else -1
            own = frame if call.parent >= 0 and not call.has_data_calls else -1
            self.leaf_of[frame] = above if above >= 0 else own
        return self.leaf_of[frame]

    def layer(self, index: int, ops: list[Operation]) -> Layer:
        leaf = self.leaf(ops[0].frame)
        made = [v for op in ops for v in op.outputs]
        outputs = tuple(v for v in made if v in self.visible) or tuple(made[-1:])
        params = tuple(dict.fromkeys(name for op in ops for name in op.params))
        writes = frozenset(s for op in ops for s in op.writes)
        own = frozenset(made)
        data = any(op.data for op in ops)
        if leaf >= 0:
            call = self.recording.calls[leaf]
            reads = [tuple(v for v in read if v not in own) for op in ops for read in op.reads]
            arguments = [(value,) for _, _, value in call.arguments]
            operands = tuple(dict.fromkeys([*arguments, *(r for r in reads if r)]))
            functions = tuple(call.functions) or tuple(op.name for op in ops if op.name != "alias")
            module = self.modules[call.key.fqn]
            kind = kind_of_module(module, functions, len(self.data(arguments)), self.has_matrix(params, functions))
            return Layer(
                index=index,
                name=_numbered(call.key.fqn, call.key.call),
                type_name=type(module).__name__,
                kind=kind,
                fqn=call.key.fqn,
                call=call.key.call,
                frame=leaf,
                function=None,
                nth=0,
                operands=operands,
                outputs=outputs,
                params=params,
                param_only=not data,
                literals=((), {}),
                functions=functions,
                writes=writes,
                results=call.outputs,
                site=self.site(ops),
            )
        return self.function_layer(index, ops, own, outputs, params, writes)

    def function_layer(
        self,
        index: int,
        ops: list[Operation],
        own: frozenset[int],
        outputs: tuple[int, ...],
        params: tuple[str, ...],
        writes: frozenset[int],
    ) -> Layer:
        frame = self.recording.calls[ops[0].frame]
        data = any(op.data for op in ops)
        literals: Any = ((), {})
        results = outputs
        if ops[0].function >= 0:
            call = self.recording.functions[ops[0].function]
            name, nth, literals, results = call.key.function, call.key.nth, call.literals, call.results
            custom = call.custom
            extra = dict.fromkeys(r for op in ops for read in op.reads if (r := tuple(v for v in read if v not in own)))
            known = {v for read in call.operands for v in read}
            operands = call.operands + tuple(r for r in extra if not set(r) <= known)
        else:
            name, custom = ops[0].name, ""
            nth = self.op_counts[(frame.index, name)] = self.op_counts.get((frame.index, name), -1) + 1
            nth = -1 - nth  # an operation outside of function calls
            operands = tuple(tuple(v for v in read if v not in own) for read in ops[0].reads)
        kind = kind_of_function(name, len(self.data(list(operands))), self.has_matrix(params, (name,)))
        local = {0: name, -1: name}.get(nth, f"{name}_{nth if nth > 0 else -1 - nth}")
        full = _numbered(f"{frame.key.fqn}.{local}" if frame.key.fqn else local, frame.key.call)
        return Layer(
            index=index,
            name=full,
            type_name=f"{custom}.{name}" if custom else name,
            kind=kind,
            fqn=frame.key.fqn,
            call=frame.key.call,
            frame=frame.index,
            function=name,
            nth=nth,
            operands=operands,
            outputs=outputs,
            params=params,
            param_only=not data,
            literals=literals,
            functions=(name,),
            writes=writes,
            results=results,
            site=self.site(ops),
        )

    def site(self, ops: list[Operation]) -> str:
        """The place in the model's code of the one merge among operations."""
        found = {self.recording.functions[op.function].site for op in ops if op.function >= 0} - {""}
        return found.pop() if len(found) == 1 else ""

    def data(self, reads: list[Read]) -> list[Read]:
        return [read for read in reads if any(v in self.recorder.data_values for v in read)]

    def has_matrix(self, params: tuple[str, ...], functions: Sequence[str]) -> bool:
        """Whether a parameter is the matrix or the kernel of a transform."""
        convolves = any("conv" in function for function in functions)
        return any(name in self.matrices or (convolves and name in self.kernels) for name in params)

    def frame(self, call: Call) -> Frame:
        return Frame(
            index=call.index,
            fqn=call.key.fqn,
            call=call.key.call,
            parent=call.parent,
            arguments=call.arguments,
            arity=call.arity,
            result=call.result,
            outputs=call.outputs,
            steps=tuple(call.steps),
            raised=call.raised,
        )

    def add_notes(self, values: dict[int, Value]) -> None:
        reads = sorted(set(self.recording.scalar_reads))
        if reads:
            places = ", ".join(f"'{name}'" if name else "the model's forward" for name in reads[:5])
            self.notes.append(
                f"the forward reads values of tensors in {places}: the layer graph may differ for other inputs"
            )
        if self.recording.constants:
            places = sorted({name or "the model's forward" for name in self.recording.constants})[:5]
            self.notes.append(
                f"a tensor of unknown origin is used in {', '.join(places)} (as numpy, tolist or item leave behind): "
                "a dependency may be missing"
            )


def _numbered(name: str, call: int) -> str:
    return name if call == 0 else f"{name}#{call}"
