"""The page as a browser shows it."""

import json
import struct
import zlib

import pytest

from rad_bench.report import write_report
from tests.browser import CHROMIUM, chromium
from tests.report.synthetic import write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
SHOWN = {"continuation": {"episodes": [0, 1], "frames": [0, 4, 8]}}
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]  # of the three frames of every strip


def png(colours, side=4):
    """A strip of one-coloured frames with a white pixel between them."""
    row = b"\0" + b"\xff\xff\xff".join(bytes(colour) * side for colour in colours)
    header = struct.pack(">IIBBBBB", (side + 1) * len(colours) - 1, side, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * side)) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def address(once):
    return (once("page-report", report_with_strips) / "report" / "index.html").as_uri()


def report_with_strips(folder):
    write_sweep(folder, failed=["ttt-seed0"])
    for run in (folder / "runs").glob("*-seed?"):
        if not (run / "result.json").exists():
            continue
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps({**result, "strips": SHOWN}))
        (run / "strips").mkdir()
        for what in ("truth", "keep", "swap"):
            for episode in (0, 1):
                (run / "strips" / f"continuation-{what}-{episode}.png").write_bytes(png(COLOURS))
    spoilt = next((folder / "runs").glob("lstm-seed0")) / "strips" / "continuation-keep-1.png"
    spoilt.write_bytes(spoilt.read_bytes()[:60])
    write_report(folder)


@pytest.fixture(scope="module")
def page(address, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as browser, browser.page("about:blank") as page:
        reopen(page, address)
        yield page


def reopen(page, address, scheme="light"):
    """Open the page anew, on a still screen."""
    page.show(1250, 900, scheme, motion="reduce")
    page.call("Page.navigate", url="about:blank")
    page.wait("location.href === 'about:blank'")
    page.call("Page.navigate", url=address)
    page.wait("location.href !== 'about:blank' && document.readyState === 'complete'")


def test_nothing_is_complained_of_asked_for_or_left_undrawn(page, address):
    pictures = page.value("[...document.images].map(image => image.naturalWidth)")
    assert len(pictures) == 2 * (1 + 2 * 3) - 1 and all(width == 14 for width in pictures)  # one strip is spoilt
    assert page.value("[...document.querySelectorAll('img')].every(image => image.alt)")
    sizes = page.value("[...document.querySelectorAll('figure[role=img] svg')].map(e => e.getBBox().width)")
    assert len(sizes) == 15 and min(sizes) > 100
    assert page.value(
        "[...document.querySelectorAll('[role=img]')].every(e => e.getAttribute('aria-label').length > 20)"
    )
    assert page.value(
        "[...document.querySelectorAll('[id]')].map(e => e.id).sort().every((id, i, all) => id != all[i + 1])"
    )
    assert page.complaints == []
    assert {url for url in page.requests if not url.startswith(("data:", "about:"))} == {address}


ROWS = "[...document.querySelector('table').tBodies].map(b => [...b.rows].map(r => r.cells[%d].textContent))"
HEADING = "document.querySelector('table').tHead.rows[0].cells[%d]"


def test_a_click_on_a_heading_sorts_each_task_by_the_mean_and_a_second_one_turns_it(page, address):
    reopen(page, address)
    button = "table th:nth-child(4) button"
    assert page.value(HEADING % 3 + ".textContent") == "revisit PSNR, dB"
    page.click(button)
    assert page.value(HEADING % 3 + ".getAttribute('aria-sort')") == "descending"
    assert page.value(ROWS % 0) == [["mamba2", "lstm", "none", "copy-last"]] * 2
    page.click(button)
    assert page.value(HEADING % 3 + ".getAttribute('aria-sort')") == "ascending"
    assert page.value(ROWS % 0) == [["copy-last", "none", "lstm", "mamba2"]] * 2
    page.value(HEADING % 0 + ".querySelector('button').focus()")
    page.press("Enter")
    assert page.value(HEADING % 3 + ".getAttribute('aria-sort')") is None
    assert page.value(HEADING % 0 + ".getAttribute('aria-sort')") == "ascending"
    assert page.value(ROWS % 0) == [["copy-last", "lstm", "mamba2", "none"]] * 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("20.8 [18.9, 22.7]", 20.8), ("+3.54 [2.65, 4.43]", 3.54), ("-0.28 [-0.43, -0.12]", -0.28), ("69,424", 69424)]
    + [("1e-05", 1e-5), ("3.9 kB", 3900), ("870 kB (grows)", 870_000), ("12 MB", 12e6), ("-0.82 %", -0.82)],
)
def test_what_tables_write_is_read_as_the_number_it_is(page, text, value):
    assert page.value(f"number({json.dumps(text)})") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "over 80", "uses its memory", "one seed"])
def test_what_is_no_number_is_none(page, text):
    assert page.value(f"isNaN(number({json.dumps(text)}))")


def test_films_show_the_same_frame_of_every_strip_and_stand_still_where_motion_is_unwelcome(page, address):
    reopen(page, address)
    told = "document.querySelector('.films output').textContent"
    page.wait(f"{told} === 'frame 0, recent'")
    colours = (
        "[...document.querySelector('.films').querySelectorAll('canvas')]"
        ".map(c => [...c.getContext('2d').getImageData(1, 1, 1, 1).data].slice(0, 3))"
    )
    assert page.value(colours) == [list(COLOURS[0])] * 4  # truth and three blocks
    assert page.value("document.querySelector('.films button').textContent") == "play"
    page.value("(s => { s.value = 2; s.dispatchEvent(new Event('input')); })(document.querySelector('.films input'))")
    assert page.value(colours) == [list(COLOURS[2])] * 4
    assert page.value(told) == "frame 8, recent"


def test_a_film_plays_and_pauses_at_a_press(page, address):
    place = "document.querySelector('.films input').value"
    reopen(page, address)
    button = ".films button"
    page.click(button)
    page.wait(f"{place} !== '0'")
    page.click(button)
    assert page.value("document.querySelector('.films button').textContent") == "play"
    before = page.value(place)
    assert page.value(f"new Promise(done => setTimeout(() => done({place}), 800))") == before


def test_plots_take_the_ink_of_a_dark_page(page, address):
    reopen(page, address, "dark")
    fills = "[...document.querySelectorAll('figure svg text')].map(e => getComputedStyle(e).fill)"
    assert set(page.value(fills)) <= {"rgb(230, 230, 230)"}
    fills = "[...document.querySelectorAll('figure svg path')].map(e => getComputedStyle(e).fill)"
    assert "rgb(255, 255, 255)" not in page.value(fills)  # no paper of their own
