"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

Granularity = Literal["group", "branch", "block"]
Kind = Literal["distribution", "values"]
Precision = Literal["no", "bf16", "fp16"]
Strategy = Literal["auto", "exact", "quadratic", "greedy", "evolution", "resampled", "repaired"]


def _check_reduction(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is not between 0 and 1: give the share that may go, as 0.3")
    return value


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:resnet50, timm:vit_small_patch16_224, hf:DIR_OR_ID, or path/to/file.py:factory.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
FullOption = Annotated[bool, typer.Option("--full", help="Show each group of repeated blocks, not one for all.")]
GranularityOption = Annotated[Granularity, typer.Option(help="What leaves together.")]
ProtectOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Keep layers whose dotted name matches; repeatable.", show_default=False),
]
ProtectIoOption = Annotated[
    bool, typer.Option(" /--no-protect-io", help="Let the first and last layers go too.", show_default=False)
]
ShapeOption = Annotated[
    str | None,
    typer.Option(metavar="SHAPE", help="Of the example input, as 1,3,224,224; inferred if not given."),
]
StrategyOption = Annotated[Strategy, typer.Option(help="What chooses within the budget.")]
PretrainedOption = Annotated[
    bool, typer.Option("--pretrained", help="Published weights for torchvision and timm, not random.")
]


CalibrationOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE:NAME",
        help="Batches to measure impacts on, and to repair by: an iterable in a Python file, or a function that "
        "returns one.",
        show_default=False,
    ),
]
KindOption = Annotated[
    Kind | None,
    typer.Option(help="How outputs are compared: as logits, or as numbers; told from the model if not given."),
]


#: What :meth:`UniversalLayerPruner.plan` calls a budget → the option that sets it, its type, and how typer reads it.
BUDGET_OPTIONS: Mapping[str, tuple[str, Any, Any]] = {
    "max_param_reduction": (
        "reduction",
        float,
        typer.Option(callback=_check_reduction, help="Budget: the largest share of parameters that may go."),
    ),
    "max_mac_reduction": (
        "mac_reduction",
        float,
        typer.Option(callback=_check_reduction, help="Budget: the largest share of multiply-accumulates that may go."),
    ),
    "target_latency_ms": (
        "latency_ms",
        float,
        typer.Option(metavar="MS", help="Budget: milliseconds that one forward is to come down to."),
    ),
    "max_memory_bytes": (
        "memory_bytes",
        int,
        typer.Option(metavar="BYTES", help="Budget: bytes that weights and activations are to come down to."),
    ),
    "max_impact": (
        "max_impact",
        float,
        typer.Option(metavar="IMPACT", help="Budget: the largest impact of all removals together."),
    ),
}
_SLACK = typer.Option(
    min=0, max=0.99, help="How far below what fits a plan may stay for less impact; 0 fills the budget."
)
_UNUSED = typer.Option("--unused", help="Take out what never runs, and nothing else: alone, without a budget.")


def takes_budgets(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all budgets; it gets ``budgets``, as ``plan()`` takes them, empty without one."""
    signature = inspect.signature(command, eval_str=True)

    def option(name: str, kind: Any, how: Any, default: object) -> inspect.Parameter:
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, how])

    options = [
        *(option(name, kind | None, how, None) for name, kind, how in BUDGET_OPTIONS.values()),
        option("slack", float, _SLACK, 0.1),
        option("unused", bool, _UNUSED, default=False),
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        named = {budget: given.pop(name) for budget, (name, _, _) in BUDGET_OPTIONS.items()}
        slack, unused = given.pop("slack"), given.pop("unused")
        budgets = {budget: value for budget, value in named.items() if value is not None}
        budgets |= {"unused": True} if unused else {}
        command(**given, budgets=budgets | {"slack": slack} if budgets else {})

    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != "budgets"]
    required = [p for p in own if p.default is inspect.Parameter.empty]
    parameters = [*required, *options, *(p for p in own if p not in required)]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def parsed_shape(text: str) -> tuple[int, ...]:
    """Parse a shape such as ``1,3,224,224``."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is not a shape; write it as 1,3,224,224", param_hint="--input-shape")
    return tuple(int(part) for part in parts)
