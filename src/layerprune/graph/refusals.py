"""Why a group, a removal or a set of removals cannot go: a code, the layer and values; only this file makes texts."""

from __future__ import annotations

from enum import Enum

from layerprune.errors import short
from layerprune.graph.names import without_numbers
from layerprune.tensors import user_line

_NOT_HANDED_ON = "{value} cannot be handed on to where {read} is read: "
_SHARED = (
    ": layers report to, or take from, something that they share, and each one behind would have another place there"
)
_STAYS = "; protect_io=False lets it go"


class RefusalCode(Enum):
    """An obstacle. The name in lower case is a group's ``reason_code``; the value is the text."""

    # A group may not go, needs data, or does not go alone.
    PROTECTED = "protected by '{pattern}'"
    STEM = "reads the model's input" + _STAYS
    HEAD = "feeds the model's output" + _STAYS
    TAKES_A_KEPT_GROUP = "leaves only together with '{layer}', which {because.clause}"
    NEEDS_CALIBRATION = (
        "a projection takes its place, which is fitted on calibration data: pass calibration=, an iterable of batches"
    )
    LEAVES_TOGETHER = "leaves together with {groups}"
    LEAVES_WITH_SOME = "leaves only together with others, as with {groups}"
    # No substitute for a group.
    CHANGES_CHANNELS = "changes {before} channels to {after} and nothing of that shape exists before it"
    CHANGES_SHAPE = "changes {before} to {after} and nothing of that shape exists before it"
    SEVERAL_CALLS = "its lead is called {num} times, and no substitution takes all calls out"
    NO_TENSOR_OF_ITS_SHAPE = "no earlier tensor of its shape {shape} lies on every way to it"
    NO_ARGUMENT_FOR_EACH = (
        "the forward of '{layer}' returns {num} tensors that others read ({shapes}), and no argument of it stands for "
        "each"
    )
    # A tensor cannot be replaced or dropped.
    NOTHING_DIES = "nothing dies with it"
    LAYER_NEEDED = _NOT_HANDED_ON + "{between} lies in between, and is needed elsewhere"
    LAYER_READS_A_PART = (
        _NOT_HANDED_ON + "'{layer}' lies in between, and reads a part of an argument, which cannot be handed on"
    )
    LAYER_READS_MORE = _NOT_HANDED_ON + "'{layer}' lies in between, and is called with more than it"
    FUNCTION_IN_BETWEEN = _NOT_HANDED_ON + "the forward of {owner} calls '{function}' in between"
    CANNOT_BE_DROPPED = "{value} is made where it cannot be dropped"
    OTHER_NAME = "'{layer}' is also called as '{other}', and would have to do another thing"
    RETURNS_WHAT_STAYS = "'{layer}' also returns {value}, which stays"
    RETURNS_AN_OBJECT = "'{layer}' returns an object whose form cannot be rebuilt: nothing can stand in its place"
    RETURNS_A_WRITTEN_TENSOR = (
        "'{layer}' returns a tensor that is written into by others, too: nothing can stand in its place"
    )
    CALLS_DIFFER = "'{layer}' is called {num} times, and would hand on different things"
    READS_THE_SHAPE = "the forward of {owner} reads the shape of {value}, which would be gone"
    HOOK_GOES_ALONG = "a hook of '{layer}' changes or keeps tensors that others read, and would go along"
    METHOD_READS_WEIGHT = "'{layer}' reads '{attribute}' in its '{method}'"
    SIZE_IN_RESULT = "'{layer}' returns numbers that follow from the size of the input"
    # Parameters.
    PARAMETER_USED = "its parameter '{param}' is also used by '{layer}'"
    PARAMETER_OF_A_CALLED_MODULE = (
        "its parameter '{param}' is that of '{layer}', which is called by itself as well ('{user}')"
    )
    PARAMETER_TIED = "its parameter '{param}' is tied to '{other}'"
    PARAMETER_LOST = "parameter '{param}' would be lost, though it is still used"
    PARAMETER_STAYS = "parameter '{param}' would stay behind"
    # Containers and caches.
    STAND_IN_LEFT = "a stand-in would be left at '{layer}', which only layerprune can load"
    CACHE_LENGTH_LOST = "'{layer}' says how long the past in the cache is, and no layer of its kind is left"
    CACHE_PLACE_LOST = "no other layer can take the place of '{layer}' in the key-value cache"
    CACHE_FORGETS = "generation with a cache loses its past: {method} of {kind} gives {answer}"
    CACHE_FAILS = "generation with a cache fails without it: {error}"
    # Channels of the readers of a concat.
    COMPUTES_ITS_WEIGHT = "'{layer}' computes its weight (a parametrization or a hook), which cannot lose channels"
    READS_NO_CHANNELS = "'{layer}' reads the channels that go as something other than channels"
    UNEVEN_GROUPS = "'{layer}' is a grouped convolution ({num} groups), whose groups would become uneven"
    MIXES_ANOTHER_DIMENSION = "'{layer}' mixes another dimension than the one that loses channels"
    NORMALIZES_ANOTHER_DIMENSION = "'{layer}' normalizes another dimension than the one that loses channels"
    NORMALIZES_ACROSS = "'{layer}' ({type}) normalizes across channels, so the others would change"
    REACHES_OUTPUT = "{channels} reach the model's output"
    CHANNELS_WRITTEN = "{channels} are written in place on the way to '{layer}'"
    CANNOT_LOSE_SOME = "{channels} pass through '{layer}' ({type}), which cannot lose some of them"
    CHANNELS_NOT_FOLLOWED = "{channels} cannot be followed through '{layer}' ({type})"
    OPERAND_WRITTEN = "an operand of '{layer}' is written in place"
    JOINS_OTHER_SHAPES = "'{layer}' joins tensors of different dimensions"
    JOINS_ANOTHER_DIMENSION = "'{layer}' joins its tensors along another dimension"
    JOINS_WHOLE_TENSOR = "'{layer}' joins {channels} with a tensor that keeps all of them"
    JOINED_DIMENSION_UNKNOWN = "the dimension that '{layer}' joins is not known"
    NOTHING_LEFT_TO_JOIN = "'{layer}' would have nothing left to join"
    WEIGHT_TIED = "'{param}' is tied to another layer, which keeps all channels"
    CALLS_MISS_OTHERS = "'{layer}' is called several times, with different channels missing"
    CALLS_MISS_NONE = "'{layer}' is called several times, not always with these channels"
    LOSES_OTHERS_IN_TRAINING = "'{layer}' would lose other channels in train mode than in eval mode"
    NOT_MADE_IN_TRAINING = "{value} is not made in train mode"
    INPUTS_AND_GROUPS = "a layer would lose input channels and whole groups of channels at once"
    RETURNS_NO_TENSORS = "it returns something other than tensors"
    NO_CHANNELS_LEFT = "'{layer}' ({type}) would have a result without any channels"
    MIXES_CHANNELS = "'{layer}' ({type}) mixes the channels that go with channels that stay"
    RUNS_OTHERWISE = "'{layer}' does not run as it was recorded"
    FAILS_ON_CHANNELS = "'{layer}' fails on the channels that are left: {error.message}"
    MAKES_OTHER_NUMBER = "'{layer}' makes {num} tensors of what is left, not {wanted}"
    MOVES_CHANNELS = "'{layer}' would move the channels that are left to other places"
    # Projections, and the layers that they are folded into.
    NO_PROJECTION = "no projection can take its place: {why}"
    READ_BY_NO_TRANSFORM = "no linear layer or convolution reads it"
    READER_CANNOT = "'{layer}' reads it, and {why}"
    KEPT_GROUP_WOULD_LEAVE = "'{layer}', which has to stay, would leave with it"
    GROWS = "{saved:,} parameters would leave, and what reads it would grow by {growth:,}"
    NO_SMALLER = (
        "{saved:,} parameters would leave, and what takes their projections in would grow by {growth:,}: "
        "the model would be no smaller"
    )
    VALUE_REACHES_OUTPUT = "it reaches the model's output"
    READ_WITH_OTHERS = "'{layer}' ({type}) reads it together with other tensors"
    NOT_FOLDABLE = "'{layer}' ({type}) reads it, and no projection can be folded into that"
    CANNOT_RUN_ON_OTHERS = "'{layer}' ({type}) cannot be run on other channels"
    MIXES_DIMENSIONS = "'{layer}' ({type}) mixes its channels with other dimensions"
    ANOTHER_GRID = "'{layer}' would have to read it from another grid ({before} to {after})"
    CONVOLVES_GROUPS = "is a function that convolves groups of channels"
    UNKNOWN_TRANSFORM = "is a {type}, which no projection can be folded into"
    UNKNOWN_FUNCTION = "calls '{function}', which no projection can be folded into"
    OWN_WAY = "computes its weight or its input in a way of its own (a parametrization or a hook)"
    QUANTISED = "holds a quantised weight"
    NO_WEIGHT = "holds no weight '{param}'"
    SEVERAL_MATRICES = "calls '{function}' with several matrices"
    CALLED_SEVERAL_TIMES = "is called several times"
    SHARES_WEIGHTS = "shares its weights"
    FOLDS_AND_LOSES = "'{layer}' would take a projection in and lose channels at once"
    # Sets of removals.
    TWO_SUBSTITUTES = "{value} would be replaced by two things at once"
    ONE_NEEDS_ANOTHER = "what one of them removes, another one needs"
    # Runs of the edited model.
    FORWARD_FAILS = "the forward fails without it: {error}"
    FORWARD_OR_BACKWARD_FAILS = "the forward or backward fails without it: {error}"
    SECOND_CALL_FAILS = "the forward fails without it, at its second call at the latest: {error}"
    OTHER_SIZE_FAILS = "the forward fails on inputs of another size: {error}"
    OTHER_SIZE_DIFFERS = "on inputs of another size '{layer}' would make {found} instead of {wanted}"
    OUTPUT_CHANGES = "the output would change its form in {mode} mode: {wanted} to {found}"
    DROPPED_IN_OUTPUT = "the dropped tensor would reach the model's output"
    MEETS_A_MERGE = (
        "in the forward{where} the dropped tensor also meets {merge} that is no part of this removal, and the other "
        "operand would be handed on there in its place"
    )
    MISSES_A_MERGE = (
        "in the forward{where} the dropped tensor does not reach {merge} that should leave it out: something else is "
        "made of it on the way"
    )
    PLACES_COUNT = "the forward depends on the places of layers: '{step}' would run on something else"
    READ_BY_CALLS_ONLY = "whether {value} is read only by calls cannot be told"
    NO_LONGER_RUNS = "'{layer}' would no longer run" + _SHARED
    CALLS_ANEW = "the forward would call '{step}' where it does not" + _SHARED
    READS_ANOTHER = "'{layer}' would read another tensor than now" + _SHARED
    OTHER_NUMBERS = "'{layer}' would compute with other numbers than now" + _SHARED
    RETURNS_ANOTHER = "the model would return another tensor than now" + _SHARED
    FAILS_AS_ANOTHER = "as with '{layer}', which is alike: {why}"
    ERROR = "{error.message}"


