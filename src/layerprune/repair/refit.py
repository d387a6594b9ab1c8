"""Solves the remaining layers again, front to back, so that they restore the original's tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from layerprune.capture import Batch, Sandbox, real_sandbox
from layerprune.environment import progress_bar
from layerprune.modules import write
from layerprune.repair.normed_solver import solve_normed
from layerprune.repair.report import Refitted
from layerprune.repair.sites.sites import Site
from layerprune.repair.solver import Change, Solver
from layerprune.repair.stream.lockstep import Lockstep
from layerprune.repair.stream.model_run import ModelRun
from layerprune.repair.stream.schedule import solved_ahead
from layerprune.repair.stream.site_batch import SiteBatch

_SHARE_HELD_OUT = 0.25

#: After this many transforms in a row with almost no gain, the next ones are skipped, up to the next gap.
PATIENCE = 4

#: A gain below this share of the largest gain behind the same gap counts as almost none.
NEXT_TO_NOTHING = 0.02


def first_held_out(num_batches: int) -> int:
    """The number of the first held-out batch: the last quarter is held out, or the only batch."""
    return num_batches - max(1, round(num_batches * _SHARE_HELD_OUT))


class Patience:
    """Tells when further solving gains nothing: the gain of a transform falls with its distance from the gap.

    A transform that feeds the model's output is solved at any distance, as no later layer can hide its gain.
    """

    def __init__(self, outputs: Collection[int]) -> None:
        self.outputs = frozenset(outputs)
        self.num_gaps = 0
        self.most = 0.0
        self.num_low = 0

    def holds(self, site: Site) -> bool:
        return self.num_low < PATIENCE or site.num_gaps > self.num_gaps or site.reached in self.outputs

    def learn(self, site: Site, won: float) -> None:
        """Record the gain of a site: a squared distance relative to its tensor, on held-out rows."""
        if site.num_gaps > self.num_gaps:
            self.num_gaps, self.most, self.num_low = site.num_gaps, 0.0, 0
        self.most = max(self.most, won)
        self.num_low = 0 if won > NEXT_TO_NOTHING * self.most else self.num_low + 1


class Refitter:
    """Solves the transforms of a pruned model again, on copies of their weights; :func:`repair` explains the arguments.

    Attributes:
        values: the new weights, by name.
        refused: sites that could not be solved again, and why.
        notes: messages for the user.
        outputs: number of each held-out batch → the output of the original, and that of the pruned model's corrected
            forward; None for either where it is not known.
    """

    def __init__(
        self,
        original: ModelRun,
        pruned: ModelRun,
        batches: Sequence[Batch],
        memory_bytes: int,
        *,
        how: str = "refit",
        new_biases: bool = False,
    ) -> None:
        self.original = original
        self.pruned = pruned
        self.batches = batches
        self.memory_bytes = memory_bytes
        self.how = how
        self.new_biases = new_biases
        self.values: dict[str, Tensor] = {}
        self.refused: dict[str, str] = {}
        self.notes: list[str] = []
        self.outputs: Mapping[int, tuple[Any, Any]] = {}

    def run(self, sites: Sequence[Site]) -> tuple[list[Refitted], Sandbox]:
        """Solve the sites whose tensors the removals changed, front to back, each on the sites repaired before it.

        Returns:
            The result of each site, and a sandbox of the pruned model with the new weights.

        Raises:
            CalibrationError: a batch does not run, or gives values that are not finite.
        """
        weights = {f"{site.name}.{key}" for site in sites for key in ("weight", "bias")}
        repaired = real_sandbox(self.pruned.model, written=self.pruned.graph.written_params, copied=weights)
        num, first = len(self.batches), first_held_out(len(self.batches))
        solver = Solver(self.pruned.shade.model, num, first, _SHARE_HELD_OUT, self.memory_bytes)
        done: list[Refitted] = []
        unseen = {site.name for site in sites}
        ahead = solved_ahead(sites, self.pruned.graph, solver.fits_ahead) if self.how == "refit" else frozenset[str]()
        walk = Lockstep(self.original, self.pruned, repaired, self.batches, sites, self.memory_bytes, first, ahead)
        patience, left, num = Patience(self.pruned.graph.outputs), list[str](), len(sites)
        with progress_bar("repairing") as tell, walk.running():
            for stop, here in walk.stops():
                tell(num - len(walk.behind(stop)) - len(here), num)
                some = [site for site in here if patience.holds(site)]
                left += [site.name for site in here if site not in some]
                shown = walk.views(stop, some) if some else {}
                unseen -= {name for name, views in shown.items() if views}
                for site in some:
                    if not shown[site.name] or not (moved := solver.moved(site, shown[site.name])):
                        continue
                    if not patience.holds(site):
                        left.append(site.name)
                    elif (solved := self.solve(solver, site, shown[site.name])) is not None:
                        told, change = solved
                        done.append(told)
                        patience.learn(site, moved * (1 - told.left))
                        if change is not None:
                            behind = [*some[some.index(site) + 1 :], *walk.behind(stop)]
                            goes_on = any(map(patience.holds, behind))
                            self.make(change, repaired, [v for v in shown[site.name] if goes_on or walk.ends(v.number)])
                rest = walk.behind(stop)
                given_up = [site for site in rest if not patience.holds(site)]
                left += [site.name for site in given_up]
                if len(given_up) == len(rest):
                    break
                walk.leave_out(given_up)
            if done:
                self.outputs = walk.outputs()
        if left:
            self.notes.append(f"{len(left)} transforms were not solved: {PATIENCE} before them had won next to nothing")
        self.refused |= {name: walk.why_not_seen(name) for name in sorted(unseen - set(left))}
        return done, repaired

    def make(self, change: Change, repaired: Sandbox, views: Iterable[SiteBatch]) -> None:
        """Give a transform its new weights, and correct the tensors of forwards that ran it with the old ones."""
        self.values |= change.values
        write(repaired.model, change.values)
        for view in views:
            change.make(view)

    def solve(self, solver: Solver, site: Site, views: Sequence[SiteBatch]) -> tuple[Refitted, Change | None] | None:
        """Solve a site; by the mean where its sums do not fit or its weight cannot be written.

        None where neither is possible; the report then gives the reason.
        """
        if self.how == "refit" and not site.only_bias:
            reason = solver.why_not(site)
            if not reason:
                solve = solver.solve if site.passed is None else partial(solve_normed, solver)
                return solve(site, views)
            self.refused[site.name] = reason if site.passed is not None else f"{reason}; its bias may take the mean"
            if site.passed is not None:  # behind a normalization the constant is no constant any more
                return None
        return solver.fold(site, views, new_biases=self.new_biases)
