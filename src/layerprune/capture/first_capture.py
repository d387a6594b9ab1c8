"""Records a model for the first time: on given inputs, on calibration data, or on inferred inputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import nn

from layerprune.adapters import timm_example_inputs, transformers_example_inputs
from layerprune.capture.calibration import Batch, fitting
from layerprune.capture.capture import record
from layerprune.capture.sandbox import Sandbox, runs_on
from layerprune.errors import InputsError, UnsupportedModelError
from layerprune.graph import LayerGraph
from layerprune.inputs import ArgumentReader, Inputs, describe, infer_inputs
from layerprune.modules import parameters


def record_first(model: nn.Module, given: Any, batches: Sequence[Batch] | None) -> tuple[Inputs, LayerGraph, Sandbox]:
    """Find inputs for a model, and record it on them; returns these, the layer graph and the sandbox.

    The user's example inputs are used if ``given``, else the first batch of calibration data, else inferred inputs.

    Raises:
        InputsError: the inputs do not fit, or none could be inferred.
        CalibrationError: the first batch does not fit.
        UnsupportedModelError: the model has no parameters.
    """
    if given is not None:
        inputs = ArgumentReader(model, lambda inputs: runs_on(model, inputs)).read(given, by_hand=True)
        if inputs.is_empty:
            raise InputsError(
                f"example_inputs hold no element ({describe(inputs)}): pass one sample or more, as the forward takes it"
            )
        return inputs, *record(model, inputs)
    if batches:
        with fitting(model, batches[0].inputs):
            return batches[0].inputs, *record(model, batches[0].inputs)
    if not any(True for _ in parameters(model)):
        raise UnsupportedModelError("the model has no parameters: there is nothing to remove")
    recorded: list[tuple[LayerGraph, Sandbox]] = []

    def attempt(inputs: Inputs) -> Exception | None:
        try:
            recorded.append(record(model, inputs, guessed=True))
        except InputsError as error:
            return error.__cause__ if isinstance(error.__cause__, Exception) else error
        return None

    known = chain(transformers_example_inputs(model), timm_example_inputs(model))
    inferred = infer_inputs(model, attempt, known)
    return inferred, *recorded[-1]
