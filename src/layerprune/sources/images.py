"""Reads a folder of images, with the size and the normalization of the model's own config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.errors import SourceError, ended_by
from layerprune.sources.data import DataSettings
from layerprune.sources.models import ModelSource, folder_or_repository
from layerprune.sources.packages import package

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}

#: Makes the model's input of images that were read.
Transform = Callable[[Sequence[Any]], Any]


def images_in(folder: Path) -> list[Path]:
    """Files of images in a folder and the folders inside it, by name.

    Raises:
        SourceError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}" + (": it is a file" if folder.exists() else ""))
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise SourceError(f"{folder} holds no image ({', '.join(sorted(_ENDINGS))})")
    return found


def transformed(
    images: Sequence[Any], model: nn.Module, source: ModelSource, settings: DataSettings, instead: str
) -> list[Any]:
    """Batches of images, from paths or images that PIL has read.

    Raises:
        SourceError: a package is missing, an image cannot be read, or the model's library knows no transform for it.
    """
    package("PIL.Image")
    transform = _TRANSFORMS[source.library](model, source, instead)
    batches: list[Any] = []
    for some in settings.batched(settings.chosen(len(images))):
        batches += transform([_read(images[i]) for i in some])
    return batches


def _read(image: Any) -> Any:
    if not isinstance(image, Path):
        return image.convert("RGB")
    try:
        with package("PIL.Image").open(image) as held:
            return held.convert("RGB")
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and its own types for broken files
        raise SourceError(ended_by(f"{image} cannot be read as an image", error)) from error


def _of_torchvision(model: nn.Module, source: ModelSource, instead: str) -> Transform:
    weights = package("torchvision").models.get_model_weights(source.name)
    if not len(weights):
        raise SourceError(f"torchvision knows no image size for {source}, which has no published weights; {instead}")
    default: Any = getattr(weights, "DEFAULT", next(iter(weights)))
    presets = default.transforms()
    if "detection" in type(model).__module__:  # its forward takes a list of images of any size
        return lambda images: [[presets(image) for image in images]]
    return lambda images: _stacked([presets(image) for image in images])


def _of_timm(model: nn.Module, source: ModelSource, instead: str) -> Transform:
    data = package("timm.data")
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    return lambda images: _stacked([transform(image) for image in images])


def _of_transformers(model: nn.Module, source: ModelSource, instead: str) -> Transform:
    transformers = package("transformers")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder_or_repository(source.name))
    except Exception as error:  # a missing or broken config raises OSError, ValueError, KeyError, …
        what = f"{source} has no image processor that can be loaded (preprocessor_config.json); {instead}"
        raise SourceError(ended_by(what, error)) from error
    return lambda images: [dict(processor(images=list(images), return_tensors="pt"))]


def _of_file(model: nn.Module, source: ModelSource, instead: str) -> Transform:
    raise SourceError(
        f"a model of a Python file states no image size or normalization, so {source} has none; {instead}"
    )


_TRANSFORMS: dict[str, Callable[[nn.Module, ModelSource, str], Transform]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
    "hf": _of_transformers,
    "file": _of_file,
}


def _stacked(images: Sequence[Tensor]) -> list[Tensor]:
    """One batch of the images of each shape; segmentation keeps the aspect of an image."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for image in images:
        by_shape.setdefault(tuple(image.shape), []).append(image)
    return [torch.stack(some) for some in by_shape.values()]
