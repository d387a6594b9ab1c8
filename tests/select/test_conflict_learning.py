"""Culprits: small sets that fail are found, and forbidden with all that fails as they do, but nothing that holds."""

import random
from itertools import chain, combinations, product

import numpy as np
import pytest
import torch
from test_select import Residual, assert_best, choose, every_valid_set, problem_of, proven
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.graph import Cut, Refusal, RefusalCode
from layerprune.proof import JointRemovals, Removal
from layerprune.removals import Lowering
from layerprune.select import Limit, Milp
from layerprune.select.conflict_learning import ConflictLearner
from layerprune.select.constraints import Exclusion
from models.nets import linear, randomised, rows


def removal(name, *dead):
    lowering = Lowering(cut=Cut({}), edits=(), merges=(), dead=frozenset(dead), params=frozenset(), leftovers=())
    return Removal(
        name=name,
        subject=(name,),
        kind="branch",
        groups=(name,),
        cut=Cut({}),
        lowering=lowering,
        num_params=1,
    )


def subsets(num):
    return chain.from_iterable(combinations(range(num), size) for size in range(num + 1))


def culprits_of(removals, fails, *, in_runs=False):
    """Culprits that fail by a rule, with what was asked of them; the rule is told by realising, or only by running."""
    asked = []

    def judge(some):
        asked.append(tuple(some))
        if fails(set(some)):
            raise Refusal(RefusalCode.NOTHING_DIES)

    return ConflictLearner(removals, judge, (lambda some: None) if in_runs else judge), asked


def dead_of(removals, some):
    return frozenset(layer for i in some for layer in removals[i].dead)


# ---- bans -----------------------------------------------------------------------------------------------------------


def test_a_ban_of_a_set_forbids_that_set_and_all_that_hold_it():
    ban = Exclusion.of((3, 1))
    assert ban.alternatives == ((1,), (3,))
    assert ban.forbids({1, 2, 3})
    assert not ban.forbids({1, 2})


def test_a_ban_forbids_one_of_each_list():
    ban = Exclusion(((0, 1), (2, 3)))
    assert [some for some in subsets(4) if len(some) == 2 and ban.forbids(some)] == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_a_removal_that_stands_in_every_list_is_forbidden_alone():
    assert Exclusion(((0, 1), (0, 2))).forbids({0})


def test_of_a_family_too_many_are_forbidden_where_one_of_each_other_list_goes():
    ban = Exclusion(((4,),), ((0,), (1, 2), (3,)), 2)
    assert ban.forbids({4, 0, 2})
    assert not ban.forbids({4, 1, 2})
    assert not ban.forbids({0, 1, 3})


@pytest.mark.parametrize(
    "bans",
    [
        [Exclusion.of((0, 1)), Exclusion.of((2, 3, 4))],
        [Exclusion(((0, 1), (2, 3), (4,)))],
        [Exclusion(((0, 1), (1, 2), (3, 4)))],
        [Exclusion((), ((0,), (1,), (2, 3), (3, 4)), 3)],
        [Exclusion(((4,),), ((0, 1), (1, 2), (3,)), 2), Exclusion.of((0, 3))],
        [Exclusion(((0, 1), (2, 3))), Exclusion(((0, 1), (2, 3), (4,), (0, 2))), Exclusion(((0, 1), (0, 1), (4,)))],
    ],
)
def test_the_programme_finds_exactly_the_sets_that_are_not_forbidden(bans):
    programme = Milp(5)
    for some in subsets(5):
        pieces = {(i,): 1.0 if i in some else 100.0 for i in range(5)}  # within the cap nothing but the set fits
        forbidden = any(ban.forbids(some) for ban in bans)
        found = programme.least(np.zeros(5), [Limit(pieces, len(some), len(some) + 0.5)], bans)
        assert found == ([] if forbidden else list(some))


# ---- cores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_runs", [False, True])
def test_the_sets_found_fail_and_their_parts_hold(in_runs):
    some = [removal(f"layer{'abcdefgh'[i]}", 100 * i) for i in range(8)]
    bad = [{1, 4}, {2, 5, 7}, {6}]
    conflict_learner, _ = culprits_of(some, lambda s: any(b <= s for b in bad), in_runs=in_runs)
    bans = conflict_learner.among(range(8))
    assert {frozenset(i for each in ban.alternatives for i in each) for ban in bans} == {frozenset(b) for b in bad}
    assert not any(ban.forbids(set(range(8)) - {4, 7, 6}) for ban in bans)


def test_a_core_among_many_takes_few_questions():
    some = [removal(f"r{i}", 100 * i) for i in range(256)]
    conflict_learner, asked = culprits_of(some, lambda s: {17, 200} <= s)
    assert conflict_learner.among(range(256))[0] == Exclusion.of((17, 200))
    assert len(asked) < 40


