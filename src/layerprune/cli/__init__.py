"""Command line: what a model is made of, plans, pruning, comparison, training, reports, exports, checks.

Slow imports (torch, pydantic) happen when a command runs, so that ``--help`` answers at once. Standard output holds
the result only; output of the model's own code goes to standard error.
"""

from __future__ import annotations

from typing import Annotated

import typer

from layerprune.cli.compare import compare
from layerprune.cli.console import Program, claim_stdout
from layerprune.cli.distill import distill
from layerprune.cli.env import env
from layerprune.cli.export import export
from layerprune.cli.inspect import inspect
from layerprune.cli.plan import plan
from layerprune.cli.prune import prune
from layerprune.cli.report import report
from layerprune.cli.run import run
from layerprune.cli.verify import verify

app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 refused, with the reason; 2 a wrong call; 130 interrupted by Ctrl-C, which says what "
    "is kept.\n\nStart with: layerprune inspect MODEL, then plan, prune, compare.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"layerprune {version('layerprune')}")
        raise typer.Exit


@app.callback()
def _program(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Remove whole layers from a PyTorch model."""


#: Calls of each command as its help shows them.
EXAMPLES = {
    inspect: ("layerprune inspect torchvision:resnet18", "layerprune inspect hf:model --json"),
    plan: (
        "layerprune plan net.py:make --reduction 0.3",
        "layerprune plan hf:model --granularity block --calibration text:texts.txt --save plan.json --reduction 0.4",
    ),
    prune: (
        "layerprune prune hf:model --plan plan.json --granularity block --calibration text:texts.txt --out small",
        "layerprune prune net.py:make --mac-reduction 0.3 --calibration batches.py:batches --out pruned",
    ),
    compare: (
        "layerprune compare hf:model small --data text:others.txt",
        "layerprune compare net.py:make pruned --data npz:batches.npz --latency --json",
    ),
    distill: ("layerprune distill net.py:make pruned --data batches.py:batches --epochs 2 --out healed",),
    report: (
        "layerprune report net.py:make --reduction 0.3 --out report.html",
        "layerprune report pruned --out pruned.html",
    ),
    export: (
        "layerprune export net.py:make healed --to torch-export --out healed.pt2",
        "layerprune export net.py:make --to onnx --out net.onnx",
    ),
    run: ("layerprune run recipe.yaml --dry-run", "layerprune run recipe.yaml --json"),
    verify: ("layerprune verify healed",),
    env: ("layerprune env",),
}

for command, examples in EXAMPLES.items():
    app.command(epilog="\n\n".join(("Examples:", *(f"  {example}" for example in examples))))(command)


def main() -> None:
    """Run the command line; exit code 0 for success, 1 for an error of the library, 2 for a wrong call."""
    import gc

    gc.set_threshold(200_000, 50, 100)  # collections among the objects of imports cost a second
    claim_stdout()
    app()
