"""A residual CNN and a vision transformer, trained on scikit-learn's digits."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digits import DigitNet, load_data, train
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

MOBILENET = {"version": 1, "model": {}, "training": {"num_epochs": 8, "peak_learning_rate": 0.01}}


class InvertedResidual(nn.Module):
    """MobileNet V2's block: widen by six, convolve each channel by itself, narrow; around it where shapes agree."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        inner = 6 * num_in
        self.conv = nn.Sequential(
            nn.Conv2d(num_in, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, num_out, 1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        self.is_residual = num_in == num_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.is_residual else self.conv(x)


class DigitMobileNet(nn.Sequential):
    """Six such blocks: many of its groups leave by a projection, whose inputs are many for few images."""

    def __init__(self) -> None:
        sizes = [(16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 64, 1), (64, 64, 1)]
        super().__init__(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(InvertedResidual(*size) for size in sizes),
            *(nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)),
        )


class DigitViT(VisionTransformer):
    """timm's, with position embeddings as large as the patches': from timm's 0.02 it stays a bag of patches."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        assert self.pos_embed is not None
        nn.init.normal_(self.pos_embed, std=0.5)


def digits_resnet() -> Subject:
    """The network of ``examples/digits.py``: nine residual blocks in three stages, with BatchNorm."""
    return trained_on_digits("digits_resnet", RESNET, DigitNet)


def digits_mobilenet() -> Subject:
    """A small network of MobileNet V2's blocks, briefly trained."""
    return trained_on_digits("digits_mobilenet", MOBILENET, DigitMobileNet)


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
