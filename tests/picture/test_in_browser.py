"""The picture in a browser: search, zoom, collapse, repeated blocks, keyboard, events, phone, dark, print."""

from __future__ import annotations

import pytest
from drawings import picture

from layerprune.picture import SCRIPT, STYLE, to_html

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Picture</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
script-src 'unsafe-inline'">
<style>body{{margin:8px}}{style}</style></head><body><main><h1>A network</h1>{figure}</main>
<script>window.events = []; addEventListener("layerprune:group", (event) => events.push(event.detail));</script>
<script>{script}</script></body></html>"""


@pytest.fixture
def opened(open_page, tmp_path):
    """Opens the picture of a network; at the end the page has logged no error and asked for nothing."""
    pages = []

    def open_picture(name: str, **options):
        path = tmp_path / "picture.html"
        path.write_text(PAGE.format(style=STYLE, script=SCRIPT, figure=to_html(picture(name))), encoding="utf-8")
        pages.append(open_page(path, **options))
        return pages[-1]

    yield open_picture
    for page in pages:
        assert page.errors() == []
        assert page.requests() == []


#: Keys as WebDriver writes them.
ENTER, ESCAPE, TAB, UP, DOWN, LEFT, RIGHT, HOME, END = "\ue007\ue00c\ue004\ue013\ue015\ue012\ue014\ue011\ue010"

SHOWN = "[...document.querySelectorAll('.lp-box,.lp-cell')].filter((e) => e.getClientRects().length)"
FOCUS = "return document.activeElement.dataset.group ?? document.activeElement.getAttribute('aria-label')"
OVERLAPS = """
const drawn = [...document.querySelectorAll('.lp-svg [role=treeitem]')].filter((e) => e.getClientRects().length)
  .map((e) => [e, e.querySelector('rect').getBoundingClientRect()]);
