"""Maps a batch to the arguments of the model's forward."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.inputs.example_inputs import Inputs, as_inputs, floating_dtype, is_list_of_images
from layerprune.tensors import map_arrays, map_tensors, tensors_in

_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NO_DEFAULT = inspect.Parameter.empty
_LABELS = {"y", "gt", "label", "labels", "target", "targets", "answer", "answers"}
# Parameters with one number per sample, as labels have.
_ONE_A_SAMPLE = {
    *("t", "time", "times", "timestep", "timesteps", "step", "steps", "len", "lens", "length", "lengths"),
    *("sigma", "sigmas", "speaker", "scale"),
}


class ArgumentReader:
    """Reads batches of a loader as arguments of one forward, by the names and the number of its parameters.

    A tuple or a list holds positional arguments, a mapping keyword arguments. Items without a parameter, such as
    labels, are left out, never passed as an optional argument of another meaning. If a batch can be read in several
    ways (a list or a dict may be one argument), the first one that the forward accepts is used.

    Args:
        model: the model; its signature is read.
        runs: whether the model's forward accepts some inputs.
    """

    def __init__(self, model: nn.Module, runs: Callable[[Inputs], bool]) -> None:
        self.name = type(model).__name__
        self.dtype = floating_dtype(model)
        self._runs = runs
        self._parameters = _parameters(model)
        self._chosen: dict[Any, int] = {}

    def read(self, item: Any, *, by_hand: bool = False) -> Inputs:
        """Read one batch; numpy arrays become tensors, floating-point arrays in the model's dtype.

        With ``by_hand``, the user wrote the item for this forward, as example inputs are. Then all items of a tuple are
        arguments, and the only tensor of a dict is not taken as the first argument.
        """
        item = map_arrays(item, self._tensor)
        ways = [inputs for inputs, _ in self._ways(item, by_hand)]
        if len(ways) == 1:
            return ways[0]
        key = _form(item)
        if key not in self._chosen:
            top_logits = next(number for number, (_, is_likely) in enumerate(self._ways(item, by_hand)) if is_likely)
            # If all fail, the likeliest one gives the clearest error; as the last one left it needs no trial.
            tried = ways if top_logits < len(ways) - 1 else ways[:-1]
            self._chosen[key] = next((number for number, way in enumerate(tried) if self._runs(way)), top_logits)
        return ways[min(self._chosen[key], len(ways) - 1)]

    def _tensor(self, array: np.ndarray) -> Any:
        if array.dtype.kind not in "biufc":
            return array  # strings or objects
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    # ---- readings of an item, likeliest first ----------------------------------------------------------------------

    def _ways(self, item: Any, by_hand: bool) -> Iterator[tuple[Inputs, bool]]:
        """Yield the readings, and whether each is the one to take if none runs."""
        if isinstance(item, Inputs) or self._parameters is None:
            yield as_inputs(item), True
        elif is_list_of_images(item) and len(self._required) <= 1 and not by_hand:
            yield Inputs((item,)), True
        elif isinstance(item, Mapping) and all(isinstance(key, str) for key in cast("Mapping[Any, Any]", item)):
            yield from self._of_mapping(cast("Mapping[str, Any]", item), by_hand=by_hand)
        elif type(item) is tuple and by_hand:
            yield as_inputs(item), True
        elif type(item) is tuple:
            yield from self._of_sequence(cast("Sequence[Any]", item), is_tuple=True)
        elif isinstance(item, (list, tuple)):
            if len(self._required) <= 1 and self._has_places:
                yield Inputs((item,)), False  # few forwards take a list; the others raise on it at once
            if names := getattr(item, "_fields", None):
                yield from ((way, False) for way, _ in self._of_mapping(dict(zip(names, item, strict=True))))
            yield from self._of_sequence(cast("Sequence[Any]", item), is_tuple=False)
        else:
            yield as_inputs(item), True

    def _of_sequence(self, items: Sequence[Any], *, is_tuple: bool) -> Iterator[tuple[Inputs, bool]]:
        required = len(self._required)
        bound = list(items if self._rest is not None else items[: len(self._positional)])
        kept = bound[: max(required, 1)]  # optional items come after the first, which counts as required
        for place in range(len(kept), len(bound)):
            if not self._is_meant(self._at(place), bound[place], items[0], is_tuple=is_tuple):
                break
            kept.append(bound[place])
        yield Inputs(tuple(kept), notes=tuple(self._about_sequence(items, len(kept), len(bound)))), True
        if len(kept) < len(bound):  # the forward may need an item that looks like labels
            yield Inputs(tuple(bound), notes=tuple(self._about_sequence(items, len(bound), len(bound)))), False
        if items and isinstance(items[0], Mapping):  # keyword arguments and labels, as a pair
            for way, _ in self._of_mapping(cast("Mapping[str, Any]", items[0])):
                yield replace(way, notes=(*way.notes, *self._about_sequence(items, 1, 1))), False

    def _of_mapping(self, item: Mapping[str, Any], *, by_hand: bool = False) -> Iterator[tuple[Inputs, bool]]:
        takes = {p.name: p.default is _NO_DEFAULT for p in self._parameters or () if p.kind in _BY_NAME}
        known = {key: value for key, value in item.items() if key in takes}
        others = {key: value for key, value in item.items() if key not in takes}
        more = {key: value for key, value in others.items() if self._any_keyword and not _is_label(key, value)}
        is_complete = all(name in known for name, is_required in takes.items() if is_required)
        if is_complete and more:
            yield self._by_name({**known, **more}, item), not known
        if is_complete and known:
            yield self._by_name(known, item), True
        if len(self._required) <= 1 and self._has_places and not (is_complete and known):
            yield Inputs((item,)), False
            plain = [key for key, value in item.items() if not _is_label(key, value) and tensors_in(value)]
            if len(plain) == 1 and not by_hand:
                said = f"'{plain[0]}' of each batch is handed on as '{self._at(0).name}', the first argument"
                yield Inputs((item[plain[0]],), notes=(said, *self._left_out(set(item) - set(plain)))), False
        if not (is_complete and known):
            yield Inputs((), dict(item)), not (is_complete and more)  # its error names the unexpected keys

    # ---- notes for the user ----------------------------------------------------------------------------------------

    def _by_name(self, chosen: dict[str, Any], item: Mapping[str, Any]) -> Inputs:
        return Inputs((), chosen, notes=tuple(self._left_out(item.keys() - chosen.keys())))

    def _left_out(self, keys: set[str]) -> Iterator[str]:
        if keys:
            names = ", ".join(map(repr, sorted(keys)))
            yield f"{names} of each batch is left out: {self.name}.forward is not called with it"

    def _about_sequence(self, items: Sequence[Any], num_kept: int, num_bound: int) -> Iterator[str]:
        """Yield notes on items that were left out or passed as optional arguments."""
        if num_kept > max(1, len(self._required)):
            names = ", ".join(dict.fromkeys(self._at(place).name for place in range(num_kept)))
            yield f"{num_kept} items of each batch are handed on by position, as {names}; a dict names them"
        if num_kept == len(items):
            return
        last = "" if num_kept + 1 == len(items) else f" to {len(items)}"
        why = f"{self.name}.forward takes no more"
        if num_kept < num_bound:
            name = self._at(num_kept).name
            why = f"it may be labels; if it is meant for '{name}', give a dict with this key"
        yield f"item {num_kept + 1}{last} of the {len(items)} in each batch is left out: {why}"

    # ---- the signature ---------------------------------------------------------------------------------------------

    @property
    def _positional(self) -> list[inspect.Parameter]:
        return [p for p in self._parameters or () if p.kind in _POSITIONAL]

    @property
    def _required(self) -> list[inspect.Parameter]:
        return [p for p in self._positional if p.default is _NO_DEFAULT]

    @property
    def _rest(self) -> inspect.Parameter | None:
        return next((p for p in self._parameters or () if p.kind is inspect.Parameter.VAR_POSITIONAL), None)

    @property
    def _has_places(self) -> bool:
        return bool(self._positional) or self._rest is not None

    @property
    def _any_keyword(self) -> bool:
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters or ())

    def _at(self, place: int) -> inspect.Parameter:
        named = self._positional
        if place < len(named):
            return named[place]
        assert self._rest is not None
        return self._rest

    @staticmethod
    def _is_meant(parameter: inspect.Parameter, value: Any, first: Any, *, is_tuple: bool) -> bool:
        """Whether an item is meant for an optional parameter, and is not labels at the same position.

        Users write positional arguments as a tuple, and loaders make lists of the pairs of a data set. If the tensor
        does not decide, an item of a tuple is passed and an item of a list is not.
        """
        if _is_label(parameter.name, value):
            return False
        if not isinstance(value, Tensor):
            return value is None or isinstance(value, (bool, int, float)) or bool(tensors_in(value))
        if isinstance(parameter.default, (bool, int, float, str)):
            return False  # the default shows that the parameter takes no tensor
        if "mask" in parameter.name:
            return _is_mask(value, first)
        if value.numel() <= (value.shape[0] if value.dim() else 1):
            return bool(_words(parameter.name) & _ONE_A_SAMPLE)
        return value.dtype is torch.bool or is_tuple


def _parameters(model: nn.Module) -> list[inspect.Parameter] | None:
    """The parameters of a forward; None if it has no signature."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None


