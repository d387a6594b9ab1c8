"""The documentation site builds without a warning, and needs no network when it is read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_house import REPOSITORY

from layerprune.graph import RefusalCode

OUTSIDE = re.compile(r"""<(?:(?:script|img|iframe|source)\b[^>]*\bsrc|link\b[^>]*\bhref)=["']?(?:https?:)?//""")
IMPORTED = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python", "jupytext"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-4000:]
    return folder


def test_nothing_on_the_site_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 30
    assert [path.name for path, text in pages.items() if OUTSIDE.search(text)] == []
    styles = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    assert [path.name for path, text in styles.items() if IMPORTED.search(text)] == []


def test_every_refusal_code_has_its_section_with_an_example(site: Path) -> None:
    page = (site / "refusals.html").read_text(encoding="utf-8")
    assert [code.name for code in RefusalCode if f'id="{code.name.lower()}"' not in page] == []
    assert page.count("<blockquote>") == len(RefusalCode)
    assert "{" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)


def test_the_drawing_is_a_part_of_the_page(site: Path) -> None:
    page = (site / "how-it-works.html").read_text(encoding="utf-8")
    assert '<figure class="drawing"><svg' in page
    assert "<desc" in page


def test_setup_code_of_the_pages_is_not_shown(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "<!-- setup" not in text
        assert "<!-- table" not in text
