"""The records of a recipe: every option of the library, by stage."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from layerprune.distillation import Recipe as TrainingSettings
from layerprune.select import SLACK


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _listed(value: Any) -> Any:
    """Take one text for a list of one."""
    return (value,) if isinstance(value, str) else value


def _worded(value: Any) -> Any:
    """Undo YAML: the words ``no`` and ``null`` are False and None there."""
    return {False: "no", None: "none"}.get(value, value) if value is None or value is False else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class ModelPart(_Part):
    """The model."""

    source: str = Field(description="torchvision:NAME, timm:NAME, hf:DIR_OR_ID or file.py:factory")
    pretrained: bool = Field(False, description="published weights for torchvision and timm, not random ones")
    device: str | None = Field(None, description="where it runs, as cuda")
    input_shape: tuple[int, ...] | None = Field(None, description="of the example input; inferred if not given")


class DataPart(_Part):
    """The data, each in one of the forms of the command line, as ``text:FILE`` or ``file.py:name``."""

    calibration: str | None = Field(None, description="to measure impacts on, and to repair by")
    distill: str | None = Field(None, description="to train on; the calibration data if not given")
    held_out: str | None = Field(None, description="to choose the best weights by; every eighth batch if not given")
    compare: str | None = Field(None, description="to compare both models on, which no other stage has seen")
    batch_size: int = Field(16, ge=1)
    samples: int = Field(256, ge=1, description="at most, spread evenly over the data")
    length: int = Field(128, ge=2, description="tokens of a text at most")
    column: str | None = Field(None, description="of a dataset, with the texts or images")


class PrunerPart(_Part):
    """What may go, and how impacts are measured: arguments of ``UniversalLayerPruner``."""

    granularity: Literal["group", "branch", "block"] = "group"
    protect: Texts = ()
    protect_io: bool = True
    projections: bool = True
    renumber: bool = False
    criterion: str = "auto"
    kind: Literal["distribution", "values"] | None = None
    seed: int = Field(0, ge=0)


class PlanPart(_Part):
    """How much goes: arguments of ``plan()``, or the file of a plan."""

    max_param_reduction: float | None = Field(None, gt=0, lt=1)
    max_mac_reduction: float | None = Field(None, gt=0, lt=1)
    target_latency_ms: float | None = Field(None, gt=0)
    max_memory_bytes: int | None = Field(None, gt=0)
    max_impact: float | None = Field(None, gt=0)
    slack: float = Field(SLACK, ge=0, lt=1)
    groups: Texts = ()
    strategy: Literal["auto", "exact", "quadratic", "greedy", "evolution", "resampled", "repaired"] = "auto"
    unused: bool = False
    file: str | None = Field(None, description="a plan that was made before, in place of all others")

    @property
    def budgets(self) -> dict[str, Any]:
        """What is given of the budgets."""
        names = ("max_param_reduction", "max_mac_reduction", "target_latency_ms", "max_memory_bytes", "max_impact")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @model_validator(mode="after")
    def _one_way(self) -> PlanPart:
        ways = [bool(self.budgets), bool(self.groups), self.unused, self.file is not None]
        if sum(ways) != 1:
            raise ValueError(
                "say how much goes in one way: budgets, as max_param_reduction, or groups, unused, or file"
            )
        return self


class PrunePart(_Part):
    """How the plan is carried out."""

    repair: Annotated[Literal["auto", "mean", "none"], BeforeValidator(_worded)] = "auto"
    allow_empty: bool = Field(False, description="go on where nothing can go")


class DistillPart(TrainingSettings):
    """The settings of the training, and where the original's outputs are kept."""

    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_worded)] = "no"
    cache_bytes: int = Field(2 * 2**30, ge=0)
    cache_folder: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of ``distill``."""
        return self.model_dump()


class ComparePart(_Part):
    """What is measured between both models."""

    kind: Literal["distribution", "values"] | None = None
    generate: int = Field(default=0, ge=0, description="tokens that a language model writes after each text")
    latency: bool = False
    seed: int = Field(default=0, ge=0)


class SavePart(_Part):
    """The form of the saved model."""

    format: Literal["auto", "layerprune"] = Field("auto", description="auto: that of transformers where it loads it")
    max_shard_bytes: int | None = Field(None, gt=0, description="bytes of one file of weights; for layerprune's format")


class ExportPart(_Part):
    """A file of another runtime."""

    to: Literal["onnx", "torch-export"]
    file: str
    fixed_batch: bool = False
    tolerance: float = Field(1e-3, ge=0)

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        return _plain_name(file)


class ReportPart(_Part):
    """The report page."""

    file: str = "report.html"

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        return _plain_name(file)


def _plain_name(file: str) -> str:
    """Keep results inside of the output folder, beside those of the stages."""
    if PurePath(file).name != file or file.startswith(".") or file in _TAKEN:
        raise ValueError(f"'{file}' is no name for a file in the output folder, as model.onnx")
    return file


_TAKEN = {
    *("plan.json", "run.json", "recipe.json", "environment.json", "compare.json", "distillation.json"),
    *("pruned", "distilled"),
}


class PruningRecipe(_Part):
    """A whole run, from the model to the saved result.

    ``PruningRecipe.model_validate(recipe.model_dump())`` equals ``recipe``.
    """

    model: ModelPart
    data: DataPart = DataPart.model_construct()
    pruner: PrunerPart = PrunerPart.model_construct()
    plan: PlanPart
    prune: PrunePart = PrunePart.model_construct()
    save: SavePart = SavePart.model_construct()
    distill: DistillPart | None = None
    compare: ComparePart | None = None
    export: tuple[ExportPart, ...] = ()
    report: ReportPart | None = None
    out: str = Field(description="the folder of all results")

    @field_validator("model", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("export", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _has_its_data(self) -> PruningRecipe:
        if self.distill is not None and (self.data.distill or self.data.calibration) is None:
            raise ValueError("distill needs data: give data.distill, or data.calibration")
        if self.compare is not None and self.data.compare is None:
            raise ValueError("compare needs data that no other stage has seen: give data.compare")
        names = [each.file for each in (*self.export, *([self.report] if self.report else ()))]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages write {max(names, key=names.count)}")
        return self

    @property
    def compares(self) -> ComparePart | None:
        """The settings of the comparison; the usual ones where only its data are named."""
        return ComparePart() if self.compare is None and self.data.compare is not None else self.compare
