"""A pruned model goes to the hub with a card and comes back; the hub here is a folder that behaves as the real one."""

import fnmatch
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, from_hub, push_to_hub
from layerprune.errors import CheckpointError, PlanError
from models.nets import linear, randomised, rows, run, same_bits


def make():
    return nn.Sequential(*(linear() for _ in range(4)))


@pytest.fixture
def pruner():
    return UniversalLayerPruner(randomised(make()), example_inputs=rows())


class Hub:
    """Repositories in a folder; a download lies in a cache of links to blobs, as huggingface_hub's does."""

    def __init__(self, room):
        self.room = room
        self.calls = []

    def HfApi(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo, private=None, exist_ok=False):
        self.calls.append(("create", repo, private))
        (self.room / repo).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
        there = self.room / repo_id
        for path in list(there.iterdir()):
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in delete_patterns):
                path.unlink()
        shutil.copytree(folder_path, there, dirs_exist_ok=True)
        self.calls.append(("commit", commit_message))
        return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(self, repo, revision=None, token=None, cache_dir=None, allow_patterns=()):
        if not (self.room / repo).is_dir():
            raise OSError(f"404: no repository {repo}")
        cache = Path(cache_dir or self.room / "cache")
        snapshot, blobs = cache / "snapshots" / str(revision), cache / "blobs"
        shutil.rmtree(cache, ignore_errors=True)
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        for path in (self.room / repo).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, blobs / path.name)
                (snapshot / path.name).symlink_to(blobs / path.name)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.HfApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_model_goes_to_the_hub_and_comes_back(pruner, hub):
    pruned = pruner.prune(groups=["1"])
    assert push_to_hub(pruned, "me/small", token="secret", private=True) == "https://hub/me/small/commit/1"
    assert hub.calls == [("token", "secret"), ("create", "me/small", True), ("commit", "Pruned with layerprune")]
    there = sorted(path.name for path in (hub.room / "me" / "small").iterdir())
    assert there == ["README.md", "manifest.json", "model.safetensors", "plan.json"]
    loaded = from_hub("me/small", factory=make, revision="v1")
    assert same_bits(loaded, pruned)
    assert torch.equal(run(loaded, rows()), run(pruned, rows()))


def test_the_card_says_what_was_removed_and_how_to_load_the_rest(pruner, hub):
    push_to_hub(pruner.prune(groups=["1"]), "me/small", base_model="me/large", figures={"accuracy": 0.75})
    card = (hub.room / "me" / "small" / "README.md").read_text()
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert head.splitlines() == [
        "library_name: layerprune",
        "tags:",
        "- layerprune",
        "- pruned",
        "base_model: me/large",
    ]
    assert "288 → 216 parameters (25.0% fewer)" in body
    assert 'from_hub("me/small", factory=lambda: Sequential(...))' in body
    assert "| `1` | 72 |" in body
    assert "| accuracy | | 0.75 |" in body
    assert "secret" not in card


def test_a_second_model_takes_the_place_of_the_first(pruner, hub):
    once = pruner.prune(groups=["1"])
    twice = UniversalLayerPruner(once, example_inputs=rows()).prune(groups=["2"])
    push_to_hub(twice, "me/small")
    assert not (hub.room / "me" / "small" / "plan-2.json").exists(), "rounds are one plan"
    card = (hub.room / "me" / "small" / "README.md").read_text()
    assert "288 → 144 parameters (50.0% fewer)" in card
    assert "| round 2: " in card
    (hub.room / "me" / "small" / "plan-2.json").touch()
    assert same_bits(from_hub("me/small", factory=make), twice)
    push_to_hub(once, "me/small")
    assert not (hub.room / "me" / "small" / "plan-2.json").exists()
    assert same_bits(from_hub("me/small", model=make()), once)


def test_a_file_that_was_changed_on_the_hub_is_refused_and_a_card_may_be_edited(pruner, hub):
    pruned = pruner.prune(groups=["1"])
    push_to_hub(pruned, "me/small")
    (hub.room / "me" / "small" / "README.md").write_text("mine")
    (hub.room / "me" / "small" / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert same_bits(from_hub("me/small", factory=make), pruned)
    weights = hub.room / "me" / "small" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors has SHA-256"):
        from_hub("me/small", factory=make)


def test_what_the_hub_refuses_is_said_with_the_repository(pruner, hub, monkeypatch):
    with pytest.raises(CheckpointError, match="'me/none': 404"):
        from_hub("me/none", factory=make)
    with pytest.raises(CheckpointError, match="give either model="):
        from_hub("me/none")
    with pytest.raises(CheckpointError, match="give plan="):
        push_to_hub(make(), "me/small")
    push_to_hub(pruner.prune(groups=["1"]), "me/small")
    with pytest.raises(PlanError, match="not for this Linear"):
        from_hub("me/small", factory=linear)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"run: pip install huggingface_hub"):
        from_hub("me/small", factory=make)
