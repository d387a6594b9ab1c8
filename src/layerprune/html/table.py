"""Tables that scroll inside their own box, so that the page itself never scrolls sideways."""

from __future__ import annotations

from collections.abc import Sequence

from layerprune.html.markup import Content, Markup, element


def scrolled_table(
    caption: str, heads: Sequence[Content], rows: Sequence[Markup], *, class_: str | None = None, id_: str | None = None
) -> Markup:
    """A table with a caption; the box around it takes the focus, so that keys scroll it.

    Args:
        caption: what the table shows.
        heads: headings of the columns, as text or as ``th`` elements; an empty one heads the row headings.
        rows: ``tr`` elements.
        class_: class of the table.
        id_: id of the table.
    """
    parts = [element("caption", caption), element("thead", element("tr", map(_head, heads))), element("tbody", rows)]
    table = element("table", parts, class_=class_, id=id_)
    return element("div", table, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _head(head: Content) -> Markup:
    if isinstance(head, Markup):
        return head
    return element("th", head, scope="col") if head else element("td")
