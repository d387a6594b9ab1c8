"""Channel rules of layers with parameters: the side to slice, and the channels that their outputs lose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn
from torch.nn.utils import parametrize

from layerprune.channels.index_tracking import ChannelGap
from layerprune.graph import Layer, Refusal, RefusalCode
from layerprune.torch_internals import Conv, pre_hooks_of


def slice_layer(module: nn.Module, layer: Layer, gap: ChannelGap, dims: int) -> tuple[str, ChannelGap | None] | None:
    """Tell how a layer that owns parameters loses the channels in ``gap``; its operand has ``dims`` dimensions.

    ``module`` is called itself, or its forward calls the function.

    Returns:
        The side to slice (``in``, ``channels``, or empty for none) and the gap of its output, None if that is whole;
        None for a layer of unknown channels.

    Raises:
        Refusal: its channels are known, and cannot be removed.
    """
    for types, functions, rule in _RULES:
        cls = next((cls for cls in types if isinstance(module, cls)), None)
        if cls is None or not _does_only(module, layer, cls, functions):
            continue
        if parametrize.is_parametrized(module) or set(pre_hooks_of(module)):
            raise Refusal(RefusalCode.COMPUTES_ITS_WEIGHT, layer.fqn)
        return rule(module, gap, dims, layer.fqn)
    return None


def _does_only(module: nn.Module, layer: Layer, cls: type[nn.Module], functions: frozenset[str]) -> bool:
    """Whether a layer computes the same as the torch class that its module derives from, apart from padding.

    A subclass may compute something else, such as standardised weights.
    """
    if layer.is_module and type(module).forward is cls.forward:
        return True
    if not all(name.rpartition(".")[0] == layer.fqn for name in layer.params):
        return False
    done = set(layer.functions) if layer.is_module else {layer.function or ""}
    return bool(done & functions) and done - {"pad"} <= functions and layer.functions.count("pad") < 2


def _conv(module: nn.Module, gap: ChannelGap, dims: int, name: str) -> tuple[str, ChannelGap | None]:
    assert isinstance(module, Conv)
    if gap.dim != 1 or dims != module.weight.dim() or len(gap.missing) != module.in_channels:
        raise Refusal(RefusalCode.READS_NO_CHANNELS, name)
    lost = gap.missing.reshape(module.groups, -1).sum(1)
    if (lost == lost[0]).all() and lost[0] < module.in_channels // module.groups:
        return "in", None
    if set(lost.tolist()) <= {0, module.in_channels // module.groups}:
        return "channels", ChannelGap(1, np.repeat(lost > 0, module.out_channels // module.groups))
    raise Refusal(RefusalCode.UNEVEN_GROUPS, name, num=module.groups)


def _linear(module: nn.Module, gap: ChannelGap, dims: int, name: str) -> tuple[str, ChannelGap | None]:
    assert isinstance(module, nn.Linear)
    if gap.dim != dims - 1 or len(gap.missing) != module.in_features:
        raise Refusal(RefusalCode.MIXES_ANOTHER_DIMENSION, name)
    return "in", None


def _batch_norm(module: nn.Module, gap: ChannelGap, dims: int, name: str) -> tuple[str, ChannelGap | None]:
    if gap.dim != 1:
        raise Refusal(RefusalCode.NORMALIZES_ANOTHER_DIMENSION, name)
    return "channels", gap


def _instance_norm(module: nn.Module, gap: ChannelGap, dims: int, name: str) -> tuple[str, ChannelGap | None]:
    if gap.dim != 1 or dims < 3:
        raise Refusal(RefusalCode.NORMALIZES_ANOTHER_DIMENSION, name)
    return "channels", gap


def _group_norm(module: nn.Module, gap: ChannelGap, dims: int, name: str) -> tuple[str, ChannelGap | None]:
    assert isinstance(module, nn.GroupNorm)
    lost = gap.missing.reshape(module.num_groups, -1).sum(1) if gap.dim == 1 else np.array([1])
    if not set(lost.tolist()) <= {0, module.num_channels // module.num_groups} or module.num_groups == 1:
        return _mixing_norm(module, gap, dims, name)
    return "channels", gap


def _mixing_norm(module: nn.Module, gap: ChannelGap, dims: int, name: str) -> tuple[str, ChannelGap | None]:
    raise Refusal(RefusalCode.NORMALIZES_ACROSS, name, type=type(module).__name__)


def _prelu(module: nn.Module, gap: ChannelGap, dims: int, name: str) -> tuple[str, ChannelGap | None]:
    assert isinstance(module, nn.PReLU)
    return ("channels" if module.weight.numel() > 1 else ""), gap


_Rule = Callable[[nn.Module, ChannelGap, int, str], "tuple[str, ChannelGap | None]"]
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RULES: tuple[tuple[tuple[type[nn.Module], ...], frozenset[str], _Rule], ...] = (
    (_CONVS, frozenset(f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3)), _conv),
    ((nn.Linear,), frozenset({"linear"}), _linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), frozenset({"batch_norm"}), _batch_norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), frozenset({"instance_norm"}), _instance_norm),
    ((nn.GroupNorm,), frozenset({"group_norm"}), _group_norm),
    ((nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm), frozenset({"layer_norm", "rms_norm"}), _mixing_norm),
    ((nn.PReLU,), frozenset({"prelu"}), _prelu),
)
