"""Keeps the state of a training in a folder, so that an interrupted training resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from layerprune.checkpoint import write_record, write_tensors
from layerprune.distillation.training_state import TrainingState
from layerprune.errors import DistillationError

_RECORD = "training.json"
_VERSION = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Snapshot:
    """The state of a training at one step, and the pruned model's parameters before the first step (``start``)."""

    course: TrainingState
    state: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    scaler: Mapping[str, Any]


class Snapshots:
    """The folder of one training, safetensors and JSON only; each file is written whole or not at all.

    ``training.json`` names its tensor file. It is replaced after the new tensors are written, before old files are
    removed. The folder of another training is refused: ``key`` holds everything that determines a training, and
    ``weights`` is a hash of the pruned model's parameters, at the start or after an interrupted or finished run.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], weights: str) -> None:
        self.folder = folder
        self.key = dict(key)
        self.known = [weights]
        self.record: Mapping[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob(".*.part.*"):  # of a run that was killed while it wrote
            rest.unlink()
        strange = [path.name for path in folder.iterdir() if path.suffix not in (".json", ".safetensors")]
        if strange and not (folder / _RECORD).exists():
            raise DistillationError(
                f"checkpoint='{folder}' holds other files ({strange[0]}, …): name a folder of its own"
            )

    def load(self) -> Snapshot | None:
        """Read the folder; None where it holds no training yet.

        Raises:
            DistillationError: the folder belongs to another training, or cannot be read.
        """
        path = self.folder / _RECORD
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version, key, known = record["version"], record["key"], record["known"]
            self.record = {name: record[name] for name in ("course", "tensors", "scaler")}
        except (ValueError, KeyError, TypeError) as error:
            raise DistillationError(f"{path} cannot be read ({error}): remove the folder to start anew") from error
        other = [name for name, value in self.key.items() if key.get(name) != value]
        if self.known[0] not in known:
            other.append("the pruned model's weights")
        if version != _VERSION or other:
            raise DistillationError(
                f"checkpoint='{self.folder}' is of another training ({', '.join(other) or 'another version'} differ): "
                "give what it was started with, or another folder"
            )
        self.known = known
        try:
            return self.read(record)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DistillationError(
                f"{self.folder} cannot be read ({error}): remove the folder to start anew"
            ) from error

    def read(self, record: Mapping[str, Any]) -> Snapshot:
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "best": {}}
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(self.folder / record["tensors"]).items():
            what, _, rest = name.partition("/")
            if what == "optimizer":
                number, _, key = rest.partition("/")
                optimizer.setdefault(int(number), {})[key] = tensor
            else:
                parts[what][rest] = tensor
        course = TrainingState.of(record["course"], parts["best"])
        start = load_file(self.folder / "start.safetensors")
        return Snapshot(course=course, state=parts["state"], start=start, optimizer=optimizer, scaler=record["scaler"])

    def begin(self, start: Mapping[str, Tensor]) -> None:
        write_tensors(self.folder / "start.safetensors", start)

    def save(
        self,
        course: TrainingState,
        state: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        scaler: Mapping[str, Any],
    ) -> None:
        tensors = {f"state/{name}": tensor for name, tensor in state.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in course.best.items()}
        for number, held in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{key}": torch.as_tensor(value) for key, value in held.items()}
        file = f"step-{len(course.losses):08d}.safetensors"
        write_tensors(self.folder / file, tensors)
        self.record = {"course": course.record(), "tensors": file, "scaler": dict(scaler)}
        self.write()
        for old in self.folder.glob("step-*.safetensors"):
            if old.name != file:
                old.unlink()

    def write(self) -> None:
        write_record(self.folder / _RECORD, {"version": _VERSION, "key": self.key, "known": self.known, **self.record})

    def allow(self, weights: str) -> None:
        """Let the training also resume from a pruned model with these weights, which the training wrote into it."""
        if self.record and weights not in self.known:
            self.known = [*self.known, weights]
            self.write()