def _is_label(name: str, value: Any) -> bool:
    """Whether a name means labels, or a value is text, which no forward takes."""
    texts = cast("list[Any]", value) if isinstance(value, (list, tuple)) else [value]
    return bool(_words(name) & _LABELS) or (bool(texts) and all(isinstance(text, (str, bytes)) for text in texts))


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def _is_mask(value: Tensor, first: Any) -> bool:
    """Whether a tensor is a mask of another tensor: booleans, zeros and ones, or a bias added to attention scores."""
    if value.is_meta or value.dtype is torch.bool:
        return True
    like = isinstance(first, Tensor) and value.dim() > 1 and value.shape[-1] in first.shape[1:]
    is_binary = bool(((value == 0) | (value == 1)).all())
    return like and (is_binary or (value.is_floating_point() and bool((value <= 0).all())))


def _form(item: Any) -> Any:
    """Key of batches with the same structure, ranks and dtypes; sizes may differ."""

    def described(tensor: Tensor) -> Tensor:
        forms.append((tensor.dim(), tensor.dtype))
        return tensor

    forms: list[Any] = []
    map_tensors(item, described)
    size = len(item) if isinstance(item, (list, tuple, Mapping)) else 0
    return type(item), size, tuple(item) if isinstance(item, Mapping) else (), tuple(forms)
