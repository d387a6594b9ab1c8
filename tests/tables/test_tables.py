"""A table says the same as text, for rich and as HTML; whatever a cell holds is text in each of them."""

import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from layerprune.tables import (
    ShownAsTable,
    Table,
    Toned,
    aligned,
    brief,
    bytes_text,
    coloured,
    name_clipped,
    print_coloured,
    table_text,
    visible,
)
from layerprune.tables.html_table import html_table
from layerprune.tables.rich_table import rich_table

TABLE = Table(
    title="Net: 10 → 7 parameters",
    facts=(("MACs", "4 → 3"),),
    columns=("group", "verdict", "parameters"),
    rows=(("conv1", Toned("✓ safe", "good"), "3"), ("conv2.longer", "✗ critical", "1,024")),
    footer=("together", "", "1,027"),
    notes=("few samples",),
    num_left=2,
)
NASTY = [
    "<script>alert(1)</script>",
    "a&b",
    "[bold red]x[/]",
    "\x1b[31mred",
    "two\nlines",
    "\u202eright",
    "'\"",
    "$x^2$",
]


class Texts(HTMLParser):
    """Tags, attributes and texts of HTML, which the parser of the standard library reads."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(html: str) -> Texts:
    found = Texts()
    found.feed(html)
    found.close()
    assert found.open == []
    return found


def on_rich(table: Table, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(rich_table(table))
    return stream.getvalue()


# ---- the same in three forms -----------------------------------------------------------------------------------------


def test_as_text_words_end_left_and_numbers_right():
    assert table_text(TABLE).splitlines() == [
        "Net: 10 → 7 parameters",
        "MACs: 4 → 3",
        "group         verdict     parameters",
        "conv1         ✓ safe               3",
        "conv2.longer  ✗ critical       1,024",
        "together                       1,027",
        "Note: few samples",
    ]


def test_rich_and_html_hold_every_text():
    texts = ["Net: 10 → 7 parameters", "few samples", "conv1", "✓ safe", "conv2.longer", "1,024", "together", "1,027"]
    shown, html = on_rich(TABLE), read(html_table(TABLE))
    for text in texts:
        assert text in shown
        assert any(text in part for part in html.texts)
    assert html.tags.count("tr") == 4
    assert html.attributes == {"style", "scope"}


def test_a_table_without_rows_or_headings_is_only_its_lines():
    table = Table(title="nothing was repaired", notes=("no data",))
    assert table_text(table) == "nothing was repaired\nNote: no data"
    assert "table" not in read(html_table(table)).tags
    assert on_rich(table).split() == ["nothing", "was", "repaired", "Note:", "no", "data"]


def test_rows_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"have \[1, 2\] cells"):
        Table(columns=("a", "b"), rows=(("c",),))


def test_html_takes_the_colours_of_its_page():
    html = html_table(TABLE)
    assert "background" not in html
    assert re.findall(r"(?<!-)color:([^;\"]+)", html) == ["#22863a"]  # the one toned cell
    assert "<script" not in html
    assert "http" not in html


# ---- untrusted texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY)
def test_no_renderer_reads_a_text_as_markup(text):
    table = Table(
        title=text, facts=((text, text),), columns=(text, "n"), rows=((Toned(text, "bad"), "1"),), notes=(text,)
    )
    shown = visible(text)
    html = read(html_table(table))
    assert set(html.tags) <= {"div", "p", "strong", "em", "table", "thead", "tbody", "tr", "th", "td"}
    assert html.texts.count(shown) >= 3
    for plain in (table_text(table), on_rich(table)):
        assert shown in plain
        assert "\x1b" not in plain


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=6), st.text(max_size=30))
def test_any_text_is_printable_in_each_form(rows, title):
    table = Table(title=title, columns=("name", "value"), rows=tuple(rows), notes=(title,))
    lines = table_text(table).split("\n")
    assert len(lines) == bool(title) + 1 + len(rows) + 1
    assert all(line.isprintable() or visible(line) == line for line in lines)
    html = read(html_table(table))
    assert html.tags.count("td") == 2 * len(rows)
    on_rich(table)


@given(st.text())
def test_what_is_visible_is_left_alone_and_the_rest_escaped(text):
    shown = visible(text)
    assert visible(shown) == shown
    assert not {"\n", "\x1b", "\r", "\u202e"} & set(shown)
    if text.isprintable():
        assert shown == text


# ---- one line --------------------------------------------------------------------------------------------------------


class Found(ShownAsTable):
    def as_table(self) -> Table:
        return TABLE


@given(st.text())
def test_a_brief_form_is_one_line_of_a_hundred_characters(text):
    shown = brief(Found(), text)
    assert shown.startswith("Found(")
    assert shown.endswith(")")
    assert len(shown) <= 100
    assert len(shown.splitlines()) == 1


def test_a_result_shows_its_table_in_notebooks_and_to_rich():
    stream = io.StringIO()
    Console(file=stream, width=100).print(Found())
    assert stream.getvalue() == on_rich(TABLE, 100)
    assert Found()._repr_html_() == html_table(TABLE)


# ---- numbers and names -----------------------------------------------------------------------------------------------


def test_a_long_name_keeps_what_tells_it_from_others():
    name = "encoder.layers.encoder_layer_10.self_attention"
    assert name_clipped(name, 60) == name
    assert name_clipped(name, 42) == "e.layers.encoder_layer_10.self_attention"
    assert name_clipped(name, 39) == "e.l.encoder_layer_10.self_attention"
    assert (
        name_clipped("encoder.layer.10: intermediate.dense, output.dense", 36) == "e.l.10: intermediate.dense, output.…"
    )
    assert name_clipped("features.denseblock3.denselayer22", 20) == "f.d3.denselayer22"
    assert name_clipped("model.0.1", 6) == "m.0.1"
    assert name_clipped("model.0.conv", 4) == "m.0…"


@given(st.text(alphabet="ab.:0", min_size=1), st.integers(1, 30))
def test_a_clipped_name_fits(name, width):
    assert len(name_clipped(name, width)) <= width


def test_bytes_have_three_digits():
    assert [bytes_text(value) for value in (12, 2000, 10**6, 3 * 2**40)] == ["12 B", "1.95 KiB", "977 KiB", "3.00 TiB"]


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned([["a", "1"], ["bcd", "22"]]) == ["a     1", "bcd  22"]


# ---- colours ---------------------------------------------------------------------------------------------------------

PATTERNS = ((re.compile(r"^(\w+):", re.MULTILINE), "bold red"), (re.compile(r"\d+"), "cyan"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_colours_leave_the_text_alone(text):
    assert coloured(text, PATTERNS).plain == text


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "20")


def printed_on_terminal(monkeypatch) -> str:
    stream = Terminal()
    with monkeypatch.context() as during:
        during.setattr("sys.stdout", stream)
        print_coloured(TEXT, PATTERNS)
    return stream.getvalue()


TEXT = "Note: 12 of [34] layers :smile: in a line that is longer than the terminal\n\nEnd: 5"


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_the_same_text_in_colours(monkeypatch):
    shown = printed_on_terminal(monkeypatch)
    assert "\x1b[" in shown
    assert re.sub(r"\x1b\[[\d;]*m", "", shown) == TEXT + "\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
@pytest.mark.usefixtures("terminal")
def test_a_terminal_without_colours_gets_plain_text(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert printed_on_terminal(monkeypatch) == TEXT + "\n"


def test_a_pipe_gets_plain_text(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    print_coloured(TEXT, PATTERNS)
    assert capsys.readouterr().out == TEXT + "\n"
