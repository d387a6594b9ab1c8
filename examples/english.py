"""Real English sentences without a download: the prose in the docstrings of installed packages.

The files are parsed, never imported. The order depends on the seed and on the installed versions only.

``python examples/english.py`` prints twenty.
"""

from __future__ import annotations

import ast
import random
import re
import textwrap
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

PACKAGES = ("networkx", "numpy", "scipy", "sklearn", "torch")
NUM_WORDS = range(8, 41)
FILES_PER_PACKAGE = 120

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
PROSE = re.compile(r"[A-Z][A-Za-z0-9 ,;'()\-]+\.")  # no markup, no operators, no underscores, no abbreviations
PLAIN_WORD = re.compile(r"\(?[A-Za-z][a-z'\-]*\)?[,;.]?")  # no call(), no camelCase, no numbers
MIN_SHARE_OF_PLAIN_WORDS = 0.9


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return ``count`` distinct sentences of 8 to 40 words.

    Raises:
        ValueError: the installed packages hold fewer.
    """
    found = list(islice(distinct(all_sentences(seed)), count))
    if len(found) < count:
        raise ValueError(f"found {len(found)} sentences, not {count}; install more of {', '.join(PACKAGES)}")
    return found


def all_sentences(seed: int) -> Iterator[str]:
    """Sentences in an order that mixes the packages."""
    shuffle = random.Random(seed).shuffle
    files = [path for package in PACKAGES for path in sample_of_files(package, seed)]
    shuffle(files)
    for path in files:
        for docstring in docstrings(path):
            for block in blocks(docstring):
                yield from filter(is_prose, SENTENCE_END.split(block))


def sample_of_files(package: str, seed: int) -> list[Path]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return []
    root = Path(spec.origin).parent
    files = sorted(path for path in root.rglob("*.py") if "test" not in path.relative_to(root).as_posix())
    return random.Random(seed).sample(files, min(FILES_PER_PACKAGE, len(files)))


def docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # unescaped backslashes in other people's docstrings
        tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def blocks(docstring: str) -> Iterator[str]:
    """Runs of lines of the same indentation, each joined to one line: headings and parameter names stand alone."""
    block: list[str] = []
    indent = 0
    for line in [*textwrap.dedent(docstring).splitlines(), ""]:
        line_indent = len(line) - len(line.lstrip())
        if block and (not line.strip() or line_indent != indent):
            yield " ".join(block)
            block = []
        if line.strip():
            block.append(line.strip())
            indent = line_indent


def is_prose(sentence: str) -> bool:
    words = sentence.split()
    if len(words) not in NUM_WORDS or not PROSE.fullmatch(sentence):
        return False
    num_plain = sum(PLAIN_WORD.fullmatch(word) is not None for word in words)
    return num_plain >= MIN_SHARE_OF_PLAIN_WORDS * len(words)


def distinct(candidates: Iterator[str]) -> Iterator[str]:
    """Drop repeats and near-repeats: boilerplate that begins with the same five words."""
    seen: set[tuple[str, ...]] = set()
    for sentence in candidates:
        opening = tuple(sentence.lower().split()[:5])
        if opening not in seen:
            seen.add(opening)
            yield sentence


if __name__ == "__main__":
    print(*sentences(20), sep="\n")
