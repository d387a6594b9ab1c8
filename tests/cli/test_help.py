"""Help answers at once, and every call that it shows runs as it is written."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from layerprune.cli import EXAMPLES, app

COMMANDS = [command.__name__ for command in EXAMPLES]


def help_of(*args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--help"], env={"TERMINAL_WIDTH": "300", "COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result.stdout


def examples_of(command: str) -> list[str]:
    return re.findall(r"^ *(layerprune .*?) *$", help_of(command), re.MULTILINE)


def test_every_command_shows_examples_of_itself():
    assert [command.callback.__name__ for command in app.registered_commands] == COMMANDS
    for command in COMMANDS:
        assert [line.split()[1] for line in examples_of(command)] == [command] * len(examples_of(command)) != []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is_for(command):
    described = typer.main.get_command(app).commands[command]
    assert [p.name for p in described.params if not getattr(p, "help", "")] == []
    assert described.help


@pytest.mark.slow
def test_every_example_runs(samples: Path, monkeypatch: pytest.MonkeyPatch):
    """In the order of the commands, as later ones read what earlier ones wrote."""
    monkeypatch.chdir(samples)
    for command in COMMANDS:
        for line in examples_of(command):
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
            assert result.stdout
            if "--json" in line:
                assert isinstance(json.loads(result.stdout), dict)


def test_exit_codes_are_in_the_help():
    text = " ".join(help_of().split())
    assert "Exit codes: 0 done; 1 refused" in text
    assert "130 interrupted" in text


@pytest.mark.parametrize("args", [["--help"], ["plan", "--help"], ["env", "--help"]])
def test_help_needs_no_torch_and_answers_at_once(args):
    """Bounded in processor time, with room for other load: on an idle machine it is a third of a second."""
    program = (
        "import sys, time; import layerprune.cli as cli\n"
        f"sys.argv[1:] = {args!r}\n"
        "try:\n    cli.app()\n"
        "finally:\n    heavy = {'torch', 'numpy', 'scipy', 'networkx'} & set(sys.modules)\n"
        "    print(sorted(heavy), time.process_time(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy, seconds = done.stderr.rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 1.0
    assert "Usage" in done.stdout
