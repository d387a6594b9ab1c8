"""State that lies outside of a model: planning leaves it where it was, and no removal shifts what layers take of it."""

import copy
import itertools

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, applied
from layerprune.modules.iterators import copied, left_of, stand_in_for
from models.nets import close, randomised, rows

SCALES = [0.5, 1.5, 2.0, 3.0]
SHIFTS = [torch.full((8,), float(number)) for number in range(4)]
sequence = iter(SCALES)  # each test puts what it needs here
count = 0
taken: list[int] = []


class Counter:
    def __init__(self):
        self.number = -1

    def following(self):
        self.number = (self.number + 1) % 4
        return self.number


COUNTER = Counter()


def next_scale():
    return next(sequence)


def by_number(x):
    global count
    count = (count + 1) % 4
    return x * SCALES[count]


def by_list(x):
    taken.append(len(taken))
    if len(taken) == 4:
        taken.clear()
        return x * SCALES[3]
    return x * SCALES[len(taken) - 1]


#: How a block takes its scale or shift from outside.
WAYS = {
    "the next of an iterator": lambda x: x * next(sequence),
    "by a function": lambda x: x * next_scale(),
    "by a global number": by_number,
    "by the length of a list": by_list,
    "by an object's method": lambda x: x * SCALES[COUNTER.following()],
    "a tensor": lambda x: x + SHIFTS[COUNTER.following()],
}


class Block(nn.Module):
    def __init__(self, take):
        super().__init__()
        self.lin, self.take = nn.Linear(8, 8), take

    def forward(self, x):
        return x + self.lin(self.take(x))


class Layers(nn.Module):
    def __init__(self, take):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Block(take) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


DOES = dict.fromkeys(WAYS, "mul") | {"a tensor": "add"}


def start():
    global sequence, count
    sequence, count = itertools.cycle(SCALES), 0
    taken.clear()
    COUNTER.number = -1


def by_hand(model, name, kind):
    """The model without a layer: its branch adds nothing, or it hands on what it gets."""
    left = copy.deepcopy(model)
    made = {"branch": lambda module, args, out: torch.zeros_like(out), "bypass": lambda module, args, out: args[0]}
    left.get_submodule(name).register_forward_hook(made[kind])
    return left


@pytest.mark.parametrize("way", WAYS)
def test_planning_leaves_outside_state_where_it_was_and_what_is_safe_takes_what_it_took(way):
    model = randomised(Layers(WAYS[way]))
    start()
    expected = [model(rows()) for _ in range(2)]
    start()
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    removals = pruner.removals
    assert all(close(model(rows()), one) for one in expected)
    made = [removal for removal in removals if not removal.needs_calibration]
    assert {removal.name for removal in made} >= {f"blocks.{i}.lin by blocks.{i}.{DOES[way]}" for i in range(4)}
    for removal in made:
        pruned = copy.deepcopy(model)
        start()
        left = by_hand(model, removal.groups[0], removal.kind)
        wanted = [left(rows()) for _ in range(2)]
        start()
        with applied(pruned, removal.edits):
            assert all(close(pruned(rows()), one) for one in wanted), removal


def test_a_removal_that_takes_no_item_away_is_safe():
    """Here the stem's neighbour takes none."""

    class Beside(Layers):
        def __init__(self):
            super().__init__(WAYS["the next of an iterator"])
            self.beside = nn.Linear(8, 8)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.beside(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model = randomised(Beside())
    start()
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    removals = [removal for removal in pruner.removals if removal.groups == ("beside",)]
    assert removals
    pruned = copy.deepcopy(model)
    with applied(pruned, removals[0].edits):
        start()
        found = pruned(rows())
    start()
    assert close(found, by_hand(model, "beside", "branch")(rows()))


def test_a_generator_goes_on_with_what_planning_has_taken():
    global sequence
    model = randomised(Layers(WAYS["the next of an iterator"]))
    start()
    expected = model(rows())
    sequence = (scale for scale in SCALES * 3)
    assert UniversalLayerPruner(model, example_inputs=rows()).groups
    assert close(model(rows()), expected)
    assert len(list(sequence)) == 8


@pytest.mark.parametrize(
    "make",
    [lambda: iter([1, 2, 3]), lambda: itertools.count(5), lambda: itertools.cycle([1, 2, 3]), lambda: iter(range(4))],
)
@pytest.mark.parametrize("ahead", [0, 2, 4])
def test_a_copy_of_an_iterator_goes_on_from_its_place(make, ahead):
    one, other = make(), make()
    for iterator in (one, other):
        for _ in range(ahead):
            next(iterator, None)
    same = copied(one)
    assert same is not None
    assert [next(same, None) for _ in range(5)] == [next(other, None) for _ in range(5)]
    again = make()
    for _ in range(ahead):
        next(again, None)
    assert [next(one, None) for _ in range(5)] == [next(again, None) for _ in range(5)]


def test_what_was_taken_of_a_generator_comes_first_again():
    numbers = (number for number in range(4))
    stand_in = stand_in_for(numbers)
    assert [next(stand_in), next(stand_in)] == [0, 1]
    assert list(left_of(numbers, stand_in)) == [0, 1, 2, 3]


def test_a_generator_that_a_module_holds_is_named_in_a_note():
    model = randomised(Layers(lambda x: x))
    model.blocks[0].scales = (scale for scale in SCALES)
    notes = UniversalLayerPruner(model, example_inputs=rows()).graph.notes
    assert any("generator as 'scales'" in note for note in notes)


class CachedBias(nn.Module):
    """Keeps what it has made of its bias in a dict, and takes it from there at later calls, as LeViT's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.bias, self.cache = nn.Linear(4, 4), nn.Parameter(torch.randn(4)), {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.layer(x) + self.bias.flip(0)
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.bias.flip(0)
        return self.layer(x) + self.cache["cpu"]


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(CachedBias() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("warm", [False, True])
def test_a_cache_of_what_parameters_make_is_no_state_that_layers_share(warm: bool) -> None:
    torch.manual_seed(0)
    net, x = Cached().eval(), torch.randn(3, 4)
    if warm:
        net(x)
    pruner = UniversalLayerPruner(net, example_inputs=x)
    for number in range(3):
        pruned = pruner.prune(groups=[f"blocks.{number}.layer"], repair=None)
        y = net.stem(x)
        for other, block in enumerate(net.blocks):
            y = y if other == number else y + block(y)
        for _ in range(2):
            torch.testing.assert_close(pruned(x), net.head(y))
