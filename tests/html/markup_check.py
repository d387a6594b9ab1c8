"""Reads a page as a tree of elements, and says what is wrong with it."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

VOID = {"input", "meta", "br", "wbr", "hr"}
REFERENCES = ("aria-labelledby", "aria-describedby", "aria-controls", "for")


class Elements(HTMLParser):
    """The elements of a page, and its faults: tags that do not match, ids given twice, references to no id."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.texts_of_ids: dict[str, str] = {}
        self.feed(page)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]
        ids = Counter(given["id"] for _, given in self.attributes if "id" in given)
        self.ids = set(ids)
        self.faults += [f"id {name} is given {num} times" for name, num in ids.items() if num > 1]
        for tag, given in self.attributes:
            for key in REFERENCES:
                named = (given.get(key) or "").split()
                self.faults += [f"{key}={name} of <{tag}> names nothing" for name in named if name not in self.ids]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if len(dict(attrs)) != len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing, in line {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))
            name = self.attributes[-1][1].get("id")
            if name and self.open[-1] == self.attributes[-1][0]:
                self.texts_of_ids[name] = data

    @property
    def counts(self) -> Counter[str]:
        """How many elements there are of each tag."""
        return Counter(tag for tag, _ in self.attributes)

    def text_of(self, tag: str) -> str:
        return " ".join(text for inside, text in self.texts if inside == tag)