class ErrorSummary:
    """The type, message and user's code line of an error, without frames, which would keep tensors alive."""

    def __init__(self, error: BaseException) -> None:
        self.message, self.short = str(error), short(error)
        self.form = (type(error), user_line(error))

    def __str__(self) -> str:
        return self.short


class Refusal(Exception):
    """A removal that cannot be made, carried out or followed.

    Args:
        code: the obstacle.
        layer: dotted name of the layer at fault; empty where there is none.
        values: other values in the text; errors are kept as summaries, refusals without traceback.
    """

    def __init__(self, code: RefusalCode, layer: str = "", **values: object) -> None:
        super().__init__(code, layer)
        self.code = code
        self.layer = layer
        self.values = {key: _kept(value) for key, value in values.items()}

    def __str__(self) -> str:
        owner = f"'{self.layer}'" if self.layer else "the model"
        return self.code.value.format(layer=self.layer, owner=owner, **self.values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Refusal):
            return NotImplemented
        return (self.code, self.layer, self.values) == (other.code, other.layer, other.values)

    __hash__ = Exception.__hash__

    @property
    def bare(self) -> Refusal:
        """The same without a traceback, which would keep a run's tensors alive."""
        return Refusal(self.code, self.layer, **self.values)

    @property
    def root(self) -> Refusal:
        """The refusal that others wrap."""
        why = self.values.get("why")
        return why.root if isinstance(why, Refusal) else self

    @property
    def name(self) -> str:
        """The root's code for users, such as ``parameter_tied``."""
        return self.root.code.name.lower()

    @property
    def form(self) -> tuple[object, ...]:
        """The refusal without numbers, to compare repeated blocks."""
        return self.code, *map(_form, (self.layer, *self.values.values()))

    @property
    def clause(self) -> str:
        """The text after "which": "protected by" needs a verb there."""
        return f"is {self}" if self.code is RefusalCode.PROTECTED else str(self)


def _kept(value: object) -> object:
    if isinstance(value, Refusal):
        return value.bare
    return ErrorSummary(value) if isinstance(value, BaseException) else value


def _form(value: object) -> object:
    if isinstance(value, (Refusal, ErrorSummary)):
        return value.form
    return None if isinstance(value, int) else without_numbers(str(value))
