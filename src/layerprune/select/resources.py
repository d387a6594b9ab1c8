"""Measures how much sets of removals save of each budgeted resource."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from torch import nn

from layerprune.cost import (
    Latency,
    Savings,
    activation_peak_bytes,
    buffer_bytes,
    bundles,
    compare_latency,
    count_macs,
    layers_taken,
    param_bytes,
    params_taken,
    tally_layers,
    time_by_layer,
)
from layerprune.graph import LayerGraph, Refusal
from layerprune.inputs import Inputs
from layerprune.modules import num_params
from layerprune.plan import PlannedFigure
from layerprune.proof import JointRemovals, Removal
from layerprune.removals import Lowering
from layerprune.select.budgets import Budgets
from layerprune.select.constraints import Limit, Pieces
from layerprune.select.interactions import interactions, with_interactions
from layerprune.select.problem import Resource
from layerprune.tables import bytes_text


class Resources:
    """Measures how much sets of removals save, each quantity on first use; the model does not change."""

    def __init__(
        self, model: nn.Module, graph: LayerGraph, inputs: Inputs, joints: JointRemovals, removals: Sequence[Removal]
    ) -> None:
        self.model = model
        self.graph = graph
        self.inputs = inputs
        self.joints = joints
        self.removals = removals
        self._latencies: dict[tuple[int, ...], tuple[Latency, Latency]] = {}
        self._joint: dict[tuple[int, ...], Lowering | None] = {}

    def resources(self, budgets: Budgets) -> list[Resource]:
        """The resources that budgets name; caps are filled unless a target is given."""
        fills = not budgets.has_target
        found: list[Resource] = []
        share = budgets.max_param_reduction
        if share is None and fills and budgets.max_mac_reduction is None:
            share = 1.0  # max_impact is the only cap: as much goes as it allows
        if share is not None:
            found.append(self.params(share, fills))
        if budgets.max_mac_reduction is not None:
            found.append(self.macs(budgets.max_mac_reduction, fills))
        if budgets.target_latency_ms is not None:
            found.append(self.latency(budgets.target_latency_ms))
        if budgets.max_memory_bytes is not None:
            found.append(self.memory(budgets.max_memory_bytes))
        return found

    # ---- resources ------------------------------------------------------------------------------------------------

    def params(self, share: float, fills: bool) -> Resource:
        pieces = self.param_pieces
        cap = share * self.graph.num_params
        return Resource(
            name="parameters",
            pieces=pieces,
            measure=lambda some: self.joints.num_params(some),
            at_most=cap,
            is_filled=fills,
            total=self.graph.num_params,
            argument="max_param_reduction",
        )

    def macs(self, share: float, fills: bool) -> Resource:
        pieces = self.macs_pieces
        before = self.macs_before

        def saved(some: Sequence[int]) -> float:
            return before - count_macs(self.joints.without(some), self.inputs)

        return Resource(
            name="MACs",
            pieces=pieces,
            measure=saved,
            at_most=share * before,
            is_filled=fills,
            total=before,
            argument="max_mac_reduction",
        )

    def latency(self, target: float) -> Resource:
        """The time of one forward; times of single layers are scaled to the whole forward."""
        before = self.latency_before
        times = time_by_layer(self.model, self.graph, self.inputs)
        scale = before / max(sum(times.values()), 1e-12)
        pieces = self._by_layer({layer: scale * each for layer, each in times.items()})

        def show(saved: float) -> str:
            return f"{before - saved:.3g} ms"

        return Resource(
            name="target_latency_ms",
            pieces=pieces,
            measure=lambda some: before - self._timed(some)[1].median_ms,
            at_least=max(before - target, 0.0),
            show=show,
        )

    def memory(self, most: int) -> Resource:
        """The bytes of parameters, buffers and activations; the additive part is the parameters' bytes."""
        each = param_bytes(self.model) / max(num_params(self.model), 1)
        pieces = {takers: size * each for takers, size in self.param_pieces.items()}
        before = self.memory_before

        def saved(some: Sequence[int]) -> float:
            return before - _held(self.joints.without(some), self.inputs)

        def show(saved: float) -> str:
            return bytes_text(int(before - saved))

        return Resource(
            name="max_memory_bytes", pieces=pieces, measure=saved, at_least=max(before - most, 0.0), show=show
        )

    @cached_property
    def param_pieces(self) -> Pieces:
        modules, sizes = self.joints.prover.modules, self.graph.size_of_param
        return self._pieces(sizes, lambda lowering: params_taken(self.graph, modules, lowering))

    @property
    def has_to_shrink(self) -> Limit | None:
        """The limit that projections must not add more parameters than leave; None without projections."""
        if not any(removal.needs_calibration for removal in self.removals):
            return None
        return Limit(self.param_pieces, low=float(min(1, *(removal.num_params for removal in self.removals))))

    def of(self, removals: Sequence[Removal]) -> Resources:
        return Resources(
            self.model, self.graph, self.inputs, JointRemovals(self.joints.prover, removals, self.model), removals
        )

    @cached_property
    def macs_pieces(self) -> Pieces:
        return self._by_layer(self.macs_by_layer)

    def _by_layer(self, costs: Mapping[int, float]) -> Pieces:
        modules = self.joints.prover.modules
        return self._pieces(costs, lambda lowering: layers_taken(self.graph, modules, lowering, costs))

    def _pieces(self, sizes: Mapping[int, float], taken_by: Callable[[Lowering], Savings]) -> Pieces:
        alone = bundles(sizes, [taken_by(removal.lowering) for removal in self.removals])

        def size_of(some: tuple[int, ...]) -> float | None:
            joint = self._together(some)
            return None if joint is None else taken_by(joint).amount(sizes)

        return with_interactions(alone, self._companies, size_of)

    @cached_property
    def _companies(self) -> list[tuple[int, ...]]:
        modules = self.joints.prover.modules

        def taken_by(some: tuple[int, ...]) -> Savings | None:
            joint = self._together(some)
            return None if joint is None else params_taken(self.graph, modules, joint)

        return interactions(self.graph, self.removals, taken_by)

    def _together(self, some: tuple[int, ...]) -> Lowering | None:
        """The lowering of a set; None where it does not lower."""
        if len(some) == 1:
            return self.removals[some[0]].lowering
        if some not in self._joint:
            try:
                self._joint[some] = self.joints.likely(some)
            except Refusal:
                self._joint[some] = None
        return self._joint[some]

    # ---- the model as it is ---------------------------------------------------------------------------------------

    @cached_property
    def macs_before(self) -> int:
        return count_macs(self.model, self.inputs)

    @cached_property
    def macs_by_layer(self) -> Mapping[int, float]:
        return self.layer_tally[0]

    @cached_property
    def layer_tally(self) -> tuple[Mapping[int, float], int]:
        """The multiply-accumulates of each layer, and of the whole forward."""
        return tally_layers(self.model, self.graph, self.inputs)

    def macs_taken(self, lowering: Lowering) -> float:
        """The multiply-accumulates of the dead layers and dropped channels of one removal or set."""
        modules, costs = self.joints.prover.modules, self.macs_by_layer
        return layers_taken(self.graph, modules, lowering, costs).amount(costs)

    @cached_property
    def memory_before(self) -> int:
        """The peak memory of the model in one forward, in bytes."""
        return _held(self.model, self.inputs)

    @cached_property
    def latency_before(self) -> float:
        """The median time of one forward of the model, in ms."""
        return compare_latency({"the model": self.model}, self.inputs)["the model"].median_ms

    @property
    def known_latency(self) -> float | None:
        """The median time of one forward, in ms, where a budget asked for it; it is not measured here."""
        return vars(self).get("latency_before")

    def _timed(self, chosen: Sequence[int]) -> tuple[Latency, Latency]:
        key = tuple(sorted(chosen))
        if key not in self._latencies:
            pair = {"the model": self.model, "the pruned model": self.joints.without(key)}
            before, after = compare_latency(pair, self.inputs).values()
            self._latencies[key] = before, after
        return self._latencies[key]

    def figures(self, budgets: Budgets, chosen: Sequence[int]) -> list[PlannedFigure]:
        """The budgeted figures other than parameters, before and after a set."""
        found: list[tuple[str, float, float]] = []
        if budgets.max_mac_reduction is not None:
            found.append(("macs", self.macs_before, count_macs(self.joints.without(chosen), self.inputs)))
        if budgets.target_latency_ms is not None:
            before, after = self._timed(chosen)
            found.append(("latency_ms", before.median_ms, after.median_ms))
        if budgets.max_memory_bytes is not None:
            found.append(("memory_bytes", self.memory_before, _held(self.joints.without(chosen), self.inputs)))
        return [PlannedFigure(name=name, before=before, after=after) for name, before, after in found]


def _held(model: nn.Module, inputs: Inputs) -> int:
    return param_bytes(model) + buffer_bytes(model) + activation_peak_bytes(model, inputs)
