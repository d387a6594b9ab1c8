"""Output trees: the output of a forward as containers with leaves, to be compared, stored and built again.

Records (named tuples and dataclasses) are built only of loaded classes and without their constructors: a plan from
elsewhere runs no code.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

from torch import Tensor, nn

from layerprune.errors import DroppedTensorError
from layerprune.tensors.containers import tensors_in

_L = TypeVar("_L")
_M = TypeVar("_M")

#: A leaf of a stand-in's output: ``"tensor"``, a dropped tensor; ``"argument"``, the argument passed through; or
#: another argument, by position and keyword.
StandInLeaf: TypeAlias = "str | tuple[int | None, str | None]"

#: An output tree in a plan: ``"tensor"``, ``"argument"``, ``{"argument": [position, keyword]}``,
#: ``{"tuple": […]}``, ``{"list": […]}``, ``{"dict": {…}}``, ``{"value": constant}``, ``{"record": {"class": [module,
#: name], "fields": {…}}}`` for a named tuple or dataclass.
Structure: TypeAlias = Any

_CONSTANTS = (bool, int, float, str, type(None))
_DEEPEST = 500  # containers within each other: Python calls itself for each
_MOST = 2**31  # arguments
_LONGEST = 1_000  # name of a class


@dataclass(frozen=True, kw_only=True)
class OutputTree(Generic[_L]):
    """The output of a forward: one tensor, one constant, or a container of output trees.

    Two trees are equal where their containers, constants and leaves are equal.

    Attributes:
        kind: ``tensor``, ``value``, ``tuple``, ``list``, ``dict``, ``record``; ``opaque`` for an object that cannot be
            built again, whose tensors alone are known.
        leaf: the leaf in a tensor's place; the constant of a value.
        keys: a dict's keys; a record's fields.
        items: the trees inside.
        type_name: module and name of the class of a constant, a record or an opaque object.
    """

    kind: str
    leaf: Any = None
    keys: tuple[str, ...] = ()
    items: tuple[OutputTree[_L], ...] = ()
    type_name: tuple[str, str] = ("", "")

    @classmethod
    def of(
        cls, out: Any, leaf: Callable[[Tensor], _L], other: Callable[[Any], OutputTree[_L]] | None = None
    ) -> OutputTree[_L]:
        """Flatten the output of a forward.

        Args:
            out: the output.
            leaf: makes the leaf of a tensor; called in order.
            other: makes the tree of any other object; None: constants become values, all else opaque.
        """
        if isinstance(out, Tensor):
            return cls(kind="tensor", leaf=leaf(out))
        kind, parts = _parts_of(out)
        if kind:
            items = tuple(cls.of(item, leaf, other) for item in parts.values())
            keys = tuple(parts) if kind in ("dict", "record") else ()
            return cls(kind=kind, keys=keys, items=items, type_name=_type_name(out) if kind == "record" else ("", ""))
        if other is not None:
            return other(out)
        if isinstance(out, _CONSTANTS):
            return cls.constant(out)
        items = tuple(cls(kind="tensor", leaf=leaf(tensor)) for tensor in tensors_in(out))
        return cls(kind="opaque", items=items, type_name=_type_name(out))

    @classmethod
    def constant(cls, value: Any) -> OutputTree[_L]:
        return cls(kind="value", leaf=value, type_name=_type_name(value))

    def nodes(self) -> Iterator[OutputTree[_L]]:
        yield self
        for item in self.items:
            yield from item.nodes()

    def leaves(self) -> Iterator[_L]:
        return (node.leaf for node in self.nodes() if node.kind == "tensor")

    def constants(self) -> Iterator[Any]:
        return (node.leaf for node in self.nodes() if node.kind == "value")

    def places(self, around: tuple[str | int, ...] = ()) -> Iterator[tuple[_L, tuple[str | int, ...]]]:
        """The leaves, each with the keys and positions that lead to it."""
        if self.kind == "tensor":
            yield self.leaf, around
        for key, item in zip(self.keys or range(len(self.items)), self.items, strict=True):
            yield from item.places((*around, key))

    @property
    def is_opaque(self) -> bool:
        """Whether the output is, or holds, an object that cannot be built again."""
        return any(node.kind == "opaque" for node in self.nodes())

    def map(self, fn: Callable[[_L], _M]) -> OutputTree[_M]:
        leaf = fn(self.leaf) if self.kind == "tensor" else self.leaf
        return OutputTree(
            kind=self.kind,
            leaf=leaf,
            keys=self.keys,
            items=tuple(item.map(fn) for item in self.items),
            type_name=self.type_name,
        )

    def build(self, fn: Callable[[_L], Any]) -> Any:
        """Build an output of this form, with ``fn`` of each leaf in the tensor's place.

        Raises:
            DroppedTensorError: the tree holds an opaque object, or a record whose class is not loaded.
        """
        if self.kind == "tensor":
            return fn(self.leaf)
        if self.kind == "value":
            return self.leaf
        items = [item.build(fn) for item in self.items]
        if self.kind in ("tuple", "list"):
            return tuple(items) if self.kind == "tuple" else items
        if self.kind == "dict":
            return dict(zip(self.keys, items, strict=True))
        if self.kind == "record":
            return _record(self.type_name, dict(zip(self.keys, items, strict=True)))
        raise DroppedTensorError(f"an output that holds a {self.type_name[1]} cannot be rebuilt")

    # ---- in plans -------------------------------------------------------------------------------------------------

    def to_json(self: OutputTree[StandInLeaf]) -> Structure:
        if self.kind == "tensor":
            return self.leaf if isinstance(self.leaf, str) else {"argument": [*self.leaf]}
        if self.kind == "value":
            return {"value": self.leaf}
        items = [item.to_json() for item in self.items]
        if self.kind in ("tuple", "list"):
            return {self.kind: items}
        named = dict(zip(self.keys, items, strict=True))
        return {self.kind: named if self.kind == "dict" else {"class": [*self.type_name], "fields": named}}

    @staticmethod
    def from_json(structure: Structure, depth: int = _DEEPEST) -> OutputTree[StandInLeaf]:
        """Read the form of a stand-in's output in plans, with containers nested at most ``depth`` deep.

        Raises:
            DroppedTensorError: the structure has another form.
        """
        if structure in ("tensor", "argument"):
            return OutputTree(kind="tensor", leaf=structure)
        if isinstance(structure, dict) and len(cast("dict[str, Any]", structure)) == 1 and depth:
            ((kind, inner),) = cast("dict[str, Any]", structure).items()
            if kind == "argument" and is_argument(inner):
                return OutputTree(kind="tensor", leaf=tuple(inner))
            if kind == "value" and isinstance(inner, _CONSTANTS):
                return OutputTree.constant(inner)
            if kind in ("tuple", "list") and isinstance(inner, list):
                return OutputTree(kind=kind, items=_from_json(cast("list[Any]", inner), depth))
            if kind == "dict" and isinstance(inner, dict):
                return OutputTree(kind=kind, keys=tuple(inner), items=_from_json(inner.values(), depth))
            if kind == "record" and _is_record(inner):
                fields = inner["fields"]
                return OutputTree(
                    kind=kind,
                    keys=tuple(fields),
                    items=_from_json(fields.values(), depth),
                    type_name=tuple(inner["class"]),
                )
        raise DroppedTensorError(f"an output structure of this form cannot be rebuilt: {structure!r}")


def _from_json(items: Iterable[Structure], depth: int) -> tuple[OutputTree[StandInLeaf], ...]:
    return tuple(OutputTree.from_json(item, depth - 1) for item in items)


def _type_name(value: object) -> tuple[str, str]:
    return type(value).__module__, type(value).__qualname__


def is_argument(pair: Any) -> bool:
    """Whether a pair names an argument by position, keyword, or both."""
    if not isinstance(pair, (list, tuple)) or len(cast("list[Any]", pair)) != 2:
        return False
    position, keyword = cast("list[Any]", pair)
    at = position is None or (type(position) is int and 0 <= position < _MOST)
    named = keyword is None or isinstance(keyword, str)
    return at and named and not (position is None and keyword is None)


def _is_record(inner: Any) -> bool:
    if not isinstance(inner, dict) or set(cast("dict[str, Any]", inner)) != {"class", "fields"}:
        return False
    name, fields = inner["class"], inner["fields"]
    return (
        isinstance(fields, dict)
        and isinstance(name, (list, tuple))
        and len(cast("list[Any]", name)) == 2
        and all(isinstance(part, str) and 0 < len(part) <= _LONGEST for part in cast("list[Any]", name))
    )


def _parts_of(out: Any) -> tuple[str, dict[Any, Any]]:
    """The kind of a container that can be built again, and its parts by key; empty for other objects."""
    if type(out) in (tuple, list):
        return type(out).__name__, dict(enumerate(out))
    if type(out) is dict:
        whole = cast("dict[Any, Any]", out)
        return ("dict", whole) if all(isinstance(key, str) for key in whole) else ("", {})
    names = _field_names(cast("type[Any]", type(out)))
    if names is None or _record_class(type(out).__module__, type(out).__qualname__) is not type(out):
        return "", {}
    held = getattr(out, "__dict__", None)
    if held and set(held) != set(names):  # attributes besides its fields would be lost
        return "", {}
    return "record", {name: getattr(out, name, None) for name in names}


def _field_names(cls: type) -> tuple[str, ...] | None:
    """The fields of a named tuple or a dataclass; None for other classes."""
    if issubclass(cls, tuple):
        names = getattr(cls, "_fields", None)
        return tuple(cast("Sequence[str]", names)) if isinstance(names, tuple) else None
    if not dataclasses.is_dataclass(cls) or issubclass(cls, (Mapping, Tensor, nn.Module)):
        return None
    return tuple(field.name for field in dataclasses.fields(cls))


def _record_class(module: str, qualname: str) -> type | None:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None  # no getattr: that may import
    return found if isinstance(found, type) and _field_names(found) is not None else None


def _record(name: tuple[str, str], fields: Mapping[str, Any]) -> Any:
    cls = _record_class(*name)
    if cls is None or _field_names(cls) != tuple(fields):
        raise DroppedTensorError(f"a removed module returned a {name[1]}, and {name[0]} has no such record loaded")
    if issubclass(cls, tuple):
        return tuple.__new__(cls, tuple(fields.values()))
    made = object.__new__(cls)
    for key, value in fields.items():
        object.__setattr__(made, key, value)
    return made


def pick(position: int | None, keyword: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return one argument of a call, by its name or its position."""
    if keyword is not None and keyword in kwargs:
        return kwargs[keyword]
    if position is not None and position < len(args):
        return args[position]
    name = position if keyword is None else f"'{keyword}'"
    raise DroppedTensorError(f"a removed module is called without argument {name}, which it hands on")
