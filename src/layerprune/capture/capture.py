"""Records one forward on fake tensors as a layer graph."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

from torch import nn

from layerprune.capture.activation_store import ActivationStore
from layerprune.capture.events import Recording
from layerprune.capture.graph_builder import GraphBuilder
from layerprune.capture.recorder import Recorder
from layerprune.capture.sandbox import (
    EXAMPLE_INPUTS,
    Sandbox,
    ValuesNeededError,
    attempt,
    forward_error,
    has_no_values,
    real_sandbox,
)
from layerprune.errors import CaptureError, InputsError, LayerPruneError, short
from layerprune.graph import LayerGraph, Read
from layerprune.inputs import Inputs
from layerprune.modules import CallKey, buffers, notes_on_unseen_state, parameters
from layerprune.tensors import OutputTree


def record(model: nn.Module, inputs: Inputs, *, guessed: bool = False) -> tuple[LayerGraph, Sandbox]:
    """Record one forward of a model; see :func:`capture`. Returns its sandbox, too.

    Guessed inputs get a real forward only where the error is about fake tensors, not where they do not fit.
    """
    notes: list[str] = []

    def use(sandbox: Sandbox) -> tuple[Sandbox, Recorder, Recording]:
        return sandbox, *(_run(sandbox, inputs) if sandbox.mode is not None else _record_really(model, sandbox, inputs))

    try:
        (sandbox, recorder, recording), failure = attempt(model, inputs, use, guessed=guessed)
    except (CaptureError, InputsError):
        raise
    except ValuesNeededError as error:
        raise _misfit(model, inputs, error.failure) from error.failure
    except Exception as error:  # the user's own forward
        raise _misfit(model, inputs, error) from error
    if failure is not None:
        notes.append(
            f"recorded on real tensors, because fake ones failed ({short(failure)}): "
            "only the layers that these inputs reached are known"
        )
    elif sandbox.mode is not None and (failure := _raised(sandbox, inputs)) is not None:
        # Unobserved, some modules of torch take a fused path that fails on fake tensors (nested tensors).
        if has_no_values([*parameters(model), *buffers(model)]):
            raise CaptureError(
                f"{type(model).__name__}.forward was recorded, and does not run on fake tensors ({short(failure)}): "
                "give it real weights, in place of those on the meta device"
            ) from failure
        sandbox = real_sandbox(model)
        notes.append(f"proven on real tensors, because fake ones failed ({short(failure)})")
    notes += [] if sandbox.outside is None else sandbox.outside.notes
    notes += notes_on_unseen_state(model)
    return GraphBuilder(recorder, recording, notes).build(), sandbox


def capture(model: nn.Module, inputs: Inputs) -> LayerGraph:
    """Record one forward of a model and return its layer graph.

    The forward runs in eval mode on fake tensors, in a sandbox. Where that fails (control flow that depends on data),
    it runs on real tensors, in a copy that shares the model's parameters; a note in the graph says so.

    Args:
        model: any module; its mode, hooks, buffers and the RNG stay as they are.
        inputs: arguments of the model's forward.

    Returns:
        The layer graph.

    Raises:
        InputsError: the forward raises on these inputs.
        CaptureError: the forward runs, but no tensor in its output depends on the inputs.
    """
    return record(model, inputs)[0]


def record_on(shade: Sandbox, inputs: Inputs) -> LayerGraph:
    """Record one forward in an existing sandbox; observers of real forwards need a recording in a real one.

    On fake tensors libraries may make other calls, such as more or fewer checks of a mask.
    """
    recorder, recording = _run(shade, inputs)
    return GraphBuilder(recorder, recording, []).build()


def record_real(model: nn.Module, inputs: Inputs, holding: ActivationStore | None = None) -> tuple[LayerGraph, Sandbox]:
    """Record one forward in a real sandbox, which shares the model's parameters; returns graph and sandbox.

    ``holding`` gets the activations, by the layer graph's values.

    Raises:
        InputsError: the forward raises on these inputs.
        CaptureError: the forward runs, and cannot be recorded.
    """
    if has_no_values([*parameters(model), *buffers(model)]):
        raise _misfit(model, inputs, CaptureError("parameters on the meta device have no values"))
    shade = real_sandbox(model)
    recorder, recording = _record_really(model, shade, inputs, holding)
    return GraphBuilder(recorder, recording, []).build(), shade


def record_training(shade: Sandbox, graph: LayerGraph, inputs: Inputs) -> LayerGraph | None:
    """Record a forward in train mode, on two or more samples for batch norms; ``graph`` is the graph of eval mode.

    None where eval mode uses every parameter, or train mode does not run.
    """
    if all(number in graph.param_users for number in graph.param_ids.values()):
        return None
    shade.model.train()
    try:
        recorder, recording = _run(shade, inputs)
    except Exception:  # user code, which may need targets in train mode; the proofs add a note
        return None
    finally:
        shade.model.eval()
    return GraphBuilder(recorder, recording, []).build()


def record_results(shade: Sandbox, inputs: Inputs) -> Mapping[CallKey, OutputTree[Read] | None]:
    """Record the result of each module's call on other inputs; None if it raised. Empty if the model raises."""
    try:
        _, recording = _run(shade, inputs)
    except Exception:  # user code, which may accept one size only
        return {}
    return {call.key: call.result for call in recording.calls}


def _run(shade: Sandbox, inputs: Inputs, holding: ActivationStore | None = None) -> tuple[Recorder, Recording]:
    adapted = shade.adapt(inputs)
    recorder = Recorder(shade.model, keep=shade.mode is not None, holding=holding)
    looking = nullcontext() if shade.outside is None else shade.outside.watched(shade.model)
    with shade.running(), looking:
        return recorder, recorder.run(adapted.args, adapted.kwargs)


def _record_really(
    model: nn.Module, sandbox: Sandbox, inputs: Inputs, holding: ActivationStore | None = None
) -> tuple[Recorder, Recording]:
    try:
        return _run(sandbox, inputs, holding)
    except Exception as error:
        if (own_error := _raised(sandbox, inputs)) is None:
            raise CaptureError(
                f"{type(model).__name__}.forward runs on the example inputs, but not while it is recorded: "
                f"{short(error)}. This is a limit of layerprune; please report it with the model's code"
            ) from error
        raise _misfit(model, inputs, own_error) from own_error


def _raised(sandbox: Sandbox, inputs: Inputs) -> Exception | None:
    """The error of an unobserved forward; None if it runs."""
    try:
        sandbox.forward(inputs)
    except Exception as error:  # the user's own forward
        return error
    return None


def _misfit(model: nn.Module, inputs: Inputs, error: Exception) -> LayerPruneError:
    return forward_error(error, model, inputs, **EXAMPLE_INPUTS)
