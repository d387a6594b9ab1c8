"""Lists of layers that only a forward asks, for each layer's number, follow when layers leave."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from layerprune import UniversalLayerPruner
from layerprune.adapters.transformers.reference_diff import is_shortened_list

FULL = [2, 4]
PATCHES, GRID = torch.randn(64, 96), torch.tensor([[1, 8, 8]])


def tower():
    """Five blocks; two of them look at the whole image, the others at windows of it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 8}
    grid = {"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "in_channels": 3, "temporal_patch_size": 2}
    config = Qwen2_5_VLVisionConfig(depth=5, **sizes, **grid, fullatt_block_indexes=FULL)
    return Qwen2_5_VisionTransformerPretrainedModel(config).eval()


def seen(net):
    with torch.no_grad():
        return net(PATCHES, grid_thw=GRID)[0]


@pytest.fixture(scope="module")
def pruner():
    inputs = {"hidden_states": PATCHES, "grid_thw": GRID}
    return UniversalLayerPruner(tower(), example_inputs=inputs, granularity="block")


@pytest.mark.parametrize(("gone", "full"), [((1,), [1, 3]), ((2,), [3]), ((4,), [2]), ((0, 3), [1, 2])])
def test_the_blocks_that_see_the_whole_image_go_on_doing_so(pruner, gone, full, tmp_path):
    names = [g.name for g in pruner.groups if g.can_remove and g.name.split(".")[1] in map(str, gone)]
    pruned = pruner.prune(groups=names)
    kept = [i for i in range(5) if i not in gone]
    assert pruned.config.depth == len(pruned.blocks) == len(kept)
    assert pruned.config.fullatt_block_indexes == pruned.fullatt_block_indexes == full
    by_hand = copy.deepcopy(pruner._original)
    by_hand.blocks = nn.ModuleList(by_hand.blocks[i] for i in kept)
    by_hand.fullatt_block_indexes = [kept.index(i) for i in FULL if i in kept]
    assert torch.equal(seen(pruned), seen(by_hand))
    assert pruner._original.config.fullatt_block_indexes == FULL
    pruned.save_pretrained(tmp_path)
    assert torch.equal(seen(type(pruned).from_pretrained(tmp_path).eval()), seen(by_hand))


def test_a_renumbered_list_is_told_from_another():
    assert is_shortened_list([2, 4], [1, 3], [(1,)])
    assert is_shortened_list([7, 15, 23], [6, 14], [(3, 23)])
    assert not is_shortened_list([2, 4], [1, 4], [(1,)])
