"""What mkdocs does not do by itself: generated pages, links into the repository, drawings that follow the colours."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "benchmarks"), str(ROOT / "tests"), str(ROOT / "src")]

import notebooks  # noqa: E402
import refusals  # noqa: E402
from mkdocs.structure.files import File  # noqa: E402

from menagerie.report import as_pages  # noqa: E402
from menagerie.results import Results  # noqa: E402

NOT_SHOWN = re.compile(r"<!--.*?-->\n?", re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
ROLE = re.compile(r":(?:attr|class|func|meth|mod):(?=<code>)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def github_slug(text: str, separator: str = "-") -> str:
    """The anchor that GitHub gives a heading, so that a link holds here and there."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", separator)


def on_config(config: Any) -> Any:
    """Name anchors as GitHub does."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = github_slug
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made of data: the architectures, the notebooks, the changes."""
    generated = {
        **{f"zoo/{name}.md": text for name, text in as_pages(Results(ROOT / "benchmarks/results/zoo.jsonl")).items()},
        **notebooks.pages(),
        "changelog.md": _changelog(),
    }
    for uri, text in generated.items():
        files.append(File.generated(config, uri, content=text))
    for uri, path in notebooks.files().items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill the generated part in, and mend what only GitHub can show."""
    markdown = markdown.replace("<!-- refusals -->", refusals.as_markdown())
    markdown = NOT_SHOWN.sub("", markdown)
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda link: _link(link, page.file.src_uri, config), part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Show what docstrings name by a role, as ``:attr:`groups```, as plain code."""
    return ROLE.sub("", html)


def _link(link: re.Match[str], page: str, config: Any) -> str:
    """Show a drawing as a part of the page; lead links out of ``docs`` to the repository, if its address is known."""
    image, text, target = link.groups()
    if "://" in target or target.startswith("#"):
        return link[0]
    if target.startswith("notebooks/"):
        return f"[{text}]({target.removesuffix('.py')}.md)"
    path = (ROOT / "docs" / page).parent / target.partition("#")[0]
    if image and path.suffix == ".svg":
        drawing = path.read_text(encoding="utf-8").replace("\n\n", "\n")
        return f'<figure class="drawing">{drawing}</figure>'
    if path.resolve().is_relative_to(ROOT / "docs"):
        return link[0]
    if not config.repo_url:
        return text
    inside = path.resolve().relative_to(ROOT).as_posix()
    return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{inside})"


def _changelog() -> str:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](")
