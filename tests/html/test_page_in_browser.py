"""The report page in a browser: nothing fails, nothing is requested, what can be pressed works, at each size."""

import json
from pathlib import Path

import pytest
from markup_check import Elements
from torch import nn

from layerprune import PruningPlan, UniversalLayerPruner
from models.nets import Damped, linear, randomised, rows


@pytest.fixture(scope="module")
def pruner() -> UniversalLayerPruner:
    """Sixteen residual branches in four blocks: deep enough for the strip."""
    pruner = UniversalLayerPruner(
        randomised(nn.Sequential(linear(), *(Damped() for _ in range(4)), linear())), example_inputs=rows()
    )
    pruner.plan(max_param_reduction=0.3)
    return pruner


@pytest.fixture(scope="module")
def report(pruner, tmp_path_factory) -> Path:
    return pruner.report(tmp_path_factory.mktemp("report") / "report.html")


def names_that_leave(page) -> set[str]:
    return set(page.run("return [...document.querySelectorAll('.groups tr.leaves button')].map(b => b.textContent)"))


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_without_errors_requests_or_sideways_scrolling(open_page, report, width, color_scheme):
    page = open_page(report, width, color_scheme)
    assert page.errors() == []
    assert page.requests() == []
    assert page.run("return document.documentElement.scrollWidth") == width
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(246, 247, 249)", "dark": "rgb(17, 21, 27)"}[color_scheme]


@pytest.mark.parametrize(("width", "color_scheme"), [(1280, "light"), (390, "dark")])
def test_it_is_accessible(open_page, report, width, color_scheme):
    page = open_page(report, width, color_scheme)
    page.find(".groups th[scope=row] button").click()
    page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.accessibility_faults() == []


def test_the_browser_reads_the_elements_that_were_written(open_page, report):
    text = report.read_text(encoding="utf-8")
    page = open_page(report)
    found = page.run(
        "const tree = new DOMParser().parseFromString(arguments[0], 'text/html'), count = {};"
        "tree.querySelectorAll('*').forEach(e => count[e.localName] = (count[e.localName] || 0) + 1); return count",
        text,
    )
    assert {tag.lower(): num for tag, num in found.items()} == dict(Elements(text).counts)


def test_a_card_opens_and_closes_by_mouse_and_keys(open_page, report, pruner):
    page = open_page(report)
    card, button = page.find("#card"), page.find(".groups th[scope=row] button")
    group = pruner.groups[0]
    assert not card.is_displayed()
    button.click()
    assert card.is_displayed()
    assert group.name in card.text
    assert all(layer.name in card.text for layer in group.layers)
    assert f"{group.num_params:,}" in card.text
    page.press("\ue00c")  # escape
    assert not card.is_displayed()
    assert page.run("return document.activeElement === arguments[0]", button)
    page.press("\ue007")  # enter, on the button
    assert card.is_displayed()
    page.find("#card .close").click()
    assert not card.is_displayed()
    assert page.errors() == []


def test_the_slider_marks_what_leaves_everywhere(open_page, report, pruner):
    page = open_page(report)
    data = pruner.report_data()
    slider = page.find("#size")
    start = next(place for place, each in enumerate(data.sets, start=1) if each.is_plan)
    assert int(slider.get_attribute("value")) == start
    assert names_that_leave(page) == set(data.sets[start - 1].groups)
    slider.send_keys("\ue010")  # end
    assert names_that_leave(page) == set(data.sets[-1].groups)
    assert slider.get_attribute("aria-valuetext") == page.find("#size-text").text
    numbers = {group.name: number for number, group in enumerate(pruner.groups)}
    wanted = {numbers[name] for name in data.sets[-1].groups}
    for shapes in (".strip .leaves", "figure.lp-picture .goes"):
        marked = page.run("return [...document.querySelectorAll(arguments[0])].map(e => +e.dataset.group)", shapes)
        assert set(marked) == wanted, shapes
    slider.send_keys("\ue011")  # home: the original
    assert names_that_leave(page) == set()


