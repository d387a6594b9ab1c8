"""What each refusal means and what a user can do about it. The page "When it refuses" is made of this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from layerprune.graph.refusals import RefusalCode

_Code = RefusalCode


@dataclass(frozen=True)
class Guidance:
    """The meaning of a refusal code, and the next step.

    Attributes:
        meaning: what stands in the way, in one or two sentences.
        remedy: what a user can change, or that nothing can be changed.
    """

    meaning: str
    remedy: str


_LARGER_UNIT = 'Try `granularity="branch"` or `"block"`: it may leave where one layer cannot.'
_DATA = "Pass `calibration=`: with data the group may leave by a projection."
_STAYS = "No option changes this. The group stays; the other groups are not affected."
_REWRITE = "Change that line of the model's forward, or let the group stay."
_OTHER_SET = (
    "Choose other removals: leave one of the groups out of `groups=`, or give a budget and let the library choose."
)
_KEEP_READER = "The branch stays while this layer reads the concat. Remove another branch, or change the layer."
_REPORT = "Please report it with the output of `layerprune env`: the library should follow this case or name it better."

#: Section of the page → codes in it, in the order of ``RefusalCode``.
REFUSAL_GUIDE: Mapping[str, Mapping[RefusalCode, Guidance]] = {
    "Protected, or not alone": {
        _Code.PROTECTED: Guidance("`protect=` names the group.", "Take the pattern out."),
        _Code.STEM: Guidance(
            "The group is the first that reads an input of the model. Such groups are kept by default.",
            "Pass `protect_io=False`. The group is then checked as all others are.",
        ),
        _Code.HEAD: Guidance(
            "The group makes an output of the model. Such groups are kept by default.",
            "Pass `protect_io=False`. The group is then checked as all others are.",
        ),
        _Code.TAKES_A_KEPT_GROUP: Guidance(
            "The group can leave only together with another group, and that one has to stay.",
            "See the reason of the other group. A protection can be lifted.",
        ),
        _Code.NEEDS_CALIBRATION: Guidance(
            "No earlier tensor has the group's shape. A fitted linear map of an earlier tensor can take its place.",
            "Pass `calibration=`, an iterable of batches. Some hundred samples are enough.",
        ),
        _Code.LEAVES_TOGETHER: Guidance(
            "The group can be removed. The named groups always leave with it.",
            "Nothing is wrong. `group.num_removed` counts all of them.",
        ),
        _Code.LEAVES_WITH_SOME: Guidance(
            "The group can be removed, in several ways. Each of them takes other groups along.",
            "Nothing is wrong. `pruner.removals` lists the ways.",
        ),
    },
    "Nothing can take the place of the result": {
        _Code.CHANGES_CHANNELS: Guidance(
            "The group changes the number of channels, and no earlier tensor has the new number.", _DATA
        ),
        _Code.CHANGES_SHAPE: Guidance(
            "The group changes the shape, and no earlier tensor has the new shape.",
            _DATA + " Where only the resolution changes, the layers around it may still leave.",
        ),
        _Code.SEVERAL_CALLS: Guidance(
            "The module is called several times. All calls have to leave together, and some of them cannot.",
            "Give each call a module of its own, if that is what the model means; else the group stays.",
        ),
        _Code.NO_TENSOR_OF_ITS_SHAPE: Guidance(
            "Earlier tensors of this shape exist, but a forward can reach the group without making them.", _DATA
        ),
        _Code.NO_ARGUMENT_FOR_EACH: Guidance(
            "The module returns several tensors that others read. To remove it, each one needs an argument that can be "
            "returned in its place.",
            _LARGER_UNIT,
        ),
    },
    "A tensor cannot be replaced or left out": {
        _Code.NOTHING_DIES: Guidance(
            "Others still need all layers.",
            "Nothing: the removal would save nothing.",
        ),
        _Code.LAYER_NEEDED: Guidance(
            "The substitute would have to pass a layer that others need as it is.", _LARGER_UNIT
        ),
        _Code.LAYER_READS_A_PART: Guidance(
            "A layer on the way reads a part of an argument. A stand-in can return whole arguments only.", _LARGER_UNIT
        ),
        _Code.LAYER_READS_MORE: Guidance(
            "A layer on the way has several inputs, and it is not clear that it would hand the right one on.",
            _LARGER_UNIT,
        ),
        _Code.FUNCTION_IN_BETWEEN: Guidance(
            "The forward of the surrounding module computes something between the substitute and the place where it is "
            "needed. Modules can be replaced; lines of a forward cannot.",
            "Make the function a module (`nn.ReLU` for `torch.relu`), or let a larger unit leave: "
            '`granularity="branch"` or `"block"`.',
        ),
        _Code.CANNOT_BE_DROPPED: Guidance(
            "The operand of the sum, product or concat is no output of a module that could be replaced.",
            "Compute the branch in a module.",
        ),
        _Code.OTHER_NAME: Guidance(
            "One module is registered under two names, and the two would have to do different things.",
            "Give the two places modules of their own.",
        ),
        _Code.RETURNS_WHAT_STAYS: Guidance("The module also makes a tensor that is still needed.", _LARGER_UNIT),
        _Code.RETURNS_AN_OBJECT: Guidance(
            "The module returns an object that the library cannot build again, so no stand-in can return one.",
            "Return a tensor, tuple, list, dict, named tuple or dataclass.",
        ),
        _Code.RETURNS_A_WRITTEN_TENSOR: Guidance(
            "Another layer writes into the module's result in place. A stand-in has no memory to write into.",
            "Replace the in-place operation (`x += y` by `x = x + y`).",
        ),
        _Code.CALLS_DIFFER: Guidance(
            "The module is called several times. Its stand-in would have to hand on something else at each call.",
            "Give each call a module of its own.",
        ),
        _Code.READS_THE_SHAPE: Guidance(
            "The forward asks for the shape of a tensor that would be gone.",
            "Take the shape from the input of the branch, where it is the same.",
        ),
        _Code.HOOK_GOES_ALONG: Guidance(
            "A forward hook changes or keeps a tensor that others read. It would leave with its module.",
            "Remove the hook before you plan, or move what it does into the forward.",
        ),
        _Code.METHOD_READS_WEIGHT: Guidance(
            "A method of the module reads an attribute of the layer that would be gone.",
            "Let the group stay, or guard that line of the model.",
        ),
        _Code.SIZE_IN_RESULT: Guidance(
            "The module returns numbers that depend on the input's size. A stand-in would return those of the example.",
            "Compute the numbers outside of the module.",
        ),
    },
    "Shared parameters": {
        _Code.PARAMETER_USED: Guidance(
            "Another layer uses a parameter of this group, so it cannot be deleted.",
            "Remove both, or give the other layer a copy of its own.",
        ),
        _Code.PARAMETER_OF_A_CALLED_MODULE: Guidance(
            "The parameter belongs to a module that is also called by itself.",
            "Remove both, or give the layer a parameter of its own.",
        ),
        _Code.PARAMETER_TIED: Guidance(
            "The parameter is the same tensor as another one (tied weights).",
            "Untie them before you plan: assign `nn.Parameter(weight.detach().clone())` to one of them.",
        ),
        _Code.PARAMETER_LOST: Guidance(
            "A parameter that is still needed would be deleted with its module.", _LARGER_UNIT
        ),
        _Code.PARAMETER_STAYS: Guidance(
            "A parameter of the group lies on a module that stays, so the removal would not free it.", _LARGER_UNIT
        ),
    },
    "Containers and key-value caches": {
        _Code.STAND_IN_LEFT: Guidance(
            'With `granularity="block"` the pruned model loads without layerprune. This removal would leave '
            "a stand-in behind.",
            'Use `granularity="branch"` or `"group"`, and save with `save_pruned`.',
        ),
        _Code.CACHE_LENGTH_LOST: Guidance(
            "No other attention layer could tell how long the past is during generation.",
            "Keep one attention layer of the kind; remove the others.",
        ),
        _Code.CACHE_PLACE_LOST: Guidance(
            "The layer has the first slot of the cache, and no other layer can move to it.",
            "Keep this layer; remove others of its kind.",
        ),
        _Code.CACHE_FORGETS: Guidance("The second step of generation did not find the past of the first.", _STAYS),
        _Code.CACHE_FAILS: Guidance("Two steps of generation were tried, and one of them failed.", _STAYS),
    },
    "Channels of a concat": {
        _Code.COMPUTES_ITS_WEIGHT: Guidance(
            "The reader computes its weight from other parameters, so its input channels cannot be sliced.",
            "Fold the parametrization first: `torch.nn.utils.parametrize.remove_parametrizations`.",
        ),
        _Code.READS_NO_CHANNELS: Guidance(
            "The reader treats the dimension of the concat as positions, not as channels.", _KEEP_READER
        ),
        _Code.UNEVEN_GROUPS: Guidance(
            "The groups of a grouped convolution would get different numbers of channels.", _KEEP_READER
        ),
        _Code.MIXES_ANOTHER_DIMENSION: Guidance(
            "The reader multiplies along another dimension than that of the concat.", _KEEP_READER
        ),
        _Code.NORMALIZES_ANOTHER_DIMENSION: Guidance(
            "The reader normalizes along another dimension than that of the concat.", _KEEP_READER
        ),
        _Code.NORMALIZES_ACROSS: Guidance(
            "The normalization takes its statistics over all channels, so the channels that stay would change.",
            _KEEP_READER,
        ),
        _Code.REACHES_OUTPUT: Guidance(
            "The channels are part of the model's output, which would have another shape.", _STAYS
        ),
        _Code.CHANNELS_WRITTEN: Guidance(
            "An in-place operation writes into the channels on their way to the reader.",
            "Replace the in-place operation.",
        ),
        _Code.CANNOT_LOSE_SOME: Guidance(
            "The layer needs all of its channels, as a product of two tensors or a pixel shuffle does.", _KEEP_READER
        ),
        _Code.CHANNELS_NOT_FOLLOWED: Guidance(
            "The library does not know what this operation does with channels.",
            "For an operation of your own say it: `register_op(op, channels=…)`. Else the branch stays.",
        ),
        _Code.OPERAND_WRITTEN: Guidance(
            "An operand of the concat is written in place afterwards.", "Replace the in-place operation."
        ),
        _Code.JOINS_OTHER_SHAPES: Guidance("The operands of the merge have different numbers of dimensions.", _STAYS),
        _Code.JOINS_ANOTHER_DIMENSION: Guidance(
            "A second concat joins along another dimension; channels cannot be taken out of one operand only.",
            _KEEP_READER,
        ),
        _Code.JOINS_WHOLE_TENSOR: Guidance(
            "The channels are added to, or multiplied with, a tensor that keeps all of its channels.",
            'Remove the whole block: `granularity="block"`.',
        ),
        _Code.JOINED_DIMENSION_UNKNOWN: Guidance(
            "The forward does not tell along which dimension tensors are joined.", "Pass `dim=` as a plain number."
        ),
        _Code.NOTHING_LEFT_TO_JOIN: Guidance("All operands of the concat would leave.", "Keep one of the branches."),
        _Code.WEIGHT_TIED: Guidance(
            "The reader's weight is tied to another layer, which keeps all channels.",
            "Untie the weights before you plan.",
        ),
        _Code.CALLS_MISS_OTHERS: Guidance(
            "The reader is called several times, and other channels would be missing at each call.", _KEEP_READER
        ),
        _Code.CALLS_MISS_NONE: Guidance(
            "The reader is called several times, and only some calls would miss channels.", _KEEP_READER
        ),
        _Code.LOSES_OTHERS_IN_TRAINING: Guidance("In train mode the reader gets other channels.", _STAYS),
        _Code.NOT_MADE_IN_TRAINING: Guidance(
            "The tensor is made in eval mode only, so it is not known which channels leave in train mode.", _STAYS
        ),
        _Code.INPUTS_AND_GROUPS: Guidance(
            "A convolution would lose input channels through one removal and whole groups through another one.",
            _OTHER_SET,
        ),
        _Code.RETURNS_NO_TENSORS: Guidance(
            "The layer on the way returns something that holds no tensors.", _KEEP_READER
        ),
        _Code.NO_CHANNELS_LEFT: Guidance("No channel of the layer would be left.", "Keep one of the branches."),
        _Code.MIXES_CHANNELS: Guidance("The layer computes channels that stay from channels that go.", _KEEP_READER),
        _Code.RUNS_OTHERWISE: Guidance(
            "Called by itself on numbered channels, the layer did something else than in the recorded forward.", _REPORT
        ),
        _Code.FAILS_ON_CHANNELS: Guidance(
            "The layer raises an error on the channels that are left. The message is its own.", _KEEP_READER
        ),
        _Code.MAKES_OTHER_NUMBER: Guidance(
            "The layer returns another number of tensors for fewer channels, as a split of fixed size does.",
            _KEEP_READER,
        ),
        _Code.MOVES_CHANNELS: Guidance(
            "With fewer channels the layer would move those that stay to other places, as a channel shuffle does.",
            _KEEP_READER,
        ),
    },
    "Projections": {
        _Code.NO_PROJECTION: Guidance(
            "The group changes the shape, and no projection can take its place either. The rest of the text says why.",
            "See the reason behind the colon in this section.",
        ),
        _Code.READ_BY_NO_TRANSFORM: Guidance(
            "No linear layer or convolution reads the tensor, to take the projection in.",
            _STAYS,
        ),
        _Code.READER_CANNOT: Guidance(
            "The named layer reads the tensor, and the projection cannot be folded into it.",
            "See the reason behind the comma in this section.",
        ),
        _Code.KEPT_GROUP_WOULD_LEAVE: Guidance(
            "A protected group would leave with the projection.", "Lift the protection of that group."
        ),
        _Code.GROWS: Guidance(
            "The readers would grow by more parameters than the removal saves.",
            "Nothing is to be done: the model would be no smaller.",
        ),
        _Code.NO_SMALLER: Guidance("Together these removals make the readers grow by more than they save.", _OTHER_SET),
        _Code.VALUE_REACHES_OUTPUT: Guidance(
            "No layer behind this output of the model could take the projection in.", _STAYS
        ),
        _Code.READ_WITH_OTHERS: Guidance(
            "The projection cannot be folded into a layer that reads other tensors, too.", _STAYS
        ),
        _Code.NOT_FOLDABLE: Guidance(
            "The layer that reads the tensor is not linear in it (a normalization, a softmax).", _STAYS
        ),
        _Code.CANNOT_RUN_ON_OTHERS: Guidance("A layer on the way works for this number of channels only.", _STAYS),
        _Code.MIXES_DIMENSIONS: Guidance(
            "A layer in between mixes channels with positions, as a flatten does.", _STAYS
        ),
        _Code.ANOTHER_GRID: Guidance(
            "The reader would have to step over positions by less than whole strides.", _STAYS
        ),
        _Code.CONVOLVES_GROUPS: Guidance(
            "The reader is a function call that convolves groups of channels; its groups cannot be merged.", _STAYS
        ),
        _Code.UNKNOWN_TRANSFORM: Guidance("The library does not fold projections into this type of layer.", _STAYS),
        _Code.UNKNOWN_FUNCTION: Guidance(
            "The library does not fold projections into parameters of this function.",
            "Use a module (`nn.Linear`, `nn.Conv2d`) or `F.linear`, `F.conv2d` instead.",
        ),
        _Code.OWN_WAY: Guidance(
            "The layer computes its weight (a parametrization, weight norm), or a hook changes its input.",
            "Fold the parametrization, or remove the hook, before you plan.",
        ),
        _Code.QUANTISED: Guidance(
            "The layer's weight is quantised and cannot take a projection in.", "Plan the model before it is quantised."
        ),
        _Code.NO_WEIGHT: Guidance("The layer has no parameter of that name at the moment of the fold.", _REPORT),
        _Code.SEVERAL_MATRICES: Guidance("The function is called with several matrices.", _STAYS),
        _Code.CALLED_SEVERAL_TIMES: Guidance(
            "The reader is called several times, and only one call would see the projection.",
            "Give each call a module of its own.",
        ),
        _Code.SHARES_WEIGHTS: Guidance(
            "The reader's weight is shared with another layer.", "Untie the weights before you plan."
        ),
        _Code.FOLDS_AND_LOSES: Guidance(
            "The reader would take a projection in and lose channels of a concat at once.", _OTHER_SET
        ),
    },
    "Sets of removals": {
        _Code.TWO_SUBSTITUTES: Guidance("Two removals replace the same tensor by different ones.", _OTHER_SET),
        _Code.ONE_NEEDS_ANOTHER: Guidance("One removal needs a tensor that another one takes out.", _OTHER_SET),
    },
    "Found when the edited model ran": {
        _Code.FORWARD_FAILS: Guidance(
            "The edited copy was run, and its forward raised the error that is shown.",
            "Read the error: mostly the model's code expects the layer. " + _REWRITE,
        ),
        _Code.FORWARD_OR_BACKWARD_FAILS: Guidance(
            "The edited copy was run in train mode, and the error that is shown came up.",
            "Read the error: mostly the model's code expects the layer. " + _REWRITE,
        ),
        _Code.SECOND_CALL_FAILS: Guidance(
            "The edited copy fails when it is called twice: it keeps a state from call to call.", _REWRITE
        ),
        _Code.OTHER_SIZE_FAILS: Guidance(
            "The edited copy works for the example inputs and fails for inputs of another size.",
            "A pruned model has to accept what the original accepts, also where your inputs have one size. " + _REWRITE,
        ),
        _Code.OTHER_SIZE_DIFFERS: Guidance(
            "For inputs of another size the layer would make another shape: a pool rounds down, a stride rounds up.",
            _STAYS,
        ),
        _Code.OUTPUT_CHANGES: Guidance("The structure, shape or type of the model's output would change.", _STAYS),
        _Code.DROPPED_IN_OUTPUT: Guidance(
            "The tensor that would be left out is returned by the model as well (a list of hidden states, features).",
            "Ask the model for less output (`output_hidden_states=False`), or let the group stay.",
        ),
        _Code.MEETS_A_MERGE: Guidance(
            "The tensor meets a merge that the layer graph does not know as its own, so the result would differ.",
            _REPORT,
        ),
        _Code.MISSES_A_MERGE: Guidance(
            "Something is computed from the tensor before it reaches the merge, so it cannot be left out there.",
            _REWRITE,
        ),
        _Code.PLACES_COUNT: Guidance(
            "The forward picks layers by their position (every second layer is global). Positions would shift.",
            "Remove whole periods, or let the group stay.",
        ),
        _Code.READ_BY_CALLS_ONLY: Guidance(
            "The forward may read the tensor in a way that the recording does not show.", _STAYS
        ),
        _Code.NO_LONGER_RUNS: Guidance("A layer would not run, because a shared list or counter is one short.", _STAYS),
        _Code.CALLS_ANEW: Guidance("The forward would call a layer that it does not call now.", _STAYS),
        _Code.READS_ANOTHER: Guidance(
            "A layer picks a tensor from a shared list by its position, and would pick another one.", _STAYS
        ),
        _Code.OTHER_NUMBERS: Guidance(
            "A layer computes with a counter or a position that would be another one.", _STAYS
        ),
        _Code.RETURNS_ANOTHER: Guidance(
            "The model picks what it returns by position (`hidden_states[3]`), and would return another tensor.", _STAYS
        ),
        _Code.FAILS_AS_ANOTHER: Guidance(
            "A group of the same form was tried and failed, so this one was not tried again.",
            "See the reason behind the colon.",
        ),
        _Code.ERROR: Guidance(
            "Carrying the removal out raised an error of the library. The text is that error's.", _REPORT
        ),
    },
}
