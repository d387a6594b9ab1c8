"""The package as others get it: what a build holds, installed into an environment without the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import layerprune

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "layerprune"

pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist of the repository, and the wheel that the sdist makes."""
    out = tmp_path_factory.mktemp("builds")
    build(REPOSITORY, out, "sdist", "wheel")
    sdist = next(out.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "unpacked", filter="data")
    build(next((out / "unpacked").iterdir()), out / "again", "wheel")
    return {"sdist": sdist, "wheel": next(out.glob("*.whl")), "again": next((out / "again").glob("*.whl"))}


def build(source: Path, out: Path, *targets: str) -> None:
    """Call the build backend as pip does, without an environment of its own."""
    calls = "; ".join(f"backend.build_{target}({str(out)!r})" for target in targets)
    out.mkdir(exist_ok=True)
    run(sys.executable, "-c", f"from hatchling import build as backend; {calls}", cwd=source)


def run(*command: str, cwd: Path) -> str:
    """Run a command that sees nothing of this process's paths; its standard output."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.startswith("layerprune/")}


def test_the_wheel_holds_every_file_of_the_package(builds: dict[str, Path]) -> None:
    inside = {str(path.relative_to(PACKAGE.parent)) for path in PACKAGE.rglob("*") if path.is_file()}
    expected = {name for name in inside if "__pycache__" not in name}
    assert files_of(builds["wheel"]).keys() == expected
    assert "layerprune/py.typed" in expected


def test_the_sdist_makes_the_same_wheel(builds: dict[str, Path]) -> None:
    assert files_of(builds["again"]) == files_of(builds["wheel"])


def test_the_version_stands_in_one_place(builds: dict[str, Path]) -> None:
    with zipfile.ZipFile(builds["wheel"]) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    assert f"\nVersion: {layerprune.__version__}\n" in text
    assert "version =" not in (REPOSITORY / "pyproject.toml").read_text().partition("[project]")[2].partition("[")[0]
    cited = re.search(r"^version: (.+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == layerprune.__version__


@pytest.fixture(scope="module")
def installed(builds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel; its dependencies come from this one."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    python = folder / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"),
        str(builds["wheel"]),
        cwd=folder,
    )
    site = next((folder / "lib").glob("python*/site-packages"))
    # Behind the environment's own packages; .pth files of an editable install there are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_an_installed_wheel_prunes_a_model(installed: Path, tmp_path: Path) -> None:
    script = """
import torch, layerprune
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
pruned = layerprune.quick_prune(model, reduction=0.5, example_inputs=torch.randn(2, 8))
print(layerprune.__file__)
print(sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in pruned.parameters()))
"""
    where, fewer = run(str(installed), "-W", "ignore", "-c", script, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(installed.parents[1])
    assert int(fewer) == 8 * 8 + 8


@pytest.mark.parametrize("command", [["-m", "layerprune"], [""]], ids=["module", "script"])
def test_an_installed_wheel_has_its_command(installed: Path, tmp_path: Path, command: list[str]) -> None:
    program = [str(installed), *command] if command[0] else [str(installed.with_name("layerprune"))]
    assert run(*program, "--version", cwd=tmp_path) == f"layerprune {layerprune.__version__}\n"
