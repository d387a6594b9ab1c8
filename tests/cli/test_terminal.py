"""On a terminal long work shows a bar; Ctrl-C ends a command with its own exit code and says what is kept."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from layerprune import load_pruned
from layerprune.cli import app
from layerprune.sources import load_model
from models.sample_files import BATCHES, NET

#: What a shell starts in the background ignores SIGINT, and its children inherit that.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "layerprune"
from layerprune.cli import main
main()
"""

#: The forward of real tensors is slow, and says when it has begun.
SLOW = """

class Slow(Net):
    def forward(self, image):
        import sys, time
        if type(image) is torch.Tensor and not image.is_meta:
            print("forward", file=sys.stderr, flush=True)
            time.sleep(0.1)
        return super().forward(image)


def slow():
    return Slow(*make())
"""


pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET + SLOW, encoding="utf-8")
    (tmp_path / "batches.py").write_text(BATCHES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*args: str, stderr: int = subprocess.PIPE) -> subprocess.Popen:
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *args],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def interrupted_at(marks: int, *args: str, file: str = "") -> tuple[int, str, str]:
    """Start a command, and send Ctrl-C once its model has run a number of times, and a file is there."""
    process = start(*args)
    assert process.stderr is not None
    seen = ""
    while seen.count("forward\n") < marks or (file and not Path(file).is_file()):
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_ctrl_c_ends_a_command_and_leaves_nothing_behind(folder):
    before = {path.name for path in folder.iterdir()}
    options = ("--reduction", "0.4", "--calibration", "batches.py:batches", "--out", "small", "--json")
    code, out, err = interrupted_at(3, "prune", "net.py:slow", *options)
    assert code == 130
    assert "interrupted: nothing was written" in err
    assert "Traceback" not in err
    assert json.loads(out)["code"] == 130
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == before - {"__pycache__"}


def test_ctrl_c_keeps_the_best_weights_of_a_training(folder):
    options = ("--input-shape", "1,3,16,16", "--out", "small", "--reduction", "0.4")
    assert CliRunner().invoke(app, ["prune", "net.py:slow", *options]).exit_code == 0
    training = ("distill", "net.py:slow", "small", "--data", "batches.py:batches", "--epochs", "40", "--rate", "5e-3")
    code, _, err = interrupted_at(40, *training, "--out", "healed")
    assert code == 130
    assert "interrupted: the best weights so far are in healed" in err
    load_pruned("healed", model=load_model("net.py:slow"))
    checkpoint = ("--out", "other", "--checkpoint", "kept")
    code, _, err = interrupted_at(1, *training, *checkpoint, file="kept/training.json")
    assert code == 130
    assert "nothing was written to other; the same call goes on from kept" in err
    assert not Path("other").exists()


def shown_on_a_terminal(*args: str) -> str:
    """Everything that a command writes to standard error, which is a terminal."""
    ours, theirs = pty.openpty()
    process = start(*args, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        shown += more
    process.communicate(timeout=120)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def test_long_work_shows_a_bar_on_a_terminal_and_none_in_a_file(folder):
    args = ("plan", "net.py:slow", "--calibration", "batches.py:batches", "--reduction", "0.4")
    shown = shown_on_a_terminal(*args)
    assert re.search(r"━.*\d+/\d+.*\d:\d\d:\d\d", shown)  # steps done of all, and the time left
    process = start(*args)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "measuring" not in err
    assert "\x1b" not in err


def test_a_reader_that_leaves_early_is_no_traceback(folder):
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "plan", "net.py:make", "--input-shape", "1,3,16,16", "--full"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    os.close(read)
    _, err = process.communicate(timeout=120)
    assert "Traceback" not in err
