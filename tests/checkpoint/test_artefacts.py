"""What happens to a saved model on its way: damaged, cut off, killed, replaced; it is whole, or it is refused."""

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, load_pruned, save_pruned
from layerprune.checkpoint import atomic_dir as staging
from layerprune.checkpoint import verify, weights
from layerprune.checkpoint.manifest import Manifest
from layerprune.errors import CheckpointError, LayerPruneError
from models.nets import linear, randomised, rows, same_bits


def make():
    return nn.Sequential(*(linear() for _ in range(4)))


def pruned_of(group, seed=0):
    return UniversalLayerPruner(randomised(make(), seed), example_inputs=rows()).prune(groups=[group])


@pytest.fixture(scope="module")
def models():
    """Two models to tell apart."""
    return pruned_of("1"), pruned_of("2", seed=3)


@pytest.fixture
def folder(models, tmp_path):
    return save_pruned(models[0], tmp_path / "small", max_shard_bytes=600)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_refused(folder, message):
    """Both doors refuse, and say the same; what is there stays."""
    before = sorted(os.listdir(folder)) if folder.is_dir() else None
    for door in (lambda: load_pruned(folder, factory=make), lambda: verify(folder)):
        with pytest.raises(CheckpointError, match=message):
            door()
    assert before == (sorted(os.listdir(folder)) if folder.is_dir() else None)


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_an_artefact_as_it_was_written_is_verified(folder):
    assert verify(folder).model == "Sequential"
    assert verify(folder).to_json() == (folder / "manifest.json").read_text()


def test_every_file_that_is_missing_is_named(folder):
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        path.unlink()
        assert_refused(folder, f"{path.name} is missing")
        path.write_bytes(data)
    verify(folder)


def test_every_file_that_is_cut_off_is_named_with_its_sizes(folder):
    for name, data in contents(folder).items():
        (folder / name).write_bytes(data[:-1])
        assert_refused(
            folder, f"{name}.* has {len(data) - 1:,} bytes, {len(data):,} were" if name != "manifest.json" else name
        )
        (folder / name).write_bytes(data)


def test_every_bit_that_is_flipped_in_small_files_is_noticed(folder):
    data = (folder / "manifest.json").read_bytes()
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        (folder / "manifest.json").write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            verify(folder)


@pytest.mark.parametrize("name", ["plan.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_byte_that_changed_is_noticed_by_its_hash(folder, name):
    name = name if (folder / name).exists() else next(path.name for path in folder.glob("model-00001-*"))
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert_refused(folder, f"{name} has SHA-256 .*, .* was written")


def test_whitespace_that_changed_in_the_manifest_is_noticed(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"\n ", b"\n\t", 1))
    assert_refused(folder, "changed after it was written")


def test_a_file_too_many_is_named_and_a_readme_is_none(folder):
    (folder / "README.md").write_text("mine")
    verify(folder)
    (folder / "notes.txt").write_text("mine")
    assert_refused(folder, "notes.txt is not in manifest.json")


def test_links_and_folders_in_place_of_files_are_refused(folder, tmp_path):
    path = folder / "plan.json"
    (tmp_path / "elsewhere.json").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.json")
    assert_refused(folder, "plan.json is a symbolic link")
    path.unlink()
    path.mkdir()
    assert_refused(folder, "plan.json is no plain file")
    path.rmdir()
    os.mkfifo(path)
    assert_refused(folder, "plan.json is no plain file")


@pytest.mark.parametrize(
    "name",
    ["../plan.json", "/etc/hostname", "a/b", "a\\b", "..", ".", "", ".hidden", "plan.json\n", "x" * 300, "a\0b", "C:x"],
)
def test_a_manifest_that_names_files_elsewhere_is_no_manifest(folder, name):
    """Even where whoever wrote it knew how to make its checksum."""
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    files = {**manifest.files, name: manifest.files["plan.json"]}
    for changes in ({"files": files}, {"files": files, "plans": (name,)}, {"files": files, "weights": (name,)}):
        (folder / "manifest.json").write_text(manifest.model_copy(update=changes).to_json())
        assert_refused(folder, "manifest.json is no manifest: (files|plans|weights)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no manifest"),
        ("[]", "is no manifest"),
        ("[" * 10_000, "is no manifest"),
        ('{"files":' * 10_000, "is no manifest"),
        ('{"schema_version": 99}', "schema 99.*upgrade layerprune"),
        ('{"format": "other"}', "is no manifest: format"),
        ("\ufeff{}", "is no manifest"),
    ],
)
def test_a_text_that_is_no_manifest_is_refused(folder, text, message):
    (folder / "manifest.json").write_text(text)
    assert_refused(folder, message)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")
    assert_refused(folder, "manifest.json cannot be read")


def test_a_folder_that_holds_no_artefact_is_refused(tmp_path):
    assert_refused(tmp_path, "manifest.json is missing: no artefact of layerprune")
    with pytest.raises(CheckpointError, match="is no folder"):
        load_pruned(tmp_path / "nothing", factory=make)


def test_weights_with_a_wrong_order_of_dimensions_are_refused(folder):
    """A manifest that is well made, but not by us."""
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    for order in ((0, 0), (5,), (-1, 0), (10**20, 0)):
        tensors = manifest.tensors.model_copy(update={"order": {"0.weight": order}})
        (folder / "manifest.json").write_text(manifest.model_copy(update={"tensors": tensors}).to_json())
        with pytest.raises(LayerPruneError, match=r"0\.weight"):
            load_pruned(folder, factory=make)


# ---- where it cannot be written --------------------------------------------------------------------------------------


