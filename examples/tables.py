"""The two tables that every example prints: the plan in brief, and the original against the pruned model."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from torch import nn

from layerprune import PruningPlan
from measure import interleaved_ms, num_params, parameter_megabytes


def print_in_brief(console: Console, plan: PruningPlan, model_name: str, max_param_reduction: float) -> None:
    """What leaves with each removal; ``pruner.print_plan()`` also shows what stays, and why."""
    reduction = 1 - plan.num_params_after / plan.num_params_before
    table = Table("removal", "lead transforms that leave", title=f"The plan for {model_name}", caption_justify="left")
    table.add_column("parameters", justify="right")
    table.add_column("impact", justify="right")
    for removal in plan.removals:
        table.add_row(removal.name, "\n".join(removal.groups), f"{removal.num_params:,}", f"{removal.impact:.3f}")
    table.caption = (
        f"{reduction:.1%} of {plan.num_params_before:,} parameters leave; at most {max_param_reduction:.0%} were "
        "allowed. pruner.print_plan(full=True) shows every group."
    )
    console.print(table)


def comparison(
    title: str, model: nn.Module, pruned: nn.Module, run: Callable[[nn.Module], object], run_name: str, repeats: int
) -> Table:
    """Parameters, size and latency of both; ``run`` calls a model once on what ``run_name`` says."""
    table = Table(title=title)
    table.add_column("")
    for heading in ("original", "pruned", "change"):
        table.add_column(heading, justify="right")
    latencies = interleaved_ms(lambda: run(model), lambda: run(pruned), repeats)
    rows = (
        ("parameters", num_params(model), num_params(pruned), ",.0f"),
        ("size, MB", parameter_megabytes(model), parameter_megabytes(pruned), ".2f"),
        (f"latency of {run_name}, ms", *latencies, ".1f"),
    )
    for name, before, after, form in rows:
        table.add_row(name, format(before, form), format(after, form), f"{after / before - 1:+.1%}")
    return table