# ---- all ways to lose the same layers --------------------------------------------------------------------------------

NUM = 5


def ways(num=NUM):
    """Per layer: its attention, its mlp, and both with the layer (layers 3i, 3i+1, 3i+2)."""
    return [
        removal(f"{kind}{i}", *(3 * i + part for part in parts))
        for i in range(num)
        for kind, parts in (("attention", (0,)), ("mlp", (1,)), ("block", (0, 1, 2)))
    ]


def no_attention_left(removals):
    everywhere = {3 * i for i in range(NUM)}
    return lambda some: everywhere <= dead_of(removals, some)


def missed_attention(removals):
    """Fails where no attention is left and one of them left its block behind."""

    def fails(some):
        kept = [i for i in range(NUM) if 3 * i + 2 not in dead_of(removals, some)]
        return bool(kept) and all(3 * i in dead_of(removals, some) for i in kept)

    return fails


@pytest.mark.parametrize("in_runs", [False, True])
@pytest.mark.parametrize("start", range(4))
def test_one_ban_forbids_every_way_to_lose_all_that_must_not_go_together(start, in_runs):
    removals = ways()
    fails = no_attention_left(removals)
    conflict_learner, asked = culprits_of(removals, fails, in_runs=in_runs)
    block = [(start >> i) & 1 for i in range(NUM)]  # which leave as blocks, in the set that fails first
    chosen = [3 * i + 2 * block[i] for i in range(NUM)] + [1, 4]
    (ban,) = conflict_learner.among(chosen)
    for some in subsets(len(removals)):
        if not any({3 * i + 2} & set(some) and {3 * i, 3 * i + 1} & set(some) for i in range(NUM)):
            assert ban.forbids(some) == fails(set(some))
    assert len(asked) < 80


def test_what_failed_is_forbidden_even_where_a_weaker_set_is_banned_in_its_place():
    removals = ways(3)
    (a0, b0), (a1, b1), (a2, b2) = ((3 * i, 3 * i + 2) for i in range(3))
    bad = [{b0, b1, b2}, {a0, b1, b2}, {a0, a1, b2}, {a0, a1, a2}]  # block 0 is no substitute for attention 0
    conflict_learner, _ = culprits_of(removals, lambda some: any(each <= some for each in bad))
    assert any(ban.forbids((b0, b1, b2)) for ban in conflict_learner.among((b0, b1, b2)))


@pytest.mark.parametrize("seed", range(30))
def test_whatever_fails_is_forbidden_by_what_it_taught(seed):
    draw = random.Random(seed)
    removals = ways()
    bad = [set(draw.sample(range(len(removals)), draw.randint(2, 5))) for _ in range(6)]
    conflict_learner, _ = culprits_of(removals, lambda some: any(b <= some for b in bad))
    chosen = sorted(set().union(*draw.sample(bad, 2)))
    assert any(ban.forbids(chosen) for ban in conflict_learner.among(chosen))


def test_a_mixture_is_banned_and_what_holds_without_any_of_its_kind_is_not():
    removals = ways()
    fails = missed_attention(removals)
    conflict_learner, _ = culprits_of(removals, fails)
    attention = [3 * i for i in range(NUM)]
    blocks = [3 * i + 2 for i in range(NUM)]
    assert not fails(set(blocks))
    (ban,) = conflict_learner.among(attention)
    for mixture in product(*zip(attention, blocks, strict=True)):
        assert ban.forbids(mixture) == fails(set(mixture))


def test_a_larger_removal_that_would_hold_in_a_members_place_is_no_alternative():
    removals = [*ways(), removal("all but the second's", *range(3), *range(6, 9))]
    fails = no_attention_left(removals)
    conflict_learner, _ = culprits_of(
        removals, lambda some: fails(some) and 5 not in some
    )  # block1 brings one of its own
    (ban,) = conflict_learner.among([3 * i for i in range(NUM)])
    assert ban.forbids([0, 3, 6, 9, 12])
    assert ban.forbids([2, 3, 8, 9, 14])
    assert not ban.forbids([2, 5, 8, 9, 14])


def test_a_removal_that_stands_for_two_members_stands_in_both_lists():
    removals = [*ways(), removal("blocks 0 and 1", *range(6))]
    fails = no_attention_left(removals)
    conflict_learner, _ = culprits_of(removals, fails)
    (ban,) = conflict_learner.among([3 * i for i in range(NUM)])
    assert ban.forbids([15, 6, 9, 12])
    assert not ban.forbids([15, 6, 9])


