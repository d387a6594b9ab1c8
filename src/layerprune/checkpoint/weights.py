"""Writes a model's tensors to safetensors files, and reads them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from layerprune.checkpoint.atomic_dir import set_usual_mode, sync_file
from layerprune.checkpoint.manifest import TensorRecord
from layerprune.errors import CheckpointError
from layerprune.modules import named_tensors
from layerprune.torch_internals import buffers_of, is_wrapper_subclass, parameters_of, unsaved_buffers

_LONG = 1000  # characters; longer descriptions are hashed


def record_tensors(model: nn.Module) -> tuple[dict[str, Tensor], TensorRecord]:
    """Return the tensors to write, and their properties that files do not hold; raises :class:`CheckpointError`."""
    saved: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    shared: dict[str, str] = {}
    by_identity: dict[int, str] = {}
    by_memory: dict[tuple[Any, ...], str] = {}
    for name, tensor in named_tensors(model):
        if (first := by_identity.setdefault(id(tensor), name)) != name:
            tied[name] = first
            continue
        _check_can_be_saved(name, tensor)
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and (first := by_memory.setdefault(memory, name)) != name:
            shared[name] = first
        else:
            saved[name] = tensor
    modes = {name: module.training for name, module in model.named_modules()}
    record = TensorRecord(
        tied=tied,
        shared=shared,
        order={name: order for name, tensor in saved.items() if (order := _order_of(tensor)) is not None},
        frozen=tuple(n for n, t in (*saved.items(), *_only(model, shared)) if _is_frozen(t)),
        transient=tuple(_transient(model)),
        empty=tuple(_empty(model)),
        training=model.training,
        otherwise=tuple(name for name, training in modes.items() if training != model.training),
        entries=entries_of(model),
    )
    return saved, record


def _check_can_be_saved(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise CheckpointError(f"'{name}' is on the meta device and has no values: load weights before you save")
    if is_wrapper_subclass(tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        what = type(tensor).__name__ if is_wrapper_subclass(tensor) else f"{tensor.layout} {tensor.dtype}"
        raise CheckpointError(
            f"'{name}' is no plain tensor ({what}), and safetensors has no form for it; "
            "save the model before it is quantised or distributed"
        )


def check_extra_state(model: nn.Module) -> None:
    """Raise :class:`CheckpointError` for modules with extra state, which only pickle can hold."""
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CheckpointError(
                f"'{name}' ({type(module).__name__}) keeps extra state that is no tensor: it cannot be saved without "
                "pickle; keep it in a buffer"
            )


def entries_of(model: nn.Module) -> dict[str, str]:
    """Describe entries of a class's own ``state_dict`` that are no parameters or buffers, as constructor arguments.

    The entries are not saved: the constructor makes them again, and loading compares the descriptions. Raises
    :class:`CheckpointError` for an entry that is a tensor, or an object that cannot be compared.
    """
    known = {name for name, _ in named_tensors(model)}
    found: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if name in known:
            continue
        try:
            text = _text_of(value)
        except TypeError as error:
            raise CheckpointError(
                f"'{name}' ({error}) is in the state dict, and no parameter or buffer: it would be lost; keep it in a "
                "buffer"
            ) from None
        found[name] = text if len(text) <= _LONG else hashlib.sha256(text.encode()).hexdigest()
    return found


def _text_of(value: Any) -> str:
    """Format plain values, and names of functions and classes; raises :class:`TypeError` with the type of others."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text_of(item) for item in cast('Sequence[Any]', value))}]"
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return f"{{{', '.join(f'{_text_of(key)}: {_text_of(item)}' for key, item in items)}}}"
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    raise TypeError(type(value).__name__)


def _only(model: nn.Module, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in named_tensors(model) if name in names)


