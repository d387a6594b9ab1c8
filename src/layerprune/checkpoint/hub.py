"""Sends a pruned model with a card to the Hugging Face hub, and loads it from there."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerprune.checkpoint.card import card_text
from layerprune.checkpoint.load import Factory, load_artefact, origin_of, read_plans
from layerprune.checkpoint.manifest import NAME, read_manifest
from layerprune.checkpoint.save import save_pruned
from layerprune.environment import how_to_install
from layerprune.errors import CheckpointError
from layerprune.plan import PruningPlan

# What an artefact is made of: fetched from a repository, and cleared from it before another one goes there.
_FILES = (NAME, "plan*.json", "model*.safetensors", "model.safetensors.index.json")


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    plan: PruningPlan | Sequence[PruningPlan] | None = None,
    figures: Mapping[str, float] | None = None,
    base_model: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Pruned with layerprune",
) -> str:
    """Save a pruned model in a repository of the Hugging Face hub, in one commit, with a card that says what was done.

    Args:
        model: what pruning returned.
        repo: the repository's name, ``owner/name``; made where there is none.
        plan: as for :func:`save_pruned`.
        figures: as for :func:`save_pruned`; the card shows them.
        base_model: the repository of the unpruned model, for the card.
        private: whether a new repository is private; None for what is usual there.
        token: of the hub; None for the one that ``hf auth login`` has stored.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: huggingface_hub is not installed, the hub refuses, or the model cannot be saved.
    """
    with tempfile.TemporaryDirectory(prefix="layerprune-") as room:
        folder = save_pruned(model, Path(room) / "artefact", plan=plan, figures=figures)
        manifest = read_manifest(folder)
        card = card_text(manifest, read_plans(folder, manifest), repo, base_model)
        (folder / "README.md").write_text(card, encoding="utf-8")
        with _hub(repo) as hub:
            api = hub.HfApi(token=token)
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo, folder_path=str(folder), commit_message=message, delete_patterns=list(_FILES)
            )
    return str(commit)


def from_hub(
    repo: str,
    model: nn.Module | Factory | None = None,
    *,
    factory: Factory | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    verify: bool = True,
) -> nn.Module:
    """Load a pruned model from a repository of the Hugging Face hub; see :func:`load_pruned`.

    Args:
        repo: the repository's name, ``owner/name``.
        model: as for :func:`load_pruned`.
        factory: as for :func:`load_pruned`.
        revision: a branch, tag or commit; None for the main branch.
        token: of the hub; None for the one that ``hf auth login`` has stored.
        cache_dir: where files are kept; None for the hub's own cache.
        device: as for :func:`load_pruned`.
        verify: as for :func:`load_pruned`.

    Raises:
        CheckpointError: huggingface_hub is not installed, the hub refuses, or what is there is no whole artefact.
        PlanError: the model is another one than the plan was made for.
    """
    given, maker = origin_of(model, factory)
    with _hub(repo) as hub:
        folder = hub.snapshot_download(
            repo, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(_FILES)
        )
    return load_artefact(Path(folder), given, maker, device, verify=verify, from_cache=True)


@contextmanager
def _hub(repo: str) -> Generator[Any]:
    """Import huggingface_hub, and say of its errors which repository they are about."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(f"huggingface_hub is not installed; run: {how_to_install('huggingface_hub')}") from error
    try:
        yield huggingface_hub
    except (OSError, ValueError) as error:  # no network, no such repository, no right to it, no name of one
        raise CheckpointError(f"the hub and '{repo}': {error}") from error
