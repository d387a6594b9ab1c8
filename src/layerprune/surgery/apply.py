"""Carries out edits on a module tree, all or nothing, with undo."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerprune.adapters import (
    PLACES,
    check_generation_config,
    feature_info_changes,
    generation_config_changes,
    shorten_stacks,
)
from layerprune.channels import channel_loss_of
from layerprune.edits import (
    Delete,
    Drop,
    DropParameter,
    Edit,
    Fold,
    Guard,
    Pass,
    Shorten,
    Slice,
    TakePlace,
    Vacate,
    joined,
    rounds_of,
)
from layerprune.errors import SurgeryError
from layerprune.modules import Undo, UndoLog, nothing, parameters, slots, unfuse
from layerprune.stand_ins import (
    REMOVED_VALUE,
    DroppedBranch,
    DroppedTensor,
    NeverRun,
    PassThrough,
    SkipsDropped,
    dropped,
    plain,
    shown,
)
from layerprune.surgery.fold_weights import Folded, resize
from layerprune.torch_internals import children_of, parameters_of, registry_of


def operate(
    model: nn.Module, edits: Sequence[Edit], folded: Folded | None = None, undo_log: UndoLog | None = None
) -> Undo:
    """Carry out edits on a model, in place.

    Remaining modules and parameters stay the same objects, except sliced parameters and folded weights.

    Args:
        model: the module tree to edit.
        edits: edits; each names a module of ``model``, or of what the rounds before it left.
        folded: folded weights; a fold without weights here gets zeros, to be overwritten later.
        undo_log: records every change; the caller may undo from any point on.

    Returns:
        A function that undoes all edits, bit for bit.

    Raises:
        SurgeryError: an edit does not fit the model. All edits are then undone, as after a Ctrl-C.
    """
    undo_log = UndoLog() if undo_log is None else undo_log
    try:
        for some in rounds_of(edits):
            _operate_once(model, some, folded or {}, undo_log)
        return undo_log.take_back
    except BaseException:
        undo_log.take_back()
        raise


def _operate_once(model: nn.Module, edits: Sequence[Edit], folded: Folded, undo_log: UndoLog) -> None:
    """Carry out the edits of one round."""
    places = slots(model)  # valid for all edits of a round: an edit moves no other module
    shortens = joined(edit for edit in edits if isinstance(edit, Shorten))
    shorten = _prepared(model, shortens)
    told = generation_config_changes(model, {edit.fqn: edit.removed for edit in shortens})
    told += feature_info_changes(model, [edit.fqn for edit in edits if isinstance(edit, Delete)])
    moves = [(edit, *_move(model, edit)) for edit in edits if isinstance(edit, TakePlace)]
    for edit in _in_order([edit for edit in edits if not isinstance(edit, (Shorten, TakePlace))]):
        _carry_out(model, edit, places, folded, undo_log)
    shorten(undo_log)
    for held, key, value in told:
        undo_log.set(held, key, value)
    _take_places(moves, undo_log)


def check_numbers(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Refuse edits that would make numbers wrong that the model's config holds and no forward reads.

    Raises:
        SurgeryError: a number would be wrong.
    """
    removed = {edit.fqn: edit.removed for edit in joined(edit for edit in edits if isinstance(edit, Shorten))}
    check_generation_config(model, removed, [edit.fqn for edit in edits if isinstance(edit, (Pass, Drop))])


def _prepared(model: nn.Module, shortens: Sequence[Shorten]) -> Callable[[UndoLog], None]:
    """Prepare the shortening of containers on the unedited model; it runs last, because it renames modules."""
    if not shortens:
        return lambda _: None
    try:
        return shorten_stacks(model, {edit.fqn: edit.removed for edit in shortens})
    except SurgeryError as error:
        raise SurgeryError(f"cannot {' and '.join(map(str, shortens))}: {error}") from error


def _move(model: nn.Module, edit: TakePlace) -> tuple[nn.Module, nn.Module, str]:
    """The module that moves, the module whose place it takes, and the attribute that holds the place."""
    module, other = _find(model, edit.fqn, edit), _find(model, edit.of, edit)
    for name in PLACES:
        if type(vars(module).get(name)) is int and type(vars(other).get(name)) is int:
            return module, other, name
    raise SurgeryError(f"cannot {edit}: they do not both hold the number of their place")


def _take_places(moves: Sequence[tuple[TakePlace, nn.Module, nn.Module, str]], undo_log: UndoLog) -> None:
    """Assign all places at once, because a module may leave its place to another one and take a third."""
    for module, name, place in [(module, name, vars(other)[name]) for _, module, other, name in moves]:
        undo_log.set(vars(module), name, place)


@contextmanager
def applied(model: nn.Module, edits: Sequence[Edit], folded: Folded | None = None) -> Generator[nn.Module]:
    """Run a block with edits carried out on a model; they are undone afterwards in every case."""
    undo_log = UndoLog()
    try:
        try:
            operate(model, edits, folded, undo_log)
            yield model
        finally:
            undo_log.take_back()
    except BaseException:  # a Ctrl-C may have interrupted the first undo
        undo_log.take_back()
        raise


def _in_order(edits: Sequence[Edit]) -> list[Edit]:
    """Parameters first, deletions last, so that every name is valid until it is needed."""
    order = {"slice": 0, "fold": 0, "drop_parameter": 1, "guard": 2, "pass": 2, "drop": 2, "vacate": 2, "delete": 3}
    return sorted(edits, key=lambda edit: order[edit.kind])


