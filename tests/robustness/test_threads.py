"""Several threads prune one model: each gets what one alone gets, and nothing of the process is changed."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from layerprune import UniversalLayerPruner
from models.nets import Photograph, linear, randomised, tokens, weight_hash


def attention():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def test_eight_threads_prune_one_model_to_the_same_result():
    model = randomised(nn.Sequential(linear(), attention(), attention(), linear()))
    before, fast_path = Photograph(model), torch.backends.mha.get_fastpath_enabled()

    def prune(_):
        pruner = UniversalLayerPruner(model, example_inputs=tokens())
        pruned = pruner.prune(max_param_reduction=0.5)
        return pruner.plan(max_param_reduction=0.5).to_json(), weight_hash(pruned)

    alone = prune(0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(prune, range(8)))
    assert found == [alone] * 8
    assert Photograph(model).difference(before) == ""
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_threads_may_share_a_pruner():
    pruner = UniversalLayerPruner(
        randomised(nn.Sequential(linear(), attention(), attention(), linear())), example_inputs=tokens()
    )
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: pruner.plan(max_param_reduction=0.5).to_json(), range(4)))
    assert len(set(plans)) == 1
