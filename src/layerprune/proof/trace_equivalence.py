"""Retracing: a model with shorter containers calls the very functions that one with stand-ins does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from layerprune.capture import Memo, Shadow, short
from layerprune.edits import Edit
from layerprune.errors import LayerPruneError
from layerprune.inputs import Inputs
from layerprune.proof.call_trace import Step, Tracer, first_difference, held_by_leaves
from layerprune.removals import CannotRealise, Realisation
from layerprune.surgery import applied


class Retracer:
    """Compares two forms of a shadow step by step.

    Args:
        shade: the shadow.
        inputs: what it runs on.
        memo: from which its layers answer; None where it runs on real tensors.
    """

    def __init__(self, shade: Shadow, inputs: Inputs, memo: Memo | None) -> None:
        self.shade = shade
        self.inputs = inputs
        self.memo = memo
        self.tracer = Tracer(shade.model, None if memo is None else memo.functions)

    def check(self, joint: Realisation) -> None:
        """Check that nothing depends on the places of layers, which edits change and stand-ins do not.

        Raises:
            CannotRealise: something does; the message names the function.
        """
        forms = (joint.stand_ins, joint.edits)
        held = [self.held(edits) for edits in forms]
        settled = {key for key, values in held[0].items() if held[1].get(key) == values}
        steps = [self.steps(edits, settled) for edits in forms]
        where = first_difference(*steps)
        if where:
            raise CannotRealise(f"the forward depends on the places of layers: '{where}' would run on something else")

    def held(self, edits: Sequence[Edit]) -> dict[int, dict[str, object]]:
        with applied(self.shade.model, edits):
            return held_by_leaves(self.shade.model)

    def steps(self, edits: Sequence[Edit], settled: Collection[int]) -> list[Step]:
        """Trace the shadow with edits made; the layers that are settled answer from the memo."""
        inputs, model = self.shade.renew(self.inputs), self.shade.model
        if self.memo is not None:
            self.memo.observer = partial(self.tracer.leaf, settled)
        try:
            with applied(model, edits), self.shade.running():
                forward = partial(model, *inputs.args, **inputs.kwargs)
                return self.tracer.trace(forward, (inputs.args, inputs.kwargs), keep=self.memo is not None)
        except (CannotRealise, LayerPruneError):
            raise
        except Exception as error:  # the user's forward on what is left of the model: anything may come
            raise CannotRealise(f"the forward fails without it: {short(error)}") from error
        finally:
            if self.memo is not None:
                self.memo.observer = None
