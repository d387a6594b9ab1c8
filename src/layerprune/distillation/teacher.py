"""The original's outputs for each batch, cached or computed each time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from layerprune.capture import Batch, Probe, See, on_batch
from layerprune.checkpoint import write_tensors
from layerprune.distillation.hidden_matching import HiddenStates
from layerprune.distillation.losses import TopLogits
from layerprune.errors import CalibrationError
from layerprune.modules import parameters


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """The output tensors that are compared (of a language model's logits the top), and hidden states by value."""

    outputs: tuple[Tensor | TopLogits, ...]
    hidden: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])

    def flat(self) -> dict[str, Tensor]:
        found = {f"hidden.{value}": tensor for value, tensor in self.hidden.items()}
        for place, one in enumerate(self.outputs):
            if isinstance(one, TopLogits):
                found |= {f"classes.{place}": one.classes, f"log_probs.{place}": one.log_probs}
            else:
                found[f"output.{place}"] = one
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TeacherOutput:
        """Rebuild from the tensors of :meth:`flat`."""
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
        return TeacherOutput.of({name: tensor.to(device) for name, tensor in self.flat().items()})

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.flat().values())


class Teacher:
    """Gives the original's outputs for each batch, from memory, from a file, or from a forward.

    Args:
        side: the original.
        values: the hidden states to read, by value of its layer graph.
        outputs: picks the tensors to compare, from the batch number and the forward's output.
        bare: numbers of the batches that need no hidden states.
        memory_bytes: memory for cached outputs.
        folder: folder for outputs beyond that, a file each; None to compute them each time.
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
        """Return the original's outputs for a batch; the batch number is the key of the cache.

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
            self.kept[number] = made.on(torch.device("cpu"))  # accelerator memory is for the training
            self.kept_bytes += size
        elif file is not None:
            write_tensors(file, made.flat())
        else:
            self.repeated.add(number)
        return made

    def make(self, number: int, batch: Batch) -> TeacherOutput:
        hidden: dict[int, Tensor] = {}
        outs: list[Any] = []  # of each attempt; the last one counts

        def forward(_model: Any) -> None:
            outs.append(self.side.shade.call(batch.inputs))

        def begin() -> See:
            hidden.clear()
            return see

        def see(value: int, tensor: Tensor) -> None:
            hidden[value] = tensor.detach().clone()  # a later layer may write into it

        with on_batch(self.side.shade.model, batch.inputs, f"batch {number}", who="the original"):
            self.observer.run(batch.inputs, begin, forward=forward)
        made = TeacherOutput(tuple(self.outputs(number, outs[-1])), {} if number in self.bare else hidden)
        for name, tensor in made.flat().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CalibrationError(
                    f"the original makes values that are not finite of batch {number} ({name}): leave it out, or look "
                    "for NaN in the data and in the weights"
                )
        return made