def test_the_table_sorts_and_searches(open_page, report, pruner):
    page = open_page(report)

    def names() -> list[str]:
        visible = "[...document.querySelectorAll('.groups tbody tr')].filter(r => !r.hidden)"
        return page.run(f"return {visible}.map(r => r.cells[0].textContent)")

    assert names() == [group.name for group in pruner.groups]
    by_order = [group.name for group in sorted(pruner.groups, key=lambda group: group.members)]
    page.find("[data-sort=order]").click()
    assert names() == by_order
    assert page.find("th.c-order").get_attribute("aria-sort") == "ascending"
    page.find("[data-sort=order]").click()
    assert names() == by_order[::-1]
    page.find("[data-sort=params]").click()
    by_size = {group.name: group.num_params for group in pruner.groups}
    assert [by_size[name] for name in names()] == sorted(by_size.values())
    page.find("[data-sort=order]").click()
    page.find("[data-sort=order]").click()
    page.find("#find").send_keys("1.blocks")
    assert names() == [name for name in by_order[::-1] if "1.blocks" in name]
    assert page.find("#found").text == f"4 of {len(by_order)}"


def test_the_theme_switches(open_page, report):
    page = open_page(report, color_scheme="light")
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.find("#theme").click()
    assert page.run(ground) != light
    assert page.find("#theme").get_attribute("aria-pressed") == "true"
    page.find("#theme").click()
    assert page.run(ground) == light


def test_picture_and_card_go_together(open_page, report, pruner):
    page = open_page(report)
    shape = page.find(".lp-picture .lp-group[data-group]")
    number = int(shape.get_attribute("data-group"))
    shape.click()
    assert page.find("#card").is_displayed()
    assert pruner.groups[number].name in page.find("#card h2").text
    other = next(n for n, group in enumerate(pruner.groups) if n != number and group.can_remove)
    page.find(f".groups tr[data-group='{other}'] button").click()
    page.run("[...document.querySelectorAll('#card .open')].find(b => /picture/.test(b.textContent)).click()")
    assert int(page.find(".lp-picture .lp-pinned").get_attribute("data-group")) == other
    assert page.errors() == []


def test_a_card_is_shown_while_the_pointer_is_on_a_group(open_page, report, pruner):
    from selenium.webdriver import ActionChains

    page = open_page(report)
    card, shape = page.find("#card"), page.find(".lp-picture .lp-group[data-group]")
    page.run("arguments[0].scrollIntoView({block: 'center'})", shape)
    ActionChains(page.driver).move_to_element(shape).perform()
    assert card.is_displayed()
    assert pruner.groups[int(shape.get_attribute("data-group"))].name in card.text
    cell = page.find(".strip rect")
    page.run("arguments[0].scrollIntoView({block: 'center'})", cell)
    ActionChains(page.driver).move_to_element(cell).perform()
    assert pruner.groups[int(cell.get_attribute("data-group"))].name in card.text
    ActionChains(page.driver).move_to_element(page.find("h1")).perform()
    assert not card.is_displayed()


def test_the_plan_is_handed_out_as_a_file(open_page, report, pruner):
    page = open_page(report)
    page.run(
        "window.got = []; const own = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { blob.text().then((text) => window.got.push(text)); return own(blob) }"
    )
    page.find("#download").click()
    text = page.driver.execute_async_script(
        "const done = arguments[0], look = () => window.got.length ? done(window.got[0]) : setTimeout(look, 20); look()"
    )
    assert PruningPlan.from_json(text) == pruner.report_data().plan
    assert json.loads(text)["model"] == "Sequential"
    assert page.requests() == []


def test_printed_pages_hold_all_rows_and_no_buttons(open_page, report):
    page = open_page(report)
    page.print_media()
    assert not page.find("#theme").is_displayed()
    assert not page.find("#find").is_displayed()
    assert not page.find("#download").is_displayed()
    box = page.find("#groups .scroll")
    assert page.run("return arguments[0].scrollHeight <= arguments[0].clientHeight + 1", box)
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.find("#refusals .reasons").is_displayed()
    page.run("dispatchEvent(new Event('afterprint'))")
    assert not page.find("#refusals .reasons").is_displayed()
