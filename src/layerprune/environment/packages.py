"""Commands that install packages without replacing the installed torch."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

_TORCH = re.compile(r"(\d+)\.(\d+)(?:[^+]*)(?:\+(.+))?")
_INDEX = "https://download.pytorch.org/whl"
_VARIANTS = re.compile(r"cpu|cu\d+|rocm[\d.]+|xpu")


def how_to_install(*names: str) -> str:
    """The command that installs packages and pins torch, which pip could replace otherwise; quoted for any shell."""
    parts = ["pip install", *names]
    if held := _installed("torch"):
        vision = f"'torchvision=={_torchvision_for(held)}'"
        if {"torchvision", "timm"} & set(names):  # timm needs torchvision, and each release of that fits one torch
            parts = [*(part for part in parts if part != "torchvision"), vision]
        parts.append(f"'torch=={held}'")
        if vision in parts:
            parts += _index_for(held, "--extra-index-url")
    return " ".join(parts)


def how_to_match_torchvision() -> str:
    """The command that installs only the torchvision of the installed torch's version and build."""
    held = _installed("torch") or ""
    parts = ["pip install --force-reinstall --no-deps", f"'torchvision=={_torchvision_for(held)}'"]
    return " ".join([*parts, *_index_for(held, "--index-url")])


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torchvision_for(torch: str) -> str:
    """The releases of torchvision for a torch: 0.21 for 2.6, 0.22 for 2.7, and so on."""
    found = _TORCH.match(torch)
    return f"0.{int(found.group(2)) + 15}.*" if found and found.group(1) == "2" else "*"


def _index_for(torch: str, option: str) -> list[str]:
    """The package index of the same build variant, such as CPU only; empty for builds from PyPI."""
    found = _TORCH.match(torch)
    variant = found.group(3) if found else None
    return [f"{option} {_INDEX}/{variant}"] if variant and _VARIANTS.fullmatch(variant) else []
