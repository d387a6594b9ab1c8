"""timm's models: every architecture name on the meta device, and in full some of each model file.

``timm_full.json`` says which, and on images of which size. ``python -m menagerie.timm --choose`` (here in
``benchmarks/``, some ten minutes) writes it anew: of each file the cheapest architectures of up to three families of
names, on the smallest images that they run on.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import torch
from torch import nn

from menagerie.entry import Batch, Entry, NoVariant
from menagerie.meta import on_meta
from torchvision_ops import declare_missing_ops

_TABLE = Path(__file__).with_name("timm_full.json")
_FAMILIES_PER_FILE = 3
_LARGE = 45_000_000  # parameters; larger ones only where a file has nothing smaller
_SIZES = (64, 96, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512, 768, 1024)
#: What must be there whatever is cheapest, and what makes the only architectures of a file fit into memory.
_WANTED = (
    "cspdarknet53", "mixnet_s", "mixer_s32_224", "efficientnet_b0", "resnext50_32x4d", "ecaresnet26t", "seresnet18",
    "bat_resnext26ts", "vit_tiny_patch16_224", "resnetv2_50",
)  # fmt: skip
_NARROWED: Mapping[str, Mapping[str, Any]] = {"deepseek_vit_412m": {"embed_dim": 256, "num_heads": 4}}


def entries() -> dict[str, Entry]:
    """Return an entry for every architecture that timm registers."""
    table = _table()
    found: dict[str, Entry] = {}
    for name in _timm().list_models():
        full = name in table
        found[name] = Entry(
            library="timm",
            name=name,
            family=_file_of(name),
            plan=partial(_build_on_meta, name),
            full=partial(_build, name) if full else None,
            inputs=partial(_images, name) if full else None,
        )
    return found


def _timm() -> Any:
    declare_missing_ops()  # timm imports torchvision
    import timm

    return timm


@cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    return json.loads(_TABLE.read_text()) if _TABLE.exists() else {}


def _file_of(name: str) -> str:
    return _timm().models.model_entrypoint(name).__module__.rpartition(".")[2]


def _build_on_meta(name: str) -> nn.Module:
    return on_meta(lambda: _timm().create_model(name))


def _build(name: str) -> nn.Module:
    return _timm().create_model(name, num_classes=10, **_table()[name]["options"])


def _images(name: str, model: nn.Module, batch: int, variant: int) -> Batch:
    size = _table()[name]["other" if variant else "size"]
    if size is None:
        raise NoVariant("takes images of one size only")
    return (torch.randn(batch, 3, *size, dtype=next(model.parameters()).dtype),), {}


# ---- the choice --------------------------------------------------------------------------------------------------


def choose() -> dict[str, dict[str, Any]]:
    """Choose what is checked in full, by parameters counted on the meta device."""
    by_file: dict[str, dict[str, list[tuple[int, str]]]] = {}
    names = [name for name in _timm().list_models() if not name.startswith("test_")]  # timm's own toys
    for name in names:
        params = sum(p.numel() for p in on_meta(partial(_timm().create_model, name, num_classes=10)).parameters())
        family = name.removeprefix("tf_").split("_")[0].rstrip("0123456789")
        by_file.setdefault(_file_of(name), {}).setdefault(family, []).append((params, name))
    chosen: dict[str, dict[str, Any]] = {}
    for file, families in sorted(by_file.items()):
        cheapest = sorted(min(some) for some in families.values())[:_FAMILIES_PER_FILE]
        small = [name for params, name in cheapest if params <= _LARGE] or [cheapest[0][1]]
        wanted = [name for name in _WANTED if _file_of(name) == file]
        for name in dict.fromkeys([*small, *wanted]):
            chosen[name] = {"file": file, **_smallest(name)}
            print(name, chosen[name], flush=True)
    return chosen


def _smallest(name: str) -> dict[str, Any]:
    """Find the smallest square image that a model runs on, in both modes; and another size that it takes as well."""
    for size in _SIZES:
        for options in _options(name, size):
            try:
                model = on_meta(partial(_timm().create_model, name, num_classes=10, **options))
            except TypeError:  # it has no such option
                continue
            if _runs(model, size, size):
                others = [(size + 32, size), (2 * size, size), (2 * size, 2 * size)]
                other = next((some for some in others if _runs(model, *some)), None)
                return {"size": [size, size], "other": other and list(other), "options": options}
    raise RuntimeError(f"{name} runs on no image of {_SIZES}")


def _options(name: str, size: int) -> Iterator[dict[str, Any]]:
    narrowed = dict(_NARROWED.get(name, {}))
    yield narrowed
    yield {**narrowed, "img_size": size}


def _runs(model: nn.Module, *size: int) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            for training in (True, False):
                model.train(training)(torch.randn(2, 3, *size))
    except Exception:  # anything may come of a size that a model is not made for
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="The timm architectures that are checked in full.")
    parser.add_argument("--choose", action="store_true", required=True, help=f"write {_TABLE.name} anew")
    parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(choose().items())]
    _TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
