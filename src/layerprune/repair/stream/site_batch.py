"""What one batch shows of a layer that may be solved."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from layerprune.fitting import single
from layerprune.repair.sites.sites import Site


@dataclass(frozen=True, eq=False)
class SiteBatch:
    """What one batch shows of a site.

    Attributes:
        number: of the batch.
        read: what the transform reads in the pruned model, repaired so far.
        found: what it feeds there; what is written into it is what the rest of the forward reads. None where the
            transform has not run yet.
        wanted: what that is in the original.
        mask: ``(sample, token)``, 1 where a token counts.
        inner: what the normalization reads that the transform's result passes; None where it passes none.
    """

    number: int
    read: Tensor
    found: Tensor | None
    wanted: Tensor
    mask: Tensor | None
    inner: Tensor | None = None

    @property
    def there(self) -> Tensor:
        """What a transform that has run feeds."""
        assert self.found is not None
        return self.found

    @property
    def missing(self) -> Tensor:
        """What the tensor should change by, in float32 or wider; where the transform has not run yet, all of it."""
        dtype = single(self.wanted if self.found is None else self.found)
        if self.found is None:
            return self.wanted.to(self.read.device, dtype)
        return self.wanted.to(self.found.device, dtype) - self.found.to(dtype)


def needs(site: Site) -> tuple[int, ...]:
    """The values of the pruned model that solving a site takes, besides the one that it reaches."""
    return (site.source,) if site.passed is None else (site.source, site.passed.inner)


def knows_order(site: Site, view: SiteBatch) -> bool:
    """Whether it is known for tensors of a batch's size what becomes of the order of their elements."""
    if site.passed is None or view.inner is None:
        return site.moves is None or site.moves.fits(view.wanted.shape)
    behind = site.passed.moves
    before = site.moves is None or site.moves.fits(view.inner.shape)
    return before and (behind is None or behind.fits(view.wanted.shape))
