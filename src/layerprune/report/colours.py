"""The colours of the printed plan."""

from __future__ import annotations

import re

from layerprune.tables import Pattern

#: From the left to the right: what is found in the finished text, and its style. All are bound to the start of a line.
PLAN_COLOURS: tuple[Pattern, ...] = (
    (re.compile(r"^[A-Z][A-Z ]+(?: \(.*\))?:$", re.MULTILINE), "bold"),
    (re.compile(r"^-+$", re.MULTILINE), "dim"),
    (re.compile(r"^Groups? [\d–, ]+: (✓.*)$", re.MULTILINE), "bold green"),
    (re.compile(r"^Groups? [\d–, ]+: (○.*)$", re.MULTILINE), "bold yellow"),
    (re.compile(r"^Groups? [\d–, ]+: (✗.*)$", re.MULTILINE), "bold red"),
    (re.compile(r"^  Lead Transform: (.+) \(", re.MULTILINE), "bold"),
    (re.compile(r"^  Impact (?:Score|Interval): (.+)$", re.MULTILINE), "bold cyan"),
    (re.compile(r"^  (?:Parameters|Removes|MACs): ([\d,]+ \([\d.]+%\))", re.MULTILINE), "cyan"),
    (re.compile(r"^    ★ .*$", re.MULTILINE), "bold"),
    (re.compile(r" (\[kept\])$", re.MULTILINE), "dim"),
    (re.compile(r"^ *(Note|Reason|Needs calibration):", re.MULTILINE), "yellow"),
    (re.compile(r"^Can leave now: (.*)$", re.MULTILINE), "bold green"),
    (re.compile(r"^(Nothing can leave now)$", re.MULTILINE), "bold red"),
)
