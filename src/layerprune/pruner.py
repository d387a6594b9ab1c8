"""The pruner: it sequences the stages, from a model to a smaller model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

from torch import nn

from layerprune.adapters import timm as timm_models
from layerprune.adapters import transformers as transformers_models
from layerprune.calibration import Batch, Loss, about_calibration, fitting, given_calibration
from layerprune.capture import record
from layerprune.cost.params import params_taken
from layerprune.edits import Edit, Pass
from layerprune.errors import (
    BudgetError,
    CriticalGroupError,
    InputsError,
    PlanError,
    UnknownNameError,
    UnsupportedModelError,
)
from layerprune.graph import LayerGraph
from layerprune.groups import Group, LayerInfo, form_groups
from layerprune.impact.criteria import criterion_of, score
from layerprune.impact.evidence import Scene
from layerprune.inputs import Inputs, as_inputs, infer_inputs
from layerprune.joining import join_cuts
from layerprune.marks import CannotRealise
from layerprune.modules import check_supported, fingerprint, names_with_nan, unwrap
from layerprune.plan import PlannedRemoval, PruningPlan, json_safe
from layerprune.proof import Prover, Removal, with_reasons
from layerprune.realise import Realisation
from layerprune.removals import GRANULARITIES, find_candidates, why_not
from layerprune.report.text import groups_text, plan_text, summary_text
from layerprune.select import Problem, select
from layerprune.shadow import Shadow


class UniversalLayerPruner:
    """Finds what can be removed from a model, shows it, and removes it within a budget.

    Constructing it records the model's forward, forms the groups and proves every removal; impacts are measured, in one
    forward, when they are first asked for. The model stays as it was.

    Args:
        model: any ``nn.Module``; a compiled or data-parallel one is unwrapped.
        example_inputs: a tensor, tuple (positional), dict (keyword) or object that ``forward`` takes; inferred if None.
        protect: patterns of dotted names (``fnmatch``) that stay, with all below them.
        protect_io: keep stem and head.
        granularity: ``group``, ``branch`` (residual branches, gates, concat branches) or ``block`` (elements of
            ``Sequential`` and ``ModuleList``).
        calibration: batches of real inputs that impacts are measured on, each as ``example_inputs``, which it stands
            in for; some hundred samples are right. Without it impacts are measured on the example inputs.
        loss: ``loss(model, item)`` calls the model on an item of ``calibration``, which then may hold labels, and
            returns one number, less being better; ``ablation``, ``shortlist`` and ``loss`` then measure this.
        criterion: ``ablation``, ``output_change``, ``loss``, ``influence``, ``magnitude``, ``shortlist`` (estimate all,
            make the promising), one of your own, or ``auto``: ``shortlist`` on calibration data, else ``influence``.
        seed: for what a criterion draws.

    Attributes:
        model: the model; after :meth:`prune`, the pruned one.
        graph: the layer graph.
        transform_layers: the transforms by name, in order of execution.

    Raises:
        UnsupportedModelError: scripted or lazy modules, or no transform at all.
        InputsError: the inputs do not fit, or none could be inferred.
        CalibrationError: the calibration data are empty, or could not be read.
        UnknownNameError: there is no criterion of that name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        example_inputs: Any = None,
        protect: Iterable[str] = (),
        protect_io: bool = True,
        granularity: str = "group",
        calibration: Iterable[Any] | None = None,
        loss: Loss | None = None,
        criterion: str = "auto",
        seed: int = 0,
    ) -> None:
        if granularity not in GRANULARITIES:
            raise BudgetError(f"granularity '{granularity}' is none of {', '.join(GRANULARITIES)}")
        check_supported(model)
        self._criterion = criterion_of(criterion, has_data=calibration is not None)
        self.model = unwrap(model)
        self._batches = given_calibration(calibration, self.model, loss)
        self._loss, self._seed = loss, seed
        self.granularity = granularity
        self.inputs, self.graph, shade = _record(self.model, example_inputs, self._batches)
        self._formed = form_groups(self.graph)
        self.transform_layers: Mapping[str, LayerInfo] = {g.name: g.lead_transform for g in self._formed}
        self._prover = Prover(shade, self.graph, self.inputs, whole_layers=granularity == "block")
        candidates = find_candidates(
            self.graph,
            self._formed,
            self._prover.modules,
            protect=(protect,) if isinstance(protect, str) else protect,
            protect_io=protect_io,
            granularity=granularity,
        )
        self._proven, refused = self._prover.prove(candidates.found, candidates.critical)
        self._reasons = {
            g.name: candidates.critical.get(g.name) or _reason(self.graph, g, refused) for g in self._formed
        }
        self._original = self.model
        self._joints: dict[tuple[int, ...], Realisation] = {}

    @cached_property
    def _scored(self) -> tuple[list[Removal], list[str], str]:
        """The removals with their impacts on the example inputs, what to know about these, and their unit."""
        notes = [f"weights hold NaN in {name}: impacts mean nothing" for name in names_with_nan(self._original)[:3]]
        if self.inputs.inferred and self._batches is None:
            made_up = "impacts are measured on made-up values only; pass example_inputs="
            notes.append(f"inputs were {self.inputs.origin}: {made_up}")
        if any(t.is_meta for t in chain(self._original.parameters(), self.inputs.tensors())):
            return self._proven, notes, "not measured: the model is on the meta device and has no values"
        batches = (Batch(None, self.inputs),) if self._batches is None else self._batches
        scene = Scene(self._original, self.graph, self._proven, batches, self._seed, self._loss)
        evidence = score(scene, self._criterion)
        notes += [*about_calibration(self._batches or ()), *evidence.notes]
        scored = [replace(r, impact=float(i)) for r, i in zip(self._proven, evidence.impacts, strict=True)]
        return scored, notes, f"{evidence.unit}, on the {'calibration data' if self._batches else 'example inputs'}"

    @property
    def removals(self) -> list[Removal]:
        """Every proven removal, with its impact."""
        return self._scored[0]

    @property
    def impact_unit(self) -> str:
        """What the impacts are, and what they were measured on."""
        return self._scored[2]

    @cached_property
    def groups(self) -> list[Group]:
        """The groups, by impact, least first, critical last."""
        return with_reasons(self._formed, self.removals, self._reasons)

    @property
    def notes(self) -> list[str]:
        """What the user should know about the recording, the proofs and the numbers."""
        return [*self.graph.notes, *self._prover.notes, *self._scored[1]]

    # ---- what there is to see -------------------------------------------------------------------------------------

    def render_plan(self) -> str:
        """Return the groups with their verdicts, and the sums below, as text."""
        kept = {group.name: self._kept(group) for group in self.groups if group.can_remove}
        removable = self._params_in(frozenset(g.name for g in self.groups if g.can_remove))
        total = self.graph.num_params
        summary = summary_text(self.groups, total, removable, self.impact_unit, self.notes)
        return f"{groups_text(self.groups, kept, total)}\n\n{summary}"

    def print_plan(self, plan: PruningPlan | None = None) -> None:
        """Print the groups; with a plan, also what it removes."""
        print(self.render_plan())
        if plan is not None:
            print(f"\n{plan_text(plan)}")

    def _kept(self, group: Group) -> frozenset[str]:
        """The members of a group that stay when its least-impact removal is made."""
        dead = self._best(group.name).dead
        others = [index for index in group.members if index != group.calls[0]]
        named = {info.name: index for info, index in zip(group.layers[1:], others, strict=True)}
        return frozenset(name for name, index in named.items() if index not in dead)

    def _params_in(self, names: frozenset[str]) -> int:
        members = [i for g in self.groups if g.name in names for i in g.members]
        sizes = {
            self.graph.param_ids[p]: self.graph.param_sizes[p] for i in members for p in self.graph.layers[i].params
        }
        return sum(sizes.values())

    def _best(self, name: str) -> Removal:
        """The least-impact removal that takes a group out."""
        ways = [r for r in self.removals if name in r.groups]
        return min(ways, key=lambda r: (math.isnan(r.impact), r.impact, r.num_params, r.name))

    # ---- planning -------------------------------------------------------------------------------------------------

    def plan(self, *, max_param_reduction: float | None = None, groups: Iterable[str] | None = None) -> PruningPlan:
        """Choose what to remove: as much as a budget allows at the least impact, or the groups named.

        Args:
            max_param_reduction: the largest share of the parameters that may go, between 0 and 1; 0.3 if nothing is
                given. A cap: never exceeded.
            groups: names of groups (their lead transforms); each leaves by its least-impact removal, with what has to
                leave along.

        Raises:
            BudgetError: the share is not between 0 and 1.
            UnknownNameError: there is no group of that name.
            CriticalGroupError: a group named cannot be removed, or those named not together.
        """
        if groups is not None:
            if max_param_reduction is not None:
                raise BudgetError("give either max_param_reduction or groups, not both")
            return self._plan_for(self._named([groups] if isinstance(groups, str) else list(groups)), None, ())
        share = 0.3 if max_param_reduction is None else max_param_reduction
        _check_share("max_param_reduction", share)
        taken = [params_taken(self.graph, self._prover.modules, r.realisation) for r in self.removals]
        problem = Problem(
            self.graph, self.removals, taken, lambda some: self._size(self._joint(some)), self._realise_jointly
        )
        selection = select(problem, int(share * self.graph.num_params))
        notes = [*selection.notes, *self._closeness(share, selection.num_params)]
        return self._plan_for(list(selection.chosen), share, notes)

    def _closeness(self, share: float, removed: int) -> list[str]:
        """Say how close a plan came to its budget, and what held it back."""
        total = self.graph.num_params
        reached = removed / total
        if reached >= share - 0.02:
            return [f"{reached:.1%} of a budget of {share:.1%} is used"]
        safe = self._params_in(frozenset(g.name for g in self.groups if g.can_remove)) / total
        why = (
            f"all safe groups together hold {safe:.1%} of the parameters"
            if safe <= share
            else "the next removal would exceed it, or excludes one that was chosen"
        )
        return [f"{reached:.1%} of a budget of {share:.1%} is used: {why}"]

    def _named(self, names: Sequence[str]) -> list[int]:
        by_name = {group.name: group for group in self.groups}
        chosen: dict[int, None] = {}
        for name in names:
            group = by_name.get(name)
            if group is None:
                raise UnknownNameError(
                    f"there is no group '{name}'; groups are {', '.join(repr(g.name) for g in self.groups[:8])}, …"
                )
            if not group.can_remove:
                raise CriticalGroupError(f"group '{name}' cannot be removed: {group.reason}")
            chosen[self.removals.index(self._best(name))] = None
        needless = [i for i in chosen if any(i != j and self.removals[i].dead < self.removals[j].dead for j in chosen)]
        return [i for i in chosen if i not in needless]

    def _joint(self, chosen: Sequence[int]) -> Realisation:
        """Realise removals together and prove the whole; what held is remembered."""
        known = self._joints.get(tuple(chosen))
        if known is not None:
            return known
        joint = self._realise_jointly(chosen)
        reason = self._prover.reason_against([joint])
        if reason is not None and joint.stand_ins and self.granularity != "block":
            joint = self._realise_jointly(chosen, shorten=False)
            reason = self._prover.reason_against([joint])
        if reason is not None:
            raise CannotRealise(reason)
        self._joints[tuple(chosen)] = joint
        return joint

    def _realise_jointly(self, chosen: Sequence[int], *, shorten: bool = True) -> Realisation:
        picked = [self.removals[i] for i in chosen]
        joint = self._prover.realise(join_cuts([(r.cut, r.dead) for r in picked], self.graph), shorten=shorten)
        if not all(r.dead <= joint.dead for r in picked):
            raise CannotRealise("what one of them removes, another one needs")
        return joint

    def _size(self, joint: Realisation) -> int:
        return params_taken(self.graph, self._prover.modules, joint).size(self.graph)

    def _plan_for(self, chosen: list[int], share: float | None, notes: Iterable[str]) -> PruningPlan:
        try:
            joint = self._joint(chosen) if chosen else None
        except CannotRealise as error:
            names = ", ".join(f"'{name}'" for i in chosen for name in self.removals[i].groups)
            raise CriticalGroupError(f"{names} cannot all be removed together: {error}") from error
        removed = 0 if joint is None else self._size(joint)
        asked = {name for i in chosen for name in self.removals[i].groups}
        return PruningPlan(
            model=type(self._original).__name__,
            fingerprint=fingerprint(self._original),
            max_param_reduction=share,
            granularity=self.granularity,
            removals=tuple(self._planned(self.removals[i]) for i in chosen),
            edits=() if joint is None else joint.edits,
            num_params_before=self.graph.num_params,
            num_params_after=self.graph.num_params - removed,
            impact_unit=self.impact_unit,
            needs_layerprune=joint is not None and any(_is_ours(edit) for edit in joint.edits),
            notes=(*notes, *self._company(asked, chosen), *self.notes),
        )

    def _company(self, asked: set[str], chosen: Sequence[int]) -> list[str]:
        alone = [self.removals[i] for i in chosen if len(self.removals[i].groups) > 1]
        return [f"{', '.join(r.groups)} leave together: {r.name}" for r in alone if asked]

    def _planned(self, removal: Removal) -> PlannedRemoval:
        layers = self.graph.layers
        members = [i for g in self.groups if g.name in removal.groups for i in g.members]
        return PlannedRemoval(
            name=removal.name,
            kind=removal.kind,
            groups=removal.groups,
            num_params=removal.num_params,
            impact=json_safe(removal.impact),
            kept=tuple(layers[i].name for i in members if i not in removal.dead),
            leftovers=tuple(layers[i].name for i in removal.realisation.leftovers),
        )

    # ---- pruning --------------------------------------------------------------------------------------------------

    def prune(
        self,
        *,
        max_param_reduction: float | None = None,
        groups: Iterable[str] | None = None,
        plan: PruningPlan | None = None,
        inplace: bool = False,
    ) -> nn.Module:
        """Remove layers and return the pruned model, which is also at :attr:`model` from then on.

        Every call starts from the model that the pruner was made with.

        Args:
            max_param_reduction: a budget; see :meth:`plan`.
            groups: names of the groups to remove; see :meth:`plan`.
            plan: a plan made before, for this model or another copy of it.
            inplace: edit the user's model instead of a copy.

        Returns:
            A model of the user's own class, in the mode that the original is in.

        Raises:
            PlanError: the plan was made for another model.
            BudgetError, UnknownNameError, CriticalGroupError: as for :meth:`plan`.
        """
        if plan is None:
            plan = self.plan(max_param_reduction=max_param_reduction, groups=groups)
        elif max_param_reduction is not None or groups is not None:
            raise PlanError("a plan says what to remove already: give it alone, without a budget or groups")
        if inplace:
            _ = self.notes  # measured on the model as it still is
        self.model = plan.apply(self._original, inplace=inplace)
        return self.model