def test_other_folders_are_not_replaced(models, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty and holds no artefact"):
        save_pruned(models[0], other)
    with pytest.raises(CheckpointError, match="is a file"):
        save_pruned(models[0], other / "thesis.txt")
    assert contents(other) == {"thesis.txt": b"mine"}
    assert os.listdir(tmp_path) == ["other"]


def test_an_artefact_with_files_of_others_is_not_replaced(models, folder):
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"not replaced: .*notes.txt"):
        save_pruned(models[1], folder)
    assert contents(folder) == before


def test_a_link_is_not_written_through(models, folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    before = contents(folder)
    with pytest.raises(CheckpointError, match="is a symbolic link: name the folder that it points to"):
        save_pruned(models[1], link)
    assert contents(folder) == before
    assert link.is_symlink()
    assert same_bits(load_pruned(link, factory=make), models[0])


def test_an_artefact_is_replaced_whole(models, folder):
    save_pruned(models[1], folder)
    assert sorted(contents(folder)) == ["manifest.json", "model.safetensors", "plan.json"]
    assert same_bits(load_pruned(folder, factory=make), models[1])
    assert os.listdir(folder.parent) == ["small"]


def test_a_full_disk_leaves_the_old_artefact_and_nothing_else(models, folder):
    """A limit on the size of files stands in for the disk: the same failure of the same system call."""
    before, limit = contents(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 100, 500):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(CheckpointError, match=r"was not written.*is as it was"):
                save_pruned(models[1], folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert contents(folder) == before
    assert os.listdir(folder.parent) == ["small"]


def test_a_folder_that_may_not_be_written_is_refused(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written: File exists"):
        save_pruned(models[0], tmp_path / "file" / "small")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_pruned(models[0], "/proc/small")
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(CheckpointError, match="cannot be written: Permission denied"):
        save_pruned(models[0], tmp_path / "small")
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_leaves_the_old_artefact_and_nothing_else(models, folder, monkeypatch):
    before = contents(folder)

    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("sync_folder", "_put_in_place"):
        with monkeypatch.context() as patch:
            patch.setattr(staging, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                save_pruned(models[1], folder)
        assert contents(folder) == before
        assert os.listdir(folder.parent) == ["small"]


# ---- death -----------------------------------------------------------------------------------------------------------


def saving_until_killed(models, folder):
    """Fork a child that saves one model after the other in a place."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            while True:
                for model in models:
                    save_pruned(model, folder)
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "two renames"])
def test_killed_at_any_moment_the_old_or_the_new_artefact_is_there(models, folder, monkeypatch, atomic):
    if not atomic:
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        child = saving_until_killed(models, folder)
        time.sleep(0.05 + 0.1 * float(torch.rand((), generator=generator)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = load_pruned(folder, factory=make)
        assert any(same_bits(loaded, model) for model in models)
        assert os.listdir(folder.parent) == ["small"]


def leave(folder, suffix, content=None):
    """What a dead process leaves beside a folder."""
    stray = folder.with_name(f".{folder.name}.0123456789abcdef{suffix}")
    shutil.copytree(content or folder, stray)
    return stray


def test_what_dead_processes_left_is_removed_by_the_next_save_and_load(models, folder):
    for door in (lambda: load_pruned(folder, factory=make), lambda: save_pruned(models[1], folder)):
        leave(folder, ".staging")
        leave(folder, ".old")
        door()
        assert os.listdir(folder.parent) == ["small"]


def test_what_was_moved_aside_comes_back(models, folder):
    for door in (lambda: load_pruned(folder, factory=make), lambda: save_pruned(models[0], folder)):
        half = leave(folder, ".staging")
        (half / "manifest.json").unlink()
        folder.rename(half.with_suffix(".old"))
        door()
        assert os.listdir(folder.parent) == ["small"]
        assert same_bits(load_pruned(folder, factory=make), models[0])


def test_folders_of_others_and_of_the_living_stay(models, folder):
    others = [
        folder.with_name(name) for name in (".small.mine.staging", ".small.staging", ".tall.0123456789abcdef.staging")
    ]
    for path in others:
        path.mkdir()
    with staging.staged(folder.with_name("small2")), staging.staged(folder) as mine:
        load_pruned(folder, factory=make)
        assert mine.exists()
    assert all(path.exists() for path in others)


def test_what_is_loaded_does_not_lie_in_the_file(models, folder):
    loaded = load_pruned(folder, factory=make)
    for path in folder.glob("*.safetensors"):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    assert same_bits(loaded, models[0])


def test_two_processes_save_in_one_place(models, folder):
    children = [saving_until_killed(models[::step], folder) for step in (1, -1)]
    try:
        for _ in range(6):
            loaded = load_pruned(folder, factory=make, verify=False)
            assert any(same_bits(loaded, model) for model in models)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    save_pruned(models[0], folder)
    assert os.listdir(folder.parent) == ["small"]


def test_a_file_that_goes_while_it_is_opened_is_an_error_of_ours_and_a_folder_that_was_replaced_is_read_again(
    models, folder, monkeypatch
):
    """Torch, not the operating system, says so of a file that is replaced between safetensors' look and its own."""
    opened = weights.safe_open

    def gone(path, **options):
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")

    monkeypatch.setattr(weights, "safe_open", gone)
    with pytest.raises(CheckpointError, match="in read-only mode"):
        load_pruned(folder, factory=make, verify=False)

    def replaced(path, **options):
        monkeypatch.setattr(weights, "safe_open", opened)
        save_pruned(models[1], folder)
        gone(path)

    monkeypatch.setattr(weights, "safe_open", replaced)
    assert same_bits(load_pruned(folder, factory=make, verify=False), models[1])


def test_the_manifest_is_plain_json(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == "layerprune"
    assert set(manifest["files"]) == set(os.listdir(folder)) - {"manifest.json"}
