"""Options that several commands share, in groups: a command that takes a group gets all of its options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

import typer

from layerprune.cli.completion import complete_data, complete_model

Granularity = Literal["group", "branch", "block"]
Kind = Literal["distribution", "values"]
Precision = Literal["no", "bf16", "fp16"]
Repair = Literal["auto", "mean", "none"]
Strategy = Literal["auto", "exact", "quadratic", "greedy", "evolution", "resampled", "repaired"]

MODELS = "torchvision:resnet50, timm:vit_small_patch16_224, hf:DIR_OR_ID, or path/to/file.py:factory."
DATA = "text:FILE, images:DIR, npz:FILE, hf-dataset:NAME[:SPLIT], or path/to/file.py:name."


def _check_reduction(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is not between 0 and 1: give the share that may go, as 0.3")
    return value


def parsed_shape(text: str | None) -> tuple[int, ...] | None:
    """Parse a shape such as ``1,3,224,224``."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is not a shape; write it as 1,3,224,224", param_hint="--input-shape")
    return tuple(int(part) for part in parts)


def _check_shape(text: str | None) -> str | None:
    parsed_shape(text)
    return text


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODELS, autocompletion=complete_model)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else; errors, too.")]
FullOption = Annotated[bool, typer.Option("--full", help="Show each group of repeated blocks, not one for all.")]
PretrainedOption = Annotated[
    bool, typer.Option("--pretrained", help="Published weights for torchvision and timm, not random.")
]
ShapeOption = Annotated[
    str | None,
    typer.Option(
        metavar="SHAPE", callback=_check_shape, help="Of the example input, as 1,3,224,224; inferred if not given."
    ),
]
KindOption = Annotated[
    Kind | None,
    typer.Option(help="How outputs are compared: as logits, or as numbers; told from the model if not given."),
]
GranularityOption = Annotated[Granularity, typer.Option(help="What leaves together.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of all random choices.")]
NewFolder = Annotated[str, typer.Option(metavar="DIR", help="A new or empty folder for the result.")]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How MODEL is built."""

    pretrained: PretrainedOption = False
    device: Annotated[str | None, typer.Option(help="Where the model runs, as cuda or cpu.", show_default=False)] = None


@dataclass(frozen=True, kw_only=True)
class PrunerOptions:
    """What may go, and how impacts are measured: arguments of the pruner."""

    granularity: GranularityOption = "group"
    protect: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Keep layers whose dotted name matches; repeatable.", show_default=False),
    ] = None
    protect_io: Annotated[
        bool, typer.Option(" /--no-protect-io", help="Let the first and last layers go too.", show_default=False)
    ] = True
    projections: Annotated[
        bool, typer.Option(" /--no-projections", help="Replace nothing by fitted projections.", show_default=False)
    ] = True
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Close the gaps in containers of any model, where that does the same.")
    ] = False
    input_shape: ShapeOption = None
    criterion: Annotated[
        str,
        typer.Option(help="What measures impacts: ablation, output_change, loss, influence, magnitude, shortlist."),
    ] = "auto"
    kind: KindOption = None
    seed: SeedOption = 0


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How samples of data become batches."""

    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 16
    samples: Annotated[int, typer.Option(min=1, help="Samples at most, spread evenly over the data.")] = 256
    length: Annotated[int, typer.Option(min=2, help="Tokens of a text at most.")] = 128
    column: Annotated[
        str | None, typer.Option(help="Column of a dataset with the texts or images.", show_default=False)
    ] = None


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(BatchOptions):
    """Data to measure on, if there are any."""

    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            "--data",
            metavar="DATA",
            help=f"Data to measure impacts on, and to repair by: {DATA}",
            show_default=False,
            autocompletion=complete_data,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DataOptions(BatchOptions):
    """Data that a command cannot do without."""

    data: Annotated[
        str,
        typer.Option(
            "--data", "--calibration", metavar="DATA", help=f"Data without labels: {DATA}", autocompletion=complete_data
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How much may go, or has to go. :data:`BUDGETS` says which argument of ``plan()`` each option sets."""

    reduction: Annotated[
        float | None,
        typer.Option(callback=_check_reduction, help="Budget: the largest share of parameters that may go."),
    ] = None
    mac_reduction: Annotated[
        float | None,
        typer.Option(callback=_check_reduction, help="Budget: the largest share of multiply-accumulates that may go."),
    ] = None
    latency_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="Budget: milliseconds that one forward is to come down to.")
    ] = None
    memory_bytes: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="Budget: bytes that weights and activations are to come down to."),
    ] = None
    max_impact: Annotated[
        float | None, typer.Option(metavar="IMPACT", help="Budget: the largest impact of all removals together.")
    ] = None
    slack: Annotated[
        float,
        typer.Option(
            min=0, max=0.99, help="How far below what fits a plan may stay for less impact; 0 fills the budget."
        ),
    ] = 0.1
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Take out this group, or what a pattern names; repeatable.", show_default=False
        ),
    ] = None
    unused: Annotated[
        bool, typer.Option("--unused", help="Take out what never runs, and nothing else: alone, without a budget.")
    ] = False
    strategy: Annotated[Strategy, typer.Option(help="What chooses within the budget.")] = "auto"

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``plan()``; empty where nothing is said."""
        found: dict[str, Any] = {
            name: value for name, key in BUDGETS.items() if (value := getattr(self, key)) is not None
        }
        found |= {"slack": self.slack} if found else {}
        found |= {"groups": list(self.group)} if self.group else {}
        found |= {"unused": True} if self.unused else {}
        return found | {"strategy": self.strategy} if found else {}


#: What ``plan()`` calls a budget → the option that sets it.
BUDGETS = {
    "max_param_reduction": "reduction",
    "max_mac_reduction": "mac_reduction",
    "target_latency_ms": "latency_ms",
    "max_memory_bytes": "memory_bytes",
    "max_impact": "max_impact",
}

_PANELS = {
    "SourceOptions": "Model",
    "PrunerOptions": "What may go",
    "BatchOptions": "Data",
    "CalibrationOptions": "Data",
    "DataOptions": "Data",
    "BudgetOptions": "How much goes",
    "TrainingOptions": "Training",
}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a group of options by these options; the command gets the group."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if dataclasses.is_dataclass(p.annotation)
    }
    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values() if p.name not in groups
    ]
    parameters = [*own, *(parameter for group in groups.values() for parameter in _options_of(group))]
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)  # stable: what is required comes first

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: group(**{each.name: given.pop(each.name) for each in fields(group)}) for name, group in groups.items()
        }
        command(**given, **made)

    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _options_of(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        kind, option = hints[field.name].__origin__, hints[field.name].__metadata__[0]
        option.rich_help_panel = _PANELS[group.__name__]
        annotation = Annotated[kind, option]
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
