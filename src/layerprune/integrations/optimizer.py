"""Rebuilds an optimizer in place after its model was pruned: parameter groups, and the state of what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from layerprune.errors import IntegrationError
from layerprune.integrations.parameter_origins import origins_of
from layerprune.modules import named_parameters, unwrap


@dataclass(frozen=True, kw_only=True)
class OptimizerReport:
    """What became of an optimizer's parameters.

    Attributes:
        kept: names of parameters that go on with their state.
        cut: names of parameters that lost channels, as their state did.
        reset: names of parameters that begin with an empty state, with the reason.
        added: names of new parameters, which the group of their module's other parameters has taken in.
        untrained: names of new parameters that no group has taken in.
        num_removed: number of parameters (tensors) that left.
    """

    kept: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    reset: Mapping[str, str]
    added: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    num_removed: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user."""
        found = [f"the optimizer's state of '{name}' is reset: {why}" for name, why in self.reset.items()]
        found += [f"'{name}' is new, and in no group of the optimizer" for name in self.untrained]
        return tuple(found)

    def __str__(self) -> str:
        counts = f"{len(self.kept)} kept, {len(self.cut)} cut, {len(self.reset)} reset, {len(self.added)} added"
        return "\n".join([f"parameters: {counts}, {self.num_removed} removed", *(f"Note: {one}" for one in self.notes)])


def rebuild_optimizer(optimizer: Optimizer, pruned: nn.Module, original: nn.Module) -> OptimizerReport:
    """Let an optimizer of a model go on with the pruned model; the optimizer stays the same object.

    Each group keeps its options and its place, so that schedulers of the learning rate go on. A group whose parameters
    are all gone stays, empty. Parameters of other models stay as they are. A parameter that lost channels keeps the
    moments of what is left, where they have its shape; a weight that took in a projection starts anew.

    Args:
        optimizer: the optimizer of the model before, or a wrapper with the optimizer at ``.optimizer``.
        pruned: the pruned model: what ``prune`` returned, or the model that was pruned in place.
        original: the model before; for one that was pruned in place a copy that holds the same parameters.

    Raises:
        IntegrationError: the optimizer keeps parameters in another form than groups and state, as LBFGS does, or holds
            none of the original's. It is as it was.
    """
    optimizer, pruned, original = innermost(optimizer), unwrap(pruned), unwrap(original)
    check_optimizer(optimizer, original)
    return _Rebuilt(optimizer, pruned, original).write()


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside wrappers such as those of accelerate and Lightning."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer) and inner is not optimizer:
        optimizer = inner
    return optimizer


def trains(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether an optimizer holds a parameter of a model."""
    own = {id(parameter) for _, parameter in named_parameters(unwrap(model))}
    return any(id(parameter) in own for group in innermost(optimizer).param_groups for parameter in group["params"])


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that cannot be rebuilt for a pruned model, before the model is changed.

    Raises:
        IntegrationError: it holds none of the model's parameters, or keeps some outside of groups and state.
    """
    optimizer, own = innermost(optimizer), {id(parameter) for _, parameter in named_parameters(unwrap(model))}
    if not trains(optimizer, model):
        raise IntegrationError(
            f"this {type(optimizer).__name__} holds no parameter of the {type(unwrap(model)).__name__}: give the model "
            "that it was made for"
        )
    for name, value in vars(optimizer).items():
        if name not in ("param_groups", "state") and any(id(one) in own for one in _inside(value)):
            raise IntegrationError(
                f"{type(optimizer).__name__} keeps parameters in '{name}', beside its groups: make a new optimizer for "
                "the pruned model"
            )


def _inside(value: object, depth: int = 2) -> Iterable[object]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, set)):
        for item in cast("Iterable[object]", value):
            yield from _inside(item, depth - 1)
    elif depth and isinstance(value, Mapping):
        for item in cast("Mapping[object, object]", value).values():
            yield from _inside(item, depth - 1)


class _Rebuilt:
    """New groups and state of an optimizer, made before it is changed."""

    def __init__(self, optimizer: Optimizer, pruned: nn.Module, original: nn.Module) -> None:
        self.optimizer = optimizer
        self.state = cast("dict[nn.Parameter, dict[str, Any]]", optimizer.state)
        self.named = dict(named_parameters(pruned))
        self.before = {name: parameter for name, parameter in named_parameters(original)}
        self.origins = origins_of(pruned, original)
        self.successors: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.named.items():
            origin = self.origins.get(id(parameter))
            # A weight that took in a projection stands where the weight of that name stood.
            held = origin and (origin.parameter if origin.parameter is not None else self.before.get(name))
            if held is not None:
                self.successors.setdefault(id(held), []).append((name, parameter))
        self.kept: list[str] = []
        self.cut: list[str] = []
        self.reset: dict[str, str] = {}

    def write(self) -> OptimizerReport:
        own = {id(parameter) for parameter in self.before.values()}
        groups: list[list[nn.Parameter]] = []
        state: dict[nn.Parameter, dict[str, Any]] = {}
        num_removed = 0
        for group in self.optimizer.param_groups:
            groups.append([])
            for parameter in cast("list[nn.Parameter]", group["params"]):
                held = self.state.get(parameter)
                if id(parameter) not in own:  # of another model
                    groups[-1].append(parameter)
                    state |= {} if held is None else {parameter: held}
                    continue
                followers = self.successors.get(id(parameter), [])
                num_removed += not followers
                for name, follower in followers:
                    groups[-1].append(follower)
                    if kept := self._kept(name, follower, held or {}):
                        state[follower] = kept
        added, untrained = self._newcomers(groups)
        self.state.clear()
        self.state.update(state)
        for group, parameters in zip(self.optimizer.param_groups, groups, strict=True):
            group["params"] = parameters
        return OptimizerReport(
            kept=tuple(self.kept),
            cut=tuple(self.cut),
            reset=self.reset,
            added=added,
            untrained=untrained,
            num_removed=num_removed,
        )

    def _kept(self, name: str, parameter: nn.Parameter, state: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter, cut to its channels; empty where it starts anew."""
        origin = self.origins[id(parameter)]
        if origin.parameter is None:
            self.reset[name] = "a projection was folded into it"
            return {}
        if origin.elements is None:
            self.kept.append(name)
            return state
        found: dict[str, Any] = {}
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == origin.parameter.shape:
                found[key] = origin.cut(value)
            elif not isinstance(value, Tensor) or value.numel() <= 1:
                found[key] = value
            else:
                self.reset[name] = f"it lost channels, and '{key}' of shape {tuple(value.shape)} is not one value each"
                return {}
        self.cut.append(name)
        return found

    def _newcomers(self, groups: list[list[nn.Parameter]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Take new parameters into the group of a sibling, such as a bias into that of its weight."""
        home = {id(parameter): group for group in groups for parameter in group}
        known = {id(parameter) for _, parameter in (pair for pairs in self.successors.values() for pair in pairs)}
        added: list[str] = []
        untrained: list[str] = []
        for name, parameter in self.named.items():
            if id(parameter) in home or id(parameter) in known:  # known, but not in a group: it was frozen before
                continue
            owner = name.rpartition(".")[0]
            near = (home.get(id(one)) for key, one in self.named.items() if key.rpartition(".")[0] == owner)
            group = next((group for group in near if group is not None), None)
            if group is None:
                untrained.append(name)
            else:
                group.append(parameter)
                added.append(name)
        return tuple(added), tuple(untrained)