def _is_frozen(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _order_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Dimensions of a dense tensor in memory order; None for contiguous tensors, and for tensors with gaps."""
    order = tuple(sorted(range(tensor.dim()), key=lambda dim: (-tensor.stride(dim), dim)))
    return order if not tensor.is_contiguous() and tensor.permute(order).is_contiguous() else None


def _transient(model: nn.Module) -> Iterator[str]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key in buffers_of(module):
            if key in unsaved_buffers(module):
                yield f"{prefix}.{key}" if prefix else key


def _empty(model: nn.Module) -> Iterator[str]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in (*parameters_of(module).items(), *buffers_of(module).items()):
            if tensor is None:
                yield f"{prefix}.{key}" if prefix else key


def write_weights(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> tuple[list[str], list[str]]:
    """Write tensors into ``model.safetensors``, or into several files with an index where one would be too large.

    Names and index follow the Hugging Face libraries.

    Returns:
        The weights files, and all files.

    Raises:
        CheckpointError: safetensors does not know a tensor's dtype.
        OSError: a file could not be written.
    """
    shards = _shards(tensors, max_shard_bytes)
    width = max(5, len(str(len(shards))))
    names = [f"model-{i + 1:0{width}}-of-{len(shards):0{width}}.safetensors" for i in range(len(shards))]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for name, shard in zip(names, shards, strict=True):
        flat = {key: _flat(tensors[key]) for key in shard}
        try:
            save_file(flat, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # errors of the disk also arrive as this type
            raise CheckpointError(f"{name} was not written: {error}; what was there is as it was") from error
        set_usual_mode(folder / name)
        sync_file(folder / name)
    if len(names) == 1:
        return names, names
    index = {
        "metadata": {"total_size": sum(map(_num_bytes, tensors.values()))},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1) + "\n")
    return names, [*names, "model.safetensors.index.json"]


def write_text(path: Path, text: str) -> None:
    """Write a text file, and wait until it is on the disk."""
    path.write_bytes(text.encode())
    sync_file(path)


def _shards(tensors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + _num_bytes(tensor) > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _num_bytes(tensor)
    return shards


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _flat(tensor: Tensor) -> Tensor:
    """A contiguous tensor with its own memory, as safetensors needs."""
    order = _order_of(tensor)
    plain = tensor.detach() if order is None else tensor.detach().permute(order)
    plain = plain.as_subclass(Tensor).contiguous()
    whole = plain.untyped_storage().nbytes() == _num_bytes(plain)
    return plain if whole else plain.clone()


class Weights:
    """Reads tensors of an artefact's weights files ``names``, each on demand."""

    def __init__(self, folder: Path, names: tuple[str, ...], record: TensorRecord) -> None:
        self.record = record
        self.folder = folder
        self.home: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            with self._opened(name) as file:
                for key in file.keys():  # noqa: SIM118 (no dict)
                    self.home[key] = name
                    shape = tuple(file.get_slice(key).get_shape())
                    order = record.order.get(key)
                    if order is not None and sorted(order) != list(range(len(shape))):
                        raise CheckpointError(f"{folder / name}: '{key}' has {len(shape)} dimensions, order {order}")
                    self.shapes[key] = tuple(shape[d] for d in _inverse(order)) if order else shape

    def _opened(self, name: str, device: str = "cpu") -> Any:
        try:
            return cast(Any, safe_open)(self.folder / name, framework="pt", device=device)
        except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: the file is gone when torch maps it
            raise CheckpointError(f"{self.folder / name} cannot be read: {error}; save the model again") from error

    def saved_as(self, name: str) -> str | None:
        """Name of a tensor's values in the files; None where they are not saved."""
        name = self.record.tied.get(name, name)
        name = self.record.shared.get(name, name)
        return name if name in self.home else None

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, names: Mapping[str, torch.device]) -> dict[str, Tensor]:
        """Read tensors by their names in the files, each onto its device."""
        found: dict[str, Tensor] = {}
        for file_name in sorted(set(self.home.values())):
            with self._opened(file_name) as file:
                for name in (name for name in names if self.home[name] == file_name):
                    order = self.record.order.get(name)
                    # A copy: tensors from safetensors may map the file, and would change with it.
                    tensor = self._tensor(file, name).to(names[name], copy=True)
                    found[name] = tensor.permute(_inverse(order)) if order else tensor
        return found

    def _tensor(self, file: Any, name: str) -> Tensor:
        try:
            return cast(Tensor, file.get_tensor(name))
        except (SafetensorError, OSError, RuntimeError) as error:  # the file was replaced after its names were read
            raise CheckpointError(f"{self.folder / self.home[name]}: '{name}' cannot be read: {error}") from error


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]
