"""The tensors of one site in one batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from layerprune.fitting import single
from layerprune.repair.sites.sites import Site


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteBatch:
    """The tensors of one site in one batch.

    Attributes:
        number: the batch's number.
        read: the transform's input in the pruned model, repaired so far.
        found: the tensor that the transform feeds there; the rest of the forward reads it, with all changes made to it.
            None where the transform has not run yet.
        wanted: the same tensor in the original.
        mask: ``(sample, token)``, 1 where a token counts.
        inner: input of the normalization that the transform's result passes; None without one.
    """

    number: int
    read: Tensor
    found: Tensor | None
    wanted: Tensor
    mask: Tensor | None
    inner: Tensor | None = None

    @property
    def there(self) -> Tensor:
        assert self.found is not None
        return self.found

    @property
    def missing(self) -> Tensor:
        """The wanted change of the tensor, in float32 or wider; all of it where the transform has not run yet."""
        dtype = single(self.wanted if self.found is None else self.found)
        if self.found is None:
            return self.wanted.to(self.read.device, dtype)
        return self.wanted.to(self.found.device, dtype) - self.found.to(dtype)


def needs(site: Site) -> tuple[int, ...]:
    """The values of the pruned model that solving a site reads, besides the one that it feeds."""
    return (site.source,) if site.passed is None else (site.source, site.passed.inner)


def knows_order(site: Site, view: SiteBatch) -> bool:
    """Whether the order of elements is known for tensors of a batch's size."""
    if site.passed is None or view.inner is None:
        return site.moves is None or site.moves.fits(view.wanted.shape)
    behind = site.passed.moves
    before = site.moves is None or site.moves.fits(view.inner.shape)
    return before and (behind is None or behind.fits(view.wanted.shape))
