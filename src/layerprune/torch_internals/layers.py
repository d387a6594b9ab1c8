"""Layers of torch by family: the base classes that they share, and attributes that are set as they are made."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

BatchNorm = _BatchNorm
BatchOrInstanceNorm = _NormBase
Conv = _ConvNd
Dropout = _DropoutNd
POOLS = (_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
#: The attribute in which a convolution keeps its padding as ``torch.nn.functional.pad`` wants it.
PADDING_FOR_PAD = "_reversed_padding_repeated_twice"
#: Where torch.ao's quantised linears and convolutions, recurrences and recurrent cells keep their weights.
PACKED_WEIGHTS = ("_packed_params", "_all_weight_values", "_packed_weight_ih")
