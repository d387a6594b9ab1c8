"""What the library finds on sixty architectures, kept as a record, so that a change of the code can be held against it.

``python benchmarks/behaviour.py record before.json`` plans twenty models each of torchvision, timm and transformers on
the meta device, and writes down the groups with their verdicts and reasons, the removals, and the plan at 30 %.
``python benchmarks/behaviour.py compare before.json after.json`` lists what differs, model by model, and exits with 1
where something does.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from torch import nn

from layerprune import LayerPruneError, UniversalLayerPruner
from menagerie import timm, torchvision, transformers
from menagerie.subset import SUBSET

CAP = 0.3

#: What records that are older do not hold.
SINCE = frozenset({"reason_code"})

#: Beside the architectures that the test suite checks in full.
MORE: Mapping[str, tuple[str, ...]] = {
    "torchvision": (
        "alexnet", "vgg11_bn", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_32", "swin_t",
        "squeezenet1_1", "mnasnet0_5", "fcn_resnet50", "r3d_18",
    ),
    "timm": ("selecsls42", "rexnet_100"),
    "transformers": ("roberta", "opt", "phi3", "gemma2", "distilbert"),
}  # fmt: skip


def record(names: Sequence[str]) -> dict[str, Any]:
    """Plan each model; what is asked for by name only, if anything is."""
    found: dict[str, Any] = {}
    for library, entries in _entries():
        for name in (*SUBSET[library], *MORE[library]):
            key = f"{library}:{name}"
            if not names or name in names or key in names:
                print(key, file=sys.stderr, flush=True)
                found[key] = behaviour(entries[name].plan())
    return found


def _entries() -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "torchvision", torchvision.entries()
    yield "timm", timm.entries()
    yield "transformers", transformers.entries()


def behaviour(model: nn.Module) -> dict[str, Any]:
    """What is found on one model, in the order of execution."""
    try:
        pruner = UniversalLayerPruner(model)
    except LayerPruneError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    groups = {
        group.name: {
            "type": group.type,
            "num_params": group.num_params,
            "verdict": _verdict(group),
            "reason": group.reason,
            "reason_code": group.reason_code,
        }
        for group in sorted(pruner.groups, key=lambda group: group.name)
    }
    removals = {r.name: {"kind": r.kind, "groups": list(r.groups), "num_params": r.num_params} for r in pruner.removals}
    plan = pruner.plan(max_param_reduction=CAP)
    chosen = {"removals": sorted(r.name for r in plan.removals), "num_params_after": plan.num_params_after}
    return {"groups": groups, "removals": removals, "plan": chosen}


def _verdict(group: Any) -> str:
    if group.needs_calibration:
        return "with calibration"
    return "safe" if group.can_remove else "critical"


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Where two records differ, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            place = f"{path} > {key}" if path else str(key)
            if key not in after:
                yield f"{place}: gone, was {before[key]}"
            elif key not in before and key not in SINCE:
                yield f"{place}: new, {after[key]}"
            elif key in before:
                yield from differences(before[key], after[key], place)
    elif before != after:
        yield f"{path}: {before} → {after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="plan the models, and write down what is found")
    recording.add_argument("file", type=Path)
    recording.add_argument("--models", nargs="*", default=(), help="only these, as resnet18 or timm:levit_128s")
    comparing = commands.add_parser("compare", help="list what differs between two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "record":
        warnings.simplefilter("ignore")
        args.file.write_text(json.dumps(record(args.models), indent=1))
        return
    lines = list(differences(json.loads(args.before.read_text()), json.loads(args.after.read_text())))
    print("\n".join(lines) or "nothing differs")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
