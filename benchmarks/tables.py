"""Writes the tables of the benchmark pages from ``benchmarks/results/*.json``.

``python benchmarks/tables.py`` renews every table between ``<!-- table: FILE/NAME -->`` and ``<!-- end of table -->``;
``--check`` writes nothing and exits with 1 where a page differs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from figures import RESULTS, ROOT, load

DOCS = ROOT / "docs"
BLOCK = re.compile(r"(<!-- table: ([\w-]+)/([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def renewed(text: str) -> str:
    """The page with all its tables made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{_table(block[2], block[3])}\n\n{block[4]}", text)


def shown(text: str) -> Iterator[tuple[str, str]]:
    """File and name of each table of a page."""
    for block in BLOCK.finditer(text):
        yield block[2], block[3]


def _table(file: str, name: str) -> str:
    tables = load(RESULTS / f"{file}.json").tables
    if name not in tables:
        raise SystemExit(f"benchmarks/results/{file}.json has no table '{name}', but {', '.join(tables)}")
    return tables[name].as_markdown()


def stale_pages() -> Iterator[tuple[Path, str]]:
    """Pages whose tables are not what the results say, with the text that they should have."""
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (wanted := renewed(text)) != text:
            yield page, wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page differs")
    options = parser.parse_args()
    found = list(stale_pages())
    for page, text in found:
        print(f"{'differs' if options.check else 'written'}: {page.relative_to(ROOT)}")
        if not options.check:
            page.write_text(text, encoding="utf-8")
    return int(options.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
