"""Tokens of a language model, causality of its predictions, and greedy generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from layerprune.capture import Batch, Sandbox
from layerprune.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch, ``(sample, token)``, and their argument's name; None for the first positional argument."""

    ids: Tensor
    keyword: str | None

    def inputs(self, ids: Tensor) -> Inputs:
        return Inputs((ids,)) if self.keyword is None else Inputs((), {self.keyword: ids})


def tokens_of(batch: Batch, logits: Tensor) -> Tokens | None:
    """Find the tokens of a batch: integers with the logits' first two dimensions."""
    if logits.dim() != 3:
        return None
    held = batch.inputs.kwargs.get("input_ids")
    keyword = "input_ids" if held is not None else None
    if held is None and len(batch.inputs.args) == 1:
        held = batch.inputs.args[0]
    if not isinstance(held, Tensor) or held.is_floating_point() or held.shape != logits.shape[:2]:
        return None
    return Tokens(held, keyword) if held.shape[1] > 1 else None


def is_causal(shade: Sandbox, batch: Batch, tokens: Tokens, logits: Tensor) -> bool:
    """Whether predictions depend on earlier tokens only: a changed last token keeps the logits before it."""
    other = tokens.ids.clone()
    other[:, -1] = tokens.ids[:, -2]
    other[:, -1] += (other[:, -1] == tokens.ids[:, -1]) * torch.where(other[:, -1] > 0, -1, 1)
    inputs = batch.inputs.map(lambda tensor: other if tensor is tokens.ids else tensor)
    found = _logits(shade.forward(inputs))[:, :-1]
    return bool(torch.allclose(found, logits[:, :-1], rtol=1e-3, atol=1e-3))


def generations(shades: tuple[Sandbox, Sandbox], tokens: Tokens, mask: Tensor | None, count: int) -> list[Tensor]:
    """Generate greedily from the first halves of all sequences without padding there: ``(sample, count)`` per model."""
    half = max(1, tokens.ids.shape[1] // 2)
    keep = torch.ones(len(tokens.ids), dtype=torch.bool) if mask is None else mask[:, :half].bool().all(1)
    prompts = tokens.ids[keep, :half]
    found: list[Tensor] = []
    for shade in shades:
        ids = prompts
        for _ in range(count if len(prompts) else 0):
            ids = torch.cat([ids, _logits(shade.forward(tokens.inputs(ids)))[:, -1:].argmax(-1)], 1)
        found.append(ids[:, half:])
    return found


def _logits(out: Any) -> Tensor:
    if isinstance(out, Tensor):
        return out
    return cast(Tensor, out["logits"] if isinstance(out, dict) else out.logits)
