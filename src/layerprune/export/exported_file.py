"""The record of an exported file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from layerprune.tables import brief


@dataclass(frozen=True)
class ExportedFile:
    """An exported file, and its check.

    Attributes:
        path: the file.
        num_nodes: number of operators in the graph.
        batch_sizes: batch sizes of the check; a single size for a fixed batch dimension.
        max_difference: to the model's output, relative to the output's largest magnitude.
    """

    path: Path
    num_nodes: int
    batch_sizes: tuple[int, ...]
    max_difference: float

    def __str__(self) -> str:
        at = " and ".join(map(str, self.batch_sizes)) or "the example's"
        return f"{self.path}: {self.num_nodes} nodes, within {self.max_difference:.1e} of the model at batch size {at}"

    def __repr__(self) -> str:
        return brief(self, f"{self.path.name}: {self.num_nodes} nodes, within {self.max_difference:.1e} of the model")
