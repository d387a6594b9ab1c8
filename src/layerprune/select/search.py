"""Solves, proves and measures; excludes what fails, tightens what was exceeded, and solves again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from layerprune.graph import Refusal
from layerprune.impact import counted
from layerprune.select.conflict_learning import ConflictLearner
from layerprune.select.conflicts import exclusions_of
from layerprune.select.constraints import Exclusion, Limit, weighted
from layerprune.select.milp import GAP, Milp
from layerprune.select.problem import Problem

_ROUNDS = 60
_NUDGE = 1e-9  # by how much more a bound is moved than in proportion: what broke it breaks it again
_FEWEST = 0.5  # a bound moves to half, or the double, of what broke it at the most

#: Finds a set within limits that holds none of the bans; an empty one where there is none.
Solver = Callable[[Sequence[Limit], Sequence[Exclusion]], Sequence[int]]


class Search:
    """What all strategies share: limits, bans, proofs, and what was measured of proven sets.

    Args:
        problem: what there is to choose from.

    Attributes:
        bans: sets that are known not to hold together.
        rounds: how many more sets may be proven.
        notes: what the user should know about the choice.
        floor: how much of the caps a choice has to use; None where nothing is to be filled, or nothing fits.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.programme = Milp(len(problem.removals))
        self.bans: list[Exclusion] = exclusions_of(problem.graph, problem.removals)
        self.rounds = _ROUNDS
        self.notes: list[str] = []
        self.floor: Limit | None = None
        self._fullest: tuple[int, ...] | None = None
        self._limits = [resource.limit for resource in problem.resources]
        self._always = [] if problem.size is None else [problem.size]
        self._culprits = ConflictLearner(problem.removals, problem.prove, problem.lower_removal)
        self._measured: dict[tuple[int, ...], list[float]] = {}
        self._harms: dict[tuple[int, ...], float] = {}
        self._solved: dict[str, tuple[list[float], list[tuple[int, ...]]]] = {}

    @property
    def limits(self) -> list[Limit]:
        """The bounds as they are now, on what adds up; and that on how much of the caps has to be used."""
        return [*self._limits, *self._always, *([] if self.floor is None else [self.floor])]

    @property
    def usage(self) -> dict[tuple[int, ...], float]:
        """What counts as using the caps: of each, its share."""
        filled = [resource for resource in self.problem.resources if resource.is_filled]
        return weighted((resource.pieces, 1 / max(resource.at_most, 1e-30)) for resource in filled)

    @property
    def is_filling(self) -> bool:
        """Whether as much is to go as the caps allow; else no more than has to."""
        return any(resource.is_filled for resource in self.problem.resources)

    @property
    def aim(self) -> dict[tuple[int, ...], float]:
        """What brings a set nearer to its budget: the caps used, else each share of what has to go."""
        needs = [(r.pieces, 1 / r.at_least) for r in self.problem.resources if r.at_least > 0]
        return self.usage if self.is_filling else weighted(needs)

    def used(self, chosen: Sequence[int]) -> float:
        """How much of the caps a proven set uses, by the measure."""
        pairs = zip(self.problem.resources, self.measured(chosen), strict=True)
        return sum(amount / max(resource.at_most, 1e-30) for resource, amount in pairs if resource.is_filled)

    def first_valid(self, solve: Solver) -> tuple[int, ...] | None:
        """The first solution that holds together and is within the budgets; None where there is none."""
        while self.rounds > 0:
            chosen = tuple(sorted(solve(self.limits, self.bans)))
            if not chosen:
                return None
            self.rounds -= 1
            if not self.holds(chosen):
                continue
            if not self.problem.is_smaller(chosen):
                self.bans.append(Exclusion.of(chosen))
            elif self.is_within(chosen):
                return chosen
        return None

    def holds(self, chosen: tuple[int, ...]) -> bool:
        """Whether a set is proven; what is to blame where it is not is banned."""
        try:
            self.problem.prove(chosen)
        except Refusal:
            self.bans += self._culprits.among(chosen)
            return False
        return True

    def is_proven(self, chosen: tuple[int, ...]) -> bool:
        """Whether a set is proven and leaves a smaller model; who is to blame where it is not is not asked."""
        try:
            self.problem.prove(chosen)
        except Refusal:
            return False
        return self.problem.is_smaller(chosen)

    def is_valid(self, chosen: tuple[int, ...]) -> bool:
        """Whether a set is proven and within all budgets."""
        return self.is_proven(chosen) and self.is_below_caps(chosen) and self.meets_targets(chosen)

    def meets_targets(self, chosen: tuple[int, ...]) -> bool:
        """Whether all goes, in a proven set, that has to."""
        pairs = zip(self.problem.resources, self.measured(chosen), strict=True)
        return all(amount >= resource.at_least for resource, amount in pairs)

    def is_below_caps(self, chosen: tuple[int, ...]) -> bool:
        """Whether no more goes, in a proven set, than may."""
        pairs = zip(self.problem.resources, self.measured(chosen), strict=True)
        return all(amount <= resource.at_most for resource, amount in pairs)

    def surplus(self, chosen: tuple[int, ...]) -> float:
        """Of what a proven set saves, the share that has to go: below 1 where less would do; 1 without targets."""
        pairs = zip(self.problem.resources, self.measured(chosen), strict=True)
        return max((r.at_least / amount for r, amount in pairs if r.at_least > 0), default=1.0)

    def eased(self, part: float) -> list[Limit]:
        """The bounds, with only a part of what has to go: pieces may promise less than a set saves."""
        firm = [limit for limit in self.limits if all(limit is not other for other in self._limits)]
        return [*(replace(limit, low=part * limit.low) for limit in self._limits), *firm]

    def measured(self, chosen: Sequence[int]) -> list[float]:
        """What a proven set saves of each resource, each measured once."""
        key = tuple(sorted(chosen))
        if key not in self._measured:
            self._measured[key] = [resource.measure(key) for resource in self.problem.resources]
        return self._measured[key]

    def is_within(self, chosen: tuple[int, ...]) -> bool:
        """Whether a proven set is within the budgets; the bounds that it breaks move so that it no longer fits them."""
        kept = True
        for place, (resource, amount) in enumerate(zip(self.problem.resources, self.measured(chosen), strict=True)):
            limit = self._limits[place]
            promised = limit.of(chosen)
            if promised <= 0 and not resource.at_least <= amount <= resource.at_most:
                self.bans.append(Exclusion.of(chosen))  # no bound is in proportion to that
                kept = False
            elif amount > resource.at_most:
                high = promised * max(resource.at_most / amount, _FEWEST) * (1 - _NUDGE)
                self._limits[place], kept = replace(limit, high=min(limit.high, high)), False
            elif amount < resource.at_least:
                low = promised * min(resource.at_least / max(amount, 1e-30), 1 / _FEWEST) * (1 + _NUDGE)
                self._limits[place], kept = replace(limit, low=max(limit.low, low)), False
        return kept

    def fill(self) -> tuple[int, ...] | None:
        """Find the set that uses the caps most, and let every later one use nearly as much: all but the slack."""
        most = self.fullest()
        if most is not None:
            self.floor = Limit(self.usage, low=(1 - self.problem.slack) * self.used(most))
        return most

    def fullest(self) -> tuple[int, ...] | None:
        """The valid set that uses the caps most; None where there is none."""
        if self._fullest is None:
            usage, gap = self.usage, min(GAP, self.problem.slack / 20)
            self._fullest = self.first_valid(lambda limits, bans: self.programme.most(usage, limits, bans, gap))
        return self._fullest

    def may(self, chosen: Sequence[int]) -> bool:
        """Whether nothing is known against a set: it breaks no ban and takes no more than it may."""
        return not any(ban.forbids(chosen) for ban in self.bans) and all(
            limit.of(chosen) <= limit.high for limit in self.limits
        )

    def once(self, name: str, solve: Callable[[], list[tuple[int, ...]]]) -> list[tuple[int, ...]]:
        """What was solved before under that name, if the bounds and bans are still the same."""
        bounds = [len(self.bans), *(bound for limit in self.limits for bound in (limit.low, limit.high))]
        if name not in self._solved or self._solved[name][0] != bounds:
            self._solved[name] = bounds, solve()
        return self._solved[name][1]

    def drawn(self, num: int) -> np.ndarray:
        """Impacts as that many draws of the calibration data have them, ``(draw, removal)``; fewer where there are."""
        drawn = self.problem.resampled
        return np.empty((0, len(self.problem.removals))) if drawn is None else drawn[:num]

    def harm(self, sets: Sequence[Sequence[int]]) -> np.ndarray:
        """What sets do to the output when they are made, each once; ``nan`` for one that cannot be."""
        assert self.problem.harm is not None  # a strategy that asks says so beforehand
        new = [some for some in dict.fromkeys(map(tuple, sets)) if some not in self._harms]
        if new:
            self._harms.update(zip(new, self.problem.harm(new).tolist(), strict=True))
        return np.array([self._harms[tuple(some)] for some in sets])

    def first_look(self, sets: Sequence[Sequence[int]]) -> np.ndarray:
        """What sets do to the output on the first of the data; ``nan`` for one that cannot be made."""
        return self.harm(sets) if self.problem.first_look is None else self.problem.first_look(sets)

    def best(self, sets: Sequence[Sequence[int]], handicaps: np.ndarray, first: int, final: float) -> int:
        """Which of several sets does least to the output when they are made, times its handicap, as a race tells."""
        if self.problem.best is not None:
            return self.problem.best(sets, handicaps, first, final)
        return int(np.nan_to_num(counted(self.harm(sets), handicaps), nan=np.inf).argmin())
