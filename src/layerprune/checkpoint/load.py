"""Applies a saved plan to a fresh copy of the model, and loads the saved weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerprune.checkpoint.atomic_dir import steadily
from layerprune.checkpoint.manifest import (
    INSIDE,
    Manifest,
    check_extra,
    check_hashes,
    is_artefact,
    path_of,
    read_manifest,
)
from layerprune.checkpoint.weights import Weights, entries_of
from layerprune.environment import locked
from layerprune.errors import CheckpointError, PlanError, ended_by
from layerprune.modules import clone, named_tensors, num_params, own, unwrap, write
from layerprune.plan import PruningPlan, plans_of
from layerprune.stand_ins import DroppedTensor
from layerprune.tensors import tensors_in
from layerprune.torch_internals import buffers_of, parameters_of, unsaved_buffers

Factory = Callable[[], nn.Module]
_Tensors = dict[str, Tensor]
_Placed = tuple[tuple[str, PruningPlan], ...]
_Slots = dict[str, tuple[nn.Module, dict[str, Any], str]]


@locked
def load_pruned(
    folder: str | Path,
    model: nn.Module | Factory | None = None,
    *,
    factory: Factory | None = None,
    device: torch.device | str | None = None,
    verify: bool = True,
) -> nn.Module:
    """Load a model that :func:`save_pruned` saved; its outputs are bit for bit those of the saved model.

    The plan is carried out on a copy of the unpruned model, and the saved weights replace all weights of the copy. No
    code from the folder is run or imported.

    Args:
        folder: the artefact, or a folder that another library wrote after :func:`allow_marked_saving`.
        model: an unpruned instance with any weights of any floating-point dtype; it is not changed. A class or function
            that returns an instance is used as ``factory``.
        factory: returns an unpruned instance. It runs under ``torch.device("meta")`` first, to save memory; it runs
            again without that where it fails there, or where the model holds tensors that are no parameters or buffers.
        device: device of the weights; None for the device of ``model``, or the CPU for ``factory``.
        verify: compare the SHA-256 of each file first.

    Returns:
        The pruned model, in the mode that it was saved in.

    Raises:
        CheckpointError: the folder is damaged, incomplete or no artefact, or its weights do not fit.
        PlanError: the plan was made for another model; the message names the difference.
    """
    given, maker = origin_of(model, factory)
    _check_device(device)
    target = _artefact_in(path_of(folder).absolute().resolve())

    def read() -> nn.Module:
        if not target.is_dir():
            raise CheckpointError(f"{folder} is no folder: give one that save_pruned(model, folder) has written")
        return load_artefact(target, given, maker, device, verify=verify, from_cache=False)

    return steadily(target, read)


def origin_of(model: object, factory: object) -> tuple[nn.Module | None, Factory | None]:
    """Sort the argument into an unpruned instance or a factory; raises :class:`CheckpointError` for other arguments."""
    given = [one for one in (model, factory) if one is not None]
    if len(given) != 1:
        raise CheckpointError("give either model=, an unpruned instance, or factory=, which makes one")
    if isinstance(given[0], nn.Module):
        return given[0], None
    if callable(given[0]):
        return None, cast("Factory", given[0])
    raise CheckpointError(
        f"expected an unpruned torch.nn.Module or a function that makes one, got {type(given[0]).__name__}: "
        "load_pruned(folder, model=MyModel(…)), or factory=lambda: MyModel(…)"
    )


def _check_device(device: torch.device | str | None) -> None:
    try:
        torch.empty(0, device=device)
    except Exception as error:  # torch raises errors of many types
        raise CheckpointError(ended_by(f"device {device!r:.60} cannot be used", error)) from error


@locked
def load_artefact(
    folder: Path,
    model: nn.Module | None,
    factory: Factory | None,
    device: torch.device | str | None,
    *,
    verify: bool,
    from_cache: bool,
) -> nn.Module:
    """Load an artefact; in the hub's cache, files are links, and other files may lie beside them."""
    manifest = read_manifest(folder, links=from_cache)
    if not from_cache:
        check_extra(folder, manifest)
    if verify:
        check_hashes(folder, manifest)
    places = [place for place, _ in manifest.placed]
    plans = tuple(zip(places, read_plans(folder, manifest), strict=True))
    weights = Weights(folder, manifest.weights, manifest.tensors)
    pruned = _loaded(model, factory, plans, weights, device)
    if num_params(pruned) != manifest.num_params:
        raise CheckpointError(
            f"{folder} holds {manifest.num_params:,} parameters, the model loaded has {num_params(pruned):,}: "
            "its parameters are tied in another way; give the class that was pruned"
        )
    _check_entries(pruned, manifest, folder)
    return pruned


