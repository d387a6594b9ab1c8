"""What a pruned model costs beyond the smaller model that one would have built, or written by hand.

Both run in one process, in turn, with the same weights. The time is that of the process's CPU, so that what else the
machine does falls out; threads are one, so that it is the time of one forward. For instance
``python benchmarks/residue.py --subjects resnet34 llama-decode --rounds 101 --json residue.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from figures import add_keep, keep
from layerprune import PruningPlan, UniversalLayerPruner
from layerprune.cost import Latency, measure
from layerprune.inputs import Inputs, as_inputs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from torchvision_ops import declare_missing_ops

BLOCK_SECONDS = 0.1  # what one timing takes at least
DECODED = 16  # tokens
LLAMA = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}
console = Console()


@dataclass(frozen=True)
class Subject:
    """A pruned model and its rival.

    Attributes:
        pruned: the pruned model.
        native: the same network, built smaller or written by hand, with the same weights.
        inputs: what both are measured on.
        plan: what was removed.
        limit: the largest ratio of their times that is fine.
    """

    pruned: nn.Module
    native: nn.Module
    inputs: Inputs
    plan: PruningPlan
    limit: float = 1.03


@dataclass(frozen=True)
class Row:
    """What was measured: milliseconds of CPU, and bytes of parameters, buffers and activations at their peak."""

    subject: str
    removals: int
    leftovers: tuple[str, ...]
    native_ms: float
    pruned_ms: float
    ratio: float
    low: float
    high: float
    limit: float
    native_bytes: int
    pruned_bytes: int

    @property
    def holds(self) -> bool:
        return self.ratio <= self.limit and self.pruned_bytes <= self.native_bytes * 1.001


# ---- the subjects ----------------------------------------------------------------------------------------------------


def torchvision_resnet() -> Subject:
    """ResNet-34 less five blocks, and torchvision's own class with five blocks fewer."""
    from torchvision.models.resnet import BasicBlock, ResNet

    blocks = {"layer1": (2,), "layer2": (2, 3), "layer3": (4, 5)}
    return resnet(ResNet(BasicBlock, [3, 4, 6, 3]), ResNet(BasicBlock, [2, 2, 4, 3]), blocks)


def timm_resnet() -> Subject:
    """The same of timm's."""
    from timm.models.resnet import BasicBlock, ResNet

    blocks = {"layer1": (2,), "layer2": (2, 3), "layer3": (4, 5)}
    return resnet(ResNet(BasicBlock, [3, 4, 6, 3]), ResNet(BasicBlock, [2, 2, 4, 3]), blocks)


def resnet(large: nn.Module, small: nn.Module, blocks: dict[str, tuple[int, ...]]) -> Subject:
    image = torch.randn(1, 3, 224, 224)
    pruner = UniversalLayerPruner(large.eval(), example_inputs=image, granularity="block")
    plan = pruner.plan(groups=[f"{stage}.{i}.conv1" for stage, some in blocks.items() for i in some])
    pruned = pruner.prune(plan=plan)
    small.load_state_dict(pruned.state_dict())
    return checked(Subject(pruned, small.eval(), as_inputs(image), plan))


def llama(**sizes: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **sizes})).eval()


def llama_layers() -> Subject:
    """A Llama less two of eight layers, and one whose config says six."""
    prompt = {"input_ids": torch.randint(3, 1000, (1, 32)), "use_cache": False}
    pruner = UniversalLayerPruner(llama(), example_inputs=prompt, granularity="block")
    plan = pruner.plan(groups=["model.layers.3.mlp.down_proj", "model.layers.6.mlp.down_proj"])
    pruned = pruner.prune(plan=plan)
    small = llama(num_hidden_layers=6)
    small.load_state_dict(pruned.state_dict())
    return checked(Subject(pruned, small, as_inputs(prompt), plan))


class MlpLayer(nn.Module):
    """A Llama's decoder layer as one would write it without attention."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm, self.mlp = layer.post_attention_layernorm, layer.mlp

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states + self.mlp(self.norm(hidden_states))


class Decode(nn.Module):
    """Greedy decoding of a few tokens, one at a time, with a cache; batch 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor) -> Tensor:
        from transformers import DynamicCache

        cache, tokens = DynamicCache(config=self.model.config), [token]
        for _ in range(DECODED):
            logits = self.model(tokens[-1], past_key_values=cache, use_cache=True).logits
            tokens.append(logits[:, -1:].argmax(-1))
        return torch.cat(tokens, 1)


