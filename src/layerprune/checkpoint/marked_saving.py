"""Lets a model's own ``save_pretrained`` write an artefact that other libraries do not take for their own.

It serves hosts that always save by ``save_pretrained``, as the Trainer of transformers. The folder holds the configs
that the class writes, and the artefact in a folder of its own, so ``from_pretrained`` finds no weights and fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from weakref import ref

from torch import Tensor, nn

from layerprune.checkpoint.manifest import INSIDE
from layerprune.checkpoint.save import save_pruned
from layerprune.errors import CheckpointError
from layerprune.modules import unwrap
from layerprune.surgery import RefusedSaving

# Weights files of other formats; optimizers and arguments have the same suffixes.
_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt")


class MarkedSaving(RefusedSaving):
    """Replaces the ``save_pretrained`` of a pruned module, and saves by :func:`save_pruned`.

    A weak reference to the module lets it be freed as before; copies of the module get their own.
    """

    def __init__(self, refused: RefusedSaving, module: nn.Module) -> None:
        super().__init__(refused.method, refused.owner, refused.place, refused.root, refused.follows)
        self._module = ref(module)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **_: Any,
    ) -> None:
        """Save the module as an artefact inside a folder that may hold other files, but no weights.

        ``state_dict`` may only repeat the module's own tensors, ``push_to_hub`` is refused, and other arguments are
        ignored.

        Raises:
            CheckpointError: the tensors are not the module's own, the folder holds weights, or it cannot be saved.
        """
        module = self._module()
        if module is None or push_to_hub:
            raise CheckpointError(self.reason)
        if not is_main_process:
            return
        own = {tensor.data_ptr() for tensor in module.state_dict().values()}
        if state_dict is not None and any(tensor.data_ptr() not in own for tensor in state_dict.values()):
            raise CheckpointError(
                "state_dict= holds other tensors than the model's own: load them into the model first, then save it"
            )
        folder = Path(save_directory)
        if stale := [path for path in _files(folder) if _may_hold_weights(path)]:
            raise CheckpointError(
                f"{stale[0]} would be taken for the weights of this {self.owner}: name another folder"
            )
        save_pruned(module, folder / INSIDE)
        for config in (vars(module).get("config"), vars(module).get("generation_config")):
            if callable(getattr(config, "save_pretrained", None)):
                cast(Any, config).save_pretrained(folder)

    def __deepcopy__(self, memo: dict[int, Any]) -> MarkedSaving:
        module = self._module()
        return MarkedSaving(self, cast(nn.Module, memo.get(id(module), module)))

    def __reduce__(self) -> Any:
        module = self._module()
        return _bare, (self.method, self.owner, self.place, self.root, self.follows), {"module": module}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._module = ref(state["module"])


def _bare(*args: Any) -> MarkedSaving:
    made = MarkedSaving.__new__(MarkedSaving)
    RefusedSaving.__init__(made, *args)
    return made


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _may_hold_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or ("model" in path.name and path.suffix in _WEIGHTS)


def allow_marked_saving(model: nn.Module) -> nn.Module:
    """Let a pruned model's refused ``save_pretrained`` write an artefact for :func:`load_pruned`.

    It serves the Trainer of transformers and other hosts that save by this method. ``load_pruned(folder, factory=…)``
    loads the artefact; ``from_pretrained(folder)`` finds no weights and fails.

    Args:
        model: the pruned model.

    Returns:
        The same model; a model whose own methods save it correctly is not changed.
    """
    for module in unwrap(model).modules():
        refused = vars(module).get("save_pretrained")
        if isinstance(refused, RefusedSaving):
            vars(module)["save_pretrained"] = MarkedSaving(refused, module)
    return model
