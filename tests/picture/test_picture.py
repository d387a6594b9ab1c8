"""The picture's records: every group once, the data flow as it is, repeated blocks once."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from drawings import MORE_NETWORKS, NETWORKS, linear, overlapping, picture, random_residual, recorded, rectangles

from layerprune import UniversalLayerPruner
from layerprune.graph import LayerGraph, form_groups
from layerprune.picture import Block, Box, Cells, Region, Repeat, groups_in, picture_of, to_svg
from models.hand_built import HandBuiltGraph
from models.nets import ExampleModel, image

ALL = [*NETWORKS, *(pytest.param(name, marks=pytest.mark.reliability) for name in MORE_NETWORKS)]


def blocks(block: Block) -> Iterator[Block]:
    yield block
    for inner in block.blocks if isinstance(block, Region) else [block.shown] if isinstance(block, Repeat) else []:
        yield from blocks(inner)


def region(name: str, fqn: str) -> Region:
    return next(b for b in blocks(picture(name).root) if isinstance(b, Region) and b.name == fqn)


def arrows(region: Region) -> set[tuple[str, str]]:
    """Edges by the labels of their ends; entries are ``in``, the exit is ``out``."""

    def label(place: int) -> str:
        if place < 0:
            return "in" if place == -1 else f"in{-place}"
        block = region.blocks[place] if place < len(region.blocks) else None
        return "out" if block is None else block.labels[0] if isinstance(block, Repeat) else block.label

    return {(label(edge.source), label(edge.target)) for edge in region.edges}


@pytest.mark.parametrize("name", ALL)
def test_every_group_is_in_the_picture_once(name):
    assert sorted(groups_in(picture(name).root)) == list(range(len(recorded(name)[1])))


@pytest.mark.parametrize("name", ALL)
def test_edges_lead_from_earlier_blocks_to_later_ones_of_their_region(name):
    for block in blocks(picture(name).root):
        if not isinstance(block, Region):
            continue
        for edge in block.edges:
            assert -block.num_entries <= edge.source < edge.target <= len(block.blocks) - (not block.has_exit)
            if edge.entry:
                target = block.blocks[edge.target]
                while isinstance(target, Repeat):
                    target = target.shown
                assert isinstance(target, Region)
                assert edge.entry < target.num_entries


def test_the_example_model_forks_and_meets_in_a_concat():
    assert arrows(picture("example").root) == {
        ("x", "conv1"), ("conv1", "conv2a"), ("conv1", "conv2b"), ("conv2a", "cat"), ("conv2b", "cat"),
        ("cat", "conv3"), ("conv3", "fc"), ("fc", "output"),
    }  # fmt: skip
    kinds = {block.label: block.kind for block in blocks(picture("example").root) if isinstance(block, Box)}
    assert kinds["cat"] == "concat"


def test_a_residual_block_has_an_edge_around_its_branch():
    assert arrows(region("resnet50", "layer1.1")) == {
        ("in", "conv1"), ("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "add"), ("in", "add"), ("add", "out"),
    }  # fmt: skip


def test_a_projected_shortcut_is_a_branch_beside_the_others():
    edges = arrows(region("resnet50", "layer2.0"))
    assert {("in", "conv1"), ("in", "downsample.0"), ("downsample.0", "add"), ("conv3", "add")} <= edges
    assert ("in", "add") not in edges


def test_attention_reads_queries_keys_and_values_and_masks_are_left_out():
    assert arrows(region("llama", "model.layers.0.self_attn")) == {
        ("in", "q_proj"), ("in", "k_proj"), ("in", "v_proj"), ("q_proj", "scaled_dot_product_attention"),
        ("k_proj", "scaled_dot_product_attention"), ("v_proj", "scaled_dot_product_attention"),
        ("scaled_dot_product_attention", "o_proj"), ("o_proj", "out"),
    }  # fmt: skip
    assert [block.label for block in picture("llama").root.blocks if isinstance(block, Box)] == [
        "input_ids", "lm_head", "output",
    ]  # fmt: skip


def test_cross_attention_reads_what_comes_in_at_another_place():
    cross = region("t5", "decoder.block.0.layer.1.EncDecAttention")
    assert cross.num_entries == 2
    assert {("in", "q"), ("in2", "k"), ("in2", "v")} <= arrows(cross)


def test_the_layers_of_a_language_model_are_drawn_once():
    (repeat,) = (block for block in blocks(picture("llama").root) if isinstance(block, Repeat))
    assert (repeat.labels[0], repeat.labels[-1], len(repeat.labels)) == ("layers.0", "layers.5", 6)
    names = [[picture("llama").groups[group].name for group in column] for column in repeat.columns]
    assert names[4] == [name.replace("layers.0.", "layers.4.") for name in names[0]]
    assert [name.rpartition(".")[2] for name in names[0]] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert groups_in(repeat.shown) == repeat.columns[0]
    assert not repeat.reads_earlier


def test_a_first_block_of_another_structure_is_drawn_by_itself():
    stage = region("resnet50", "layer3")
    assert [type(block) for block in stage.blocks] == [Region, Repeat]
    assert stage.blocks[1].labels == ("1", "2", "3", "4", "5")


def test_dense_layers_read_earlier_ones():
    repeats = [block for block in blocks(picture("densenet").root) if isinstance(block, Repeat)]
    assert [len(repeat.labels) for repeat in repeats] == [3, 5, 4]
    assert all(repeat.reads_earlier for repeat in repeats)


def test_blocks_that_are_joined_to_different_others_are_not_drawn_as_one():
    assert not any(isinstance(block, Repeat) for block in blocks(picture("U-Net").root))
    edges = arrows(picture("U-Net").root)
    assert {("stem", "up0"), ("down0", "up1"), ("down1", "up2"), ("down2", "up2")} <= edges


def test_repeated_blocks_may_hold_repeated_blocks():
    outer, inner = (block for block in blocks(picture("nested").root) if isinstance(block, Repeat))
    assert len(outer.labels) == 4
    assert len(inner.labels) == 3
    assert {len(column) for column in outer.columns} == {6}
    assert groups_in(inner) == outer.columns[0]


def in_turns() -> LayerGraph:
    """Two modules whose layers run in turns, as in a feature pyramid."""
    net = HandBuiltGraph()
    x = net.input(2, 8)
    outputs: list[int] = []
    for number in range(3):
        x = net.function("add", x, linear(net, f"inner.{number}", x))
        outputs.append(linear(net, f"layer.{number}", x))
    return net.graph(net.cat(*outputs))


def test_an_edge_leads_back_where_two_modules_run_in_turns():
    graph = in_turns()
    groups = form_groups(graph)
    root = picture_of(graph, groups, model="Pyramid").root
    labels = [block.label for block in root.blocks]
    assert labels[:4] == ["input", "inner", "add", "layer"]
    assert any(edge.source > edge.target for edge in root.edges)
    drawn = ElementTree.fromstring(to_svg(picture_of(graph, groups, model="Pyramid")))
    assert list(overlapping(rectangles(drawn))) == []


def test_a_module_that_is_called_again_is_drawn_once_with_its_calls():
    boxes = [block for block in blocks(picture("shared").root) if isinstance(block, Box) and block.kind == "group"]
    assert [(box.label, box.num_calls) for box in boxes] == [("0", 3), ("2", 3), ("head", 1)]


def test_blocks_of_other_classes_are_never_drawn_as_one():
    graph, groups, types = recorded("llama")
    other = {**types, "model.layers.2": "AnotherLayer"}
    repeats = [b for b in blocks(picture_of(graph, groups, types=other).root) if isinstance(b, Repeat)]
    assert [len(repeat.labels) for repeat in repeats] == [3]


def test_a_plan_marks_what_goes_and_gives_names():
    pruner = UniversalLayerPruner(ExampleModel(), example_inputs=image(size=8))
    plan = pruner.plan(groups=["conv2b"])
    drawn = picture_of(pruner.graph, pruner.groups, plan)
    assert [group.name for group in drawn.groups if group.goes] == ["conv2b"]
    assert drawn.model == drawn.root.label == "ExampleModel"
    assert drawn.impact_unit == plan.impact_unit


def test_a_picture_shows_itself_in_a_notebook_and_in_one_line():
    drawn = picture("example")
    assert repr(drawn) == f"Picture(ExampleModel: 5 groups, {sum(group.goes for group in drawn.groups)} go)"
    assert drawn._repr_svg_() == drawn.to_svg() == to_svg(drawn)


def test_more_blocks_than_can_be_told_apart_are_cells():
    graph = random_residual(1000)
    groups = form_groups(graph)
    root = picture_of(graph, groups, model="Random").root
    assert sorted(groups_in(root)) == list(range(1000))
    fields = [block for block in root.blocks if isinstance(block, Cells)]
    assert [len(field.groups) for field in fields] == [48] * 20 + [40]
    assert [field.label for field in fields[:2]] == ["layer0 … layer47", "layer48 … layer95"]
    assert [block.label for block in root.blocks if isinstance(block, Box)] == ["input", "output"]


def test_modules_are_cells_where_the_whole_would_be_too_many_boxes():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    for outer in range(40):
        for inner in range(5 + outer % 3):
            for layer in range(3 + (outer + inner) % 2):
                name = f"stage{outer}.block{inner}.fc{layer}"
                x = net.module(name, "transform", x, params={f"{name}.weight": (8, 8)}, type_name="Linear")
    graph = net.graph(x)
    groups = form_groups(graph)
    root = picture_of(graph, groups).root
    assert sorted(groups_in(root)) == list(range(len(groups)))
    assert any(isinstance(block, Cells) for block in blocks(root))
    assert sum(isinstance(block, (Box, Cells)) for block in blocks(root)) <= 420
