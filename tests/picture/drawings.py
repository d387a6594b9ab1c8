"""Pictures of networks for the tests, and the geometry of what was drawn."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from xml.etree import ElementTree

import torch
from torch import nn

from layerprune.capture import record_first
from layerprune.graph import Group, LayerGraph, form_groups
from layerprune.picture import Picture, picture_of, to_svg
from models.hand_built import HandBuiltGraph
from models.nets import ExampleModel, Net, conv, image


def scored(groups: Sequence[Group]) -> list[Group]:
    """The groups with verdicts and impacts of all kinds, as if they had been proven and scored."""
    found: list[Group] = []
    for place, group in enumerate(groups):
        if place % 7 == 3:
            found.append(replace(group, needs_calibration=True, impact=float("nan")))
        elif place % 5 == 0:
            found.append(group)
        else:
            found.append(replace(group, can_remove=True, impact=10.0 ** -(place % 6)))
    return found


class Up(nn.Module):
    """One step up of a U-Net."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(num_in, num_out, 2, 2)
        self.conv = nn.Sequential(conv(2 * num_out, num_out), nn.ReLU(), conv(num_out))

    def forward(self, x, skip):
        return self.conv(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    """Three steps down, and three up, each with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4))
        for step in range(3):
            width = 4 * 2**step
            down = nn.Sequential(nn.MaxPool2d(2), conv(width, 2 * width), nn.ReLU(), conv(2 * width), nn.ReLU())
            setattr(self, f"down{step}", down)
            setattr(self, f"up{step}", Up(2 * width, width))
        self.head = conv(4, 2, 1)

    def forward(self, x):
        a = self.stem(x)
        b = self.down0(a)
        c = self.down1(b)
        return self.head(self.up0(self.up1(self.up2(self.down2(c), c), b), a))


def _torchvision(name: str, size: int = 64):
    models = __import__("torchvision").models
    options = {"init_weights": False} if name == "inception_v3" else {}
    return getattr(models, name)(**options), image(1, 3, size)


def _densenet():
    densenet = __import__("torchvision").models.DenseNet
    return densenet(block_config=(4, 6, 5), growth_rate=8, num_init_features=8), image(1, 3, 32)


def _llama(num_layers: int):
    transformers = __import__("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=num_layers, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), None


def _t5():
    transformers = __import__("transformers")
    config = transformers.T5Config(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=3, vocab_size=64)
    return transformers.T5ForConditionalGeneration(config), None


def _mixtral():
    transformers = __import__("transformers")
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=64, num_local_experts=4,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config), None


def _shared():
    """A block that is called three times."""
    block = nn.Sequential(conv(), nn.ReLU(), conv())
    return Net(lambda net, x: net.head(net.block(net.block(net.block(x)))), block=block, head=conv()), image(1, 4)


def _nested():
    """Repeated blocks inside repeated blocks."""

    def stage() -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(conv(), nn.ReLU(), conv()) for _ in range(3)), nn.ReLU())

    return nn.Sequential(conv(), *(stage() for _ in range(4)), conv()), image(1, 4)


NETWORKS = {
    "example": lambda: (ExampleModel(), image()),
    "one layer": lambda: (nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)),
    "U-Net": lambda: (UNet(), image(1, 3, 16)),
    "shared": _shared,
    "nested": _nested,
    "resnet50": lambda: _torchvision("resnet50"),
    "densenet": _densenet,
    "llama": lambda: _llama(6),
    "t5": _t5,
}
MORE_NETWORKS = {
    "inception_v3": lambda: _torchvision("inception_v3", 96),
    "llama of 32 layers": lambda: _llama(32),
    "swin_t": lambda: _torchvision("swin_t"),
    "densenet201": lambda: _torchvision("densenet201"),
    "efficientnet_b0": lambda: _torchvision("efficientnet_b0"),
    "mixtral": _mixtral,
}


@cache
def recorded(name: str) -> tuple[LayerGraph, tuple[Group, ...], dict[str, str]]:
    """The layer graph of a network, its groups, and the classes of its modules."""
    torch.manual_seed(0)
    model, inputs = {**NETWORKS, **MORE_NETWORKS}[name]()
    graph = record_first(model.eval(), inputs, None)[1]
    types = {fqn: type(module).__name__ for fqn, module in model.named_modules()}
    return graph, tuple(scored(form_groups(graph))), types


@cache
def picture(name: str) -> Picture:
    graph, groups, types = recorded(name)
    made = picture_of(graph, groups, types=types, impact_unit="influence")
    return replace(
        made, groups=tuple(replace(g, goes=g.verdict == "removable" and i % 3 == 0) for i, g in enumerate(made.groups))
    )


@cache
def svg(name: str) -> str:
    return to_svg(picture(name))


def linear(net: HandBuiltGraph, name: str, operand: int) -> int:
    return net.module(name, "transform", operand, params={f"{name}.weight": (8, 8)}, type_name="Linear")


def random_residual(num: int, seed: int = 0) -> LayerGraph:
    """Linear layers in one module, with sums of earlier tensors between them at random."""
    draw = random.Random(seed)
    net = HandBuiltGraph()
    tensors = [net.input(2, 8)]
    for number in range(num):
        name = f"layer{number}"
        tensors.append(
            net.module(name, "transform", tensors[-1], params={f"{name}.weight": (8, 8)}, type_name="Linear")
        )
        if draw.random() < 0.4:
            tensors.append(net.function("add", tensors[-1], draw.choice(tensors[-40:])))
    return net.graph(tensors[-1])


@dataclass(frozen=True)
class Rectangle:
    """A box or a frame as drawn, with the treeitems around it."""

    left: float
    top: float
    right: float
    bottom: float
    item: ElementTree.Element
    around: tuple[ElementTree.Element, ...]

    def overlaps(self, other: Rectangle) -> bool:
        """Whether the insides meet."""
        return (
            min(self.right, other.right) - max(self.left, other.left) > 0.2
            and min(self.bottom, other.bottom) - max(self.top, other.top) > 0.2
        )

    def holds(self, x: float, y: float, slack: float = 0.2) -> bool:
        return self.left - slack <= x <= self.right + slack and self.top - slack <= y <= self.bottom + slack


def tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def rectangles(root: ElementTree.Element) -> list[Rectangle]:
    """All boxes, cells and frames, outer ones first."""
    found: list[Rectangle] = []

    def visit(element: ElementTree.Element, around: tuple[ElementTree.Element, ...]) -> None:
        if element.get("role") == "treeitem":
            rect = next(child for child in element if tag(child) == "rect")
            x, y = offset(element)
            left, top = x + float(rect.get("x", 0)), y + float(rect.get("y", 0))
            right, bottom = left + float(rect.get("width", 0)), top + float(rect.get("height", 0))
            found.append(Rectangle(left, top, right, bottom, element, around))
            around = (*around, element)
        for child in element:
            visit(child, around)

    visit(root, ())
    return found


def offset(element: ElementTree.Element) -> tuple[float, float]:
    numbers = element.get("transform", "translate(0 0)").removeprefix("translate(").removesuffix(")").split()
    return float(numbers[0]), float(numbers[1])


def overlapping(drawn: Sequence[Rectangle]) -> Iterator[tuple[str, str]]:
    """Pairs of rectangles that overlap and are not inside each other in the tree, by a sweep from the left."""
    active: list[Rectangle] = []
    for one in sorted(drawn, key=lambda each: each.left):
        active = [other for other in active if other.right > one.left]
        for other in active:
            if other.item not in one.around and one.item not in other.around and one.overlaps(other):
                yield name_of(other), name_of(one)
        active.append(one)


def name_of(rectangle: Rectangle) -> str:
    title = next((child for child in rectangle.item if tag(child) == "title"), None)
    return rectangle.item.get("aria-label") or (title.text if title is not None else "") or ""


def ends_of(path: str) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Start and end of each line of a path of M, V, H, L, C and v."""
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for line in path.split("M")[1:]:
        x = y = 0.0
        start: tuple[float, float] | None = None
        for command, text in re.findall(r"([A-Za-z])([^A-Za-z]*)", f"M{line}"):
            values = [float(value) for value in text.split()]
            if command in "Vv":
                y = values[0] + (y if command == "v" else 0.0)
            elif command == "H":
                x = values[0]
            else:
                x, y = values[-2:]
            start = start or (x, y)
        found.append((start or (x, y), (x, y)))
    return found
