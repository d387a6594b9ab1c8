"""The strategy that repairs what it tries: it sees what a repair leaves, not what a removal harms."""

from dataclasses import replace

import numpy as np
import pytest
from test_select import independent, params_of, problem_of
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.errors import BudgetError
from layerprune.select import select
from models.nets import Damped, Photograph, linear, randomised, rows


@pytest.fixture(scope="module")
def blocks():
    return independent(4, 4, 4, 4)


def told(impacts, left):
    """Harms that add up: as they are, and as a repair leaves them; and the sets that were repaired."""
    asked = []

    def harm(sets):
        return np.array([impacts[list(some)].sum() for some in sets])

    def mended(sets):
        asked.extend(tuple(some) for some in sets)
        return np.array([left[list(some)].sum() for some in sets])

    return harm, mended, asked


def test_what_a_repair_leaves_decides(blocks):
    """Unrepaired the first two harm least; repaired the last two do."""
    impacts, left = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.09, 0.19, 0.01, 0.02])
    harm, mended, asked = told(impacts, left)
    size = blocks.removals[0].num_params
    problem = replace(problem_of(blocks, impacts), harm=harm, mended=mended, resources=[params_of(blocks, 2 * size)])
    found = select(problem, "repaired")
    assert found.chosen == (2, 3)
    assert select(problem, "greedy").chosen == (0, 1)
    assert (0, 1) in asked, "the exact choice is repaired, too"
    assert f"{len(asked)} sets were repaired" in found.notes[0]


def test_it_is_never_worse_than_the_exact_choice_where_the_first_step_leads_astray(blocks):
    """Repaired alone 3 is best, but with it no other is any good."""
    impacts = np.array([0.1, 0.1, 0.3, 0.4])
    harm, _, _ = told(impacts, impacts)

    def mended(sets):
        return np.array(
            [(0.01 if some == (3,) else 5.0) if 3 in some else 0.1 * len(some) for some in map(tuple, sets)]
        )

    size = blocks.removals[0].num_params
    problem = replace(problem_of(blocks, impacts), harm=harm, mended=mended, resources=[params_of(blocks, 2 * size)])
    assert select(problem, "repaired").chosen == (0, 1)


def test_a_set_that_does_not_hold_together_is_not_repaired(blocks):
    impacts = np.array([0.1, 0.2, 0.3, 0.4])
    harm, mended, asked = told(impacts, impacts)
    size = blocks.removals[0].num_params
    problem = problem_of(blocks, impacts, forbidden=[(0, 1)])
    problem = replace(problem, harm=harm, mended=mended, resources=[params_of(blocks, 2 * size)])
    assert select(problem, "repaired").chosen == (0, 2)
    assert (0, 1) not in asked


def test_on_a_model_the_choice_harms_no_more_after_its_repair_than_the_exact_one_does():
    model = randomised(nn.Sequential(linear(), Damped(), linear()))
    before = Photograph(model)
    pruner = UniversalLayerPruner(model, calibration=[rows(32, seed=seed) for seed in range(4)])
    left = {}
    for strategy in ("exact", "repaired"):
        pruner.prune(max_param_reduction=0.35, strategy=strategy)
        left[strategy] = pruner.repair_report.after
    assert left["repaired"] <= left["exact"] + 1e-9
    assert before == Photograph(model), "trials leave the user's weights alone"


def test_without_calibration_data_there_is_nothing_to_repair_on():
    model = randomised(nn.Sequential(linear(), Damped(), linear()))
    with pytest.raises(BudgetError, match="'repaired' repairs what it removes, on calibration data"):
        UniversalLayerPruner(model, example_inputs=rows()).plan(max_param_reduction=0.35, strategy="repaired")
