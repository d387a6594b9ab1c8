"""The groups as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from layerprune.graph import Group


def groups_as_json(groups: Sequence[Group], notes: Sequence[str]) -> str:
    """Format groups with their verdicts and costs as JSON text; infinite or unknown impacts are null."""
    rows = [
        {
            "lead": group.lead_transform.name,
            "module": group.lead_transform.type_name,
            "type": group.type,
            "impact": group.impact if math.isfinite(group.impact) else None,  # JSON has no infinity
            "num_params": group.num_params,
            "num_removed": group.num_removed,
            "leaves_with": group.leaves_with,
            "verdict": group.verdict,
            "can_remove": group.can_remove,
            "needs_calibration": group.needs_calibration,
            "reason": group.reason,
            "layers": [layer.name for layer in group.layers],
        }
        for group in groups
    ]
    return json.dumps({"groups": rows, "notes": list(notes)}, indent=2)
