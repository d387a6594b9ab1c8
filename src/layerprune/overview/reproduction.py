"""How a result can be made again: code, command line, versions, seed and fingerprint."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from torch import nn

from layerprune.html import Reproduction
from layerprune.modules import fingerprint
from layerprune.plan import PruningPlan
from layerprune.select import SLACK

_BUDGETS = ("max_param_reduction", "max_mac_reduction", "target_latency_ms", "max_memory_bytes", "max_impact")
#: Options of the pruner and of its plans → options of ``layerprune prune``.
_FLAGS = {
    "max_param_reduction": "--reduction",
    "max_mac_reduction": "--mac-reduction",
    "target_latency_ms": "--latency-ms",
    "max_memory_bytes": "--memory-bytes",
    "max_impact": "--max-impact",
    "slack": "--slack",
    "strategy": "--strategy",
    "granularity": "--granularity",
    "kind": "--kind",
}


def reproduction(
    model: nn.Module, plan: PruningPlan | None, settings: Mapping[str, object], origin: str, seed: int
) -> Reproduction:
    """Code and command line that make the plan again, with the exact options."""
    chosen = {} if plan is None else _choice(plan)
    lines = ["from layerprune import UniversalLayerPruner", ""]
    lines += [f"# the model: {origin}"] if origin else []
    lines += [f"pruner = UniversalLayerPruner({', '.join(['model', *_arguments(settings)])})"]
    if plan is None:
        lines.append("pruner.print_plan()")
    else:
        if chosen:
            lines.append(f"plan = pruner.plan({', '.join(_arguments(chosen))})")
        lines.append('pruned = pruner.prune(plan="plan.json")  # the plan of this page, exactly')
    return Reproduction(
        code="\n".join(lines),
        command=_command(settings, chosen, origin),
        versions=_versions(),
        fingerprint=fingerprint(model),
        seed=seed,
    )


def folder_reproduction(plan: PruningPlan, folder: Path, versions: Mapping[str, str]) -> Reproduction:
    """Code that loads the folder again."""
    name, call = "load_pruned", f"load_pruned({str(folder)!r}, model)"
    if not folder.is_dir():
        name, call = "PruningPlan", f"PruningPlan.load({str(folder)!r}).apply(model)"
    return Reproduction(
        code=f"from layerprune import {name}\n\n# model: an unpruned {plan.model}\npruned = {call}",
        versions=versions or _versions(),
        fingerprint=plan.fingerprint,
        seed=plan.seed,
    )


def _choice(plan: PruningPlan) -> dict[str, object]:
    """The arguments that chose a plan; empty where groups were named."""
    if plan.strategy == "unused":
        return {"unused": True}
    if plan.slack is None:
        return {}
    found: dict[str, object] = {name: getattr(plan, name) for name in _BUDGETS if getattr(plan, name) is not None}
    found |= {"slack": plan.slack} if plan.slack != SLACK else {}
    return found | {"strategy": plan.strategy}


def _arguments(named: Mapping[str, object]) -> list[str]:
    return [f"{name}={value!r}" for name, value in named.items()]


def _command(settings: Mapping[str, object], chosen: Mapping[str, object], origin: str) -> str:
    """The command line that prunes so; empty where an option is not among its own."""
    if not chosen or not settings.keys() <= {*_FLAGS, "protect", "protect_io", "calibration"}:
        return ""
    words = ["layerprune", "prune", shlex.quote(origin) if ":" in origin else "MODEL"]
    for name, value in {**chosen, **settings}.items():
        if name in _FLAGS:
            words += [_FLAGS[name], shlex.quote(str(value))]
    for pattern in cast("tuple[str, ...]", settings.get("protect", ())):
        words += ["--protect", shlex.quote(pattern)]
    words += ["--unused"] if "unused" in chosen else []
    words += ["--no-protect-io"] if settings.get("protect_io") is False else []
    words += ["--calibration", "DATA"] if "calibration" in settings else []
    return " ".join([*words, "--out", "pruned"])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("layerprune", "torch", "transformers", "timm", "torchvision"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
