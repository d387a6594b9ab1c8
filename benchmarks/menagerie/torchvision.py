"""torchvision's models: planned on the meta device (detectors: the CPU); classifiers and segmentation also in full."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from menagerie import detectors
from menagerie.entry import Batch, Entry, NoVariant
from menagerie.meta import on_meta
from torchvision_ops import declare_missing_ops

_SIZE = 64
_SIZES: Mapping[str, int] = {
    "inception_v3": 299,  # its auxiliary head wants 17×17 in train mode
    "maxvit_t": 224,  # its windows divide no other size
    "vit_b_32": 128,
    "vit_l_32": 128,
    "vit_h_14": 56,
}
_FIXED = ("maxvit", "vit_")
#: What makes a model small, besides its inputs' size: only what would not fit into the memory of a worker is narrowed.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"aux_logits": True, "init_weights": False},
    "inception_v3": {"aux_logits": True, "init_weights": False},
}


def _models() -> Any:
    declare_missing_ops()
    import torchvision

    return torchvision.models


def entries() -> dict[str, Entry]:
    """Return an entry for every model that torchvision registers, the quantized ones aside."""
    found: dict[str, Entry] = {}
    for name in _models().list_models():
        module = _models().get_model_builder(name).__module__
        if ".quantization" in module:
            continue
        parts = module.split(".")
        family = parts[2] if parts[2] in ("segmentation", "detection", "video", "optical_flow") else "classification"
        inputs = partial(_frames, size=128) if family == "optical_flow" else partial(_images, name)
        has_full = family in ("classification", "segmentation")
        found[name] = Entry(
            library="torchvision",
            name=name,
            family=family,
            plan=partial(_build_detector if family == "detection" else _build_on_meta, name),
            plan_inputs=_meta_frames if family == "optical_flow" else None,
            full=partial(_build, name) if has_full else None,
            inputs=inputs if has_full else None,
        )
    return found


def _build_on_meta(name: str) -> nn.Module:
    return on_meta(lambda: _get_model(name))


def _build_detector(name: str) -> nn.Module:
    return detectors.build(_models().get_model_builder(name))


def _get_model(name: str, **options: Any) -> nn.Module:
    builder = _models().get_model_builder(name)
    untrained = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet: a future change of its default initialisation
        return builder(**untrained, **options)


def _build(name: str) -> nn.Module:
    """Build the model for small images; the two largest ones as narrow as makes them fit into memory."""
    if name == "vit_h_14":
        return _models().VisionTransformer(
            image_size=56, patch_size=14, num_layers=32, num_heads=16, hidden_dim=320, mlp_dim=1280, num_classes=10
        )
    if name == "regnet_y_128gf":
        regnet = _models().regnet
        params = regnet.BlockParams.from_init_params(
            depth=27, w_0=56, w_a=20.1, w_m=2.52, group_width=33, se_ratio=0.25
        )
        return regnet.RegNet(params, num_classes=10)
    options = dict(_OPTIONS.get(name, {}), num_classes=10)
    if name.startswith("vit_"):
        options["image_size"] = _SIZES.get(name, _SIZE)
    return _get_model(name, **options)


def _images(name: str, model: nn.Module, batch: int, variant: int) -> Batch:
    size = _SIZES.get(name, _SIZE)
    if variant and name.startswith(_FIXED):
        raise NoVariant("takes images of one size only")
    if name == "inception_v3" and variant:  # evaluated only, so without the head that needs the usual size
        size = 107
    shape = (batch, 3, size, size) if not variant else (batch, 3, size + 32, size)
    return (torch.randn(shape, dtype=next(model.parameters()).dtype),), {}


def _frames(model: nn.Module, batch: int, variant: int, *, size: int) -> Batch:
    """Two frames, between which an optical flow is to be found."""
    shape = (batch, 3, size, size + 32 * variant)
    dtype = next(model.parameters()).dtype
    return (torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)), {}


def _meta_frames(model: nn.Module) -> Any:
    with torch.device("meta"):
        return _frames(model, 1, 0, size=128)[0]
