"""The picture with what belongs around it in a page: search, buttons, legend."""

from __future__ import annotations

import math
from html import escape

from layerprune.picture.impact_scale import NUM_CLASSES, impact_scale, impact_text
from layerprune.picture.records import Picture
from layerprune.picture.svg import to_svg

_BUTTONS = (
    ("out", "−", "Zoom out (-)"),
    ("in", "+", "Zoom in (+)"),
    ("fit", "Fit", "Show the whole network (0)"),
    ("close", "Collapse", "Collapse all modules"),
    ("open", "Expand", "Expand all modules"),
)


def to_html(picture: Picture) -> str:
    """Draw a picture as a ``figure`` with search, buttons for zoom and collapse, and a legend.

    The page has to hold :data:`STYLE`, and :data:`SCRIPT` after the figure. Without the script the drawing alone is
    shown, in full.

    Events of the figure: ``layerprune:group`` with ``{group, pinned}`` for the group under the pointer or the focus
    (``null`` for none), pinned by a click, a tap or Enter. The figure takes ``layerprune:mark`` with ``{groups}`` (the
    groups that go) and ``layerprune:show`` with ``{group}``.
    """
    buttons = "".join(
        f'<button type="button" data-act="{act}" title="{title}" aria-label="{title}">{text}</button>'
        for act, text, title in _BUTTONS
    )
    return (
        '<figure class="lp-picture"><div class="lp-bar"><input class="lp-search" type="search" '
        'placeholder="Search names" aria-label="Search layers and groups by name"/>'
        f'<span class="lp-found" role="status"></span>{buttons}</div>'
        f'<div class="lp-canvas">{to_svg(picture, standalone=False)}</div>{_legend(picture)}</figure>'
    )


def _legend(picture: Picture) -> str:
    scale = impact_scale(picture.groups)
    verdicts = {group.verdict for group in picture.groups}
    keys: list[str] = []
    if not math.isnan(scale.low):
        swatches = "".join(f'<i class="lp-key i{number}"></i>' for number in range(NUM_CLASSES))
        low, high = impact_text(scale.low), impact_text(scale.high)
        unit = f" ({escape(picture.impact_unit)})" if picture.impact_unit else ""
        keys.append(f"<span>impact {low} {swatches} {high}{unit}</span>")
    if "with_calibration" in verdicts:
        keys.append('<span><i class="lp-key calibration"></i> needs calibration data</span>')
    if "critical" in verdicts:
        keys.append('<span><i class="lp-key critical"></i> critical: stays</span>')
    if any(group.goes for group in picture.groups):
        keys.append('<span><i class="lp-key lp-key-goes">✕</i> goes in the plan</span>')
    return f'<figcaption class="lp-legend">{"".join(keys)}</figcaption>'
