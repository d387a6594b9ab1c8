"""Refit: the surviving transforms solved again, front to back, so that what they feed is what it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from layerprune.calibration import Batch
from layerprune.errors import CalibrationError
from layerprune.graph import LayerGraph
from layerprune.impact.harm import masked
from layerprune.observe import observe
from layerprune.repair.report import Refitted
from layerprune.repair.ridge import Fit, Sums, fit
from layerprune.repair.sites import Site
from layerprune.repair.transforms import as_weight, exact, matrix_of, rows_of
from layerprune.shadow import Shadow, real_shadow, short

_MOVED = 1e-9  # relative squared distance above which a tensor counts as moved: float32 rounds below
_SHARE_HELD_OUT = 0.25


class _Enough(BaseException):
    """All that was to be seen of a forward has been seen. No Exception, which a model's own forward might catch."""


@dataclass(eq=False)
class Side:
    """One of the two models that are held against each other.

    Attributes:
        shade: a real shadow of it.
        graph: its layer graph.
        num_forwards: forwards so far, those cut short included.
    """

    shade: Shadow
    graph: LayerGraph
    num_forwards: int = 0

    def see(self, batch: Batch, values: Iterable[int]) -> dict[int, Tensor]:
        """Run until all of some values were there, and return copies of them.

        Raises:
            CalibrationError: the forward raises.
        """
        wanted = set(values)
        found: dict[int, Tensor] = {}
        self.num_forwards += 1

        def keep(value: int, tensor: Tensor) -> None:
            found[value] = tensor.detach().clone()  # a later layer may write into it
            if len(found) == len(wanted):
                raise _Enough

        try:
            observe(self.shade, self.graph, batch.inputs, wanted, keep)
        except _Enough:
            pass
        except Exception as error:  # the user's own forward
            raise CalibrationError(
                f"{type(self.shade.model).__name__}.forward raised on a calibration batch ({batch.inputs!r}): "
                f"{short(error)}"
            ) from error
        return found


class Refitter:
    """Solves the transforms of a pruned model again, on a copy of these.

    Args:
        original: the original.
        pruned: the pruned model.
        model: the user's pruned model; it is not touched.
        batches: calibration data.
        memory_bytes: what solving one step may take, and what targets that are kept between steps may.
    """

    def __init__(
        self, original: Side, pruned: Side, model: nn.Module, batches: Sequence[Batch], memory_bytes: int
    ) -> None:
        self.original = original
        self.pruned = pruned
        self.model = model
        self.batches = batches
        self.memory_bytes = memory_bytes
        self.targets: dict[tuple[int, int], Tensor] = {}
        self.kept_bytes = 0
        self.refused: dict[str, str] = {}
        self.notes: list[str] = []

    @property
    def held_out(self) -> list[Batch]:
        """The batches that strengths are chosen on: the last quarter, or the only one, of which it is a quarter."""
        return list(self.batches[-max(1, round(len(self.batches) * _SHARE_HELD_OUT)) :])

    def moved(self, sites: Sequence[Site]) -> list[Site]:
        """The sites that the removals have moved. Runs both models once, and keeps the targets that there is room for.

        Raises:
            CalibrationError: a batch does not run, or makes values that are not finite.
        """
        change = dict.fromkeys((site.name for site in sites), 0.0)
        size = dict.fromkeys(change, 0.0)
        unseen = dict.fromkeys(change)
        other_rows: dict[str, None] = {}
        for number, batch in enumerate(self.batches):
            wanted = self.original.see(batch, {site.target for site in sites})
            found = self.pruned.see(batch, {value for site in sites for value in (site.source, site.reached)})
            for site in sites:
                if site.target not in wanted or site.source not in found or site.reached not in found:
                    continue  # experts that this batch did not reach, or a tensor within a fused operation
                unseen.pop(site.name, None)
                if wanted[site.target].shape != found[site.reached].shape:
                    other_rows[site.name] = None
                    continue
                target = masked(wanted[site.target], batch.mask)
                change[site.name] += _square(_difference(target, masked(found[site.reached], batch.mask)))
                size[site.name] += _square(target)
                if not change[site.name] + size[site.name] < float("inf"):
                    raise CalibrationError(
                        f"batch {number} of the calibration data makes '{site.name}' feed values that are not finite: "
                        "leave it out, or look for NaN in the data and in the weights"
                    )
                self.remember(number, site.target, wanted[site.target])
        self.refused |= dict.fromkeys(unseen, "what it reads or feeds is not seen in a run")
        self.refused |= dict.fromkeys(
            other_rows, "it gets other rows than in the original: values decide which it gets"
        )
        return [s for s in sites if s.name not in other_rows and change[s.name] > _MOVED * size[s.name]]

    def remember(self, number: int, target: int, tensor: Tensor) -> None:
        num_bytes = tensor.numel() * tensor.element_size()
        if (number, target) not in self.targets and self.kept_bytes + num_bytes <= self.memory_bytes:
            self.targets[number, target] = tensor
            self.kept_bytes += num_bytes

    def run(self, sites: Sequence[Site]) -> list[Refitted]:
        """Solve sites again, front to back, each on what those before it have become.

        Sites that read the same tensor do not see each other, and are solved in one pass.
        """
        weights = {f"{site.name}.{key}" for site in sites for key in ("weight", "bias")}
        copies = real_shadow(self.model, written=weights | self.pruned.graph.written_params)
        self.pruned = Side(copies, self.pruned.graph, self.pruned.num_forwards)
        done: list[Refitted] = []
        for _, stage in groupby(sites, key=lambda site: site.source):
            for some in self.fitting(list(stage)):
                done += self.solve(some)
        return done

    def fitting(self, stage: Sequence[Site]) -> list[list[Site]]:
        """Split sites that read the same tensor so that the sums of each part fit into the memory."""
        parts: list[list[Site]] = [[]]
        room = self.memory_bytes
        for site in stage:
            need = self.plan(site)[1]
            if need > room and parts[-1]:
                parts.append([])
                room = self.memory_bytes
            parts[-1].append(site)
            room -= need
        return parts

    def plan(self, site: Site) -> tuple[bool, int]:
        """Whether a site is solved by its outputs, as the sums of its inputs would not fit, and the bytes it takes."""
        groups, num_out, num_in = matrix_of(self.pruned.shade.model.get_submodule(site.name)).shape

        def need(width: int) -> int:
            # The sums of two parts of the data, of both, the matrix that is solved, and its factor.
            return 5 * 8 * groups * (width + 1) * (width + 1 + num_out)

        by_output = need(num_in) > self.memory_bytes and num_out < num_in
        return by_output, need(num_out if by_output else num_in)

    def solve(self, stage: Sequence[Site]) -> list[Refitted]:
        """Solve sites that read the same tensor, in one pass over the batches."""
        tasks = [task for site in stage if (task := self.task(site)) is not None]
        for number, batch in enumerate(self.batches if tasks else ()):
            targets = {task.site.target for task in tasks}
            wanted = {target: self.targets[number, target] for target in targets if (number, target) in self.targets}
            if len(wanted) < len(targets):
                wanted |= self.original.see(batch, targets - wanted.keys())
            found = self.pruned.see(batch, {value for t in tasks for value in (t.site.source, t.site.reached)})
            first_held_out = len(self.batches) - len(self.held_out)
            share = _SHARE_HELD_OUT if len(self.batches) == 1 else float(number >= first_held_out)
            for task in tasks:
                site = task.site
                if site.target not in wanted or site.source not in found or site.reached not in found:
                    continue
                if wanted[site.target].shape == found[site.reached].shape:  # not where earlier steps route otherwise
                    delta = _difference(wanted[site.target], found[site.reached])
                    task.take(found[site.source], delta, batch.mask, held_out=share)
        return [task.finish(self.notes) for task in tasks]

    def task(self, site: Site) -> _Task | None:
        """Prepare a site; None where its sums do not fit."""
        by_output, need = self.plan(site)
        if need <= self.memory_bytes:
            return _Task(site, self.pruned.shade.model, by_output=by_output)
        self.refused[site.name] = f"solving it takes {need:,} bytes, more than memory_bytes={self.memory_bytes:,}"
        return None


