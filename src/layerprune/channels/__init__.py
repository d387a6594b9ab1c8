"""Channels along the layer graph: which channels of which layers go when a tensor goes or changes its size."""

from layerprune.channels.fold_propagation import FoldTrace
from layerprune.channels.fold_target import CannotFold, Reader, reader_at, reader_for, reader_of, watching_functions
from layerprune.channels.index_tracking import FUNCTIONS, CannotFollow, Gap, Moved, recorded_call
from layerprune.channels.propagate import ChannelTrace
from layerprune.channels.rules import CannotSlice
from layerprune.channels.slicing import loss_of, price_of
from layerprune.channels.train_graph import Companion

__all__ = [
    "FUNCTIONS",
    "CannotFold",
    "CannotFollow",
    "CannotSlice",
    "ChannelTrace",
    "Companion",
    "FoldTrace",
    "Gap",
    "Moved",
    "Reader",
    "loss_of",
    "price_of",
    "reader_at",
    "reader_for",
    "reader_of",
    "recorded_call",
    "watching_functions",
]
