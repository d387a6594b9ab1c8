"""Finds the layers that a projection is folded into when a tensor changes its channels or its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from layerprune.channels.fold_target import Reader, reader_at
from layerprune.channels.index_tracking import ChannelGap, recorded_call
from layerprune.edits import Fold
from layerprune.graph import Cut, Layer, LayerGraph, Refusal, RefusalCode
from layerprune.tensors import traits_of
from layerprune.torch_internals import BatchNorm, buffers_of, has_hooks, no_modes


@dataclass(frozen=True)
class _Form:
    """A value once the cut is made: its shape, and the value that it is computed from without parameters."""

    shape: tuple[int, ...]
    source: int


class FoldTrace:
    """Follows the substitutes of projected tensors to the transforms that read them.

    Between them may lie only layers without parameters that treat each channel by itself, such as pooling: they stay,
    and work on the channels of the substitute. ``gaps`` maps values to other channels that they lose.
    """

    def __init__(
        self,
        graph: LayerGraph,
        modules: Mapping[str, nn.Module],
        cut: Cut,
        dead: frozenset[int],
        gaps: Mapping[int, ChannelGap] | None = None,
    ) -> None:
        self.graph = graph
        self.modules = modules
        self.cut = cut
        self.dead = dead
        self.gaps = gaps or {}
        self.forms: dict[int, _Form] = {}
        self.found: list[Fold] = []

    def run(self) -> list[Fold]:
        """Return the folds.

        Raises:
            Refusal: a reader of a projected tensor cannot take the projection in.
        """
        if not self.cut.projected:
            return []
        start = min(reader for y in self.cut.projected for reader in self.graph.readers.get(y, (0,)))
        for layer in self.graph.layers[start:]:
            if layer.index in self.graph.live and layer.index not in self.dead:
                forms = {v: form for read in layer.operands for v in read if (form := self.form(v)) is not None}
                if forms:
                    self.follow(layer, forms)
        if any(self.form(value) is not None for value in self.graph.outputs):
            raise Refusal(RefusalCode.VALUE_REACHES_OUTPUT)
        return self.found

    def form(self, value: int) -> _Form | None:
        """The form of a value once the cut is made; None where its meaning is unchanged."""
        projected = False
        while value in self.cut.substitutes:
            projected |= value in self.cut.projected
            value = self.cut.substitutes[value]
        if value in self.forms:
            return self.forms[value]
        if not projected:
            return None
        shape, gap = list(self.graph.values[value].shape), self.gaps.get(value)
        if gap is not None:
            shape[gap.dim] -= int(gap.missing.sum())
        return _Form(tuple(shape), value)

    def follow(self, layer: Layer, forms: Mapping[int, _Form]) -> None:
        value, form = next(iter(forms.items()))
        name = layer.function or (layer.functions[0] if len(set(layer.functions)) == 1 else "")
        data = [read for read in layer.operands if read]
        if data != [(value,)]:
            raise Refusal(RefusalCode.READ_WITH_OTHERS, layer.name, type=layer.type_name)
        if layer.kind == "transform" or layer.params:
            self.fold(layer, value, form)
            return
        before, op = self.graph.values[value].shape, traits_of(name)
        elementwise = (layer.is_module and not layer.functions) or op.channels == "elementwise"
        spatial = op.channels == "spatial" and len(before) > 2
        flat = op.channels == "moves" and op.keeps_order and len(before) > 2
        flat = flat and all(size == 1 for size in (*before[2:], *form.shape[2:]))
        if elementwise and len(layer.outputs) == 1 and self.graph.values[layer.outputs[0]].shape == before:
            self.forms[layer.outputs[0]] = form
            return
        if not (spatial or flat or op.channels == "reduction") or len(layer.outputs) != 1:
            raise Refusal(RefusalCode.NOT_FOLDABLE, layer.name, type=layer.type_name)
        self.pass_on(layer, value, form)

    def pass_on(self, layer: Layer, value: int, form: _Form) -> None:
        """Pass other channels through a layer that treats every channel by itself."""
        before, after = self.graph.values[value].shape, self.graph.values[layer.outputs[0]].shape
        try:
            shape = self.rerun(layer, form.shape)
            alone = any(
                self.rerun(layer, _one_more(before, dim)) == _one_more(after, out)
                for dim, out in ((1, 1), (len(before) - 1, len(after) - 1))
                if form.shape[dim] == shape[min(out, len(shape) - 1)]
            )
        except Exception as error:  # a recorded argument may fit the recorded shape only
            raise Refusal(RefusalCode.CANNOT_RUN_ON_OTHERS, layer.name, type=layer.type_name) from error
        if len(shape) != len(after) or not alone:
            raise Refusal(RefusalCode.MIXES_DIMENSIONS, layer.name, type=layer.type_name)
        self.forms[layer.outputs[0]] = _Form(shape, form.source)

    def rerun(self, layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The output shape of a layer without parameters for another input shape."""
        call = self.modules[layer.fqn] if layer.is_module else recorded_call(layer)
        with no_modes(), torch.no_grad():
            out = call(torch.empty(shape, device="meta"))
        if not isinstance(out, torch.Tensor):
            raise Refusal(RefusalCode.RETURNS_NO_TENSORS)
        return tuple(out.shape)

    def fold(self, layer: Layer, value: int, form: _Form) -> None:
        before = self.graph.values[value].shape
        name = layer.fqn if layer.is_module else layer.name
        try:
            fqn, reader = reader_at(self.modules, layer)
            self.check_own(layer, fqn, reader)
        except Refusal as why:
            raise Refusal(RefusalCode.READER_CANNOT, name, why=why) from why
        channel = 1 if reader.num_axes else -1
        if reader.num_in != before[channel]:
            raise Refusal(RefusalCode.READER_CANNOT, name, why=Refusal(RefusalCode.CONVOLVES_GROUPS))
        strides = reader.strides(before, form.shape)
        if strides is None:
            wanted, found = ("×".join(map(str, shape)) for shape in (before, form.shape))
            raise Refusal(RefusalCode.ANOTHER_GRID, name, before=wanted, after=found)
        self.found.append(
            Fold(
                fqn=fqn,
                num_in=form.shape[channel],
                strides=strides,
                value=self.graph.name_of(value),
                source=self.graph.name_of(form.source),
                function=not reader.called,
                axis=0 if reader.axis == 0 else 1,
                constant=self.constant_in(layer, fqn, reader),
            )
        )

    def check_own(self, layer: Layer, fqn: str, reader: Reader) -> None:
        """Raise :class:`Refusal` where a transform shares its weight."""
        graph = self.graph
        calls = len(graph.calls[layer.fqn]) if layer.is_module else 1
        if calls > 1 or len(graph.aliases_of.get(layer.fqn, ((layer.fqn,),))[0]) > 1:
            raise Refusal(RefusalCode.CALLED_SEVERAL_TIMES)
        if not self.is_own(layer, f"{fqn}.weight" if reader.called else fqn):
            raise Refusal(RefusalCode.SHARES_WEIGHTS)

    def is_own(self, layer: Layer, param: str) -> bool:
        """Whether a parameter has one name and one layer that uses it."""
        number = self.graph.param_ids.get(param)
        num_names = sum(other == number for other in self.graph.param_ids.values())
        return number is not None and num_names == 1 and self.graph.param_users.get(number) == (layer.index,)

    def constant_in(self, layer: Layer, fqn: str, reader: Reader) -> str | None:
        """The tensor that can take the projection's constant: the bias, or the running mean of the next batch norm."""
        if reader.pads:  # padded zeros would not get the constant
            return None
        owner = f"{fqn}." if reader.called else fqn[: fqn.rfind(".") + 1]
        if reader.bias and self.is_own(layer, owner + reader.bias):
            return owner + reader.bias
        (out, *others) = layer.outputs
        readers = self.graph.readers.get(out, ())
        if others or len(readers) != 1 or out in self.graph.outputs or readers[0] in self.dead:
            return None
        norm = self.graph.layers[readers[0]]
        by_channel = reader.num_axes > 0 or len(self.graph.values[out].shape) == 2
        return f"{norm.fqn}.running_mean" if by_channel and norm.is_module and self.subtracts(norm) else None

    def subtracts(self, norm: Layer) -> bool:
        """Whether a layer subtracts a mean from each channel that is a buffer of its own."""
        module = self.modules[norm.fqn]
        known = isinstance(module, BatchNorm) and type(module).forward is BatchNorm.forward
        single = len(self.graph.calls[norm.fqn]) == 1 and norm.fqn not in self.graph.aliases_of
        held = buffers_of(module).get("running_mean")
        hooked = has_hooks(module)
        return known and single and held is not None and not hooked


def _one_more(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return tuple(size + (place == dim) for place, size in enumerate(shape))
