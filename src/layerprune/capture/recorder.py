"""Records one forward, operation by operation, with the module and the function of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from layerprune.capture.activation_store import ActivationStore
from layerprune.capture.events import Call, Operation, Recording
from layerprune.capture.implicit_inputs import ImplicitInputs
from layerprune.graph import Read, Value
from layerprune.inputs import positional_names
from layerprune.modules import (
    CallTracker,
    FunctionWatch,
    OperationWatch,
    RunningCall,
    StrongTensorKeys,
    WeakTensorKeys,
    hooks_watched,
    named_parameters,
    named_tensors,
    names_by_module,
    own_tensors,
    parameters,
    storage_key,
)
from layerprune.stand_ins import DroppedTensor
from layerprune.tensors import (
    OpCall,
    OutputTree,
    caller,
    custom_function,
    flat_tensors,
    has_claims,
    tensors_in,
    traits_of,
)
from layerprune.torch_internals import no_function_modes, parameters_of

# Operations that pass a tensor's value to Python: later steps may depend on it.
_SCALAR_READS = frozenset(
    {"_local_scalar_dense", "nonzero", "unique2", "_unique2", "equal", "unique_dim", "is_nonzero"}
)
# Functions that pass values to Python without such an operation.
_READS_OUT = frozenset({"tolist", "numpy", "array", "dlpack"})
# The operation that makes a tensor of data from Python or numpy.
_LITERAL = "lift_fresh"


class Recorder:
    """Records one forward of a model whose modules' ``forward`` it wraps; the model should be a clone.

    Args:
        model: the clone; its parameters may be fake.
        keep: keep every tensor of the run alive. For fake tensors only: real ones would take the memory of all
            activations, so their numbers are kept only while they live.
        holding: gets the results of calls, and the output; None where they are not needed.
    """

    def __init__(self, model: nn.Module, *, keep: bool, holding: ActivationStore | None = None) -> None:
        self.model = model
        self.holding = holding
        self.recording = Recording()
        self.names = names_by_module(model)
        self.first_names = {key: names[0] for key, names in self.names.items()}
        self.param_names: dict[int, list[str]] = {}
        self.kept: list[Tensor] = []
        for name, tensor in named_tensors(model):
            self.param_names.setdefault(id(tensor), []).append(name)
            self.kept.append(tensor)
        self.attributes = [tensor for module in model.modules() for tensor in own_tensors(module)]
        self.attribute_ids = {id(tensor) for tensor in self.attributes}
        self.parameters = {id(p) for p in parameters(model)}
        self.param_memory = {storage_key(p): name for name, p in named_parameters(model)}
        self.value_of = StrongTensorKeys() if keep else WeakTensorKeys()
        self.writer: dict[int, int] = {}
        self.storages: dict[int, int] = {}
        self.memory: dict[int, StorageWeakRef] = {}  # weak references keep freed addresses from reuse
        self.num_storages = 0
        self.param_sources: dict[int, tuple[str, ...]] = {}
        self.data_values: set[int] = set()
        self.literals: set[int] = set()  # storages
        self.has_read_out = False  # whether Python has read values: new tensors may hold them
        self.tracker = CallTracker(self.names, self.run_module)
        self.function = -1
        self.implicit_inputs = ImplicitInputs()

    # ---- the run --------------------------------------------------------------------------------------------------

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Recording:
        for tensor in tensors_in((args, kwargs)):
            if tensor not in self.value_of:
                value = self.new_value(tensor, -1)
                self.data_values.add(value)
                self.recording.inputs.append(value)
        with (
            self.tracker.watching(self.model),
            hooks_watched(self.model, lambda module: self.recording.hooked.add(self.names[id(module)][0])),
            torch.no_grad(),
            OperationWatch(self.check_written, self.operation),
            FunctionWatch(self.call_function, self.query_shape),
        ):
            out = self.model(*args, **kwargs)
        self.recording.writes_arguments = self.implicit_inputs.has_written
        if self.holding is not None:
            self.holding.output = out
        for tensor in tensors_in(out):
            self.recording.outputs += [v for v in self.read(tensor) if v not in self.recording.outputs]
        return self.recording

    def run_module(self, running: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self.tracker.outside():
            call = self.begin(running, forward, args, kwargs)
        self.stray(self.implicit_inputs.enter((*args, *kwargs.values()), tensors_in((args, kwargs))))
        try:
            out = forward(*args, **kwargs)
        except BaseException:  # the caller may catch it and continue
            call.raised = True
            self.implicit_inputs.leave()
            raise
        self.stray(self.implicit_inputs.read(tensors_in(out)))
        if call.parent >= 0 and not call.has_data_calls:
            out = self.separate(call.start, tensors_in((args, kwargs)), out)
        self.implicit_inputs.leave()
        with self.tracker.outside():
            self.returned(call, out, has_weights=bool(parameters_of(running.module)))
        return out

    def begin(self, running: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Call:
        call = Call(index=running.index, key=running.key, parent=self.tracker.index)
        call.start = len(self.recording.operations)
        call.arity = len(args) + len(kwargs)
        call.arguments = tuple(self.arguments(forward, args, kwargs))
        if call.parent >= 0:
            self.recording.calls[call.parent].steps.append(f":{self.first_names[id(running.module)]}")
        self.recording.calls.append(call)
        return call

    def stray(self, tensors: Iterable[Tensor]) -> None:
        """Record values that the running forward got outside of calls."""
        found = {
            self.value_of.get(t)
            for t in tensors
            if id(t) not in self.attribute_ids and not isinstance(t, DroppedTensor)
        }
        self.recording.implicit_inputs |= cast("set[int]", found & self.data_values)

    def arguments(
        self, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Iterator[tuple[int | None, str | None, int]]:
        names = positional_names(forward)
        for position, value in enumerate(args):
            if isinstance(value, Tensor) and len(read := self.read(value)) == 1:
                yield position, names[position] if position < len(names) else None, read[0]
        for keyword, value in kwargs.items():
            if isinstance(value, Tensor) and len(read := self.read(value)) == 1:
                yield (names.index(keyword) if keyword in names else None), keyword, read[0]

    def returned(self, call: Call, out: Any, *, has_weights: bool) -> None:
        """Record a call's results for the call around it."""
        self.implicit_inputs.made(tensors_in(out))
        call.result = OutputTree.of(out, self.read)
        call.outputs = tuple(read[-1] for read in call.result.leaves() if read)
        self.hold(tensors_in(out), has_weights)
        if self.holding is not None and call.parent >= 0 and not call.has_data_calls:
            inside = {value for op in self.recording.operations[call.start :] for value in op.outputs}
            self.holding.forget(inside - set(call.outputs))
        if call.parent >= 0 and any(v in self.data_values for v in call.outputs):
            self.recording.calls[call.parent].has_data_calls = True

    def hold(self, tensors: Iterable[Tensor], is_asked_for: bool) -> None:
        """Hold a call's results; where these are not asked for, only those in the memory of held tensors."""
        if self.holding is None or self.holding.is_full:
            return
        with no_function_modes():
            for tensor in tensors:
                if not is_asked_for and not self.holding.lies_beside(tensor):
                    continue
                if len(read := self.read(tensor)) == 1 and self.recording.values[read[0]].dtype.is_floating_point:
                    self.holding.keep(read[0], tensor)

    def separate(self, start: int, operands: Iterable[Tensor], out: Any) -> Any:
        """Alias the result of a layer that returns its argument unchanged (dropout in eval, Identity).

        Dropped tensors of an earlier surgery are kept: they are no values, and an alias would be a plain tensor.
        """
        if isinstance(out, Tensor) and not isinstance(out, DroppedTensor) and any(out is t for t in operands):
            storage = self.storage(out)
            if not any(storage in op.writes for op in self.recording.operations[start:]):
                with no_function_modes():  # not a function of the model
                    return torch.ops.aten.alias.default(out)
        return out

    # ---- values ---------------------------------------------------------------------------------------------------

    def new_value(self, tensor: Tensor, operation: int, storage: int | None = None) -> int:
        index = len(self.recording.values)
        storage = self.storage(tensor) if storage is None else storage
        self.recording.values[index] = Value(
            index=index, layer=operation, shape=tuple(tensor.shape), dtype=tensor.dtype, storage=storage
        )
        self.value_of[tensor] = index
        return index

    def storage(self, tensor: Tensor) -> int:
        """Number a tensor's memory; tensors without any (sparse, opaque) count as their own."""
        key = storage_key(tensor)
        number = self.storages.get(key)
        return self.number(tensor, key) if number is None else number

    def number(self, tensor: Tensor, key: int) -> int:
        self.num_storages += 1
        self.storages[key] = self.num_storages
        if key >= 0:
            self.memory[key] = StorageWeakRef(tensor.untyped_storage())
        return self.num_storages

    def fresh_storage(self, tensor: Tensor, shared: set[int]) -> int:
        """Number a result's memory, anew where no operand lies in it: a freed address may have been reused."""
        key = storage_key(tensor)
        number = self.storages.get(key)
        return number if number is not None and number in shared else self.number(tensor, key)

    def read(self, tensor: Tensor, storage: int | None = None) -> Read:
        """The values of a tensor at present: its own, and a later write through an alias of it."""
        if type(tensor) is not Tensor and isinstance(tensor, DroppedTensor):
            return ()  # left by an earlier surgery; holds no data
        value = self.value_of.get(tensor)
        written = self.writer.get(self.storage(tensor) if storage is None else storage)
        if value is None and id(tensor) not in self.param_names:
            if written is None:
                value = self.new_value(tensor, -2)
                known = id(tensor) in self.attribute_ids or self.storage(tensor) in self.literals
                if tensor.numel() > 1 and not known:  # reads of a single number are noted elsewhere
                    self.recording.constants.append(self.tracker.fqn)
            else:
                value = written
        if value is None:
            return () if written is None else (written,)
        return (value,) if written is None or written <= value else (value, written)

    # ---- operations -----------------------------------------------------------------------------------------------

    def operation(self, name: str, inputs: list[Tensor], outputs: list[Tensor], written: list[Tensor]) -> None:
        recording = self.recording
        reads: list[Read] = []
        params: dict[str, None] = {}
        if name == _LITERAL and not self.has_read_out:
            self.literals |= {self.storage(tensor) for tensor in [*inputs, *outputs]}
        shared: set[int] = set()
        data = False
        for tensor in inputs:
            storage = self.storage(tensor)
            shared.add(storage)
            read = self.read(tensor, storage)
            reads.append(read)
            if id(tensor) in self.parameters:
                params[self.nearest(self.param_names[id(tensor)])] = None
            for value in read:
                if value in self.data_values:
                    data = True
                elif value in self.param_sources:
                    params.update(dict.fromkeys(self.param_sources[value]))
        index = len(recording.operations)
        op = Operation(
            index=index,
            name=name,
            frame=max(self.tracker.index, 0),
            function=self.function,
            reads=tuple(reads),
            outputs=[],
            params=tuple(params),
            data=data,
            writes=frozenset(self.storage(t) for t in written),
        )
        recording.operations.append(op)
        if name in _SCALAR_READS and data:
            recording.scalar_reads.append(self.tracker.fqn)
            self.has_read_out = True
        for tensor in [*written, *outputs] if written else outputs:
            is_written = any(tensor is t for t in written)
            if is_written and tensor in self.value_of and self.value_of[tensor] in op.outputs:
                continue
            storage = self.storage(tensor) if is_written else self.fresh_storage(tensor, shared)
            value = self.new_value(tensor, index, storage)
            op.outputs.append(value)
            if data:
                self.data_values.add(value)
            elif params:
                self.param_sources[value] = tuple(params)
            if storage in op.writes or storage not in shared:
                self.writer[storage] = value

    def check_written(self, written: Sequence[Tensor]) -> None:
        """Record the parameters that an operation writes into, in part or whole; held tensors are copied before."""
        if self.holding is not None:
            self.holding.before_write(written)
        names = {self.param_memory.get(storage_key(tensor)) for tensor in written} - {None}
        self.recording.written_params |= cast("set[str]", names)

    def nearest(self, names: list[str]) -> str:
        """Choose the name of a tied parameter that lies below the running module."""
        frame = self.tracker.fqn
        return next((n for n in names if not frame or n.startswith(frame + ".")), names[0])

    def call_function(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if name in _READS_OUT:
            read = (self.value_of.get(tensor) for tensor in flat_tensors(args))
            self.has_read_out |= any(value in self.data_values for value in read)
        if self.function >= 0 or self.tracker.running is None or name.startswith(_LITERAL):
            out = func(*args, **kwargs)
            self.implicit_inputs.made(flat_tensors(out))
            return out
        frame = self.recording.calls[self.tracker.index]
        call = Call(index=len(self.recording.functions), key=self.tracker.count(name), parent=frame.index)
        call.custom = custom_function()
        call.site = caller(self.first_names) if traits_of(name).merge else ""
        if has_claims(name):
            self.recording.registered.append(OpCall.of(name, func, args, kwargs))
        self.recording.functions.append(call)
        frame.functions.append(name)
        frame.steps.append(name)
        operands: list[Tensor] = []
        call.literals = (
            tuple(_literal(a, operands) for a in args),
            {k: _literal(v, operands) for k, v in kwargs.items()},
        )
        call.operands = tuple(self.read(t) for t in operands)
        self.stray(self.implicit_inputs.read(operands))
        start = len(self.recording.operations)
        self.function = call.index
        try:
            out = func(*args, **kwargs)
            out = self.separate(start, operands, out)
        finally:
            self.function = -1
        self.settle(operands, start)
        self.implicit_inputs.made(flat_tensors(out))
        if isinstance(out, Tensor):
            call.outputs = self.read(out)
        self.hold(flat_tensors(out), traits_of(name).is_sum)
        call.results = tuple(-1 if (v := self.value_of.get(t)) is None else v for t in flat_tensors(out))
        return out

    def query_shape(self, tensor: Tensor) -> None:
        if self.tracker.running is not None and self.function < 0 and tensor in self.value_of:
            self.recording.shape_reads.add((self.value_of[tensor], self.tracker.index))

    def settle(self, operands: list[Tensor], start: int) -> None:
        """After a write through a view (``y[:, :4] = b``), make the tensor itself refer to the written value."""
        written = {s for op in self.recording.operations[start:] for s in op.writes}
        if not written:
            return
        for tensor in operands:
            if self.storage(tensor) in written and (read := self.read(tensor)) and len(read) == 2:
                if self.recording.values[read[1]].shape != tuple(tensor.shape):
                    self.write_whole(tensor, read[1])
                    return  # other tensors are views of the part
                self.value_of[tensor] = read[1]

    def write_whole(self, tensor: Tensor, part: int) -> None:
        """Give a tensor a new value after a write into a part of another shape."""
        operation = self.recording.operations[self.recording.values[part].layer]
        value = self.new_value(tensor, operation.index)
        operation.outputs.append(value)
        if part in self.data_values:
            self.data_values.add(value)
        elif part in self.param_sources:
            self.param_sources[value] = self.param_sources[part]
        self.writer[self.storage(tensor)] = value


def _literal(value: Any, operands: list[Tensor]) -> Any:
    """Replace the tensors in a function's argument; these are collected in order."""
    if isinstance(value, Tensor):
        if not isinstance(value, DroppedTensor):
            operands.append(value)
        return None
    if isinstance(value, (list, tuple)):
        return tuple(_literal(item, operands) for item in cast("Sequence[Any]", value))
    if isinstance(value, (int, float, str, bool, slice, type(None), type(...), torch.dtype)):
        return value
    return type(value).__name__
