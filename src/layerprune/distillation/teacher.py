"""The teacher's outputs for each batch, cached or computed each time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from layerprune.capture import Batch, Probe, See
from layerprune.checkpoint import write_tensors
from layerprune.distillation.hidden_matching import HiddenStates
from layerprune.distillation.losses import TopLogits
from layerprune.errors import CalibrationError, ended_by
from layerprune.inputs import describe
from layerprune.modules import parameters


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """What the original makes of a batch.

    Attributes:
        outputs: the tensors of its output that are compared; of a language model's logits the likeliest tokens.
        hidden: by value of its graph.
    """

    outputs: tuple[Tensor | TopLogits, ...]
    hidden: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])

    def flat(self) -> dict[str, Tensor]:
        """All tensors by name."""
        found = {f"hidden.{value}": tensor for value, tensor in self.hidden.items()}
        for place, one in enumerate(self.outputs):
            if isinstance(one, TopLogits):
                found |= {f"classes.{place}": one.classes, f"log_probs.{place}": one.log_probs}
            else:
                found[f"output.{place}"] = one
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TeacherOutput:
        """Read what :meth:`flat` gave."""
        hidden: dict[int, Tensor] = {}
        outputs: dict[int, Tensor | TopLogits] = {}
        for name, tensor in tensors.items():
            what, _, number = name.partition(".")
            if what == "hidden":
                hidden[int(number)] = tensor
            elif what == "output":
                outputs[int(number)] = tensor
            elif what == "classes":
                outputs[int(number)] = TopLogits(tensor, tensors[f"log_probs.{number}"])
        return cls(tuple(outputs[place] for place in sorted(outputs)), hidden)

    def on(self, device: torch.device) -> TeacherOutput:
        """The same on a device."""
        return TeacherOutput.of({name: tensor.to(device) for name, tensor in self.flat().items()})

    @property
    def num_bytes(self) -> int:
        """What it takes to keep it."""
        return sum(tensor.nbytes for tensor in self.flat().values())


class Teacher:
    """Gives the lesson of each batch.

    Args:
        side: the original.
        values: the hidden states that are asked for, by value of its graph.
        outputs: picks what is compared from a batch's number and what the forward returns.
        bare: numbers of batches of which the output is needed only.
        memory_bytes: lessons that fit into this are kept in memory.
        folder: where the others are kept, each in a file; None to compute these each time.
    """

    def __init__(
        self,
        side: HiddenStates,
        values: Iterable[int],
        outputs: Callable[[int, Any], Sequence[Tensor | TopLogits]],
        bare: Collection[int],
        memory_bytes: int,
        folder: Path | None = None,
    ) -> None:
        self.side = side
        self.observer = Probe(side.shade, side.graph, values)
        self.outputs = outputs
        self.device = next(parameters(side.shade.model)).device
        self.bare = bare
        self.memory_bytes = memory_bytes
        self.folder = folder
        self.kept: dict[int, TeacherOutput] = {}
        self.kept_bytes = 0
        self.repeated: set[int] = set()

    def lesson(self, number: int, batch: Batch) -> TeacherOutput:
        """What the original makes of a batch, which is known by its number.

        Raises:
            CalibrationError: the forward raises, or its values are not finite.
        """
        if number in self.kept:
            return self.kept[number].on(self.device)
        file = None if self.folder is None else self.folder / f"{number:06d}.safetensors"
        if file is not None and file.exists():
            return TeacherOutput.of(load_file(file)).on(self.device)
        made = self.make(number, batch)
        size = made.num_bytes
        if self.kept_bytes + size <= self.memory_bytes:
            self.kept[number] = made.on(torch.device("cpu"))  # an accelerator's memory is for the training
            self.kept_bytes += size
        elif file is not None:
            write_tensors(file, made.flat())
        else:
            self.repeated.add(number)
        return made

    def make(self, number: int, batch: Batch) -> TeacherOutput:
        hidden: dict[int, Tensor] = {}
        outs: list[Any] = []  # of each try; the last one counts

        def forward(model: Any) -> None:
            inputs = self.side.shade.adapt(batch.inputs)
            outs.append(model(*inputs.args, **inputs.kwargs))

        def begin() -> See:
            hidden.clear()
            return see

        def see(value: int, tensor: Tensor) -> None:
            hidden[value] = tensor.detach().clone()  # a later layer may write into it

        try:
            self.observer.run(batch.inputs, begin, forward=forward)
        except Exception as error:  # the user's own forward
            what = f"batch {number} ({describe(batch.inputs)}) is not what the forward takes: the original raised on it"
            raise CalibrationError(ended_by(what, error)) from error
        made = TeacherOutput(tuple(self.outputs(number, outs[-1])), {} if number in self.bare else hidden)
        for name, tensor in made.flat().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CalibrationError(
                    f"the original makes values that are not finite of batch {number} ({name}): leave it out, or look "
                    "for NaN in the data and in the weights"
                )
        return made
