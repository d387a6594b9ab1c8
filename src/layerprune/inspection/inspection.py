"""The record of an inspection: names and numbers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KindCount:
    """Layers of one kind in the order of size: how many run, of which classes, and their parameters."""

    kind: str
    num_layers: int
    num_params: int
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RepeatedBlocks:
    """Elements of one class in a row, inside of a container; ``are_alike`` where shapes are the same, too."""

    container: str
    block: str
    num: int
    num_params: int
    are_alike: bool


@dataclass(frozen=True)
class VerdictShare:
    """The groups of one verdict, and their parameters; a parameter in several groups counts once."""

    verdict: str
    num_groups: int
    num_params: int


@dataclass(frozen=True)
class RefusalCount:
    """How many groups stay for a reason, with its code, and the text of the first of them."""

    code: str
    num_groups: int
    group: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a model is made of, and what may go.

    Attributes:
        model: the model's class.
        inputs: description of the inputs of the recorded forward.
        num_params: number of parameters; tied ones count once.
        num_bytes: bytes of the parameters.
        macs: multiply-accumulates of the forward; None where they could not be counted.
        num_layers: layers that the forward runs.
        num_modules: modules in the model.
        kinds: the layers by kind, those with the most parameters first.
        blocks: repeated blocks, outermost only.
        group_types: type of a group → number of groups.
        verdicts: removable, with calibration data, critical.
        refusals: why groups stay, the most frequent reason first.
        num_unused: parameters of modules that never run.
        notes: remarks on the recording.
    """

    model: str
    inputs: str
    num_params: int
    num_bytes: int
    macs: int | None
    num_layers: int
    num_modules: int
    kinds: tuple[KindCount, ...]
    blocks: tuple[RepeatedBlocks, ...]
    group_types: dict[str, int]
    verdicts: tuple[VerdictShare, ...]
    refusals: tuple[RefusalCount, ...]
    num_unused: int
    notes: tuple[str, ...]
