"""Describes the environment: versions, and the machine."""

from __future__ import annotations

import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version

_NEEDED = ("numpy", "scipy", "networkx", "pydantic", "typer", "rich", "safetensors")
_OPTIONAL = (
    *("transformers", "timm", "torchvision", "accelerate", "peft", "datasets", "huggingface_hub", "lightning"),
    *("onnx", "onnxscript", "onnxruntime", "matplotlib", "pyyaml", "pillow"),
)


def describe_environment() -> dict[str, str | int | None]:
    """Versions of all packages that may take part, and the machine; None for a package that is missing."""
    import torch

    found: dict[str, str | int | None] = {
        "layerprune": _version("layerprune"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "torch": torch.__version__,
        "devices": ", ".join(_devices()),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
    }
    found |= {name: _version(name) for name in (*_NEEDED, *_OPTIONAL)}
    if found["torchvision"] is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:  # a binary of another torch raises errors of many types
            found["torchvision"] = f"{found['torchvision']}, which does not import: {str(error).splitlines()[0]}"
    return found


def _devices() -> list[str]:
    import torch

    found = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        found.append(f"{torch.accelerator.device_count()} × {kind}{f' ({name})' if name else ''}")
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
