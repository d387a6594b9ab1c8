"""The manifest: files of an artefact, and properties of the tensors that weights files cannot hold."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from layerprune.checkpoint.atomic_dir import steadily
from layerprune.errors import CheckpointError
from layerprune.tables import brief, count_text

NAME = "manifest.json"
SCHEMA = 2  # 2: plans of modules inside the model, and entries; an artefact without these is written as schema 1
#: Folder of an artefact inside a folder of another library.
INSIDE = "layerprune"
#: Files that a hub or a reader adds, and that are never loaded.
BESIDE = frozenset({"README.md", ".gitattributes"})

_MOST_BYTES = 256 * 2**20  # upper bound for a manifest; a model with a million tensors stays below
_PIECE = 2**20

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)]


class FileRecord(BaseModel):
    """Size and hash of a file as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0, description="in bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def __repr__(self) -> str:
        return brief(self, f"{self.size:,} bytes, SHA-256 {self.sha256[:12]}…")


class TensorRecord(BaseModel):
    """Properties of tensors that weights files do not hold; names are those of :func:`named_tensors`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tied: dict[str, str] = Field(description="another name of a tensor → the name that it is saved by")
    shared: dict[str, str] = Field(description="a tensor in another's memory → the name that this is saved by")
    order: dict[str, tuple[int, ...]] = Field(description="dimensions, outermost first, where that is not their order")
    frozen: tuple[str, ...] = Field(description="parameters that need no gradient")
    transient: tuple[str, ...] = Field(description="buffers that the model's state dict leaves out")
    empty: tuple[str, ...] = Field(description="parameters and buffers that are None")
    training: bool = Field(description="the model's mode")
    otherwise: tuple[str, ...] = Field(description="modules in the other mode")
    entries: dict[str, str] = Field(
        default_factory=dict, description="entries of the state dict that are no tensors; only schema 2 has them"
    )

    def __repr__(self) -> str:
        counts = f"{len(self.tied)} tied, {len(self.shared)} shared, {len(self.frozen)} frozen, {len(self.empty)} empty"
        return brief(self, counts)


class Manifest(BaseModel):
    """The record of an artefact, written last; its text is canonical, and its checksum covers everything else in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["layerprune"] = "layerprune"
    schema_version: int = Field(default=1, ge=1)
    versions: dict[str, str] = Field(description="of layerprune, torch and safetensors, when it was written")
    model: str = Field(description="the model's class")
    num_params: int = Field(ge=0, description="of the pruned model, tied ones once")
    figures: dict[str, float] = Field(description="what was measured on the pruned model, by name")
    plans: tuple[FileName, ...] = Field(min_length=1, description="in the order in which they are carried out")
    places: tuple[str, ...] = Field(
        default=(), description="the name of the module that each plan was made for; none where all are of the model"
    )
    weights: tuple[FileName, ...] = Field(min_length=1)
    files: dict[FileName, FileRecord]
    tensors: TensorRecord
    checksum: str = Field(default="", description="SHA-256 of this manifest with an empty checksum")

    def to_json(self) -> str:
        """Format as JSON text, with the checksum."""
        body = self.model_copy(update={"checksum": ""})
        return _text(body.model_copy(update={"checksum": _digest(_text(body))}))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest from text that equals the output of :meth:`to_json` byte by byte.

        Raises:
            CheckpointError: the text is no manifest, has a newer schema, was changed, or names files without a record.
        """
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            if (version := _schema_of(text)) > SCHEMA:
                raise _too_new(version) from error
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part)[:80] for part in first["loc"][:6]) or "the text"
            raise CheckpointError(f"{NAME} is no manifest: {where}: {first['msg']}; save the model again") from error
        if manifest.schema_version > SCHEMA:
            raise _too_new(manifest.schema_version)
        if manifest.to_json() != text:
            raise CheckpointError(
                f"{NAME} was changed after it was written: its checksum is {manifest.checksum[:12] or 'empty'}…, "
                f"that of its text another; save the model again"
            )
        for name in (*manifest.plans, *manifest.weights):
            if name not in manifest.files:
                raise CheckpointError(f"{NAME} names '{name}', and has no size and hash of it; save the model again")
        if manifest.places and len(manifest.places) != len(manifest.plans):
            raise CheckpointError(f"{NAME} has another number of places than of plans; save the model again")
        return manifest

    @property
    def placed(self) -> tuple[tuple[str, str], ...]:
        """Module name and file of each plan, in order of execution."""
        return tuple(zip(self.places or ("",) * len(self.plans), self.plans, strict=True))

    def __repr__(self) -> str:
        size = sum(record.size for record in self.files.values())
        contents = f"{count_text(len(self.files), 'file')} of {size:,} bytes, {count_text(len(self.plans), 'plan')}"
        return brief(self, f"{self.model}: {self.num_params:,} parameters, {contents}")


def _text(manifest: Manifest) -> str:
    places: dict[str, Any] = {} if manifest.places else {"places": True}
    entries: dict[str, Any] = {} if manifest.tensors.entries else {"tensors": {"entries": True}}
    return manifest.model_dump_json(indent=1, exclude=places | entries) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _schema_of(text: str) -> int:
    """The schema that a text states; 0 without one."""
    try:
        read: Any = from_json(text)
    except (ValueError, TypeError):  # no JSON, or half a surrogate pair
        return 0
    version: Any = read.get("schema_version") if isinstance(read, dict) else None  # pyright: ignore[reportUnknownVariableType]
    return version if type(version) is int else 0


def _too_new(version: int) -> CheckpointError:
    return CheckpointError(f"{NAME} has schema {version}, this layerprune reads up to {SCHEMA}: upgrade layerprune")


def record_of(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return FileRecord(size=size, sha256=digest.hexdigest())


def path_of(folder: str | os.PathLike[str]) -> Path:
    """Convert the user's path; raises :class:`CheckpointError` for other types."""
    try:
        return Path(folder)
    except TypeError:
        raise CheckpointError(f"folder is a {type(folder).__name__}; give the path of a folder") from None


