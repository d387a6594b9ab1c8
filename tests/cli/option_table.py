"""The table of options on the page of the command line, made of the commands themselves.

``python tests/cli/option_table.py`` writes it into the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from layerprune.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
START, END = "<!-- options -->\n", "<!-- end of the options -->\n"


def commands() -> dict[str, Any]:
    program: Any = typer.main.get_command(app)
    return program.commands


def table() -> str:
    """One row for each option: its names, the commands that have it, its help and its default."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for command, described in commands().items():
        for param in described.params:
            names = [name for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]
            if not names or names == ["--help"]:
                continue
            usual = param.default
            is_shown = usual not in (None, False, True, ()) and not callable(usual) and not param.required
            default = "required" if param.required else f"`{usual}`" if is_shown else ""
            for name in names:
                same = "" if name == names[0] else f"as `{names[0]}`"
                rows.setdefault((name, same or _plain(param.help), default), []).append(command)
    lines = ["| option | of | what it says | if not given |", "|---|---|---|---|"]
    for (name, text, default), having in sorted(rows.items()):
        lines.append(f"| `{name}` | {' '.join(f'`{each}`' for each in having)} | {text} | {default} |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").rstrip(".")


def written(page: str) -> str:
    """The table that a page has."""
    return page[page.index(START) + len(START) : page.index(END)]


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, after = page[: page.index(START) + len(START)], page[page.index(END) :]
    PAGE.write_text(before + table() + after, encoding="utf-8")
