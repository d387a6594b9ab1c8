"""Reads texts, and tokenizes them by the model's own tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from layerprune.errors import SourceError, ended_by
from layerprune.sources.data import DataSettings, arguments_of
from layerprune.sources.models import ModelSource, folder_or_repository
from layerprune.sources.packages import package

_BLANK_LINE = re.compile(r"\n\s*\n")


def read_texts(path: Path) -> list[str]:
    """The paragraphs of a file where blank lines separate them, else its lines.

    Raises:
        SourceError: the file is missing, is no text in UTF-8, or holds no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise SourceError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as text in UTF-8: {error}") from error
    parts = _BLANK_LINE.split(text) if _BLANK_LINE.search(text) else text.splitlines()
    texts = [" ".join(part.split()) for part in parts if part.strip()]
    if not texts:
        raise SourceError(f"{path} holds no text")
    return texts


def tokenized(
    texts: Sequence[str], model: nn.Module, source: ModelSource, settings: DataSettings, instead: str
) -> list[dict[str, Any]]:
    """Batches of tokens, padded to the longest text of a batch.

    Raises:
        SourceError: the model has no tokenizer.
    """
    if source.library != "hf":
        raise SourceError(f"texts need the tokenizer of an hf: model, and {source} has none; {instead}")
    tokenizer = _tokenizer(source)
    taken, others = arguments_of(model)
    config: Any = getattr(model, "config", None)
    places = getattr(config, "max_position_embeddings", None)
    most = min(settings.max_length, tokenizer.model_max_length, places if isinstance(places, int) else 10**9)
    batches: list[dict[str, Any]] = []
    for some in settings.batched(settings.chosen(len(texts))):
        encoded = tokenizer(
            [texts[i] for i in some], return_tensors="pt", padding=True, truncation=True, max_length=most
        )
        if encoded["input_ids"].shape[1] == 0:
            raise SourceError(f"the tokenizer of {source} makes no token of '{texts[some[0]][:40]}'")
        batch = {name: tensor for name, tensor in encoded.items() if name in taken or others}
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in taken:
            batch["decoder_input_ids"] = _shifted(model, config, encoded["input_ids"])
        batches.append(batch)
    return batches


def _shifted(model: Any, config: Any, tokens: Any) -> Any:
    """What the decoder reads where it is to write the same text: the tokens, one place later."""
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if callable(make):
        return make(labels=tokens)
    shifted = tokens.roll(1, 1)
    shifted[:, 0] = config.decoder_start_token_id or config.pad_token_id or 0
    return shifted


def _tokenizer(source: ModelSource) -> Any:
    transformers = package("transformers")
    name = folder_or_repository(source.name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a missing or broken tokenizer raises OSError, ValueError, KeyError, …
        what = f"{source} has no tokenizer that can be loaded; save one with tokenizer.save_pretrained({source.name!r})"
        raise SourceError(ended_by(what, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise SourceError(f"the tokenizer of {source} has no token to pad with: set its pad_token")
    return tokenizer
