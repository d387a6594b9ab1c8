"""The student: a copy of the pruned model that is trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.distillation.hidden_matching import HiddenStates
from layerprune.environment import extra
from layerprune.errors import DistillationError
from layerprune.modules import named_parameters
from layerprune.torch_internals import parameters_of

_ADAPTER = "default"  # peft's default adapter name


class Student:
    """A copy of the pruned model, in eval mode: dropout is off, and batch norms keep their statistics.

    Adapters of ``lora_rank`` are trained on ``transforms``; at rank 0 the parameters with ``requires_grad`` are
    trained.

    Raises:
        DistillationError: there is nothing to train, or peft is not installed.
    """

    def __init__(self, side: HiddenStates, transforms: Iterable[str], lora_rank: int, seed: int) -> None:
        self.side = side
        self.model = side.shade.model
        self.adapted: tuple[str, ...] = ()
        if lora_rank:
            self.adapted = tuple(name for name in transforms if _takes_adapter(self.model.get_submodule(name)))
            _add_adapters(self.model, self.adapted, lora_rank, seed)
        self.trained = {
            name: parameter
            for name, parameter in named_parameters(self.model)
            if parameter.requires_grad and parameter.is_floating_point()
        }
        if not self.trained:
            raise DistillationError(
                "no parameter of the pruned model asks for gradients; pruned.requires_grad_(True) makes all of them ask"
            )

    @property
    def num_trained(self) -> int:
        return sum(parameter.numel() for parameter in self.trained.values())

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore parameters that :meth:`state` copied."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state[name])

    def values(self) -> dict[str, Tensor]:
        """New values for the pruned model's parameters, by name, with the adapters added."""
        if not self.adapted:
            return self.state()
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in self.adapted:
                layer: Any = self.model.get_submodule(name)
                held: Tensor = layer.get_base_layer().weight
                found[f"{name}.weight"] = held.detach() + layer.get_delta_weight(_ADAPTER).to(held.dtype)
        return found


def _takes_adapter(module: nn.Module) -> bool:
    """Whether a transform's weight has ``requires_grad``, and peft has adapters for its type."""
    weight = parameters_of(module).get("weight")
    if weight is None or not weight.requires_grad:
        return False
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.groups == 1
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def _add_adapters(model: nn.Module, names: tuple[str, ...], rank: int, seed: int) -> None:
    """Add an adapter, zero at first, to each transform; all other parameters are frozen."""
    peft = extra("peft")
    if not names:
        raise DistillationError("lora_rank: the pruned model has no linear layer or convolution that takes an adapter")
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="|".join(re.escape(name) for name in names)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    missing = [name for name in names if not hasattr(model.get_submodule(name), "get_delta_weight")]
    if missing:
        raise DistillationError(f"lora_rank: peft put no adapter beside {', '.join(missing[:4])}")
