"""Bars appear after a second of work, on a terminal or on request, as lines of one display."""

import logging
import time

import pytest

from layerprune.environment import progress, progress_bar, showing_progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What standard error, with a display that appears at once, has shown since the last look."""
    monkeypatch.setattr(progress, "DELAY_S", 0.01)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return lambda: capsys.readouterr().err


def test_a_bar_shows_the_work_its_steps_and_the_time_that_is_left(screen):
    with progress_bar("measuring", wanted=True) as told:
        time.sleep(0.05)
        told(1, 4, "loss 0.5")
        time.sleep(0.3)
    shown = screen()
    assert all(text in shown for text in ("measuring", "1/4", "loss 0.5"))


def test_work_that_ends_at_once_shows_nothing(screen, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_S", 5.0)
    with progress_bar("measuring", wanted=True) as told:
        told(1, 1)
    assert screen() == ""
    assert progress._DISPLAY._progress is None


def test_a_bar_inside_another_is_a_line_of_the_same_display(screen):
    with progress_bar("choosing", wanted=True), progress_bar("measuring sets", wanted=True) as told:
        told(2, 3)
        time.sleep(0.3)
    shown = screen()
    assert all(text in shown for text in ("choosing", "measuring sets", "2/3"))
    assert progress._DISPLAY._progress is None


def test_without_a_terminal_there_is_no_bar(screen, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR")
    with progress_bar("measuring") as told:
        told(1, 2)
        time.sleep(0.05)
    assert screen() == ""


def test_a_choice_holds_for_all_bars_inside(screen):
    with showing_progress(False), progress_bar("measuring") as told:
        told(1, 2)
        time.sleep(0.05)
    assert screen() == ""
    with showing_progress(True), progress_bar("measuring") as told:
        told(1, 2)
        time.sleep(0.3)
    assert "measuring" in screen()


def test_brackets_in_the_text_are_no_markup(screen):
    with progress_bar("reading [/red] a [b]", wanted=True) as told:
        told(1, 2, "[/x]")
        time.sleep(0.3)
    assert "[/red]" in screen()


def test_the_end_of_the_work_is_logged(caplog):
    caplog.set_level(logging.INFO, "layerprune")
    with progress_bar("measuring"):
        pass
    assert [record.name for record in caplog.records] == ["layerprune.progress"]
    assert caplog.messages[0].startswith("measuring: 0.0 s")
