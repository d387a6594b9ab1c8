"""``layerprune compare``: measures how far a pruned model is from the original."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerprune.cli.console import print_json, working
from layerprune.cli.models import data_of, model_of, other_of
from layerprune.cli.options import DataOptions, JsonOption, KindOption, ModelArgument, SourceOptions, grouped

if TYPE_CHECKING:
    from layerprune.fidelity import Fidelity


@grouped
def compare(
    model: ModelArgument,
    other: Annotated[
        str, typer.Argument(metavar="DIR|MODEL2", help="What `prune` or `distill` wrote of MODEL; or another model.")
    ],
    source: SourceOptions,
    data: DataOptions,
    kind: KindOption = None,
    generate: Annotated[
        int, typer.Option(min=0, metavar="TOKENS", help="Tokens that a language model writes after each text.")
    ] = 0,
    latency: Annotated[bool, typer.Option("--latency", help="Time both models on the first batch, too.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the intervals' draws.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare a pruned model with MODEL, on data that neither planning nor repair has seen.

    Every figure has its 95 % interval over samples. With --json: an object of `num_samples`, `relative_l2`, `cosine`,
    `kl`, `top1_agreement`, `perplexity` and more, each of `value`, `low` and `high` or null, and `saving`.
    """
    with working(as_json=as_json):
        from layerprune.fidelity import compare as measure

        original = model_of(model, source)
        pruned = other_of(other, original, source)
        batches = data_of(data.data, model, original, data)
        found = measure(original, pruned, batches, kind=kind, num_generated=generate, latency=latency, seed=seed)
    if as_json:
        print_json(_record(found))
        return
    typer.echo(str(found))


def _record(found: Fidelity) -> dict[str, Any]:
    record = asdict(found)
    if found.latency is not None:
        before, after = found.latency["original"], found.latency["pruned"]
        timed = {"original": before, "pruned": after}
        record["latency"] = {
            **{name: {"median_ms": each.median_ms, "iqr_ms": each.iqr_ms} for name, each in timed.items()},
            "ratio": asdict(after.ratio_to(before)),
            "num_threads": before.num_threads,
        }
    return record
