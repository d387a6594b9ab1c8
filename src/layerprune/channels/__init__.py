"""Channels along the layer graph: which channels of which layers go when a tensor goes or changes its size."""

# pyright: reportUnusedImport=false
from layerprune.channels.fold_propagation import FoldTrace
from layerprune.channels.fold_target import Reader, reader_at, reader_for, reader_of, watching_functions
from layerprune.channels.index_tracking import ChannelGap, Moved, recorded_call
from layerprune.channels.propagate import ChannelTrace
from layerprune.channels.slicing import channel_loss_of, price_of
from layerprune.channels.train_graph import TrainGraph
