"""The pruning plan: a plain record of removals, saved as JSON, applied to any copy of the model."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from torch import nn

from layerprune.channels import reader_for
from layerprune.edits import Edit, folds_of, why_malformed
from layerprune.environment import write_text
from layerprune.errors import PlanError, SurgeryError
from layerprune.graph import Refusal
from layerprune.modules import UndoLog, clone, difference, fingerprint, num_params, own, structure, unwrap
from layerprune.plan.composition import composed, names_at_first, parts_of, why_inconsistent
from layerprune.plan.provenance import entries_of, record
from layerprune.plan.records import PlanHeader, PlannedRemoval
from layerprune.surgery import check_numbers, cover, operate, rebuilders
from layerprune.tables import ShownAsTable, Table, brief, count_text, impact_text

#: 2: more budgets, intervals, frontier; 3: the model's structure; 4: folded projections; 5: slack and shortfall; 6:
#: several rounds.
SCHEMA = 6


class _Schema(BaseModel):
    schema_version: int = Field(default=SCHEMA, ge=1)


class PruningPlan(ShownAsTable, PlanHeader, _Schema):
    """Removals from a model, and the settings that they were chosen by.

    A plan holds names and numbers only. ``PruningPlan.from_json(plan.to_json())`` equals ``plan``. Its model, its
    settings and its figures are the fields of :class:`PlanHeader`.

    A plan of several pruning rounds is one plan: it is made for the model before the first round, and
    ``num_params_after`` is that after the last. The names in its removals and edits are those of the model at the
    beginning of their round; a :class:`~layerprune.edits.Boundary` separates the edits of two rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    removals: tuple[PlannedRemoval, ...]
    edits: tuple[Edit, ...]
    rounds: tuple[PlanHeader, ...] = Field(default=(), repr=False, description="header of each; empty for one round")

    @classmethod
    def of(cls, model: nn.Module) -> PruningPlan:
        """The plan that a pruned model was made by; all rounds in one where it was pruned in several.

        Raises:
            PlanError: the model was not pruned, or its plans are those of modules inside it.
        """
        placed = placed_plans(model)
        if not placed:
            raise PlanError(f"this {type(model).__name__} was not pruned: there is no plan in it")
        (name, plan), *others = placed
        if others or name:
            names = ", ".join(repr(name or "the model itself") for name, _ in placed[:4])
            raise PlanError(
                f"modules of this {type(model).__name__} were pruned by plans of their own ({names}): ask for the plan "
                "of one module; save_pruned(model, folder) keeps all of them"
            )
        return plan

    @property
    def parts(self) -> tuple[PruningPlan, ...]:
        """The plan of each round, for the model that the round before it left."""
        return parts_of(self)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that leave, as the model before the first round names them."""
        return tuple(name for removal in self.removals for name in names_at_first(removal, self.edits))

    def then(self, later: PruningPlan) -> PruningPlan:
        """One plan that makes the removals of this plan, then those of another, on the model that this one leaves.

        Raises:
            PlanError: the other plan was not made for the model that this one leaves.
        """
        return composed((*self.parts, *later.parts))

    def to_json(self) -> str:
        """Format the plan as JSON text."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Read a plan from JSON text.

        Raises:
            PlanError: the text is no plan, or has a newer schema; the message names the first invalid field.
        """
        try:
            plan = cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            _check_schema(text)
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"][:6]) or "the text"
            raise PlanError(f"not a pruning plan: {where}: {first['msg']}") from error
        _check_schema(text)
        for number, edit in enumerate(plan.edits):
            if reason := why_malformed(edit):
                raise PlanError(f"not a pruning plan: edits.{number}: cannot {edit.kind}: {reason}")
        if reason := why_inconsistent(plan):
            raise PlanError(f"not a pruning plan: rounds: {reason}")
        return plan

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan to a JSON file for :meth:`load`, whole or not at all.

        Raises:
            PlanError: the file cannot be written.
        """
        return write_text(path, self.to_json() + "\n", "the plan", PlanError)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningPlan:
        """Read a plan from a JSON file, or from a folder of :func:`layerprune.save_pruned`.

        Raises:
            PlanError: the file does not exist or holds no plan, or the folder holds several plans.
        """
        source = Path(path)
        if source.is_dir():
            if (source / "plan-2.json").exists():
                raise PlanError(f"{source} holds plans of several modules: give the file of one")
            source /= "plan.json"
        try:
            text = source.read_bytes().decode()
        except FileNotFoundError:
            raise PlanError(f"there is no file {source}; give the path of what plan.save(path) has written") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"the plan in {source} cannot be read: {error}") from error
        try:
            return cls.from_json(text)
        except PlanError as error:
            raise PlanError(f"{source}: {error}") from error

    def check(self, model: nn.Module, *, dtypes: bool = True) -> None:
        """Check that the plan was made for a model of the same structure.

        Args:
            model: the model.
            dtypes: False to allow other floating-point dtypes, for weights from a file.

        Raises:
            PlanError: the structure differs; the message names the first difference.
        """
        if self._fits(model):
            return
        if self.structure:
            detail = difference(self.structure, structure(model), dtypes=dtypes)
            if not detail and not dtypes:
                return
            detail = detail or "its tensors are named otherwise"
        elif num_params(model) != self.num_params_before or type(model).__name__ != self.model:
            detail = f"it has {num_params(model):,} parameters, the plan's model has {self.num_params_before:,}"
        else:
            detail = "its modules or tensor shapes differ"
        raise PlanError(
            f"the plan was made for another model ({self.model}), not for this {type(model).__name__}: {detail}; "
            "make a new plan with UniversalLayerPruner(model).plan(…)"
        )

    def _fits(self, model: nn.Module) -> bool:
        """Whether a model has the plan's fingerprint; schema 1 had several kinds of fingerprint."""
        if fingerprint(model) == self.fingerprint:
            return True
        older = [(False, True), (True, True)] if self.schema_version == 1 else []
        return any(fingerprint(model, paths=paths, caches=caches) == self.fingerprint for paths, caches in older)

    @property
    def needs_calibration(self) -> bool:
        """Whether weights must be fitted on calibration data, for folded projections."""
        return bool(folds_of(self.edits))

    def apply(self, model: nn.Module, *, inplace: bool = False, weights_follow: bool = False) -> nn.Module:
        """Apply the plan to a model with the structure that it was made for; see :func:`layerprune.quick_prune`.

        Args:
            model: another copy of the model, on any device, in any mode, with any weights.
            inplace: edit the model itself instead of a copy.
            weights_follow: saved weights will replace all weights. Plans that fold projections need this: the weights
                that take in a projection are zeros until then.

        Returns:
            The pruned model.

        Raises:
            PlanError: the plan was made for another model, its edits do not fit, or it folds projections and
                ``weights_follow`` is False. The model is as it was.
        """
        model = unwrap(model)
        self.check(model)
        if self.needs_calibration and not weights_follow:
            raise PlanError(
                "the plan folds projections, which are fitted on calibration data: carry it out with "
                "UniversalLayerPruner(model, calibration=batches).prune(plan=plan); to load weights that were saved "
                "into what it leaves, call plan.apply(model, weights_follow=True)"
            )
        # The copy shares tensors until the edits are made, so removed tensors are never copied.
        target = model if inplace else clone(model, lambda tensor: tensor)
        undo_log = UndoLog()
        try:
            self.carry_out(target, undo_log)
            return target if inplace else clone(target, own)
        except BaseException:  # Ctrl-C, too: the edits are reverted, or complete
            undo_log.take_back()
            raise

    def carry_out(self, model: nn.Module, undo_log: UndoLog | None = None) -> None:
        """Make the plan's edits on a checked model, in place, and record the plan in the model.

        Methods of its classes that would save the model in a form that cannot be loaded are refused from then on. All
        changes are recorded in ``undo_log``, for the caller to revert.

        Raises:
            PlanError: the edits do not fit, or leave another number of parameters. The model is as it was.
        """
        undo_log = UndoLog() if undo_log is None else undo_log
        entries = entries_of(model)
        for number, part in enumerate(self.parts):
            try:
                if number:
                    part.check(model, dtypes=False)
                part._carry_out_once(model, undo_log)
            except PlanError as error:
                undo_log.take_back()
                if not self.rounds:
                    raise
                raise PlanError(f"round {number + 1}: {error}") from error
        record(model, (*entries, ("", self.to_json())), undo_log)

    def _carry_out_once(self, model: nn.Module, undo_log: UndoLog) -> None:
        """Make the edits of a plan of one round."""
        self._check_folds(model)
        savers = rebuilders(model)
        try:
            check_numbers(model, self.edits)
            operate(model, self.edits, undo_log=undo_log)
        except SurgeryError as error:
            raise PlanError(f"the plan's edits do not fit this {type(model).__name__}: {error}") from error
        if (found := num_params(model)) != self.num_params_after:
            undo_log.take_back()
            raise PlanError(f"the plan promises {self.num_params_after:,} parameters, but its edits leave {found:,}")
        cover(model, savers, self.edits, undo_log)

    def _check_folds(self, model: nn.Module) -> None:
        """Refuse a weight larger than the whole model, before memory is allocated for it."""
        modules, most = dict(model.named_modules()), num_params(model)
        for fold in folds_of(self.edits):
            try:
                size = reader_for(modules[fold.owner], fold).size(fold.num_in)
            except (KeyError, Refusal):
                continue  # surgery reports this
            if size > most:
                raise PlanError(f"the plan would {fold}, with {size:,} elements where the whole model has {most:,}")

    @property
    def _size(self) -> str:
        return f"{self.num_params_before:,} → {self.num_params_after:,} parameters ({-self.reduction:+.1%})"

    def as_table(self) -> Table:
        """One row for each removal, the figures of the budgets, and the notes."""
        rows: list[tuple[str, ...]] = []
        for each in self.removals:
            name = f"round {each.round}: {each.name}" if self.rounds else each.name
            rows.append((name, ", ".join(each.groups), f"{each.num_params:,}", impact_text(each.impact)))
        before, after = self.num_params_before, self.num_params_after
        facts = [(figure.label, figure.change) for figure in self.figures]
        if self.impact_together is not None:
            facts.append(("Impact of all together, measured", f"{self.impact_together:.4g}"))
        return Table(
            title=f"{self.model}: {self._size}",
            facts=tuple(facts),
            columns=("removed", "groups", "parameters", "impact"),
            rows=tuple(rows) or (("nothing fits the budget", "", "0", ""),),
            footer=("together", "", f"{before - after:,}", "") if rows else (),
            notes=self.notes,
            num_left=2,
        )

    def __repr__(self) -> str:
        return brief(
            self, f"{self.model}: {self._size}, {count_text(len(self.removals), 'removal')}, by {self.strategy}"
        )

    def __str__(self) -> str:
        in_rounds = f" in {len(self.rounds)} rounds" if self.rounds else ""
        lines = [f"{self.model}: {self._size}{in_rounds}"]
        for removal in self.removals:
            lines.append(f"  {f'{removal.round}: ' if self.rounds else ''}{removal.name} ({removal.num_params:,})")
        return "\n".join(lines)