def test_what_fails_for_another_reason_is_no_alternative():
    removals = ways()
    fails = no_attention_left(removals)
    conflict_learner, _ = culprits_of(removals, lambda some: fails(some) or {2, 3} <= some)  # block0 hates attention1
    bans = conflict_learner.among([3 * i for i in range(NUM)])
    assert not any(ban.forbids([2, 6, 9, 12]) for ban in bans)
    assert not any(ban.forbids([2, 5, 8, 9]) for ban in bans)


def test_a_ban_is_the_same_in_whatever_order_a_set_is_given():
    removals = ways()
    chosen = [0, 5, 6, 11, 12]
    bans = [
        culprits_of(removals, no_attention_left(removals))[0].among(some) for some in (chosen, chosen[::-1], chosen)
    ]
    assert bans[0] == bans[1] == bans[2]


# ---- families -------------------------------------------------------------------------------------------------------


def too_many_attentions(removals, num, *needed):
    """Fails where as many attentions have gone, and all that is needed for that to matter."""

    def fails(some):
        gone = dead_of(removals, some)
        return sum(3 * i in gone for i in range(NUM)) >= num and gone >= set(needed)

    return fails


@pytest.mark.parametrize("in_runs", [False, True])
@pytest.mark.parametrize("chosen", [(0, 3, 6, 9), (2, 3, 8, 10, 14), (0, 3, 6, 9, 12), (2, 5, 8, 11)])
@pytest.mark.parametrize("num", [3, 4])
def test_one_ban_forbids_every_way_to_lose_too_many_of_a_kind(num, chosen, in_runs):
    removals = ways()
    fails = too_many_attentions(removals, num)
    conflict_learner, asked = culprits_of(removals, fails, in_runs=in_runs)
    (ban,) = conflict_learner.among(chosen)
    for some in subsets(len(removals)):
        assert ban.forbids(some) == fails(set(some))
    assert len(asked) < 100


def test_a_set_of_many_more_than_too_many_teaches_one_ban():
    removals = ways(9)
    attentions = {3 * i for i in range(9)}
    conflict_learner, _ = culprits_of(removals, lambda some: len(attentions & dead_of(removals, some)) >= 3)
    (ban,) = conflict_learner.among(sorted(attentions))
    assert ban == Exclusion((), tuple((i, i + 2) for i in sorted(attentions)), 3)


def test_what_has_to_go_besides_is_no_member_of_the_family():
    removals = [*ways(), removal("cache", 3 * NUM)]
    fails = too_many_attentions(removals, 3, 3 * NUM)
    conflict_learner, _ = culprits_of(removals, fails)
    (ban,) = conflict_learner.among([3, 5, 6, 9, 15])
    for some in subsets(len(removals)):
        assert ban.forbids(some) == fails(set(some))


def test_one_of_a_kind_that_is_needed_for_the_others_to_matter_is_no_member_of_their_family():
    removals = ways()
    fails = too_many_attentions(removals, 3, 0)
    conflict_learner, _ = culprits_of(removals, fails)
    (ban,) = conflict_learner.among([0, 3, 9])
    for some in subsets(len(removals)):
        assert ban.forbids(some) == fails(set(some))


def test_sets_of_a_kind_that_hold_are_not_forbidden_by_one_that_fails():
    removals = ways(8)
    runs = [{3 * i, 3 * i + 3, 3 * i + 6} for i in range(6)]  # three attentions one after the other
    conflict_learner, _ = culprits_of(removals, lambda some: any(run <= dead_of(removals, some) for run in runs))
    (ban,) = conflict_learner.among([3, 6, 9])
    attentions = [3 * i for i in range(8)]
    assert {some for some in combinations(attentions, 3) if ban.forbids(some)} == {(3, 6, 9)}


def test_blocks_are_no_family_of_what_only_attentions_do():
    removals = ways()
    attentions = {3 * i for i in range(NUM)}
    conflict_learner, _ = culprits_of(
        removals, lambda some: len(attentions & some) >= 3
    )  # blocks bring what attentions lack
    (ban,) = conflict_learner.among([0, 3, 6])
    for some in subsets(len(removals)):
        assert ban.forbids(some) == (len(attentions & set(some)) >= 3)


def test_one_of_a_kind_that_fails_with_a_member_for_another_reason_is_no_member():
    removals = ways()
    kin = {0, 3, 6, 9}
    conflict_learner, _ = culprits_of(removals, lambda some: len(kin & some) >= 3 or {6, 12} <= some)
    (ban,) = conflict_learner.among([3, 6, 9])
    assert ban == Exclusion((), tuple((i,) for i in sorted(kin)), 3)


