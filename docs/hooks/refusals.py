"""The page "When it refuses": a section for each family of codes, made of the library's own table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from layerprune.graph import REFUSAL_GUIDE, Refusal, RefusalCode

#: Values of the example texts. Codes that need others have theirs in ``_OWN_VALUES``.
_VALUES: Mapping[str, object] = {
    "pattern": "layer1*",
    "groups": "'layer2.0.conv1', 'layer2.0.conv2'",
    "before": "64",
    "after": "128",
    "num": 2,
    "wanted": "3",
    "shape": "1×256×14×14",
    "shapes": "1×256×14×14, 1×256×7×7",
    "value": "'layer3.0.bn2' 1×256×14×14",
    "read": "'layer3.0.add' 1×256×14×14",
    "between": "'layer3.0.relu'",
    "function": "interpolate",
    "other": "encoder.shared",
    "attribute": "weight",
    "method": "reset",
    "param": "embed.weight",
    "user": "decoder.embed",
    "kind": "DynamicCache",
    "answer": "0 instead of 8",
    "type": "LayerNorm",
    "channels": "channels 64 to 127 of 'cat'",
    "saved": 36_864,
    "growth": 73_728,
    "error": ValueError("expected 64 channels, got 32"),
    "mode": "eval",
    "found": "Tensor 1×10",
    "where": " in train mode",
    "merge": "the sum 'layer3.0.add'",
    "step": "layers.3",
}
_OWN_VALUES: Mapping[RefusalCode, Mapping[str, object]] = {
    RefusalCode.CHANGES_SHAPE: {"before": "1×64×56×56", "after": "1×64×28×28"},
    RefusalCode.ANOTHER_GRID: {"before": "14×14", "after": "27×27"},
    RefusalCode.OUTPUT_CHANGES: {"wanted": "Tensor 1×1000"},
    RefusalCode.OTHER_SIZE_DIFFERS: {"found": "1×64×16×16", "wanted": "1×64×17×17"},
    RefusalCode.CACHE_FORGETS: {"method": "get_seq_length"},
    RefusalCode.UNKNOWN_TRANSFORM: {"type": "Bilinear"},
    RefusalCode.CANNOT_LOSE_SOME: {"type": "PixelShuffle"},
    RefusalCode.CHANNELS_NOT_FOLLOWED: {"type": "mine::join"},
}
_WRAPPED: Mapping[RefusalCode, RefusalCode] = {
    RefusalCode.TAKES_A_KEPT_GROUP: RefusalCode.HEAD,
    RefusalCode.NO_PROJECTION: RefusalCode.READ_BY_NO_TRANSFORM,
    RefusalCode.READER_CANNOT: RefusalCode.CALLED_SEVERAL_TIMES,
    RefusalCode.FAILS_AS_ANOTHER: RefusalCode.CACHE_PLACE_LOST,
}


def example(code: RefusalCode) -> Refusal:
    """Make a refusal of a code with sample values."""
    values = {**_VALUES, **_OWN_VALUES.get(code, {})}
    if code in _WRAPPED:
        inner = example(_WRAPPED[code])
        values |= {"why": inner, "because": inner}
    return Refusal(code, "layer3.0.conv2", **values)


def as_markdown() -> str:
    """Write the sections; the introduction stands on the page itself."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    for section, codes in REFUSAL_GUIDE.items():
        yield from (f"## {section}", "")
        for code, guidance in codes.items():
            yield from (f"### `{code.name.lower()}`", "", f"> {example(code)}", "")
            yield from (guidance.meaning, "", f"**What to do:** {guidance.remedy}", "")
