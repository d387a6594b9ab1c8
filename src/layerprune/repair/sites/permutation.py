"""Finds where layers move the elements of a tensor, by running them on numbered elements."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from layerprune.torch_internals import no_modes


@dataclass(frozen=True, eq=False)
class Permutation:
    """A rearrangement of all elements of a tensor.

    Attributes:
        shape: recorded shape of the result.
        sources: for each element of the result, in order, its number before; within one sample if ``by_sample``.
        by_sample: whether the rearrangement is the same within each sample, and samples keep their order.
    """

    shape: tuple[int, ...]
    sources: Tensor
    by_sample: bool

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the rearrangement is known for results of this shape."""
        return tuple(shape[1:]) == self.shape[1:] and (self.by_sample or tuple(shape) == self.shape)

    def forth(self, tensor: Tensor) -> Tensor:
        """From the order before to the order of the result, ``(sample, element)``."""
        return tensor.reshape(-1, len(self.sources))[:, self.sources.to(tensor.device)]

    def back(self, tensor: Tensor) -> Tensor:
        """From the order of the result to the order before, ``(sample, element)``."""
        return tensor.reshape(-1, len(self.sources))[:, self._places.to(tensor.device)]

    @cached_property
    def _places(self) -> Tensor:
        places = torch.empty_like(self.sources)
        places[self.sources] = torch.arange(len(places))
        return places


class Elements:
    """The elements of a transform's output, followed by their numbers through the layers behind it.

    Args:
        shape: shape of the transform's output.
        channel_dim: dimension of its channels, negative.
        known: cache of results; blocks of a model repeat the same layers.
    """

    def __init__(self, shape: Sequence[int], channel_dim: int, known: dict[Any, Any] | None = None) -> None:
        self.start = self.shape = tuple(shape)
        self.known = {} if known is None else known
        self.path: tuple[Any, ...] | None = (self.start, channel_dim)
        self.num_channels = shape[channel_dim]
        self.channel_dim = channel_dim
        self.after_channel = torch.Size(shape[len(shape) + channel_dim + 1 :]).numel()
        self._moved: Tensor | None = None

    @property
    def numbers(self) -> Tensor:
        """The number of each element, in the present shape."""
        if self._moved is not None:
            return self._moved.reshape(self.shape)
        count = torch.Size(self.shape).numel()
        return torch.arange(count, dtype=torch.int32 if count < 2**31 else torch.int64).reshape(self.shape)

    def move(self, run: Callable[[Tensor], Any], shape: Sequence[int], name: Hashable = None) -> bool:
        """Follow the elements through a layer; False if the result does not hold each element once, as recorded.

        Args:
            run: the layer.
            shape: recorded shape of its result.
            name: cache key, equal for layers that compute the same; None to run without the cache.
        """
        self.path = None if name is None or self.path is None else (self.path, self.shape, name, tuple(shape))
        if self.path is not None and self.path in self.known:
            flat = self.known[self.path]
        else:
            flat = self._run(run, shape)
            if self.path is not None:
                self.known[self.path] = flat
        if flat is None:
            return False
        self._moved, self.shape = flat, tuple(shape)
        return True

    def _run(self, run: Callable[[Tensor], Any], shape: Sequence[int]) -> Tensor | None:
        """The elements' numbers in the layer's result, in order; None if it does not hold each element once."""
        with no_modes(), torch.no_grad():
            try:
                found = run(self.numbers)
            except Exception:  # a recorded argument cannot be repeated, or the layer takes floats only
                return None
            count = torch.Size(self.start).numel()
            if not isinstance(found, Tensor) or found.shape != torch.Size(shape) or found.is_floating_point():
                return None
            flat = found.reshape(-1).long()
            if len(flat) != count or not bool((torch.bincount(flat, minlength=count) == 1).all()):
                return None
            return flat.to(found.dtype)

    def are_channels_at(self, dim: int) -> bool:
        """Whether the transform's channels lie along a (negative) dimension, in order."""
        if -dim > len(self.shape) or self.shape[dim] != self.num_channels:
            return False
        if self._moved is None and self.shape == self.start:
            return dim == self.channel_dim
        channels = self.numbers // self.after_channel % self.num_channels
        line = torch.arange(self.num_channels).reshape(-1, *[1] * (-1 - dim))
        return bool((channels == line).all())

    @property
    def moves(self) -> Permutation | None:
        """The rearrangement of all elements; None if their order stays."""
        key = self.path, self.shape
        if self.path is None or self._moved is None:
            return self._moves()
        if key not in self.known:
            self.known[key] = self._moves()
        return self.known[key]

    def _moves(self) -> Permutation | None:
        if self._moved is None or bool((self._moved == torch.arange(len(self._moved))).all()):
            return None
        flat = self._moved.long()
        num_samples = self.shape[0] if self.shape else 1
        if num_samples > 1:  # a single sample does not show how the layers treat several
            samples = flat.reshape(num_samples, -1)
            starts = torch.arange(num_samples)[:, None] * samples.shape[1]
            if torch.equal(samples - starts, samples[:1].expand_as(samples)):
                return Permutation(self.shape, samples[0].clone(), by_sample=True)
        return Permutation(self.shape, flat, by_sample=False)
