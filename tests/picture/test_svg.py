"""What is drawn: nothing overlaps, text fits, edges end at borders, names are text, and the file stays small."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from drawings import (
    MORE_NETWORKS,
    NETWORKS,
    ends_of,
    linear,
    name_of,
    offset,
    overlapping,
    picture,
    random_residual,
    recorded,
    rectangles,
    scored,
    svg,
    tag,
)

from layerprune.graph import form_groups
from layerprune.picture import SCRIPT, STYLE, picture_of, to_html, to_svg
from layerprune.picture.impact_scale import impact_scale
from layerprune.picture.text_width import clipped, text_width
from models.hand_built import HandBuiltGraph

ALL = [*NETWORKS, *(pytest.param(name, marks=pytest.mark.reliability) for name in MORE_NETWORKS)]
SIZES = {"lp-name": 12, "lp-small": 10, "lp-title": 10, "lp-row": 9}
HOSTILE = """<script>alert(1)</script>"'&]]><!--\x07\ud800"""


def tree(name: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg(name))


@pytest.mark.parametrize("name", ALL)
def test_nothing_overlaps_that_is_not_nested_and_nothing_leaves_what_it_is_in(name):
    drawn = rectangles(tree(name))
    assert list(overlapping(drawn)) == []
    of_item = {id(each.item): each for each in drawn}
    for each in drawn:
        for around in each.around:
            outer = of_item[id(around)]
            assert outer.holds(each.left, each.top), (name_of(outer), name_of(each))
            assert outer.holds(each.right, each.bottom), (name_of(outer), name_of(each))


@pytest.mark.parametrize("name", ALL)
def test_text_lies_inside_its_box(name):
    for each in rectangles(tree(name)):
        x0, y0 = offset(each.item)
        for text in (child for child in each.item if tag(child) == "text" and child.get("class") in SIZES):
            size = SIZES[text.get("class", "")]
            width = text_width(text.text or "", size)
            x, y = x0 + float(text.get("x", 0)), y0 + float(text.get("y", 0))
            left = {"lp-title": x, "lp-row": x - width}.get(text.get("class", ""), x - width / 2)
            assert each.holds(left, y - size), (name_of(each), text.text)
            assert each.holds(left + width, y + 3), (name_of(each), text.text)


@pytest.mark.parametrize("name", ALL)
def test_edges_begin_and_end_at_borders(name):
    root = tree(name)
    drawn = rectangles(root)
    borders = {round(each.top, 1) for each in drawn} | {round(each.bottom, 1) for each in drawn}
    for path in (element for element in root.iter() if element.get("class") == "lp-edge"):
        for start, end in ends_of(path.get("d", "")):
            for x, y in (start, end):
                near = [y + step / 10 for step in range(-2, 3)]
                assert any(round(each, 1) in borders for each in near), (x, y)
                assert any(
                    min(abs(y - r.top), abs(y - r.bottom)) < 0.3 and r.left - 0.3 <= x <= r.right + 0.3 for r in drawn
                ), (x, y)


@pytest.mark.parametrize("name", ALL)
def test_every_group_has_one_shape_beside_those_of_the_block_that_stands_for_its_repeats(name):
    shapes = [element for element in tree(name).iter() if element.get("data-group") is not None]
    own = [int(shape.get("data-group", "")) for shape in shapes if shape.get("data-slot") is None]
    assert sorted(own) == list(range(len(recorded(name)[1])))


@pytest.mark.parametrize("name", ALL)
def test_equal_pictures_are_drawn_equally(name):
    graph, groups, types = recorded(name)
    again = picture_of(graph, groups, types=types)
    assert to_svg(again) == to_svg(picture_of(graph, groups, types=types))


def test_slots_lead_to_the_groups_of_the_first_block():
    root = tree("llama")
    cells = [e for e in root.iter() if e.get("class", "").startswith("lp-cell") and e.get("data-row") == "0"]
    boxes = [e for e in root.iter() if e.get("data-slot") is not None]
    assert [box.get("data-slot") for box in boxes] == [str(place) for place in range(7)]
    assert [box.get("data-group") for box in boxes] == [cell.get("data-group") for cell in cells]


