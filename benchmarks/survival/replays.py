"""Replays: one plan, carried out on copies of a model in two processes; the weights must have one hash."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from test_plan_on_another_copy import CORPUS, HERE, REPLAY


def run(start: int, count: int) -> dict[str, Any]:
    hashes: list[str] = []
    for _ in range(2):
        command = [sys.executable, "-c", REPLAY, str(HERE), str(CORPUS / "schema-3.json"), str(count // 2)]
        hashes += subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    failures = [] if len(set(hashes)) == 1 else [f"{len(set(hashes))} hashes"]
    return {"failures": failures, "hashes": len(set(hashes)), "replays": len(hashes)}
