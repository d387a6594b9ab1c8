"""The picture has every group once, and only text that cannot be taken for markup."""

from __future__ import annotations

from xml.etree import ElementTree

from layerprune import UniversalLayerPruner
from layerprune.picture import groups_in, picture_of, to_svg
from models.nets import ExampleModel, image


def test_the_example_model_is_drawn_with_its_plan():
    pruner = UniversalLayerPruner(ExampleModel(), example_inputs=image(size=8))
    plan = pruner.plan(groups=["conv2b"])
    picture = picture_of(pruner.graph, pruner.groups, plan)
    assert sorted(groups_in(picture.root)) == list(range(5))
    assert [group.name for group in picture.groups if group.goes] == ["conv2b"]
    svg = ElementTree.fromstring(to_svg(picture))
    assert sorted(int(shape.get("data-group", "")) for shape in svg.iter() if shape.get("data-group")) == list(range(5))