def _check_entries(pruned: nn.Module, manifest: Manifest, folder: Path) -> None:
    """Raise :class:`CheckpointError` where extra entries of the ``state_dict`` differ from the saved ones."""
    expected = manifest.tensors.entries
    if not expected:
        return
    found = entries_of(pruned)
    for name, text in expected.items():
        if found.get(name) != text:
            raise CheckpointError(
                f"'{name}' in the state dict was {text[:80]} when {folder} was saved, and is "
                f"{found.get(name, 'not there')[:80]}: make the model with the same arguments"
            )


def _loaded(
    model: nn.Module | None,
    factory: Factory | None,
    plans: _Placed,
    weights: Weights,
    device: torch.device | str | None,
) -> nn.Module:
    """Prune a fresh instance and fill it; the next instance is used where tensors without values are left."""
    left = ""
    for fresh in _instances(model, factory):
        pruned = _filled(_replayed(fresh, plans), weights, device)
        left = _without_values(pruned)
        if left is None:
            return pruned
    raise CheckpointError(f"'{left}' holds a tensor on the meta device that is not saved: give a model with values")


def read_plans(folder: Path, manifest: Manifest) -> tuple[PruningPlan, ...]:
    """Read an artefact's plans, in order of execution; raises :class:`PlanError` or :class:`CheckpointError`."""
    return tuple(_read_plan(folder / name) for name in manifest.plans)


