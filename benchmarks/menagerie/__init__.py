"""The zoo: every architecture of torchvision, timm and transformers, and what is checked of each."""

from __future__ import annotations

from importlib import import_module

from menagerie.entry import Entry

LIBRARIES = ("torchvision", "timm", "transformers")


def catalogue(library: str) -> dict[str, Entry]:
    """Return a library's entries by name, importing that library only; no model is built."""
    if library not in LIBRARIES:
        raise ValueError(f"library '{library}' is none of {', '.join(LIBRARIES)}")
    return import_module(f"menagerie.{library}").entries()