def is_artefact(folder: Path) -> bool:
    """Whether a folder holds a manifest."""
    return (folder / NAME).exists()


def read_manifest(folder: Path, *, links: bool = False, complete: bool = True) -> Manifest:
    """Read a folder's manifest, and check its files' names and sizes; they may be ``links`` in the hub's cache only.

    Raises:
        CheckpointError: the manifest is missing or damaged, or a file is missing or has another size.
    """
    check_file(folder / NAME, links)
    try:
        size = (folder / NAME).stat().st_size
        if size > _MOST_BYTES:
            raise CheckpointError(f"{folder / NAME} has {size:,} bytes: more than any manifest")
        text = (folder / NAME).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / NAME} cannot be read: {error}; save the model again") from error
    try:
        manifest = Manifest.from_json(text)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    for name, record in manifest.files.items() if complete else ():
        path = folder / name
        check_file(path, links)
        if (size := path.stat().st_size) != record.size:
            raise CheckpointError(
                f"{path} has {size:,} bytes, {record.size:,} were written: it was changed or cut off; "
                "copy the artefact again, or save the model again"
            )
    return manifest


def check_extra(folder: Path, manifest: Manifest) -> None:
    """Raise :class:`CheckpointError` for files that the manifest does not name."""
    extra = sorted({path.name for path in folder.iterdir()} - {NAME, *manifest.files} - BESIDE)
    if extra:
        raise CheckpointError(
            f"{folder / extra[0]} is not in {NAME}: it is no part of what was saved there; move it elsewhere"
        )


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Raise :class:`CheckpointError` for the first file with another SHA-256 than recorded."""
    for name, record in manifest.files.items():
        found = record_of(folder / name)
        if found != record:
            raise CheckpointError(
                f"{folder / name} has SHA-256 {found.sha256[:12]}…, {record.sha256[:12]}… was written: "
                "its bytes have changed; copy the artefact again, or save the model again"
            )


def check_file(path: Path, links: bool) -> None:
    """Raise :class:`CheckpointError` unless a path is a plain file, or a link to a plain file with ``links``."""
    try:
        mode = path.stat().st_mode if links else path.lstat().st_mode
    except FileNotFoundError as error:
        what = "no artefact of layerprune" if path.name == NAME else "the artefact is not complete"
        raise CheckpointError(f"{path} is missing: {what}; save it with save_pruned(model, folder)") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_ISLNK(mode):
        raise CheckpointError(f"{path} is a symbolic link: an artefact holds its files itself; copy the file here")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is no plain file")


def verify(folder: str | Path, *, links: bool = False) -> Manifest:
    """Check that an artefact is complete and bit for bit as it was written.

    Args:
        folder: the artefact.
        links: whether files may be symbolic links, as in the hub's cache.

    Returns:
        The manifest.

    Raises:
        CheckpointError: the check fails; the message names the first file, the expected value and the value found.
    """
    folder = path_of(folder).absolute().resolve()

    def read() -> Manifest:
        manifest = read_manifest(folder, links=links)
        check_extra(folder, manifest)
        check_hashes(folder, manifest)
        return manifest

    return steadily(folder, read)
