"""The style and the script of the picture, from files of this folder."""

from __future__ import annotations

import re
from importlib.resources import files

_FOLDER = files("layerprune.picture")

#: CSS of the picture; colours are custom properties ``--lp-…``, for light and dark themes.
STYLE = (_FOLDER / "picture.css").read_text(encoding="utf-8")

#: Script of the picture: search, zoom, collapse, keyboard; see ``picture.js`` for its events. Every page holds it, so
#: comments and indents are left out.
SCRIPT = re.sub(r"/\*.*?\*/|(?<=\n)[ ]+", "", (_FOLDER / "picture.js").read_text(encoding="utf-8"), flags=re.DOTALL)