def _read_plan(path: Path) -> PruningPlan:
    try:
        return PruningPlan.from_json(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def _instances(model: nn.Module | None, factory: Factory | None) -> Iterator[nn.Module]:
    """The user's model, or the factory's: first on the meta device, then with values."""
    if model is not None:
        yield _checked(model)
    if factory is None:
        return
    try:
        with torch.device("meta"):
            bare = _made(factory)
    except Exception:  # user code may fail without values in any way; it runs with values below
        bare = None
    if bare is not None:
        yield bare
    yield _made(factory)


def _made(factory: Factory) -> nn.Module:
    """Call a factory without changing the RNG."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:  # arguments are required
        name = factory.__name__ if inspect.isroutine(factory) or inspect.isclass(factory) else type(factory).__name__
        what = f"{name}() makes no unpruned model; give an instance, or factory=lambda: {name}(…) with its arguments"
        raise CheckpointError(ended_by(what, error)) from error
    except ValueError:  # a callable in C without a signature
        pass
    with torch.random.fork_rng(devices=()):
        made = factory()
    return _checked(made)


def _checked(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"expected an unpruned torch.nn.Module, got {type(model).__name__}")
    if plans_of(model):
        raise CheckpointError(f"the {type(model).__name__} given is pruned already: give an unpruned instance")
    return unwrap(model)


def _replayed(fresh: nn.Module, plans: _Placed) -> nn.Module:
    """A pruned copy of a fresh model; the copy shares its tensors."""
    copy = clone(fresh, lambda tensor: tensor)
    for place, plan in plans:
        part = _part(copy, place)
        plan.check(part, dtypes=False)
        plan.carry_out(part)
    return copy


def _part(model: nn.Module, place: str) -> nn.Module:
    part = dict(model.named_modules(remove_duplicate=False)).get(place)
    if part is None:
        raise PlanError(
            f"the plan was made for the module '{place}', which this {type(model).__name__} lacks: "
            "give the class that held the pruned module"
        )
    return part


def _without_values(model: nn.Module) -> str | None:
    """Name of the first module with a tensor on the meta device at any depth of its attributes; None without one."""
    for name, module in model.named_modules():
        if any(not isinstance(tensor, DroppedTensor) and tensor.is_meta for tensor in tensors_in(vars(module))):
            return name or type(module).__name__
    return None


def _filled(model: nn.Module, weights: Weights, device: torch.device | str | None) -> nn.Module:
    """A copy of a pruned model with the saved tensors; no tensor is shared with the model."""
    record = weights.record
    named = dict(named_tensors(model))
    homes = _homes(model, weights)
    made = _tensors(model, homes, weights, weights.read(_devices(homes, named, device)))
    by_old = {id(named[name]): made[name] for name in homes if name in named}
    # By the old tensor first, since attributes may hold it, too; then by name, since ties may have changed since.
    copy = clone(model, lambda tensor: by_old[id(tensor)] if id(tensor) in by_old else _kept(tensor, device))
    for name, (_, registry, key) in _slots(copy).items():
        if name in made:
            registry[key] = made[name]
        elif name in record.empty:
            registry[key] = None
    for name, module in copy.named_modules():
        module.training = record.training != (name in record.otherwise)
    return copy


def _homes(model: nn.Module, weights: Weights) -> dict[str, str]:
    """Map the model's tensors to their names in the files, and check their shapes."""
    record = weights.record
    homes: dict[str, str] = {}
    used: set[str] = set()
    for name, (module, registry, key) in _slots(model).items():
        home, tensor = weights.saved_as(name), cast("Tensor | None", registry[key])
        transient = key in unsaved_buffers(module)
        if home is None:
            if tensor is not None and name not in record.empty and not transient:
                raise CheckpointError(
                    f"{weights.folder} holds no '{name}', which the model has, of shape {tuple(tensor.shape)}: "
                    "give the class that was pruned"
                )
            continue
        used.add(home)
        if tensor is not None and tuple(tensor.shape) != weights.shape(home) and not transient:
            raise CheckpointError(
                f"{weights.folder} holds '{name}' of shape {weights.shape(home)}, in the pruned model it is "
                f"{tuple(tensor.shape)}: give the class that was pruned, with the same arguments"
            )
        homes[name] = home
    unknown = [name for name in weights.home if name not in used and name not in record.transient]
    if unknown:
        raise CheckpointError(
            f"{weights.folder} holds '{unknown[0]}' of shape {weights.shape(unknown[0])}, for which the pruned model "
            "has no place: what was added after pruning has to be added to model= or by factory=, too"
        )
    return homes


@locked
def load_weights(folder: str | Path, pruned: nn.Module) -> None:
    """Load the weights of an artefact into a model that is pruned as the saved one was, in place.

    Args:
        folder: the artefact, or a folder that another library wrote after :func:`allow_marked_saving`.
        pruned: the pruned model; its tensors stay the same objects.

    Raises:
        CheckpointError: the folder is damaged, or its weights do not fit. The model is as it was.
    """
    target = _artefact_in(path_of(folder).absolute().resolve())

    def read() -> None:
        manifest = read_manifest(target)
        check_hashes(target, manifest)
        weights, named = Weights(target, manifest.weights, manifest.tensors), dict(named_tensors(pruned))
        homes = {name: home for name, home in _homes(pruned, weights).items() if name in named}
        values = weights.read(_devices(homes, named, None))
        write(pruned, {name: values[home] for name, home in homes.items()})

    steadily(target, read)


def holds_artefact(folder: str | Path) -> bool:
    """Whether a folder is an artefact, or has one inside."""
    return is_artefact(_artefact_in(path_of(folder)))


def _artefact_in(folder: Path) -> Path:
    return folder / INSIDE if not is_artefact(folder) and is_artefact(folder / INSIDE) else folder


def _slots(model: nn.Module) -> _Slots:
    """Registry and key of each parameter and buffer by name, with those that are None."""
    found: _Slots = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for registry in (parameters_of(module), buffers_of(module)):
            for key in registry:
                found[f"{prefix}.{key}" if prefix else key] = module, cast("dict[str, Any]", registry), key
    return found


def _tensors(model: nn.Module, homes: Mapping[str, str], weights: Weights, read: Mapping[str, Tensor]) -> _Tensors:
    record, slots = weights.record, _slots(model)
    frozen = set(record.frozen)
    objects: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, home in homes.items():
        first = record.tied.get(name, name)
        if first not in objects:
            module, registry, _ = slots[name]
            value = read[home]
            is_parameter = registry is parameters_of(module)
            objects[first] = nn.Parameter(value, requires_grad=first not in frozen) if is_parameter else value
        found[name] = objects[first]
    return found


def _devices(
    homes: Mapping[str, str], named: Mapping[str, Tensor], device: torch.device | str | None
) -> dict[str, torch.device]:
    """Device of each saved tensor: that of the model's tensor, or of the model's first tensor with values."""
    if device is not None:
        return dict.fromkeys(homes.values(), torch.device(device))
    usual = next((tensor.device for tensor in named.values() if not tensor.is_meta), torch.device("cpu"))
    found: dict[str, torch.device] = {}
    for name, home in homes.items():
        held = named.get(name)
        found.setdefault(home, usual if held is None or held.is_meta else held.device)
    return found


def _kept(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    if tensor.is_meta:
        return tensor
    return own(tensor) if device is None else own(tensor).to(device)
