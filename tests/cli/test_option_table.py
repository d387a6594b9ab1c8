from __future__ import annotations

from option_table import PAGE, table, written


def test_the_page_has_the_options_of_the_commands():
    assert written(PAGE.read_text(encoding="utf-8")) == table(), "run: python tests/cli/option_table.py"
