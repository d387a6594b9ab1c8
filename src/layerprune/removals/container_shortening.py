"""Takes whole layers out of their container, so that the model's own smaller class loads the rest."""

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
    """Turns stand-ins for whole layers into shorter containers, where vanilla transformers would load what is left.

    On request in other models, too: there a proof tells whether the forward does the same; see
    ``proof/trace_equivalence``.

    Args:
        graph: the layer graph.
        model: a shadow of the model; it is only looked at.
        modules: its modules by name.
        whole_only: refuse what would not be loaded, instead of leaving a stand-in.
        renumber: shorten containers of other models, too.
    """

    def __init__(
        self,
        graph: LayerGraph,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        *,
        whole_only: bool,
        renumber: bool,
    ) -> None:
        self.graph = graph
        self.model = model
        self.modules = modules
        self.whole_only = whole_only
        self.renumber = renumber
        self.owners: dict[str, str | None] = {}
        self.stacks: dict[str, Stack] = {}

    def shorten(self, lowering: Lowering) -> Lowering:
        """The same realisation with shorter containers; as it is where that cannot be.

        Raises:
            Refusal: ``whole_only`` is set, and vanilla transformers would not load what is left.
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
        """What takes an element of a container out, of a transformers model's or any; another edit as it is."""
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
        """Whether stand-ins may not take the place of what a realisation shortens."""
        shortens = (edit for edit in lowering.edits if isinstance(edit, Shorten))
        return self.whole_only and any(self.owner(edit.fqn) is not None for edit in shortens)

    def is_needless(self, edit: Edit) -> bool:
        """Whether an edit takes out what vanilla would build again, and what holds no parameters.

        But not what a merge has to leave out: that one has to be told from what the merge adds.
        """
        module = self.modules.get(edit.fqn)
        bare = module is not None and not any(True for _ in parameters(module))
        return isinstance(edit, Drop) and not edit.merges and bare and self.owner(edit.fqn) is not None

    def owner(self, fqn: str) -> str | None:
        """The transformers model that holds a module."""
        if fqn not in self.owners:
            self.owners[fqn] = owner_of(self.model, fqn)
        return self.owners[fqn]