const found = [];
for (const [a, r] of drawn) for (const [b, s] of drawn) {
  if (a === b || a.contains(b) || b.contains(a)) continue;
  if (Math.min(r.right, s.right) - Math.max(r.left, s.left) > 0.5 &&
      Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 0.5) found.push([a.textContent, b.textContent]);
}
return found.slice(0, 3);"""
OUTSIDE = """
const found = [];
for (const text of document.querySelectorAll('.lp-box text, .lp-title')) {
  if (!text.getClientRects().length) continue;
  const own = text.getBoundingClientRect();
  const box = text.parentNode.querySelector('rect').getBoundingClientRect();
  const isInside = own.left > box.left - 0.5 && own.right < box.right + 0.5 && own.bottom < box.bottom + 0.5;
  if (!isInside) found.push(text.textContent);
}
return found.slice(0, 5);"""


SLOW = [pytest.param(name, marks=pytest.mark.reliability) for name in ("U-Net", "t5", "nested", "densenet", "swin_t")]


def events(page):
    return page.run("return window.events.splice(0)")


def index(name: str, group: str) -> int:
    return next(place for place, each in enumerate(picture(name).groups) if each.name == group)


def click(page, selector: str) -> None:
    page.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    page.find(selector).click()


@pytest.mark.parametrize("name", ["example", "resnet50", "llama", *SLOW])
def test_text_fits_its_box_in_real_fonts_and_nothing_overlaps_at_any_step_of_collapsing(opened, name):
    page = opened(name)
    assert page.run(OVERLAPS) == []
    assert page.run(OUTSIDE) == []
    for number in range(page.run("return document.querySelector('figure').lpPicture.regions.length")):
        page.run("const p = document.querySelector('figure').lpPicture; p.toggle(p.regions[arguments[0]])", number)
        assert page.run(OVERLAPS) == []
        assert page.run(OUTSIDE) == []
        if number % 2:
            page.run("const p = document.querySelector('figure').lpPicture; p.toggle(p.regions[arguments[0]])", number)


def test_a_drawing_is_as_before_once_all_is_expanded_again(opened):
    page = opened("resnet50")
    drawn = "[...document.querySelectorAll('svg rect, svg path, svg text, svg [transform]')]"
    drawn = f"return {drawn}.filter((e) => !e.closest('.lp-strip')).map((e) => e.outerHTML).join('')"
    before = page.run(drawn)
    click(page, "[data-act=close]")
    collapsed = page.run(f"return {SHOWN}.length")
    assert collapsed < 10
    click(page, "[data-act=open]")
    assert page.run(drawn) == before


def test_a_collapsed_region_shows_its_groups_and_what_goes(opened):
    page = opened("llama")
    click(page, "[data-act=close]")
    inside = [place for place, group in enumerate(picture("llama").groups) if group.name.startswith("model.")]
    strip = "document.querySelector('[data-module=model] > .lp-strip')"
    assert page.run(f"return {strip}.querySelectorAll('g').length") == len(inside)
    going = sum(picture("llama").groups[place].goes for place in inside)
    assert page.run(f"return {strip}.querySelectorAll('.lp-bar-goes').length") == going > 0
    page.run(
        "document.querySelector('figure').dispatchEvent(new CustomEvent('layerprune:mark', {detail: {groups: []}}))"
    )
    assert page.run(f"return {strip}.querySelectorAll('.lp-bar-goes').length") == 0
    outer = page.run("return document.querySelector('[data-module=model] > rect').getBoundingClientRect().right")
    assert page.run(f"return {strip}.getBoundingClientRect().right") < outer


def test_a_click_on_a_title_collapses_a_region_and_another_expands_it(opened):
    page = opened("resnet50")
    region = '[data-module="layer1"]'
    height = page.run(f"return document.querySelector('{region} > rect').getBoundingClientRect().height")
    click(page, f"{region} > .lp-title")
    assert page.find(region).get_attribute("aria-expanded") == "false"
    assert page.run(f"return document.querySelector('{region} > rect').getBoundingClientRect().height") < height / 5
    assert page.run(f"return document.querySelector('{region} .lp-box').getClientRects().length") == 0
    click(page, f"{region} > .lp-title")
    assert page.find(region).get_attribute("aria-expanded") == "true"
    assert page.run(f"return document.querySelector('{region} .lp-box').getClientRects().length") == 1


def test_pointer_and_click_tell_the_page_which_group_it_is(opened):
    page = opened("example")
    group = index("example", "conv2b")
    events(page)
    click(page, f'.lp-box[data-group="{group}"]')
    sent = events(page)
    assert sent[0] == {"group": group, "pinned": False}
    assert {"group": group, "pinned": True} in sent
    page.press(ESCAPE)
    assert events(page)[-1] == {"group": None, "pinned": False}


def test_arrows_walk_the_tree_and_enter_pins_a_group(opened):
    page = opened("resnet50")
    for _ in range(8):  # past the buttons
        page.press(TAB)
        if page.run("return document.activeElement.getAttribute('role')") == "treeitem":
            break
    assert page.run(FOCUS).startswith("ResNet")
    page.press(DOWN + DOWN)
    assert page.run(FOCUS) == str(index("resnet50", "conv1"))
    page.press(DOWN)
    assert page.run(FOCUS).startswith("layer1")
    page.press(LEFT)
    assert page.find('[data-module="layer1"]').get_attribute("aria-expanded") == "false"
    page.press(DOWN)
    assert page.run(FOCUS).startswith("layer2")
    page.press(UP + RIGHT + RIGHT + RIGHT)
    assert page.run(FOCUS) == str(index("resnet50", "layer1.0.conv1"))
    events(page)
    page.press(ENTER)
    assert events(page)[-1] == {"group": index("resnet50", "layer1.0.conv1"), "pinned": True}
    page.press(LEFT + LEFT)
    assert page.run(FOCUS).startswith("layer1.0,")
    page.press(END)
    assert page.run("return document.activeElement.textContent").startswith("output")
    page.press(HOME)
    assert page.run(FOCUS).startswith("ResNet")


def test_keys_and_buttons_zoom(opened):
    page = opened("resnet50")
    scale = "return document.querySelector('figure').lpPicture.scale"
    before = page.run(scale)
    click(page, "[data-act=in]")
    assert page.run(scale) == pytest.approx(1.25 * before)
    click(page, "[data-act=out]")
    assert page.run(scale) == pytest.approx(before)
    page.run("document.querySelector('[data-group]').focus()")
    page.press("++")
    assert page.run(scale) == pytest.approx(1.25**2 * before)
    page.press("0")
    seen = page.run("return document.querySelector('svg').getAttribute('viewBox').split(' ').map(Number)")
    whole = page.run("return document.querySelector('figure').lpPicture.size")
    assert seen[3] >= whole["height"] - 1


def test_the_wheel_zooms_where_the_pointer_is_once_the_drawing_has_the_focus(opened):
    page = opened("resnet50")
    wheel = """const canvas = document.querySelector('.lp-canvas'); const box = canvas.getBoundingClientRect();
    const at = {clientX: box.left + 90, clientY: box.top + 90};
    const event = new WheelEvent('wheel', {deltaY: -200, cancelable: true, ...at});
    canvas.dispatchEvent(event); return [event.defaultPrevented, document.querySelector('figure').lpPicture.scale]"""
    before = page.run("return document.querySelector('figure').lpPicture.scale")
    assert page.run(wheel) == [False, before]  # the page scrolls
    page.run("document.querySelector('[data-group]').focus()")
    taken, scale = page.run(wheel)
    assert taken
    assert scale > before


def test_a_pinch_zooms_and_a_drag_moves(opened):
    page = opened("resnet50", width=390)
    page.run("""
    const canvas = document.querySelector('.lp-canvas');
    const send = (name, id, x, y) => canvas.dispatchEvent(new PointerEvent(name,
      {pointerId: id, clientX: x, clientY: y, bubbles: true, isPrimary: id === 1}));
    window.before = document.querySelector('figure').lpPicture.scale;
    send('pointerdown', 1, 100, 300); send('pointerdown', 2, 150, 300);
    send('pointermove', 2, 250, 300); send('pointerup', 1, 100, 300); send('pointerup', 2, 250, 300);
    window.after = document.querySelector('figure').lpPicture.scale;
    window.x = document.querySelector('figure').lpPicture.x;
    send('pointerdown', 1, 200, 300); send('pointermove', 1, 120, 300); send('pointerup', 1, 120, 300);
    """)
    assert page.run("return window.after / window.before") == pytest.approx(3)
    assert page.run("return document.querySelector('figure').lpPicture.x > window.x")


def test_search_fades_what_does_not_match_and_enter_goes_on_to_the_next(opened):
    page = opened("resnet50")
    page.find(".lp-search").send_keys("downsample")
    assert page.find(".lp-found").text == "4 found"
    assert page.run("return document.querySelectorAll('.lp-hit').length") == 4
    faded = page.run(f"return getComputedStyle({SHOWN}.find((e) => !e.classList.contains('lp-hit'))).opacity")
    assert float(faded) < 0.5
    page.run("document.querySelector('figure').lpPicture.collapseAll(true)")
    events(page)
    page.press(ENTER)
    assert page.find(".lp-found").text == "1 of 4"
    assert events(page)[-1] == {"group": index("resnet50", "layer1.0.downsample.0"), "pinned": True}
    assert page.run("return document.querySelector('.lp-pinned').getClientRects().length") == 1  # it was uncovered
    page.press(ESCAPE)
    assert page.run("return document.querySelectorAll('.lp-hit').length") == 0


def test_a_row_of_cells_chooses_the_block_that_is_drawn(opened):
    page = opened("llama")
    first, fourth = index("llama", "model.layers.0.mlp.up_proj"), index("llama", "model.layers.4.mlp.up_proj")
    assert page.find('[data-slot="5"]').get_attribute("data-group") == str(first)
    click(page, f'.lp-cell[data-group="{fourth}"]')
    box = page.find('[data-slot="5"]')
    assert box.get_attribute("data-group") == str(fourth)
    cell = page.find(f'.lp-cell[data-group="{fourth}"]')
    assert box.find_element("css selector", "title").get_attribute("textContent") == cell.find_element(
        "css selector", "title"
    ).get_attribute("textContent")
    assert cell.get_attribute("class").split()[1] in box.get_attribute("class")
    assert page.find('[data-module="model.layers.4"] > .lp-title').text.startswith("▾ 4")
    assert page.find('[data-module="model.layers.4.mlp"]')
    assert events(page)[-1] == {"group": fourth, "pinned": True}


def test_rows_of_repeats_inside_repeats_choose_among_the_blocks_of_the_drawn_one(opened):
    page = opened("nested")
    page.run("""const all = [...document.querySelectorAll('.lp-repeat')];
    const p = document.querySelector('figure').lpPicture; p.showRow(all[0], 2); p.showRow(all[1], 1);""")
    names = page.run("""return [...document.querySelectorAll('.lp-repeat .lp-repeat .lp-region [data-group]')]
      .map((e) => e.querySelector('title').textContent.split(':')[0])""")
    assert names == ["3.1.0", "3.1.2"]


def test_the_page_can_mark_what_goes_and_show_a_group(opened):
    page = opened("llama")
    group = index("llama", "model.layers.3.self_attn.q_proj")
    send = "document.querySelector('figure').dispatchEvent(new CustomEvent(arguments[0], {detail: arguments[1]}))"
    page.run(send, "layerprune:mark", {"groups": [group, 0]})
    going = page.run(
        "return [...document.querySelectorAll('.goes:not([data-slot])')].map((e) => +e.dataset.group).sort()"
    )
    assert sorted(going) == sorted([group, 0])
    assert page.run("return [...document.querySelectorAll('.goes')].every((e) => e.querySelector('.lp-cross'))")
    assert page.run("return document.querySelectorAll(':not(.goes) > .lp-cross').length") == 0
    assert page.find(f'.lp-cell[data-group="{group}"]').get_property("textContent").endswith(", goes in the plan")
    page.run("document.querySelector('figure').lpPicture.collapseAll(true)")
    page.run(send, "layerprune:show", {"group": group})
    assert page.run("return document.activeElement.dataset.group") == str(group)
    assert page.run("return document.activeElement.getClientRects().length") == 1
    assert page.find('[data-slot="0"]').get_attribute("data-group") == str(group)


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [("resnet50", "light", 1280), ("resnet50", "dark", 390), ("llama", "dark", 1280), ("llama", "light", 390)],
)
def test_nothing_stands_in_the_way_of_a_screen_reader_and_nothing_is_wider_than_the_page(opened, name, scheme, width):
    page = opened(name, width=width, color_scheme=scheme)
    page.run("document.body.style.background = getComputedStyle(document.querySelector('figure')).backgroundColor")
    page.run("document.querySelector('h1').style.color = getComputedStyle(document.querySelector('figure')).color")
    assert page.accessibility_faults() == []
    assert page.run("return document.documentElement.scrollWidth") <= width


def test_another_width_fits_the_drawing_anew_until_the_reader_has_zoomed(opened):
    page = opened("resnet50")
    scale = "return document.querySelector('figure').lpPicture.scale"
    page.run("document.querySelector('figure').style.width = '800px'")
    page.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    narrow = page.run(scale)
    assert narrow < 1
    click(page, "[data-act=in]")
    page.run("document.querySelector('figure').style.width = ''")
    page.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.run(scale) == pytest.approx(1.25 * narrow)


def test_colours_differ_between_light_and_dark_themes_whoever_chooses_them(opened):
    ground = "return getComputedStyle(document.querySelector('svg')).backgroundColor"
    page = opened("example")
    light = page.run(ground)
    page.prefer("dark")
    dark = page.run(ground)
    assert light != dark
    page.run("document.documentElement.dataset.theme = 'light'")
    assert page.run(ground) == light
    page.prefer("light")
    page.run("document.documentElement.dataset.theme = 'dark'")
    assert page.run(ground) == dark


def test_the_whole_network_is_printed(opened):
    page = opened("resnet50")
    page.run("for (let i = 0; i < 6; i++) document.querySelector('figure').lpPicture.zoom(1.3)")
    page.run("dispatchEvent(new Event('beforeprint'))")
    page.print_media()
    box = page.run("return document.querySelector('svg').getAttribute('viewBox').split(' ').map(Number)")
    whole = page.run("return document.querySelector('figure').lpPicture.size")
    assert box == [0, 0, whole["width"], whole["height"]]
    assert page.run("return document.querySelector('.lp-bar').getClientRects().length") == 0
    drawn, seen = page.run("""return [document.querySelector('svg'), document.querySelector('.lp-canvas')]
      .map((e) => e.getBoundingClientRect().height)""")
    assert drawn <= seen + 2
    page.print_media(False)


def test_without_the_script_the_drawing_is_whole(open_page, tmp_path):
    path = tmp_path / "picture.html"
    path.write_text(PAGE.format(style=STYLE, script="", figure=to_html(picture("resnet50"))), encoding="utf-8")
    page = open_page(path)
    assert page.run("return document.querySelector('.lp-bar').getClientRects().length") == 0
    assert page.run(OVERLAPS) == []
    assert page.run(f"return {SHOWN}.length") == page.run("return document.querySelectorAll('.lp-box,.lp-cell').length")