def test_slots_of_repeats_inside_repeats_are_those_of_the_outer_one():
    root = tree("nested")
    slots = [e for e in root.iter() if e.get("data-slot") is not None]
    outer = [e for e in root.iter() if e.get("data-row") == "0" and e.get("data-slot") is None and e.get("data-group")]
    for shape in slots:
        assert shape.get("data-group") == outer[int(shape.get("data-slot", ""))].get("data-group")


def test_resnet_50_is_small():
    assert len(to_html(picture("resnet50")).encode()) + len(STYLE) + len(SCRIPT) < 80_000


def language_model(num_layers: int) -> tuple[int, int]:
    """Bytes of the picture of a language model as Llama is, and the number of its groups."""
    net = HandBuiltGraph()
    x = net.input(2, 8)
    with net.frame("model", x):
        for number in range(num_layers):
            with net.frame(f"model.layers.{number}", x):
                inside = f"model.layers.{number}"
                normed = net.module(f"{inside}.input_layernorm", "normalization", x, type_name="LlamaRMSNorm")
                with net.frame(f"{inside}.self_attn", normed):
                    parts = [linear(net, f"{inside}.self_attn.{key}_proj", normed) for key in "qkv"]
                    mixed = net.function("scaled_dot_product_attention", *parts, kind="attention")
                    out = linear(net, f"{inside}.self_attn.o_proj", mixed)
                    net.returns(out)
                x = net.function("add", x, out)
                normed = net.module(f"{inside}.post_attention_layernorm", "normalization", x, type_name="LlamaRMSNorm")
                with net.frame(f"{inside}.mlp", normed):
                    parts = [linear(net, f"{inside}.mlp.{key}_proj", normed) for key in ("gate", "up")]
                    out = linear(net, f"{inside}.mlp.down_proj", net.function("mul", *parts))
                    net.returns(out)
                x = net.function("add", x, out)
                net.returns(x)
        net.returns(x)
    graph = net.graph(linear(net, "lm_head", x))
    groups = scored(form_groups(graph))
    return len(to_html(picture_of(graph, groups)).encode()) + len(STYLE) + len(SCRIPT), len(groups)


def test_a_language_model_of_32_layers_is_small():
    size, num_groups = language_model(32)
    assert num_groups == 225
    assert size < 130_000


def test_a_thousand_layers_take_seconds_and_stay_readable():
    graph = random_residual(1000)
    groups = scored(form_groups(graph))
    start = time.process_time()
    drawn = to_svg(picture_of(graph, groups, model="Random"))
    assert time.process_time() - start < 5
    assert len(drawn) < 300_000
    rectangles_drawn = rectangles(ElementTree.fromstring(drawn))
    assert list(overlapping(rectangles_drawn)) == []


def test_many_blocks_with_edges_between_all_of_them_are_no_tangle():
    net = HandBuiltGraph()
    tensors = [net.input(2, 8)]
    for number in range(60):
        tensors.append(linear(net, f"layer{number % 7}_{number}", net.function("add", *tensors)))
        if number % 5 == 0:
            tensors[-1] = net.module(f"norm{number}", "normalization", tensors[-1], type_name="LayerNorm")
    graph = net.graph(net.function("add", *tensors))
    root = ElementTree.fromstring(to_svg(picture_of(graph, form_groups(graph), model="Dense")))
    assert list(overlapping(rectangles(root))) == []
    lines = sum(element.get("d", "").count("M") for element in root.iter() if element.get("class") == "lp-edge")
    assert lines < 500  # 1,830 pairs of layers are joined: long edges share a rail


# ---- untrusted text --------------------------------------------------------------------------------------------------


