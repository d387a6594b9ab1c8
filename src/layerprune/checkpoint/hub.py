"""Uploads a pruned model with a card to the Hugging Face hub, and loads it from there."""

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

# The files of an artefact, for downloads, and for removal before another artefact is uploaded.
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
    """Save a pruned model in a repository of the Hugging Face hub, in one commit, with a model card.

    Args:
        model: the pruned model.
        repo: name of the repository, ``owner/name``; created if missing.
        plan: as for :func:`save_pruned`.
        figures: as for :func:`save_pruned`; shown in the card.
        base_model: repository of the unpruned model, for the card.
        private: whether a new repository is private; None for the account's default.
        token: access token; None for the token stored by ``hf auth login``.
        message: commit message.

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
    """Load a pruned model from a repository of the Hugging Face hub.

    Args:
        repo: name of the repository, ``owner/name``.
        model: as for :func:`load_pruned`.
        factory: as for :func:`load_pruned`.
        revision: branch, tag or commit; None for the main branch.
        token: access token; None for the token stored by ``hf auth login``.
        cache_dir: folder for downloaded files; None for the hub's own cache.
        device: as for :func:`load_pruned`.
        verify: as for :func:`load_pruned`.

    Returns:
        The pruned model, in the mode that it was saved in.

    Raises:
        CheckpointError: huggingface_hub is not installed, the hub refuses, or the repository holds no complete
            artefact.
        PlanError: the plan was made for another model.
    """
    given, maker = origin_of(model, factory)
    with _hub(repo) as hub:
        folder = hub.snapshot_download(
            repo, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(_FILES)
        )
    return load_artefact(Path(folder), given, maker, device, verify=verify, from_cache=True)


@contextmanager
def _hub(repo: str) -> Generator[Any]:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(f"huggingface_hub is not installed; run: {how_to_install('huggingface_hub')}") from error
    try:
        yield huggingface_hub
    except (OSError, ValueError) as error:  # no network, no such repository, no access, invalid name
        raise CheckpointError(f"the hub and '{repo}': {error}") from error
