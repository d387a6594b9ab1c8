"""Takes whole layers out of their container, so that the model's own class loads the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from layerprune.adapters import Stack, owner_of, shorten_stacks, stacks_by_owner
from layerprune.edits import Delete, Drop, Edit, Pass, Shorten, joined
from layerprune.errors import SurgeryError
from layerprune.graph import LayerGraph, Refusal, RefusalCode
from layerprune.modules import parameters
from layerprune.removals.lowering import Lowering


class ContainerShortener:
    """Replaces stand-ins for whole layers by shorter containers, if transformers alone would load the result.

    On request it does so in other models, too. There a proof compares the forwards (``proof/trace_equivalence``).

    Args:
        graph: the layer graph.
        model: a sandbox of the model; it stays unchanged.
        modules: its modules by name.
        whole_only: whether to refuse removals that transformers alone would not load.
        renumber: whether to shorten containers of other models.
    """

    def __init__(
        self, graph: LayerGraph, model: nn.Module, modules: Mapping[str, nn.Module], *, whole_only: bool, renumber: bool
    ) -> None:
        self.graph = graph
        self.model = model
        self.modules = modules
        self.whole_only = whole_only
        self.renumber = renumber
        self.owners: dict[str, str | None] = {}
        self.stacks: dict[str, Stack] = {}

    def shorten(self, lowering: Lowering) -> Lowering:
        """The same lowering with shorter containers, or unchanged if it cannot have them.

        Raises:
            Refusal: ``whole_only`` is set, and transformers alone would not load the result.
        """
        edits = [self.shortened(edit) for edit in lowering.edits]
        shortens = joined(edit for edit in edits if isinstance(edit, Shorten))
        needless = [edit for edit in edits if shortens and self.is_needless(edit)]
        others = [edit for edit in edits if not isinstance(edit, Shorten) and edit not in needless]
        if self.whole_only:
            for edit in others:
                if self.owner(edit.fqn) is not None:
                    raise Refusal(RefusalCode.STAND_IN_LEFT, edit.fqn)
        if not shortens:
            return lowering
        try:
            removed = {edit.fqn: edit.removed for edit in shortens}
            parts = stacks_by_owner(self.model, removed)
            if None in parts:
                shorten_stacks(self.model, {fqn: removed[fqn] for fqn in parts.pop(None)})
            for owner, inside in parts.items():
                assert owner is not None
                stack = self.stacks.get(owner) or Stack(self.model.get_submodule(owner))
                self.stacks[owner] = stack
                stack.find(stack.shortened(inside))
        except SurgeryError as error:
            if self.whole_only:
                raise Refusal(RefusalCode.ERROR, error=error) from error
            return lowering
        stand_ins = tuple(edit for edit in lowering.edits if edit not in needless)
        return replace(lowering, edits=(*others, *shortens), stand_ins=stand_ins)

    def shortened(self, edit: Edit) -> Edit:
        """The edit that shortens a container in place of a stand-in for its element; other edits unchanged."""
        if not isinstance(edit, (Pass, Delete)) or (isinstance(edit, Pass) and edit.copies):
            return edit
        parent, _, key = edit.fqn.rpartition(".")
        container = self.modules.get(parent)
        alone = len(self.graph.aliases_of.get(edit.fqn, ((edit.fqn,),))[0]) == 1
        if not isinstance(container, (nn.ModuleList, nn.Sequential)) or not key.isdigit() or not alone:
            return edit
        able = self.renumber or self.owner(parent) is not None
        return Shorten(fqn=parent, removed=(int(key),)) if able else edit

    def must(self, lowering: Lowering) -> bool:
        """Whether stand-ins must not replace the shortening of a container."""
        shortens = (edit for edit in lowering.edits if isinstance(edit, Shorten))
        return self.whole_only and any(self.owner(edit.fqn) is not None for edit in shortens)

    def is_needless(self, edit: Edit) -> bool:
        """Whether an edit removes a module without parameters that a model built from its config has.

        An operand of a merge does not count: only an edit tells the merge to leave it out.
        """
        module = self.modules.get(edit.fqn)
        bare = module is not None and not any(True for _ in parameters(module))
        return isinstance(edit, Drop) and not edit.merges and bare and self.owner(edit.fqn) is not None

    def owner(self, fqn: str) -> str | None:
        """Name of the transformers model that holds a module; None if none does."""
        if fqn not in self.owners:
            self.owners[fqn] = owner_of(self.model, fqn)
        return self.owners[fqn]