def test_a_weaker_removal_that_fails_with_fewer_takes_no_place():
    removals = ways()
    blocks = {3 * i + 2 for i in range(NUM)}
    conflict_learner, _ = culprits_of(removals, lambda some: len(blocks & some) >= 3 or {2, 3} <= some)
    (ban,) = conflict_learner.among([2, 5, 8])
    assert ban == Exclusion((), tuple((i,) for i in sorted(blocks)), 3)


def test_a_set_that_cannot_be_realised_is_dealt_with_before_what_is_left_of_it_is_run():
    some = [removal(f"layer{letter}", 100 * i) for i, letter in enumerate("abcd")]
    ran = []

    def run(some):
        ran.append(some)
        if {2, 3} <= set(some):
            raise Refusal(RefusalCode.NOTHING_DIES)

    def lower_removal(some):
        if {0, 1} <= set(some):
            raise Refusal(RefusalCode.NOTHING_DIES)

    conflict_learner = ConflictLearner(some, run, lower_removal)
    assert conflict_learner.among(range(4)) == [Exclusion.of((0, 1))]
    assert not ran
    assert conflict_learner.among((0, 2, 3)) == [Exclusion.of((2, 3))]


# ---- in a selection -------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix, self.up, self.down = linear(8, 8), linear(8, width), linear(width, 8)

    def forward(self, x):
        x = x + torch.tanh(self.mix(x))
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_where_one_layer_of_a_kind_must_stay_the_choice_is_the_best_of_all_sets_that_leave_one(share):
    model = nn.Sequential(linear(), *(Block(width) for width in (3, 5, 9)), linear())
    pruner = UniversalLayerPruner(randomised(model), example_inputs=rows())
    assert len(pruner.removals) == 9  # two branches and the whole, of three blocks
    mixers = {i for i, layer in enumerate(pruner.graph.layers) if layer.fqn.endswith(".mix")}
    asked = []

    def check(some):
        asked.append(some)
        if mixers <= dead_of(pruner.removals, some):
            raise Refusal(RefusalCode.NOTHING_DIES)
        return proven(pruner)(some)

    impacts = [0.1 + 0.01 * i for i in range(9)]
    problem = problem_of(pruner, impacts, prove=check)
    valid = every_valid_set(pruner, problem)
    asked.clear()
    assert_best(pruner, problem, int(share * pruner.graph.num_params), valid)
    assert len(asked) < 60
    assert not mixers <= dead_of(pruner.removals, choose(pruner, problem, int(share * pruner.graph.num_params)).chosen)


@pytest.mark.parametrize("share", [0.5, 0.7, 1.0])
def test_where_three_of_a_kind_must_stay_whichever_the_choice_is_the_best_after_few_proofs(share):
    model = nn.Sequential(linear(), *(Residual(width) for width in (2, 3, 4, 5, 6, 7, 9)), linear())
    pruner = UniversalLayerPruner(randomised(model), example_inputs=rows())
    asked = []

    def check(some):
        asked.append(some)
        if len(some) > 4:
            raise Refusal(RefusalCode.NOTHING_DIES)
        return proven(pruner)(some)

    problem = problem_of(pruner, [0.1 + 0.01 * i for i in range(7)], prove=check)
    valid = every_valid_set(pruner, problem)
    asked.clear()
    assert_best(pruner, problem, int(share * pruner.graph.num_params), valid)
    assert len(asked) < 40


def test_a_plan_of_a_model_of_which_two_layers_must_stay_fails_once_at_the_most(monkeypatch):
    """transformers builds no Zamba with one attention only, and the first one's place in the cache is its own."""
    pytest.importorskip("transformers")
    import transformers

    kinds = ["linear_attention", "linear_attention", *["hybrid"] * 4, "linear_attention"]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    mamba = {"n_mamba_heads": 2, "mamba_dt_rank": 4, "mamba_d_state": 4, "vocab_size": 16}
    config = transformers.ZambaConfig(num_hidden_layers=7, layers_block_type=kinds, **sizes, **mamba)
    torch.manual_seed(0)
    model = transformers.ZambaForCausalLM(config).eval()
    pruner = UniversalLayerPruner(model, example_inputs={"input_ids": torch.tensor([[1, 2]])})
    failed, prove = [], JointRemovals.proven

    def watched(self, chosen):
        try:
            return prove(self, chosen)
        except Refusal:
            failed.append(tuple(chosen))
            raise

    monkeypatch.setattr(JointRemovals, "proven", watched)
    plan = pruner.plan(max_param_reduction=0.6)
    assert 0.54 <= plan.reduction <= 0.6
    assert len(failed) == 1  # all sets of too many are learnt from the first
