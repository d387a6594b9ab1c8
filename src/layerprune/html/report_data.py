"""The contents of a report page: names and numbers, made once by ``overview``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from layerprune.distillation import Distillation
from layerprune.fidelity import HeldOutVerdict
from layerprune.graph import Group
from layerprune.picture import Picture
from layerprune.plan import PruningPlan
from layerprune.repair import RepairReport
from layerprune.report import Facts, Screen

#: Label, original, pruned model, change: a row of the comparison, as text.
FigureRow = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class FrontierSet:
    """A set of groups that leave together.

    Attributes:
        reduction: share of the parameters that goes.
        impact: sum of the impacts, a prediction; nan where impacts are not known.
        groups: names of the groups that leave.
        mac_reduction: share of the multiply-accumulates that goes, a prediction; None where they are not counted.
        is_plan: whether this is the set of the plan.
    """

    reduction: float
    impact: float
    groups: tuple[str, ...]
    mac_reduction: float | None = None
    is_plan: bool = False


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How the result can be made again.

    Attributes:
        code: Python statements.
        command: the command line; empty where the command has no such options.
        versions: version by name of package.
        fingerprint: hash of the model's structure.
        seed: seed of all that was drawn.
    """

    code: str
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    fingerprint: str = ""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The contents of a report page.

    Attributes:
        model: class of the model.
        origin: the source of the model, such as ``timm:resnet50`` or a folder; empty where it is not known.
        num_params: number of parameters of the original.
        impact_unit: the unit of the impacts, and the data that they were measured on.
        num_macs: multiply-accumulates of one forward of the original; None where they are not counted.
        inputs: description of the inputs of that forward.
        screen: the first screen of the printed plan; None where there is a plan, or no live model.
        groups: the groups by impact, least first, critical last; empty where there is no live model.
        facts: facts about each group that can leave, by name.
        picture: the picture of the network, its groups in the order of ``groups``; None where there is no live model.
        plan: the plan; None where none was made.
        figures: rows of the comparison of sizes; the last two cells are empty before a plan was made.
        fidelity: rows of the comparison of outputs; empty where none was made.
        fidelity_on: the data of that comparison.
        sets: sets that leave together, by size, with the plan's; empty where impacts are not known.
        held_out: the verdict on held-out data, of the pruned model after its repair; None without such data.
        repair: the report of the repair; None where nothing was repaired.
        distillation: the report of the distillation; None where there was none.
        notes: remarks for the user.
        reproduction: how the result can be made again.
    """

    model: str
    origin: str = ""
    num_params: int
    impact_unit: str
    num_macs: int | None = None
    inputs: str = ""
    screen: Screen | None = None
    groups: Sequence[Group] = ()
    facts: Mapping[str, Facts] = field(default_factory=dict[str, Facts])
    picture: Picture | None = None
    plan: PruningPlan | None = None
    figures: Sequence[FigureRow] = ()
    fidelity: Sequence[FigureRow] = ()
    fidelity_on: str = ""
    sets: Sequence[FrontierSet] = ()
    held_out: HeldOutVerdict | None = None
    repair: RepairReport | None = None
    distillation: Distillation | None = None
    notes: Sequence[str] = ()
    reproduction: Reproduction

    @property
    def planned_groups(self) -> frozenset[str]:
        """Names of the groups that leave with the plan."""
        return frozenset() if self.plan is None else frozenset(self.plan.groups)
