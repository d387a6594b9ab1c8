"""Plan depth: a model on the meta device is planned, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layerprune import UniversalLayerPruner
from menagerie.entry import Entry
from menagerie.numbers import numbers
from menagerie.outcomes import first_line, of_error

CAP = 0.3
Stage = Callable[[str], None]


def check_plan(entry: Entry, at: Stage = lambda stage: None) -> dict[str, Any]:
    """Build a model on the meta device and plan it.

    Args:
        entry: the architecture.
        at: told what is being done, for whoever has to say where the time ran out.

    Returns:
        A row: ``outcome`` is ``planned``, ``refused: …``, ``foreign: …`` or ``not built: …``, and the numbers.
    """
    at("build")
    try:
        model = entry.plan()
        given = None if entry.plan_inputs is None else entry.plan_inputs(model)
    except Exception as error:  # of the architecture's own making
        return {"outcome": f"not built: {type(error).__name__}: {first_line(error)}"}
    row: dict[str, Any] = {}
    try:
        at("plan")
        pruner = UniversalLayerPruner(model, example_inputs=given, projections=False)
        at("numbers")
        row |= numbers(pruner)
        at("render")
        pruner.render_plan()
        at("select")
        row["removed"] = pruner.plan(max_param_reduction=CAP).reduction
        row["outcome"] = "planned"
    except Exception as error:  # what a library raises here is what is to be found out
        row["outcome"] = of_error(error)
    return row
