"""A residual CNN and a vision transformer, trained on scikit-learn's digits."""

from __future__ import annotations

from typing import Any

import torch
from digits import DigitNet, load_data, train
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from subjects.cache import Made, cached, fingerprint
from subjects.subject import Inputs, Subject

NUM_CALIBRATION = 512
BATCH_SIZE = 64

RESNET = {
    "version": 1,
    "model": {"widths": [24, 48, 96], "depths": [3, 3, 3]},
    "training": {"num_epochs": 25, "peak_learning_rate": 0.01},
}
VIT = {
    "version": 1,
    "model": {
        "img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10,
        "embed_dim": 64, "depth": 8, "num_heads": 4, "mlp_ratio": 4.0, "weight_init": "jax",
    },
    "training": {"num_epochs": 64, "peak_learning_rate": 0.003},
}  # fmt: skip


class DigitViT(VisionTransformer):
    """timm's, with position embeddings as large as the patches': from timm's 0.02 it stays a bag of patches."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        assert self.pos_embed is not None
        nn.init.normal_(self.pos_embed, std=0.5)


def digits_resnet() -> Subject:
    """The network of ``examples/digits.py``: nine residual blocks in three stages, with BatchNorm."""
    return trained_on_digits("digits_resnet", RESNET, DigitNet)


def digits_vit() -> Subject:
    """timm's vision transformer of eight pre-norm blocks, on the 16 patches of an image."""
    return trained_on_digits("digits_vit", VIT, DigitViT)


def trained_on_digits(name: str, recipe: dict[str, dict], architecture: type[nn.Module]) -> Subject:
    images, held_out, labels, held_out_labels = load_data()

    def make() -> Made:
        model = train(architecture(**recipe["model"]), images, labels, **recipe["training"])
        return Made(state=model.state_dict())

    made = cached(name, {**recipe, "data": fingerprint(images, held_out, labels, held_out_labels)}, make)
    with torch.random.fork_rng(devices=[]):
        model = architecture(**recipe["model"]).eval()
    model.load_state_dict(made.state)
    return Subject(
        name=name,
        kind="distribution",
        model=model,
        calibration=batches_of(images[:NUM_CALIBRATION]),
        calibration_targets=list(labels[:NUM_CALIBRATION].split(BATCH_SIZE)),
        held_out=batches_of(held_out),
        held_out_targets=list(held_out_labels.split(BATCH_SIZE)),
        metric="accuracy",
        higher_is_better=True,
        measure=is_right,
        report=made.report,
    )


def batches_of(images: Tensor) -> list[Inputs]:
    return [*images.split(BATCH_SIZE)]


def is_right(logits: Tensor, _images: Inputs, labels: Tensor) -> Tensor:
    return logits.argmax(1) == labels