def test_names_are_text_and_nothing_else():
    net = HandBuiltGraph()
    name = f"a.{HOSTILE}"
    x = linear(net, name, net.input(2, 8))
    for number in range(4):
        x = linear(net, f"b.{HOSTILE}{number}.fc", net.function("relu", linear(net, f"b.{HOSTILE}{number}.in", x)))
    graph = net.graph(x)
    groups = form_groups(graph)
    drawn = picture_of(graph, groups, model=HOSTILE, types={"b": HOSTILE}, impact_unit=HOSTILE)
    drawn = replace(drawn, groups=tuple(replace(group, type_name=HOSTILE) for group in drawn.groups))
    html = to_html(drawn)
    assert "<script" not in html
    assert "<!--" not in html
    assert "\x07" not in html
    html.encode("utf-8")  # no halves of surrogate pairs
    root = ElementTree.fromstring(html)
    assert {tag(element) for element in root.iter()} <= {
        "figure", "div", "input", "span", "button", "figcaption", "i", "svg", "defs", "pattern", "g", "rect", "path",
        "text", "title", "circle",
    } | {"style"}  # fmt: skip
    allowed = re.compile(r"on\w+|href|src|style")
    assert not [key for element in root.iter() for key in element.keys() if allowed.fullmatch(key)]  # noqa: SIM118


def test_the_drawing_asks_for_nothing_outside_of_itself():
    html = to_html(picture("resnet50")) + STYLE + SCRIPT
    assert "://" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\([^)]*\)", html)) <= {"url(#lp-hatch)"}
    assert "</script" not in SCRIPT
    assert "</style" not in STYLE


def test_long_names_are_cut_and_whole_in_the_title():
    net = HandBuiltGraph()
    name = "a_very_long_name_" * 8 + "end"
    graph = net.graph(linear(net, name, net.input(2, 8)))
    drawn = to_svg(picture_of(graph, form_groups(graph), model="M"))
    assert f"<title>{name}: Linear" in drawn
    assert re.search(r'class="lp-name"[^>]*>a_very_\w+…\w+end<', drawn)


# ---- colours ---------------------------------------------------------------------------------------------------------


def test_classes_of_impact_rise_with_it():
    groups = picture("resnet50").groups
    scale = impact_scale(groups)
    known = sorted((g for g in groups if g.verdict == "removable"), key=lambda g: g.impact)
    classes = [scale.class_of(group) for group in known]
    assert classes == sorted(classes)
    assert {"i0", "i6"} <= set(classes)
    assert {scale.class_of(g) for g in groups if g.verdict == "critical"} == {"critical"}
    assert {scale.class_of(g) for g in groups if g.verdict == "with_calibration"} == {"calibration"}


def test_one_large_impact_leaves_colours_to_the_others():
    group = next(g for g in picture("resnet50").groups if g.verdict == "removable")
    groups = [replace(group, impact=impact) for impact in (*(0.1 + 0.01 * i for i in range(40)), 1e6)]
    assert len({impact_scale(groups).class_of(each) for each in groups}) == 7


@pytest.mark.parametrize("impacts", [[], [0.0], [0.0, 0.0], [1.0, 1.0], [-1.0, 0.0, 1.0], [float("nan")], [0.0, 1e-9]])
def test_few_or_equal_impacts_have_classes(impacts):
    group = next(g for g in picture("resnet50").groups if g.verdict == "removable")
    groups = [replace(group, impact=impact) for impact in impacts]
    scale = impact_scale(groups)
    assert all(re.fullmatch(r"i[0-6]|unknown", scale.class_of(each)) for each in groups)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear_parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear_parts, strict=True))


def test_text_on_each_colour_has_contrast_and_colours_fall_in_lightness():
    colours = dict(re.findall(r"--lp-([\w-]+):(#[0-9a-f]{6})", STYLE.partition("@media")[0]))
    lights = [luminance(colours[f"i{number}"]) for number in range(7)]
    assert lights == sorted(lights, reverse=True)
    dark_text = set(re.findall(r"\.lp-svg \.i(\d) text", STYLE.partition("fill:var(--lp-on-light)")[0]))
    for number, light in enumerate(lights):
        ink = luminance(colours["on-light"]) if str(number) in dark_text else 1.0
        high, low = max(light, ink), min(light, ink)
        assert (high + 0.05) / (low + 0.05) >= 4.5, number


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [5, 20, 60, 500])
@pytest.mark.parametrize("text", ["", "conv", "a" * 300, "层" * 40, "two\nlines"])
def test_a_cut_text_fits(text, width):
    assert "\n" not in clipped(text, 10, width)
    assert text_width(clipped(text, 10, width), 10) <= max(width, 9.5)
