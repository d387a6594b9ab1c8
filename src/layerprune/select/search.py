"""Solves, proves and measures; bans sets that fail, tightens limits that were exceeded, and solves again."""

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
_NUDGE = 1e-9  # a bound moves this much further than in proportion, so that the set breaks it again
_FEWEST = 0.5  # a bound moves at most to half, or to the double, of the amount that broke it

#: Finds a set within limits that no ban forbids; an empty set where none is found.
Solver = Callable[[Sequence[Limit], Sequence[Exclusion]], Sequence[int]]


class Search:
    """The limits, bans, proofs and measurements that all strategies share.

    Attributes:
        bans: sets that are known not to hold together.
        rounds: how many more sets may be proven.
        notes: messages about the choice for the user.
        floor: the least use of the caps; None where no cap is to be filled, or no set fits.
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
        """The current bounds on additive amounts, with the floor on the use of caps."""
        return [*self._limits, *self._always, *([] if self.floor is None else [self.floor])]

    @property
    def usage(self) -> dict[tuple[int, ...], float]:
        """Pieces of the use of caps: the sum of the shares of each cap."""
        filled = [resource for resource in self.problem.resources if resource.is_filled]
        return weighted((resource.pieces, 1 / max(resource.at_most, 1e-30)) for resource in filled)

    @property
    def is_filling(self) -> bool:
        """Whether as much should go as the caps allow; else no more than the targets need."""
        return any(resource.is_filled for resource in self.problem.resources)

    @property
    def aim(self) -> dict[tuple[int, ...], float]:
        """Pieces that bring a set nearer to its budget: use of caps, else shares of the targets."""
        needs = [(r.pieces, 1 / r.at_least) for r in self.problem.resources if r.at_least > 0]
        return self.usage if self.is_filling else weighted(needs)

    def used(self, chosen: Sequence[int]) -> float:
        pairs = zip(self.problem.resources, self.measured(chosen), strict=True)
        return sum(amount / max(resource.at_most, 1e-30) for resource, amount in pairs if resource.is_filled)

    def first_valid(self, solve: Solver) -> tuple[int, ...] | None:
        """The first solution that holds together and is within the budgets; None without one."""
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
        """Whether a set is proven; otherwise the removals that fail together are banned."""
        try:
            self.problem.prove(chosen)
        except Refusal:
            self.bans += self._culprits.among(chosen)
            return False
        return True

    def is_proven(self, chosen: tuple[int, ...]) -> bool:
        """Whether a set is proven and leaves a smaller model; learns no bans."""
        try:
            self.problem.prove(chosen)
        except Refusal:
            return False
        return self.problem.is_smaller(chosen)

    def is_valid(self, chosen: tuple[int, ...]) -> bool:
        return self.is_proven(chosen) and self.is_below_caps(chosen) and self.meets_targets(chosen)

    def meets_targets(self, chosen: tuple[int, ...]) -> bool:
        pairs = zip(self.problem.resources, self.measured(chosen), strict=True)
        return all(amount >= resource.at_least for resource, amount in pairs)

    def is_below_caps(self, chosen: tuple[int, ...]) -> bool:
        pairs = zip(self.problem.resources, self.measured(chosen), strict=True)
        return all(amount <= resource.at_most for resource, amount in pairs)

    def surplus(self, chosen: tuple[int, ...]) -> float:
        """The targets as a share of a proven set's savings: below 1 where less would do; 1 without targets."""
        pairs = zip(self.problem.resources, self.measured(chosen), strict=True)
        return max((r.at_least / amount for r, amount in pairs if r.at_least > 0), default=1.0)

    def eased(self, part: float) -> list[Limit]:
        """The bounds with only a part of the targets: pieces may promise less than a set saves."""
        firm = [limit for limit in self.limits if all(limit is not other for other in self._limits)]
        return [*(replace(limit, low=part * limit.low) for limit in self._limits), *firm]

    def measured(self, chosen: Sequence[int]) -> list[float]:
        """The savings of a proven set by resource, each measured once."""
        key = tuple(sorted(chosen))
        if key not in self._measured:
            self._measured[key] = [resource.measure(key) for resource in self.problem.resources]
        return self._measured[key]

    def is_within(self, chosen: tuple[int, ...]) -> bool:
        """Whether a proven set is within the budgets; bounds that it breaks move so that they forbid it."""
        kept = True
        for place, (resource, amount) in enumerate(zip(self.problem.resources, self.measured(chosen), strict=True)):
            limit = self._limits[place]
            promised = limit.of(chosen)
            if promised <= 0 and not resource.at_least <= amount <= resource.at_most:
                self.bans.append(Exclusion.of(chosen))  # no bound can move in proportion to 0
                kept = False
            elif amount > resource.at_most:
                high = promised * max(resource.at_most / amount, _FEWEST) * (1 - _NUDGE)
                self._limits[place], kept = replace(limit, high=min(limit.high, high)), False
            elif amount < resource.at_least:
                low = promised * min(resource.at_least / max(amount, 1e-30), 1 / _FEWEST) * (1 + _NUDGE)
                self._limits[place], kept = replace(limit, low=max(limit.low, low)), False
        return kept

    def fill(self) -> tuple[int, ...] | None:
        """Find the set that uses the caps most; the floor for later sets is that use, less the slack."""
        most = self.fullest()
        if most is not None:
            self.floor = Limit(self.usage, low=(1 - self.problem.slack) * self.used(most))
        return most

    def fullest(self) -> tuple[int, ...] | None:
        if self._fullest is None:
            usage, gap = self.usage, min(GAP, self.problem.slack / 20)
            self._fullest = self.first_valid(lambda limits, bans: self.programme.most(usage, limits, bans, gap))
        return self._fullest

    def may(self, chosen: Sequence[int]) -> bool:
        return not any(ban.forbids(chosen) for ban in self.bans) and all(
            limit.of(chosen) <= limit.high for limit in self.limits
        )

    def once(self, name: str, solve: Callable[[], list[tuple[int, ...]]]) -> list[tuple[int, ...]]:
        """The cached solution of that name, while bounds and bans are the same."""
        bounds = [len(self.bans), *(bound for limit in self.limits for bound in (limit.low, limit.high))]
        if name not in self._solved or self._solved[name][0] != bounds:
            self._solved[name] = bounds, solve()
        return self._solved[name][1]

    def drawn(self, num: int) -> np.ndarray:
        """Impacts on at most ``num`` draws of the calibration data, ``(draw, removal)``."""
        drawn = self.problem.resampled
        return np.empty((0, len(self.problem.removals))) if drawn is None else drawn[:num]

    def harm(self, sets: Sequence[Sequence[int]]) -> np.ndarray:
        """The divergence of the output after each set, ``(set,)``, measured once; ``nan`` where one cannot be made."""
        assert self.problem.harm is not None  # a strategy that asks says so beforehand
        new = [some for some in dict.fromkeys(map(tuple, sets)) if some not in self._harms]
        if new:
            self._harms.update(zip(new, self.problem.harm(new).tolist(), strict=True))
        return np.array([self._harms[tuple(some)] for some in sets])

    def first_look(self, sets: Sequence[Sequence[int]]) -> np.ndarray:
        """The same on the first part of the data."""
        return self.harm(sets) if self.problem.first_look is None else self.problem.first_look(sets)

    def best(self, sets: Sequence[Sequence[int]], handicaps: np.ndarray, first: int, final: float) -> int:
        """The number of the set with the least divergence times its handicap, by racing."""
        if self.problem.best is not None:
            return self.problem.best(sets, handicaps, first, final)
        return int(np.nan_to_num(counted(self.harm(sets), handicaps), nan=np.inf).argmin())
