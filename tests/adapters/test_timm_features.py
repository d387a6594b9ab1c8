"""What timm models say of the places of their features follows when elements leave."""

import timm
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.adapters import timm_features


def vit():
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 3}
    return timm.models.vision_transformer.VisionTransformer(**sizes).eval()


def modules_of(net):
    return [entry["module"] for entry in net.feature_info]


def test_the_features_of_a_vision_transformer_are_those_of_the_blocks_that_stay():
    net, image = vit(), torch.randn(2, 3, 32, 32)
    pruner = UniversalLayerPruner(net, example_inputs=image, granularity="block")
    pruned = pruner.prune(groups=[g.name for g in pruner.groups if g.name.startswith("blocks.1.")])
    assert len(pruned.blocks) == len(pruned.feature_info) == 3
    assert modules_of(pruned) == ["blocks.0", "blocks.2", "blocks.3"]
    assert all(pruned.get_submodule(name) is not None for name in modules_of(pruned))
    assert len(pruned.forward_intermediates(image, intermediates_only=True)) == 3
    assert modules_of(net) == [f"blocks.{i}" for i in range(4)]


class Stack(nn.Module):
    """As timm's VGG: features are taken behind elements of one Sequential, which are counted."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(*(nn.Linear(2, 2) if i % 2 == 0 else nn.ReLU() for i in range(8)))
        self.feature_info = [dict(num_chs=2, module=f"features.{i}") for i in (1, 5, 7)]
        self.feature_ends = [1, 5, 7]
        self.other = [1, 2, 3]


def followed(net, *deleted):
    found = {key: value for held, key, value in timm_features.feature_info_changes(net, deleted) if held is vars(net)}
    info = found.get("feature_info")
    return None if info is None else [entry["module"] for entry in info], found.get("feature_ends")


def test_a_tap_on_an_element_that_leaves_moves_to_the_one_before_it():
    # 4 and 5 leave: the run ends at 3, the fourth element; of the six that are left 7 is the last.
    assert followed(Stack(), "features.4", "features.5") == (["features.1", "features.3", "features.7"], [1, 3, 5])
    # The places are counted where the names stay, too.
    assert followed(Stack(), "features.2") == (None, [1, 4, 6])
    # 6 and 7 leave, and 5 has a feature of its own; 0 and 1 leave, and nothing is before them.
    assert followed(Stack(), "features.6", "features.7") == (["features.1", "features.5"], [1, 5])
    assert followed(Stack(), "features.0", "features.1") == (["features.5", "features.7"], [3, 5])
    assert followed(Stack()) == (None, None)


def test_a_model_inside_another_is_found_and_what_is_no_list_of_places_is_left():
    net = nn.Sequential(Stack())
    ((held, key, value),) = timm_features.feature_info_changes(net, ["0.features.2"])
    assert (held is vars(net[0]), key, value) == (True, "feature_ends", [1, 4, 6])
    net[0].feature_info = [1, 2]
    assert timm_features.feature_info_changes(net, ["0.features.2"]) == []
