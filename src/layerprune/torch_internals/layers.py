"""Base classes and private attributes of torch's layers."""

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
#: The attribute in which a convolution keeps its padding in the form of ``torch.nn.functional.pad``.
PADDING_FOR_PAD = "_reversed_padding_repeated_twice"
#: The weight attributes of torch.ao's quantized linears and convolutions, recurrences and recurrent cells.
PACKED_WEIGHTS = ("_packed_params", "_all_weight_values", "_packed_weight_ih")