def plans_of(model: nn.Module) -> tuple[PruningPlan, ...]:
    """The plans that were applied to a model itself, in order; copies of the model have them, too.

    Rounds of pruning are one plan; there are several only where a module inside was pruned in between.
    """
    return tuple(plan for name, plan in placed_plans(model) if not name)


def placed_plans(model: nn.Module) -> tuple[tuple[str, PruningPlan], ...]:
    """The plans of a model and of the modules inside it, in order, each with the name of its module."""
    return merged(_placed_parts(model))


def plans_since(pruned: nn.Module, original: nn.Module) -> tuple[tuple[str, PruningPlan], ...]:
    """The plans that lead from one model to another, each with the name of its module."""
    before, parts = _placed_parts(original), _placed_parts(pruned)
    return merged(parts[len(before) :] if parts[: len(before)] == before else parts)


def merged(placed: Sequence[tuple[str, PruningPlan]]) -> tuple[tuple[str, PruningPlan], ...]:
    """Join plans of the same module that follow each other, where the second was made for what the first leaves."""
    found: list[tuple[str, PruningPlan]] = []
    for name, plan in placed:
        if found and found[-1][0] == name:
            with contextlib.suppress(PlanError):  # the module was changed in between: the plans stay apart
                found[-1] = name, found[-1][1].then(plan)
                continue
        found.append((name, plan))
    return tuple(found)