_Places = Mapping[int, Sequence[tuple[nn.Module, str]]]


def _carry_out(model: nn.Module, edit: Edit, places: _Places, folded: Folded, undo_log: UndoLog) -> None:
    if isinstance(edit, DropParameter):
        return _drop_parameter(model, edit, undo_log)
    if isinstance(edit, Fold):
        owner = _find(model, edit.owner, edit) if edit.owner else model
        return resize(model, owner, edit, folded.get(edit), undo_log)
    module = _find(model, edit.fqn, edit)
    if isinstance(edit, Slice):
        return _slice(module, edit, undo_log)
    if isinstance(edit, Delete):
        return _delete(model, edit, undo_log)
    if isinstance(edit, Guard):
        guard = SkipsDropped(module)
        guard.training = module.training
        return _replace(_places_of(module, edit, places), guard, undo_log)
    hung = _places_of(module, edit, places)
    fused = [parent for parent, _ in hung if isinstance(parent, nn.TransformerEncoderLayer)]
    gone = nothing() if fused or isinstance(module, nn.TransformerEncoderLayer) else REMOVED_VALUE
    _replace(hung, _stand_in(cast("Pass | Drop | Vacate", edit), module, model, gone), undo_log)
    for parent in fused:
        unfuse(parent, undo_log)


def _places_of(module: nn.Module, edit: Edit, places: _Places) -> Sequence[tuple[nn.Module, str]]:
    """Parents and keys of a module; an error if an earlier edit has replaced it."""
    if id(module) not in places:
        raise SurgeryError(f"cannot {edit}: another edit has put a stand-in there")
    return places[id(module)]


def _find(model: nn.Module, fqn: str, edit: Edit) -> nn.Module:
    module: nn.Module | None = model
    for key in fqn.split(".") if fqn else ():
        module = children_of(module).get(key) if module is not None else None
    if module is None or module is model:
        raise SurgeryError(f"cannot {edit}: {type(model).__name__} has no module '{fqn}'; was it pruned already?")
    return module


def _stand_in(edit: Pass | Drop | Vacate, module: nn.Module, model: nn.Module, gone: Tensor) -> nn.Module:
    if isinstance(edit, Drop):
        dtypes = (p.dtype for one in (module, model) for p in parameters(one) if p.is_floating_point())
        dtype = next(dtypes, torch.float32)
        stand_in: nn.Module = DroppedBranch(edit.merges, edit.structure, edit.copies, dtype)
    elif isinstance(edit, Vacate):
        stand_in = NeverRun(edit.fqn)
    elif edit.is_identity:
        stand_in = nn.Identity()
    else:
        stand_in = PassThrough(edit.position, edit.keyword, edit.structure, edit.copies)
    stand_in.training = module.training
    held = vars(stand_in)
    # Parents may read attributes of a module that they call. Only torch's own Identity loads without this library.
    kept = plain(module) if type(stand_in) is nn.Identity else shown(module, edit.fqn, gone)
    held |= {key: value for key, value in kept.items() if key not in held and key not in children_of(stand_in)}
    return stand_in


def _replace(places: Sequence[tuple[nn.Module, str]], new: nn.Module, undo_log: UndoLog) -> None:
    for parent, key in places:
        undo_log.set(cast("dict[str, Any]", children_of(parent)), key, new)


def _delete(model: nn.Module, edit: Delete, undo_log: UndoLog) -> None:
    parent_name, _, key = edit.fqn.rpartition(".")
    parent = _find(model, parent_name, edit) if parent_name else model
    if not isinstance(parent, nn.Sequential):
        raise SurgeryError(f"cannot {edit}: '{parent_name}' is a {type(parent).__name__}, not an nn.Sequential")
    undo_log.keep(cast("dict[str, Any]", children_of(parent)))
    del children_of(parent)[key]


def _drop_parameter(model: nn.Module, edit: DropParameter, undo_log: UndoLog) -> None:
    owner_name, _, key = edit.fqn.rpartition(".")
    owner = _find(model, owner_name, edit) if owner_name else model
    old = parameters_of(owner).get(key)
    if old is None:
        raise SurgeryError(f"cannot {edit}: '{owner_name or type(model).__name__}' has no parameter '{key}'")
    undo_log.keep(cast("dict[str, Any]", parameters_of(owner)))
    del parameters_of(owner)[key]
    undo_log.set(vars(owner), key, dropped(edit.merges, edit.copies, old.dtype))


# ---- slices ------------------------------------------------------------------------------------------------------


def _slice(module: nn.Module, edit: Slice, undo_log: UndoLog) -> None:
    loss = channel_loss_of(module, edit)
    for name, piece in loss.pieces.items():
        registry = registry_of(module, name)
        old = registry.get(name)
        if old is None:
            continue
        new = piece.cut(old, edit)
        new = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        undo_log.set(registry, name, new)
    for attribute, change in loss.counts.items():
        undo_log.set_attribute(module, attribute, getattr(module, attribute) - change)


def holds_dropped(model: nn.Module) -> bool:
    """Whether a model holds dropped tensors, so that loading it needs layerprune."""
    return any(isinstance(value, DroppedTensor) for module in model.modules() for value in vars(module).values())
