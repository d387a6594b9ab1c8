"""Trained models with calibration and held-out data: what impact, selection and repair are measured on.

Random weights do for planning and surgery, but there no layer matters more than another. ``subject("digits_vit")``
hands out a trained model, and trains it first where ``.cache/subjects/`` does not hold it yet;
``python benchmarks/subjects`` trains all of them (about a quarter of an hour on one core) and prints how good they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "examples"), str(_ROOT / "tests")]  # English sentences, DigitNet; torchvision's operators

# ruff: noqa: E402
from subjects.subject import Inputs, Subject
from torchvision_ops import declare_missing_ops

__all__ = ["SUBJECTS", "Inputs", "Subject", "subject"]

#: Each name, and where it is made: a function that needs no argument.
SUBJECTS = {
    "minilm": ("subjects.encoder", "minilm"),
    "digits_resnet": ("subjects.images", "digits_resnet"),
    "digits_mobilenet": ("subjects.images", "digits_mobilenet"),
    "digits_vit": ("subjects.images", "digits_vit"),
    "docs_llama": ("subjects.language", "docs_llama"),
}


def subject(name: str) -> Subject:
    """Return a subject with a model of its own: a second call shares nothing with the first.

    Raises:
        ValueError: there is no subject of that name.
    """
    if name not in SUBJECTS:
        raise ValueError(f"subject '{name}' is none of {', '.join(SUBJECTS)}")
    declare_missing_ops()  # timm and transformers import torchvision where they find it
    module, function = SUBJECTS[name]
    make: Callable[[], Subject] = getattr(import_module(module), function)
    return make()
