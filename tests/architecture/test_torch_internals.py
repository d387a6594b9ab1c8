"""Private names of torch: one package uses them, and a page lists each."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from test_house import MODULES, REPOSITORY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

PAGE = REPOSITORY / "docs" / "internals" / "torch.md"
PACKAGE = "torch_internals"

#: Names that torch sets on objects of a few kinds only: a compiled module, a marked function, a quantised layer.
SET_ON_FEW = frozenset(
    {"_orig_mod", "_dynamo_marked_constant", "_packed_params", "_all_weight_values", "_packed_weight_ih"}
)


def is_private(name: str) -> bool:
    """Whether some part of a dotted name starts with an underscore, and is no ``__name__``."""
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def imported(tree: ast.AST) -> dict[str, str]:
    """What names a source gives to what it imports from torch."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            ours = [alias for alias in node.names if alias.name.split(".")[0] == "torch"]
            found |= {alias.asname or "torch": alias.name if alias.asname else "torch" for alias in ours}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def chain(node: ast.AST) -> tuple[ast.AST, list[str]]:
    """What an attribute of an attribute starts from, and the attributes."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return node, parts


@cache
def attributes_of_torch() -> frozenset[str]:
    """The private attributes of what the library gets from torch: modules, tensors, storages, operations."""
    sparse, plain = torch.eye(2).to_sparse(), nn.Parameter(torch.ones(2))
    held: list[Any] = [nn.Conv2d(1, 1, 1), sparse, plain, plain.untyped_storage(), FakeTensor]
    held += [torch.ops.aten.add, torch.ops.aten.add.Tensor, torch.utils._python_dispatch.TorchDispatchMode]
    return frozenset(name for one in held for name in dir(one) if is_private(name))


def strings(node: ast.AST) -> Iterator[str]:
    """The names by which a piece of source reads or sets attributes: of ``getattr`` and the like, and of ``vars``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
        names: list[ast.AST] = [*node.args[1:2]]
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
        names = [node.slice] if getattr(node.value.func, "id", "") == "vars" else []
    else:
        names = []
    yield from (name.value for name in names if isinstance(name, ast.Constant) and isinstance(name.value, str))


def private_names(source: str) -> set[str]:
    """The private names of torch that a source uses: dotted where it imports them, else the attribute alone."""
    tree = ast.parse(source)
    names = imported(tree)
    found = {path for path in names.values() if is_private(path)}
    found |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.startswith("torch.") and is_private(alias.name)
    }
    for node in ast.walk(tree):
        start, parts = chain(node)
        if parts and isinstance(start, ast.Name) and start.id in names:
            path = ".".join([names[start.id], *parts])
            found |= {path} if is_private(path) else set()
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            found |= {node.attr} & (attributes_of_torch() | SET_ON_FEW)
        found |= set(strings(node)) & (attributes_of_torch() | SET_ON_FEW)
    return longest(name.partition(".__")[0] for name in found)


def longest(names: Iterable[str]) -> set[str]:
    """Dotted names without those that others go on from."""
    found = set(names)
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def used() -> set[str]:
    """The private names that the package uses: in its code, as names of attributes in its tables, and by overriding."""
    found: set[str] = set()
    for module, path in MODULES.items():
        if module.partition(".")[0] != PACKAGE:
            continue
        source = path.read_text(encoding="utf-8")
        found |= private_names(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
                found |= {node.value} if is_private(node.value) else set()
            elif isinstance(node, ast.FunctionDef) and is_private(node.name):
                found.add(node.name)
    return longest(found)


def listed() -> set[str]:
    """The names in the first column of the page's table."""
    return set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("module", [module for module in MODULES if module.partition(".")[0] != PACKAGE])
def test_no_other_module_uses_a_private_name_of_torch(module: str) -> None:
    assert private_names(MODULES[module].read_text(encoding="utf-8")) == set()


def test_the_page_lists_what_the_package_uses() -> None:
    assert listed() == used()


@pytest.mark.parametrize("name", sorted(listed() - SET_ON_FEW))
def test_the_torch_that_is_installed_has_it(name: str) -> None:
    """What a new version of torch has renamed fails here by its name."""
    if not name.startswith("torch."):
        assert name in attributes_of_torch()
        return
    parts = name.split(".")
    found: Any = torch
    for i, part in enumerate(parts[1:], 2):
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(".".join(parts[:i]))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (
            "from torch.utils._python_dispatch import TorchDispatchMode",
            "torch.utils._python_dispatch.TorchDispatchMode",
        ),
        ("from torch.nn.modules.conv import _ConvNd as Conv", "torch.nn.modules.conv._ConvNd"),
        ("import torch._dynamo", "torch._dynamo"),
        ("import torch\ntorch._C.DisableTorchFunction()", "torch._C.DisableTorchFunction"),
        ("from torch import nn\nnn.modules.conv._ConvNd", "torch.nn.modules.conv._ConvNd"),
        ("tensor.untyped_storage()._cdata", "_cdata"),
        ("tensor._version", "_version"),
        ("module._parameters['weight']", "_parameters"),
        ("del self.module._modules['a']", "_modules"),
        ("vars(module)['_buffers']", "_buffers"),
        ("getattr(func, '_schema', None)", "_schema"),
        ("module._forward_hooks", "_forward_hooks"),
    ],
)
def test_a_private_name_is_found(source: str, name: str) -> None:
    assert private_names(source) == {name}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.__version__",
        "class A:\n    def f(self):\n        return self._parameters",
        "other._own_attribute",
        "names = {'_version', '_backward_hooks'}",
    ],
)
def test_public_names_and_own_attributes_pass(source: str) -> None:
    assert private_names(source) == set()
