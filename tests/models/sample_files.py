"""Small files of every kind that a command takes: a network, batches, texts, images, a transformers model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


class Net(nn.Sequential):
    def forward(self, image):
        return super().forward(image)


def make():
    return Net(
        nn.Conv2d(3, 8, 3, padding=1), Block(), Block(), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )
"""

BATCHES = """
import torch


def batches():
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 16, 16, generator=draw) for _ in range(8)]
"""

WORDS = [f"word{number}" for number in range(30)]

RECIPE = """\
model: net.py:make
data:
  calibration: batches.py:batches
  compare: npz:batches.npz
plan:
  max_param_reduction: 0.4
out: result
"""


def write_samples(folder: Path) -> None:
    """Write net.py, batches.py, batches.npz, texts.txt, others.txt, recipe.yaml, photos/ and model/."""
    (folder / "net.py").write_text(NET, encoding="utf-8")
    (folder / "batches.py").write_text(BATCHES, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    rng = np.random.default_rng(0)
    np.savez(folder / "batches.npz", image=rng.normal(size=(24, 3, 16, 16)).astype(np.float32))
    for name, seed, num in (("texts.txt", 1, 40), ("others.txt", 2, 20)):
        draw = np.random.default_rng(seed)
        lines = [" ".join(draw.choice(WORDS, size=int(draw.integers(4, 12)))) for _ in range(num)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_images(folder / "photos")
    write_language_model(folder / "model")


def write_images(folder: Path, num: int = 12) -> None:
    """Images of two sizes, in folders of two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(num):
        target = folder / f"class{number % 2}"
        target.mkdir(parents=True, exist_ok=True)
        shape = (24 + 8 * (number % 2), 32, 3)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(target / f"{number}.png")


def write_language_model(folder: Path) -> None:
    """A tiny causal language model of the llama family, with a tokenizer of :data:`WORDS` that has no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_json_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """A dataset as a file of JSON, one row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