def llama_decode() -> Subject:
    """A Llama less half of its attention: the plan lists the sums that are left; by hand there are none."""
    model, removed = llama(), (1, 3, 5, 7)
    prompt = {"input_ids": torch.randint(3, 1000, (1, 8))}
    pruner = UniversalLayerPruner(model, example_inputs=prompt, granularity="branch")
    plan = pruner.plan(groups=[f"model.layers.{i}.self_attn.o_proj" for i in removed])
    pruned = pruner.prune(plan=plan)
    by_hand = copy.deepcopy(model)
    for i in removed:
        by_hand.model.layers[i] = MlpLayer(by_hand.model.layers[i])
    return checked(Subject(Decode(pruned), Decode(by_hand), as_inputs(prompt["input_ids"][:, :1]), plan))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "resnet34": torchvision_resnet,
    "timm-resnet34": timm_resnet,
    "llama-layers": llama_layers,
    "llama-decode": llama_decode,
}


def checked(subject: Subject) -> Subject:
    """Both must return the same, or the comparison means nothing."""
    outs = []
    for model in (subject.pruned, subject.native):
        with torch.no_grad():
            out = model(*subject.inputs.args, **subject.inputs.kwargs)
        outs.append(out if isinstance(out, Tensor) else out.logits)
    torch.testing.assert_close(outs[0], outs[1])
    return subject


# ---- measuring -------------------------------------------------------------------------------------------------------


def timed(subject: Subject, rounds: int) -> dict[str, Latency]:
    """Time both in turn, on the CPU's clock, in an order that turns from round to round."""
    models = {"pruned": subject.pruned, "native": subject.native}

    def run(model: nn.Module, times: int) -> float:
        start = time.process_time()
        for _ in range(times):
            model(*subject.inputs.args, **subject.inputs.kwargs)
        return (time.process_time() - start) / times

    with torch.no_grad():
        block = max(1, round(BLOCK_SECONDS / min(run(subject.native, 1) for _ in range(3))))
        times: dict[str, list[float]] = {name: [] for name in models}
        for number in range(rounds):
            for name in sorted(models, reverse=bool(number % 2)):
                times[name].append(1e3 * run(models[name], block))
    return {name: Latency(tuple(some), block, torch.get_num_threads()) for name, some in times.items()}


def held_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Everything that one forward holds: parameters, buffers, and activations at their peak."""
    cost = measure(model, inputs)
    assert cost.activation_bytes is not None, cost.notes
    return cost.param_bytes + cost.buffer_bytes + cost.activation_bytes


def measured(name: str, rounds: int) -> Row:
    torch.manual_seed(0)
    subject = SUBJECTS[name]()
    latencies = timed(subject, rounds)
    ratio = latencies["pruned"].ratio_to(latencies["native"])
    return Row(
        name,
        len(subject.plan.removals),
        tuple(left for removal in subject.plan.removals for left in removal.leftovers),
        latencies["native"].median_ms,
        latencies["pruned"].median_ms,
        ratio.value,
        ratio.low,
        ratio.high,
        subject.limit,
        held_bytes(subject.native, subject.inputs),
        held_bytes(subject.pruned, subject.inputs),
    )


def table_of(rows: list[Row]) -> Table:
    table = Table(title="Pruned against natively smaller (CPU ms, medians)")
    table.add_column("subject", no_wrap=True)
    for heading in ("removals", "leftovers", "native", "pruned", "ratio [95 %]", "memory"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = f"{row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]"
        memory = f"{row.pruned_bytes / row.native_bytes:.4f}"
        cells = (
            str(row.removals),
            str(len(row.leftovers)),
            f"{row.native_ms:.2f}",
            f"{row.pruned_ms:.2f}",
            ratio,
            memory,
        )
        table.add_row(row.subject, *cells, style="" if row.holds else "red")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="SUBJECT")
    parser.add_argument("--rounds", type=int, default=61, help="timings of each (default 61)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    add_keep(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    declare_missing_ops()
    rows = [measured(name, options.rounds) for name in track(options.subjects, "measuring", console=console)]
    console.print(table_of(rows))
    for row in rows:
        if row.leftovers:
            console.print(f"{row.subject}: left over are {', '.join(row.leftovers)}")
    worst = max(float(np.abs(row.ratio - 1)) for row in rows)
    console.print(
        f"{options.rounds} rounds in turn, one thread, torch {torch.__version__}; furthest from 1: {worst:.3f}"
    )
    if options.keep:
        keep("residue", "residue", table_of(rows), f"CPU ms, {options.rounds} rounds in turn")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if not all(row.holds for row in rows):
        raise SystemExit("a pruned model costs more than the smaller one would")


if __name__ == "__main__":
    main()