def _placed_parts(model: nn.Module) -> tuple[tuple[str, PruningPlan], ...]:
    return tuple((name, part) for name, text in entries_of(unwrap(model)) for part in _read(text).parts)


@lru_cache(maxsize=32)
def _read(text: str) -> PruningPlan:
    return PruningPlan.from_json(text)


#: A plan, its JSON as text or dict, or the path of a file or folder that holds it.
PlanGiven: TypeAlias = "PruningPlan | str | os.PathLike[str] | Mapping[str, Any]"


def plan_of(given: object) -> PruningPlan:
    """Convert any form of :data:`PlanGiven` to a plan; raises :class:`PlanError` for other values."""
    if isinstance(given, PruningPlan):
        return given
    if isinstance(given, (str, os.PathLike)):
        text = given.lstrip() if isinstance(given, str) else ""
        return PruningPlan.from_json(text) if text.startswith("{") else PruningPlan.load(given)
    if isinstance(given, Mapping):
        try:
            return PruningPlan.from_json(json.dumps(dict(given)))
        except (TypeError, ValueError) as error:
            raise PlanError(f"the dict is no pruning plan: {error}") from error
    raise PlanError(
        f"plan is a {type(given).__name__}; give what pruner.plan(…) returns, its JSON as text or dict, or the path of "
        "what plan.save(path) has written"
    )


def _check_schema(text: str) -> None:
    """Raise :class:`PlanError` for a plan of a newer schema, before other checks."""
    try:
        read = from_json(text)
    except (ValueError, TypeError):  # no JSON, or half a surrogate pair
        return
    version = cast("dict[str, Any]", read).get("schema_version") if isinstance(read, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise PlanError(f"the plan has schema {version}, this layerprune reads up to {SCHEMA}: upgrade layerprune")


def json_safe(value: float) -> Any:
    """Return the number; None for infinity and nan, which JSON lacks."""
    return value if value == value and abs(value) != float("inf") else None
