"""The pruner: runs the stages from a model to a smaller model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from layerprune.capture import Loss, given_calibration, record_first
from layerprune.checkpoint import save_pruned
from layerprune.cost import Saving, measure, saved
from layerprune.discovery import Discovery
from layerprune.distillation import Distillation, distill
from layerprune.environment import holding_process_lock, showing_progress
from layerprune.errors import BudgetError, LayerPruneWarning, PlanError, ShortfallWarning, warn
from layerprune.execute import carry_out, check_way
from layerprune.fidelity import Kind, divergence_named
from layerprune.fitting import ProjectionReport
from layerprune.graph import Group, LayerInfo
from layerprune.impact import ScoringContext, criterion_of
from layerprune.modules import check_supported, unwrap
from layerprune.options import Protected, checked_seed, patterns_of, settings_of
from layerprune.overview import PlanReport
from layerprune.plan import FrontierPoint, PlanGiven, PruningPlan, plan_of
from layerprune.planner import Planner
from layerprune.proof import (
    JointRemovals,
    Removal,
    UnusedModule,
    about_calls,
    find_unused,
    plan_unused,
    unused_note,
)
from layerprune.removals import GRANULARITIES
from layerprune.repair import RepairReport
from layerprune.scoring import Scored, about_unfitted, score_removals
from layerprune.select import SLACK, Budgets, Named, Resources, check_share, removals_for


@holding_process_lock(but=("distill",))
class UniversalLayerPruner(PlanReport):
    """Finds the removable groups of a model, shows them, and removes groups within a budget.

    Construction records the model's forward, forms the groups and proves every removal that needs no calibration data.
    Projections are proven where there are such data, or when :attr:`groups` or :attr:`removals` are asked for. Impacts
    are measured on first use. The model stays unchanged.

    Args:
        model: any ``nn.Module``; a compiled or data-parallel one is unwrapped.
        example_inputs: a tensor, tuple (positional), dict (keyword) or object that ``forward`` takes; inferred if None.
        protect: patterns of dotted names (``fnmatch``), modules or groups that stay, with all modules inside.
        protect_io: keep stem and head.
        granularity: ``group``, ``branch`` (residual branches, gates, concat branches) or ``block`` (elements of
            ``Sequential`` and ``ModuleList``).
        projections: also remove groups that change channels or resolution, where a projection can be folded into the
            readers of their output. It is fitted on calibration data; such a plan needs data again when it is applied.
        renumber: close gaps in ``Sequential`` and ``ModuleList`` where the forward then does the same: no stand-ins are
            left, and the model's own smaller class loads the state dict.
        calibration: batches of real inputs to measure impacts on, such as a DataLoader: tuples or lists (positional),
            dicts (keyword); labels, which ``forward`` does not take, are left out with a note. A few hundred samples
            suffice. They replace ``example_inputs``; without them impacts are measured on the example inputs.
        loss: ``loss(model, item)`` calls the model on an item of ``calibration``, which may then hold labels, and
            returns one number, less being better; the criteria ``ablation``, ``shortlist`` and ``loss`` measure it.
        kind: how outputs are compared: ``distribution`` for logits, by the KL divergence, or ``values`` for plain
            numbers; chosen from the model and its output if None.
        criterion: ``ablation``, ``output_change``, ``loss``, ``influence``, ``magnitude``, ``shortlist`` (estimate all,
            measure the best), a registered one, or ``auto``: ``shortlist`` on calibration data, else ``influence``.
        seed: seed of random criteria and strategies.
        progress: whether to show bars during long work; None: only if standard error is a terminal.

    Attributes:
        model: the model; after :meth:`prune`, the pruned one.
        graph: the layer graph.
        transform_layers: the transforms by name, in order of execution.
        repair_report: the layers that :meth:`prune` repaired; None where it repaired nothing.
        projection_report: the projections that :meth:`prune` fitted and folded; None where there were none.
        distillation: what :meth:`distill` did since; None where it was not called.

    Raises:
        UnsupportedModelError: the model has scripted or lazy modules, or no transform.
        InputsError: the inputs do not fit, or none could be inferred.
        CalibrationError: the calibration data are empty, or could not be read.
        UnknownNameError: the criterion or kind of outputs does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        example_inputs: Any = None,
        protect: Protected | Iterable[Protected] | None = (),
        protect_io: bool = True,
        granularity: str = "group",
        projections: bool = True,
        renumber: bool = False,
        calibration: Iterable[Any] | None = None,
        loss: Loss | None = None,
        kind: Kind | None = None,
        criterion: str = "auto",
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        if granularity not in GRANULARITIES:
            raise BudgetError(f"granularity {granularity!r:.60} is none of {', '.join(GRANULARITIES)}")
        given = locals()
        check_supported(model)
        self._criterion = criterion_of(criterion, has_data=calibration is not None)
        self.model = unwrap(model)
        self._batches = given_calibration(calibration, self.model, loss)
        self._loss, self._seed, self._progress = loss, checked_seed(seed), progress
        self._harm = divergence_named(kind)
        self.granularity = granularity
        self.inputs, self.graph, shade = record_first(self.model, example_inputs, self._batches)
        patterns = patterns_of(protect, self.model)
        self._settings = settings_of(UniversalLayerPruner.__init__, {**given, "protect": patterns})
        self._found = Discovery(
            shade,
            self.graph,
            self.inputs,
            protect=patterns,
            protect_io=protect_io,
            granularity=granularity,
            projections=projections,
            renumber=renumber,
            progress=progress,
        )
        self.transform_layers: Mapping[str, LayerInfo] = {g.name: g.lead_transform for g in self._found.groups}
        self._original = self.model
        self._pruned_by: list[PruningPlan] = []
        self._latest: PruningPlan | None = None
        self._is_edited = False
        self.repair_report: RepairReport | None = None
        self.projection_report: ProjectionReport | None = None
        self.distillation: Distillation | None = None

    @cached_property
    def _scored(self) -> Scored:
        found = self._found
        removals = found.removals if self._batches is None else [*found.removals, *found.projections.removals]
        scene = ScoringContext(
            model=self._original,
            graph=self.graph,
            removals=removals,
            batches=(),
            seed=self._seed,
            loss=self._loss,
            harm=self._harm,
        )
        return score_removals(scene, self.inputs, self._batches, self._criterion, self._progress)

    @property
    def removals(self) -> list[Removal]:
        """Every proven removal, with its impact; projections without data to fit them on come last."""
        return [*self._scored.removals, *self._planner.unfitted]

    @property
    def impact_unit(self) -> str:
        """The unit of the impacts, and the data that they were measured on."""
        return self._scored.unit

    @property
    def groups(self) -> list[Group]:
        """The groups, by impact, least first; then those that need calibration data; critical ones last."""
        return self._planner.groups

    @property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """The least sum of impacts for every size, a prediction; empty where impacts are not known.

        A plan made with calibration data holds it; for dense graphs it takes seconds.
        """
        return self._planner.frontier

    @property
    def notes(self) -> list[str]:
        """Remarks for the user on the recording, the proofs and the numbers."""
        about_data = about_unfitted(self._scored.removals, self._planner.unfitted)  # its proofs make notes, too
        return [*self._said, *about_data]

    @property
    def _plan_notes(self) -> list[str]:
        """The notes for a plan, for which no projection has to be proven."""
        found, scored = self._found, self._scored
        untried = found.notes if self._batches is None else about_unfitted(scored.removals, scored.unfitted)
        return [*self._said, *untried]

    @property
    def _said(self) -> list[str]:
        proofs = [*self._found.prover.notes, *about_calls(self._found.groups, self._found.removals)]
        return [*self.graph.notes, *proofs, *unused_note(self.graph, self.unused), *self._scored.notes]

    @cached_property
    def unused(self) -> tuple[UnusedModule, ...]:
        """The modules that neither eval nor train mode runs on the example inputs, largest first."""
        return find_unused(self._found.prover)

    # ---- planning -------------------------------------------------------------------------------------------------

    def plan(
        self,
        *,
        max_param_reduction: float | None = None,
        max_mac_reduction: float | None = None,
        target_latency_ms: float | None = None,
        max_memory_bytes: int | None = None,
        max_impact: float | None = None,
        slack: float = SLACK,
        groups: Named | Iterable[Named] | None = None,
        strategy: str = "auto",
        unused: bool = False,
    ) -> PruningPlan:
        """Choose the removals of least impact within budgets, or the groups named.

        Caps are never exceeded, and a plan comes as close to them as it can. Targets are reached with as little impact
        as possible. Budgets may be combined; ``max_param_reduction=0.3`` if nothing is given.

        Args:
            max_param_reduction: cap: the largest share of the parameters that may go, between 0 and 1.
            max_mac_reduction: cap: the largest share of the multiply-accumulates of one forward that may go.
            target_latency_ms: target: the median time of one forward on the example inputs, measured, in ms.
            max_memory_bytes: target: peak memory of parameters, buffers and activations in one forward, in bytes.
            max_impact: cap: the largest impact of all removals together, in the unit of :attr:`impact_unit`.
            slack: how far a plan may stay below the largest one that fits, as a share of it, for less impact; twice as
                far if that at least halves a measured impact. 0 fills the caps. Not for ``greedy``, ``repaired``.
            groups: names of groups (their lead transforms), of modules above several (``"blocks.0"``), patterns, or
                objects of :attr:`groups` and :attr:`removals`; each leaves by the removal that takes the fewest others.
            strategy: ``exact`` (impacts add up), ``quadratic`` (pairs count as well), ``greedy`` (measured again after
                each removal), ``evolution`` (swaps, each measured), ``resampled`` (exact for several draws of the
                calibration data, each measured), ``repaired`` (greedy, each set repaired before it is measured; slow),
                or ``auto``: ``resampled`` with calibration data, else ``exact``.
            unused: remove :attr:`unused` modules only. To go on, make a new pruner of the result.

        Raises:
            BudgetError: a budget is out of its range, a target out of reach, or the strategy does not exist.
            CostError: the model's cost cannot be measured, such as a latency on the meta device.
            UnknownNameError: no group or module has that name.
            CriticalGroupError: a named group cannot be removed, or not together with the others.
            CalibrationError: a named group leaves by a projection only, and there are no data to fit it on.
        """
        budgets = Budgets.among(locals())
        with showing_progress(self._progress):
            self._latest = self._chosen(budgets, groups, strategy, unused)
        return self._latest

    def _chosen(
        self, budgets: Budgets, groups: Named | Iterable[Named] | None, strategy: str, unused: bool
    ) -> PruningPlan:
        self._check_original()
        if unused and (budgets.given or groups is not None):
            raise BudgetError("unused=True takes out what never runs, and nothing else: give it alone, then go on")
        if unused:
            return plan_unused(self._original, self._found.prover, self.unused, self.granularity, self._seed)
        if groups is None:
            return self._planner.within(budgets.or_default(), strategy, self._plan_notes)
        if budgets.given:
            raise BudgetError("give either budgets or groups, not both")
        chosen = removals_for(groups, self.groups, self._planner.problem(()), self._planner.unfitted)
        return self._planner.of(chosen, self._plan_notes)

    @cached_property
    def _planner(self) -> Planner:
        scored, original = self._scored, self._original
        joints = JointRemovals(self._found.prover, scored.removals, original)
        meter = Resources(original, self.graph, self.inputs, joints, scored.removals)
        return Planner(original, self.graph, self._found, scored, joints, meter, self.granularity, self._seed)

    def saving(self, plan: PlanGiven) -> Saving:
        """Measure the savings of a plan: parameters, bytes, multiply-accumulates, peak activations, KV cache.

        The original and the pruned model are both measured on the example inputs; nothing is summed. For latencies see
        :func:`compare_latency`.

        Raises:
            PlanError: the plan was made for another model.
        """
        self._check_original()
        pruned = plan_of(plan).apply(self._original, weights_follow=True)  # costs do not depend on weights
        return saved(measure(self._original, self.inputs), measure(pruned, self.inputs))

    # ---- pruning --------------------------------------------------------------------------------------------------

    def prune(
        self,
        *,
        max_param_reduction: float | None = None,
        max_mac_reduction: float | None = None,
        target_latency_ms: float | None = None,
        max_memory_bytes: int | None = None,
        max_impact: float | None = None,
        slack: float = SLACK,
        groups: Named | Iterable[Named] | None = None,
        strategy: str = "auto",
        unused: bool = False,
        plan: PlanGiven | None = None,
        repair: str | None = "auto",
        inplace: bool = False,
    ) -> nn.Module:
        """Remove layers and return the pruned model, which is also at :attr:`model` from then on.

        Every call starts from the model that the pruner was made with; after ``inplace=True`` a new pruner is needed.

        Args:
            max_param_reduction: a budget; see :meth:`plan`, as for the next four.
            max_mac_reduction: a budget.
            target_latency_ms: a budget.
            max_memory_bytes: a budget.
            max_impact: a budget.
            slack: how closely caps are filled.
            groups: names of groups to remove; see :meth:`plan`.
            strategy: how to choose; see :meth:`plan`.
            unused: remove unused modules only; see :meth:`plan`.
            plan: an earlier plan for this model or a copy of it; or its JSON text or dict, or the path of its file.
            repair: ``auto``: with calibration data, solve the layers around each gap again, in closed form
                (:func:`repair`; see :attr:`repair_report`). ``mean``: only move biases. None: leave the weights.
            inplace: edit the user's model instead of a copy.

        Returns:
            A model of the user's own class, in its mode. A :class:`ShortfallWarning` tells why little was removed.

        Raises:
            PlanError, RepairError: the plan was made for another model, or ``repair`` is none of these.
            CalibrationError: the plan folds projections, or ``repair="mean"``, and there are no calibration data.
            NotFiniteError: the model makes NaN or infinite values of the calibration data.
            BudgetError, CostError, UnknownNameError, CriticalGroupError: as for :meth:`plan`.
        """
        budgets = Budgets.among(locals())
        check_way(repair, has_data=self._batches is not None)
        self._check_original()
        if plan is None:
            with showing_progress(self._progress):
                chosen = self._chosen(budgets, groups, strategy, unused)
        elif unused or groups is not None or budgets.given:
            raise PlanError("a plan says what to remove already: give it alone, without a budget or groups")
        else:
            chosen = plan_of(plan)
        with showing_progress(self._progress):
            return self._carry_out(chosen, repair, inplace)

    def _carry_out(self, chosen: PruningPlan, repair: str | None, inplace: bool) -> nn.Module:
        if inplace:
            _ = self.notes, self.groups  # impacts and proofs must be made before the model changes
        how, harm = "refit" if repair == "auto" else repair, self._harm
        carried = carry_out(chosen, self._original, self._batches, how=how, inplace=inplace, harm=harm)
        self.model, self.repair_report = carried.model, carried.repair_report
        self.projection_report = carried.projection_report
        self._pruned_by.append(chosen)
        self._latest, self.distillation = chosen, None
        self._is_edited = inplace and bool(chosen.edits)
        if chosen.shortfall or not chosen.removals:
            warn(chosen.shortfall or "the plan removes nothing", ShortfallWarning)
        return self.model

    def _check_original(self) -> None:
        """Refuse to start from a model that has changed since the pruner was made."""
        if self._is_edited:
            raise PlanError(
                f"this {type(self._original).__name__} was pruned in place, and what this pruner knows is of the model "
                "before: make a new UniversalLayerPruner(model), or prune copies, without inplace=True"
            )

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Save the model pruned last, with its plan; options as for :func:`layerprune.save_pruned`.

        After several calls of :meth:`prune` a warning names the saved model's plan.
        """
        if len(self._pruned_by) > 1:
            last = str(self._pruned_by[-1]).splitlines()[0]
            others = "save another with layerprune.save_pruned(model, folder)"
            warn(f"of {len(self._pruned_by)} models pruned the last is saved, {last}; {others}", LayerPruneWarning)
        return save_pruned(self.model, folder, **options)

    def distill(self, data: Iterable[Any], **options: Any) -> Distillation:
        """Train the pruned model against the original; options as for :func:`layerprune.distill`."""
        options.setdefault("kind", self._harm and self._harm.kind)
        options.setdefault("progress", self._progress)
        self.distillation = distill(self._original, self.model, data, **options)
        return self.distillation


def quick_prune(model: nn.Module, reduction: float = 0.3, **options: Any) -> nn.Module:
    """Prune a model in one call.

    Args:
        model: any ``nn.Module``; it stays unchanged.
        reduction: the largest share of the parameters that may go, between 0 and 1.
        **options: as for :class:`UniversalLayerPruner`.

    Returns:
        A smaller model of the same class.
    """
    check_share("reduction", reduction)
    return UniversalLayerPruner(model, **options).prune(max_param_reduction=reduction)