def quick_prune(model: nn.Module, reduction: float = 0.3, **options: Any) -> nn.Module:
    """Prune a model in one call.

    Args:
        model: any ``nn.Module``; it stays as it was.
        reduction: the largest share of the parameters that may go, between 0 and 1.
        **options: as for :class:`UniversalLayerPruner`.

    Returns:
        A smaller model of the same class.
    """
    _check_share("reduction", reduction)
    return UniversalLayerPruner(model, **options).prune(max_param_reduction=reduction)


def _is_ours(edit: Edit) -> bool:
    """Whether an edit leaves a module of layerprune's in the model."""
    return edit.kind not in ("delete", "slice", "shorten", "take_place") and not (
        isinstance(edit, Pass) and edit.is_identity
    )


def _check_share(name: str, share: object) -> None:
    if not isinstance(share, (int, float)) or not 0 < share < 1:
        raise BudgetError(f"{name} is {share!r}; give a share between 0 and 1, as 0.3 for at most 30 %")


def _record(model: nn.Module, given: Any, batches: Sequence[Batch] | None) -> tuple[Inputs, LayerGraph, Shadow]:
    """Record the model on the inputs given, on the first batch of calibration data, or on what is inferred and fits."""
    if given is not None:
        inputs = as_inputs(given)
        return inputs, *record(model, inputs)
    if batches:
        with fitting():
            return batches[0].inputs, *record(model, batches[0].inputs)
    if not any(True for _ in model.parameters()):
        raise UnsupportedModelError("the model has no parameters: there is nothing to remove")
    recorded: list[tuple[LayerGraph, Shadow]] = []

    def attempt(inputs: Inputs) -> Exception | None:
        try:
            recorded.append(record(model, inputs, guessed=True))
        except InputsError as error:
            return error.__cause__ if isinstance(error.__cause__, Exception) else error
        return None

    known = chain(transformers_models.example_inputs(model), timm_models.example_inputs(model))
    inferred = infer_inputs(model, attempt, known)
    return inferred, *recorded[-1]


def _reason(graph: LayerGraph, group: Group, refused: Mapping[str, Sequence[str]]) -> str:
    """Why a group cannot go: what its candidates met with, else what its shapes say."""
    reasons = list(dict.fromkeys(refused.get(group.name, ())))
    return reasons[0] if reasons else why_not(graph, group)
