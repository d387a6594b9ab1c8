"""Finds where the elements of a layer's output go, by running what moves them on numbered elements."""

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
    """A rearrangement of all elements of a tensor, none left out and none twice.

    Attributes:
        shape: of what comes out, as it was recorded.
        sources: for each element of that, in order, which one it was before; of one sample where ``by_sample``.
        by_sample: whether what comes out holds sample after sample, as what went in does, each rearranged alike.
    """

    shape: tuple[int, ...]
    sources: Tensor
    by_sample: bool

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether this is known to be what happens to a tensor that comes out in some shape."""
        return tuple(shape[1:]) == self.shape[1:] and (self.by_sample or tuple(shape) == self.shape)

    def forth(self, tensor: Tensor) -> Tensor:
        """Elements as they were before → as they come out, ``(sample, element)``."""
        return tensor.reshape(-1, len(self.sources))[:, self.sources.to(tensor.device)]

    def back(self, tensor: Tensor) -> Tensor:
        """Elements as they come out → as they were before, ``(sample, element)``."""
        return tensor.reshape(-1, len(self.sources))[:, self._places.to(tensor.device)]

    @cached_property
    def _places(self) -> Tensor:
        places = torch.empty_like(self.sources)
        places[self.sources] = torch.arange(len(places))
        return places


class Elements:
    """The elements of a transform's output on their way, by their numbers there.

    Args:
        shape: of the transform's output.
        channel_dim: where it has its channels, from behind.
        known: gets what is found, for others that go the same way: blocks of a model are much alike.
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
        """The number of each element, in the shape of where they are now."""
        if self._moved is not None:
            return self._moved.reshape(self.shape)
        count = torch.Size(self.shape).numel()
        return torch.arange(count, dtype=torch.int32 if count < 2**31 else torch.int64).reshape(self.shape)

    def move(self, run: Callable[[Tensor], Any], shape: Sequence[int], name: Hashable = None) -> bool:
        """Follow the elements through a layer; whether it hands on all of them, each once, in the shape recorded.

        Args:
            run: the layer.
            shape: of what it makes.
            name: layers that do the same have the same; None where it is not known what others do the same.
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
        """The elements' numbers behind a layer, in order; None where it does not hand on all of them, each once."""
        with no_modes(), torch.no_grad():
            try:
                found = run(self.numbers)
            except Exception:  # a recorded argument that cannot be repeated, or a layer that computes with floats only
                return None
            count = torch.Size(self.start).numel()
            if not isinstance(found, Tensor) or found.shape != torch.Size(shape) or found.is_floating_point():
                return None
            flat = found.reshape(-1).long()
            if len(flat) != count or not bool((torch.bincount(flat, minlength=count) == 1).all()):
                return None
            return flat.to(found.dtype)

    def are_channels_at(self, dim: int) -> bool:
        """Whether the transform's channels lie along a dimension, counted from behind, in order."""
        if -dim > len(self.shape) or self.shape[dim] != self.num_channels:
            return False
        if self._moved is None and self.shape == self.start:
            return dim == self.channel_dim
        channels = self.numbers // self.after_channel % self.num_channels
        line = torch.arange(self.num_channels).reshape(-1, *[1] * (-1 - dim))
        return bool((channels == line).all())

    @property
    def moves(self) -> Permutation | None:
        """Where all elements have gone; None where they are still in order."""
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
        if num_samples > 1:  # of one sample alone nobody knows how others lie beside it
            samples = flat.reshape(num_samples, -1)
            starts = torch.arange(num_samples)[:, None] * samples.shape[1]
            if torch.equal(samples - starts, samples[:1].expand_as(samples)):
                return Permutation(self.shape, samples[0].clone(), by_sample=True)
        return Permutation(self.shape, flat, by_sample=False)
