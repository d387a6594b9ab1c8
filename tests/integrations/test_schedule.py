"""A schedule says when rounds take place and how much each may remove."""

import pytest

from layerprune.errors import ArgumentError, BudgetError
from layerprune.integrations import Schedule


def test_rounds_come_at_their_times_and_each_once():
    schedule = Schedule(start=100, every=50, num_rounds=3, share=0.1)
    assert [schedule.time_of(number) for number in (1, 2, 3)] == [100, 150, 200]
    assert schedule.due(99, 0) is None
    assert schedule.due(100, 0) == 1
    assert schedule.due(100, 1) is None
    assert schedule.due(170, 1) == 2, "a step that was missed is made up for"
    assert schedule.due(1000, 3) is None


def test_shares_add_up_linearly_or_by_the_cubic_rule():
    assert [Schedule(start=1, every=1, num_rounds=4, share=0.1).share_after(n) for n in (1, 4)] == [0.1, 0.4]
    linear = Schedule(start=1, every=1, num_rounds=4, final_share=0.4)
    assert [linear.share_after(n) for n in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    cubic = Schedule(start=1, every=1, num_rounds=4, final_share=0.4, curve="cubic")
    by_hand = [0.4 - 0.4 * (1 - n / 4) ** 3 for n in (1, 2, 3, 4)]  # equation 1, from 0 to the final sparsity
    assert [cubic.share_after(n) for n in (1, 2, 3, 4)] == pytest.approx(by_hand)


def test_a_cap_is_of_the_present_size_and_passes_on_what_was_not_used():
    schedule = Schedule(start=1, every=1, num_rounds=2, share=0.25)
    assert schedule.cap(1, 1000, 1000) == pytest.approx(0.25)
    assert schedule.cap(2, 1000, 750) == pytest.approx(250 / 750)
    assert schedule.cap(2, 1000, 1000) == pytest.approx(0.5), "the first round removed nothing"
    assert schedule.cap(2, 1000, 400) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0, "share": 0.1}, "start is 0"),
        ({"start": 1, "num_rounds": 2, "share": 0.1}, "every is None"),
        ({"start": 1, "every": 1.5, "num_rounds": 2, "share": 0.1}, "every is 1.5"),
        ({"start": 1}, "either share=, of each round, or final_share="),
        ({"start": 1, "share": 0.1, "final_share": 0.1}, "either share="),
        ({"start": 1, "share": 0.1, "curve": "cubic"}, "curve= is about final_share="),
        ({"start": 1, "share": 0.1, "unit": "hour"}, "unit 'hour'; give linear or cubic, step or epoch"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        Schedule(**options)


@pytest.mark.parametrize("options", [{"share": 1.5}, {"final_share": 0}, {"share": 0.3, "num_rounds": 4, "every": 1}])
def test_a_share_of_all_parameters_is_refused(options):
    with pytest.raises(BudgetError, match="give a share between 0 and 1"):
        Schedule(start=1, **options)