class _Task:
    """One site being solved: ``min ‖ΔW a + Δb − δ‖² + λ‖ΔW‖²``, with δ what its output should change by.

    Args:
        site: the site.
        model: the shadow's model.
        by_output: look for ``ΔW = T W`` (ReplaceMe, arXiv 2505.02819): the inputs of the fit are then the outputs.
    """

    def __init__(self, site: Site, model: nn.Module, *, by_output: bool) -> None:
        self.site = site
        self.module = model.get_submodule(site.name)
        self.by_output = by_output
        self.matrix = matrix_of(self.module)
        self.scale = site.scale(model)
        groups, num_out, num_in = self.matrix.shape
        self.num_inputs = num_out if by_output else num_in
        self.bias = self.module._parameters.get("bias")
        device, bias = self.matrix.device, self.bias is not None
        self.sums = [Sums(groups, self.num_inputs, num_out, bias=bias, device=device) for _ in range(2)]

    def take(self, read: Tensor, delta: Tensor, mask: Tensor | None, *, held_out: float) -> None:
        """Take a batch in: what the transform reads, and what the tensor that it feeds should change by."""
        for rows, wanted in rows_of(self.module, read, delta, mask):
            if self.by_output:
                rows = rows @ self.matrix.mT
            if self.scale is not None:
                factor = self.scale.reshape(wanted.shape[0], 1, -1)
                # A channel that is multiplied by next to nothing moves nothing.
                wanted = torch.where(factor.abs() > 1e-6, wanted / factor, torch.zeros_like(wanted))
            split = round(rows.shape[1] * (1 - held_out))
            self.sums[0].add(rows[:, :split], wanted[:, :split])
            self.sums[1].add(rows[:, split:], wanted[:, split:])

    def finish(self, notes: list[str]) -> Refitted:
        """Solve, and put the new weights into the shadow where they serve rows that they were not fitted on."""
        seen, held_out = self.sums
        found = fit(seen, held_out)
        if 0 < seen.num_rows < self.num_inputs:
            notes.append(
                f"'{self.site.name}' has {self.num_inputs:,} inputs and was fitted on {seen.num_rows:,} tokens or "
                "places: give calibration data with more than that"
            )
        if found is not None:
            self.put(found)
        left, strength = (1.0, None) if found is None else (found.left, found.strength)
        return Refitted(self.site.name, left, found is not None, strength, seen.num_rows, self.num_inputs)

    def put(self, found: Fit) -> None:
        weight = self.module._parameters["weight"]
        assert weight is not None
        change = found.matrix.mT
        with torch.no_grad():
            if self.bias is not None:
                change, constant = change[..., :-1], change[..., -1]
                self.bias.add_(constant.flatten().to(self.bias.dtype))
            if self.by_output:
                change = change @ self.matrix
            weight.copy_(as_weight(self.module, self.matrix + change))


def _difference(target: Tensor, found: Tensor) -> Tensor:
    """What a tensor should change by."""
    return target.to(found.device, exact(found)) - found.to(exact(found))


def _square(tensor: Tensor) -> float:
    return float(tensor.to(exact(tensor)).square().sum())
