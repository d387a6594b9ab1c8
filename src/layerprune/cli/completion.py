"""Completes MODEL and DATA arguments: forms, files and folders; names of models would take seconds to list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MODELS = ("torchvision:", "timm:", "hf:")
_DATA = ("text:", "images:", "npz:", "hf-dataset:")
_ENDINGS = {"text:": (".txt", ".md"), "npz:": (".npz",), "hf-dataset:": (".json", ".jsonl", ".csv", ".parquet")}


def complete_model(incomplete: str) -> list[str]:
    """Forms of a MODEL argument, folders behind ``hf:``, and Python files."""
    if incomplete.startswith("hf:"):
        return [f"hf:{path}" for path in _paths(incomplete.removeprefix("hf:"), ())]
    forms = [form for form in _MODELS if form.startswith(incomplete)]
    return [*forms, *_paths(incomplete, (".py",))]


def complete_data(incomplete: str) -> list[str]:
    """Forms of a DATA argument, and the files or folders behind each."""
    for form in _DATA:
        if incomplete.startswith(form):
            return [f"{form}{path}" for path in _paths(incomplete.removeprefix(form), _ENDINGS.get(form, ()))]
    forms = [form for form in _DATA if form.startswith(incomplete)]
    return [*forms, *_paths(incomplete, (".py",))]


def _paths(start: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Folders, and files of some endings, whose path starts with a text; a Python file goes on with its colon."""
    head, slash, name = start.rpartition("/")
    folder = Path(f"{head}{slash}" or ".").expanduser()
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if path.name.startswith(name) and not (path.name.startswith(".") and not name):
            if path.is_dir():
                yield f"{head}{slash}{path.name}/"
            elif path.suffix in endings:
                yield f"{head}{slash}{path.name}" + (":" if path.suffix == ".py" else "")
