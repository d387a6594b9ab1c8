"""Capture: one forward on fake tensors, made into a layer graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from layerprune.errors import CaptureError, InputsError
from layerprune.graph import Frame, Layer, LayerGraph, Read, Structure, Value
from layerprune.holding import Holding
from layerprune.inputs import Inputs
from layerprune.kinds import kind_of_function, kind_of_module
from layerprune.modules import names_by_module
from layerprune.recorder import ParameterWritten, Recorder
from layerprune.recording import Call, Operation, Recording
from layerprune.shadow import Shadow, fake_shadow, is_about_fakes, real_shadow, short


def record(model: nn.Module, inputs: Inputs, *, guessed: bool = False) -> tuple[LayerGraph, Shadow]:
    """Record one forward of a model; see :func:`capture`. Returns the shadow that it ran on, too.

    Inputs that are a guess get a real forward only where the failure is about fake tensors, not where they do not fit.
    """
    shade = fake_shadow(model)
    notes: list[str] = []
    try:
        recorder, recording = _run(shade, inputs)
    except Exception as error:
        if guessed and not is_about_fakes(error):
            raise _misfit(model, inputs, error) from error
        shade, recorder, recording = _record_otherwise(model, inputs, error, notes)
    if shade.mode is not None and (error := _plainly(shade, inputs)) is not None:
        # Where nobody watches, some of torch's modules take a faster way, on which fakes cannot go (nested tensors).
        shade = _real(model, inputs, error, recorder.recording.written_params)
        notes.append(f"proven on real tensors, because fake ones failed ({short(error)})")
    return _Builder(recorder, recording, notes).build(), shade


def _real(model: nn.Module, inputs: Inputs, error: Exception, written: Collection[str]) -> Shadow:
    """A shadow on which the forward runs with real values, where there are any."""
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        raise CaptureError(
            f"{type(model).__name__}.forward was recorded, and does not run on fake tensors ({short(error)}): "
            "give it real weights, in place of those on the meta device"
        ) from error
    return real_shadow(model, written=written)


def capture(model: nn.Module, inputs: Inputs) -> LayerGraph:
    """Record one forward of a model and return its layer graph.

    The forward runs in eval mode on fake tensors, on a shadow of the model; where that fails (control flow that depends
    on data), on real ones, on a copy that shares the model's parameters; a note in the graph says so.

    Args:
        model: any module; its mode, hooks, buffers and the RNG stay as they are.
        inputs: arguments that the model's forward takes.

    Returns:
        The layer graph.

    Raises:
        InputsError: the forward raises on these inputs.
        CaptureError: the forward runs, and gives no tensor that depends on the inputs.
    """
    return record(model, inputs)[0]


def record_on(shade: Shadow, inputs: Inputs) -> LayerGraph:
    """Record one forward on a shadow that is there already; on a real one, just what real forwards do.

    What libraries do on fake tensors differs now and then, in how often they look at a mask: who observes real forwards
    has to count as they do.
    """
    recorder, recording = _run(shade, inputs)
    return _Builder(recorder, recording, []).build()


def record_real(model: nn.Module, inputs: Inputs, holding: Holding | None = None) -> tuple[LayerGraph, Shadow]:
    """Record one forward on a real shadow that shares the model's parameters, but for those that it writes into.

    Args:
        model: the model; it is not touched.
        inputs: arguments that the model's forward takes.
        holding: gets what the forward shows, by the layer graph's values; None where nobody asks for it.

    Returns:
        The layer graph, and the shadow.

    Raises:
        InputsError: the forward raises on these inputs.
        CaptureError: the forward runs, and cannot be recorded.
    """
    no_values = CaptureError("parameters on the meta device have no values")
    shade = real_shadow(model)
    try:
        recorder, recording = _record_really(model, shade, inputs, no_values, holding)
    except ParameterWritten:
        shade = real_shadow(model, written=capture(model, inputs).written_params)
        if holding is not None:
            holding.clear()
        recorder, recording = _record_really(model, shade, inputs, no_values, holding)
    return _Builder(recorder, recording, []).build(), shade


def record_training(shade: Shadow, graph: LayerGraph, inputs: Inputs) -> LayerGraph | None:
    """Record a forward in train mode, of a model that holds parameters which its eval mode never uses.

    Args:
        shade: a shadow of the model.
        graph: the layer graph of eval mode.
        inputs: the example inputs; two samples or more, for batch norms.

    Returns:
        The layer graph of train mode; None where eval mode uses every parameter, or train mode does not run.
    """
    if all(number in graph.param_users for number in graph.param_ids.values()):
        return None
    shade.model.train()
    try:
        recorder, recording = _run(shade, inputs)
    except Exception:  # the user's own forward, which may want targets when it trains; the proofs say so in a note
        return None
    finally:
        shade.model.eval()
    return _Builder(recorder, recording, []).build()


def record_results(shade: Shadow, inputs: Inputs) -> Mapping[tuple[str, int], Structure]:
    """Record what each call of a module returns on other inputs: (name, which call) → structure; empty if it raises."""
    try:
        _, recording = _run(shade, inputs)
    except Exception:  # the user's own forward, which need not take inputs of another size
        return {}
    return {(call.fqn, call.call): call.result for call in recording.calls}


def _run(shade: Shadow, inputs: Inputs, holding: Holding | None = None) -> tuple[Recorder, Recording]:
    adapted = shade.adapt(inputs)
    recorder = Recorder(shade.model, keep=shade.mode is not None, guard=shade.shares, holding=holding)
    with shade.running():
        return recorder, recorder.run(adapted.args, adapted.kwargs)


def _record_otherwise(
    model: nn.Module, inputs: Inputs, error: Exception, notes: list[str]
) -> tuple[Shadow, Recorder, Recording]:
    """Record a forward that wants values: those of integers are known on fake runs, too; others on real ones only."""
    if is_about_fakes(error):
        shade = fake_shadow(model, integers=True)
        try:
            return shade, *_run(shade, inputs)
        except Exception as another:
            error = another
    shade = real_shadow(model)
    try:
        recorder, recording = _record_really(model, shade, inputs, error)
    except ParameterWritten:
        shade = real_shadow(model, written=[name for name, _ in model.named_parameters(remove_duplicate=False)])
        recorder, recording = _record_really(model, shade, inputs, error)
    notes.append(
        f"recorded on real tensors, because fake ones failed ({short(error)}): "
        "only the layers that these inputs reached are known"
    )
    return shade, recorder, recording


def _record_really(
    model: nn.Module, shade: Shadow, inputs: Inputs, fake_error: Exception, holding: Holding | None = None
) -> tuple[Recorder, Recording]:
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        raise _misfit(model, inputs, fake_error) from fake_error
    try:
        return _run(shade, inputs, holding)
    except ParameterWritten:
        raise
    except Exception as error:
        if (own_error := _plainly(shade, inputs)) is None:
            raise CaptureError(
                f"{type(model).__name__}.forward runs on the example inputs, but not while it is recorded: "
                f"{short(error)}. This is a limit of layerprune; please report it with the model's code"
            ) from error
        raise _misfit(model, inputs, own_error) from own_error


def _plainly(shade: Shadow, inputs: Inputs) -> Exception | None:
    """What the forward raises with nobody watching; None if it runs."""
    adapted = shade.adapt(inputs)
    try:
        with shade.running():
            shade.model(*adapted.args, **adapted.kwargs)
    except Exception as error:
        return error
    return None


def _misfit(model: nn.Module, inputs: Inputs, error: Exception) -> InputsError:
    return InputsError(
        f"{type(model).__name__}.forward raised on the example inputs ({inputs!r}): {short(error)}. "
        "Pass example_inputs= a tensor, tuple, dict or object that forward takes"
    )


class _Builder:
    """Contracts a recording's operations into layers."""

    def __init__(self, recorder: Recorder, recording: Recording, notes: list[str]) -> None:
        self.model = recorder.model
        self.recorder = recorder
        self.recording = recording
        self.notes = notes
        self.modules = dict(recorder.model.named_modules(remove_duplicate=False))
        self.matrices = {
            name
            for name, p in recorder.model.named_parameters(remove_duplicate=False)
            if p.dim() >= 2 and min(p.shape[:2]) > 1  # a kernel may be of one place
        }
        self.leaf_of: dict[int, int] = {}
        self.op_counts: dict[tuple[int, str], int] = {}

    def build(self) -> LayerGraph:
        bundles = self.bundles()
        layer_of = {op.index: index for index, ops in enumerate(bundles) for op in ops}
        self.visible = self.visible_values(layer_of)
        values = {
            v.index: Value(v.index, layer_of[v.layer] if v.layer >= 0 else -1, v.shape, v.dtype, v.storage)
            for v in self.recording.values.values()
        }
        self.values = values
        layers = tuple(self.layer(index, ops) for index, ops in enumerate(bundles))
        outputs = tuple(v for v in self.recording.outputs)
        if not any(values[v].layer >= 0 for v in outputs):
            raise CaptureError(
                f"{type(self.model).__name__}.forward returns no tensor that a layer computes: return one"
            )
        self.add_notes(values)
        return LayerGraph(
            layers=layers,
            values=values,
            frames=tuple(self.frame(call) for call in self.recording.calls),
            inputs=tuple(self.recording.inputs),
            outputs=outputs,
            param_sizes={n: p.numel() for n, p in self.model.named_parameters(remove_duplicate=False)},
            param_ids=self.param_ids(),
            aliases={names[0]: tuple(names) for names in names_by_module(self.model).values()},
            shape_reads=frozenset(self.recording.shape_reads),
            written_params=frozenset(self.recording.written_params),
            hooked=frozenset(self.recording.hooked),
            notes=tuple(self.notes),
        )

    def param_ids(self) -> dict[str, int]:
        numbers: dict[int, int] = {}
        return {
            name: numbers.setdefault(id(p), len(numbers))
            for name, p in self.model.named_parameters(remove_duplicate=False)
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
        """The values that leave the layer that made them."""
        made = {v: layer_of[op.index] for op in self.recording.operations for v in op.outputs}
        seen = set(self.recording.outputs)
        for call in self.recording.calls:
            seen.update(call.outputs)
        for op in self.recording.operations:
            seen.update(v for read in op.reads for v in read if made.get(v) != layer_of[op.index])
        return frozenset(seen)

    def leaf(self, frame: int) -> int:
        """The outermost call around an operation that holds no further calls on data; -1 if there is none."""
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
            module = self.modules[call.fqn]
            kind = kind_of_module(module, functions, len(self.data(arguments)), self.has_matrix(params))
            return Layer(
                index=index,
                name=_numbered(call.fqn, call.call),
                type_name=type(module).__name__,
                kind=kind,
                fqn=call.fqn,
                call=call.call,
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
            name, nth, literals, results = str(call.function), call.nth, call.literals, call.results
            extra = dict.fromkeys(r for op in ops for read in op.reads if (r := tuple(v for v in read if v not in own)))
            known = {v for read in call.operands for v in read}
            operands = call.operands + tuple(r for r in extra if not set(r) <= known)
        else:
            name = ops[0].name
            nth = self.op_counts[(frame.index, name)] = self.op_counts.get((frame.index, name), -1) + 1
            nth = -1 - nth  # an operation that no function call stands for
            operands = tuple(tuple(v for v in read if v not in own) for read in ops[0].reads)
        kind = kind_of_function(name, len(self.data(list(operands))), self.has_matrix(params))
        local = {0: name, -1: name}.get(nth, f"{name}_{nth if nth > 0 else -1 - nth}")
        full = _numbered(f"{frame.fqn}.{local}" if frame.fqn else local, frame.call)
        return Layer(
            index=index,
            name=full,
            type_name=name,
            kind=kind,
            fqn=frame.fqn,
            call=frame.call,
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
        )

    def data(self, reads: list[Read]) -> list[Read]:
        return [read for read in reads if any(v in self.recorder.data_values for v in read)]

    def has_matrix(self, params: tuple[str, ...]) -> bool:
        return any(name in self.matrices for name in params)

    def frame(self, call: Call) -> Frame:
        return Frame(
            call.index,
            call.fqn,
            call.call,
            call.parent,
            call.arguments,
            call.arity,
            call.result,
            call.outputs,
            tuple(call.steps),
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
