"""A person with a browser: `rad-bench play` on a finished run, in a real Chromium."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser import CHROMIUM, Browser, Page, chromium
from tests.runs import finished
from tests.sweep.tiny import command

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
READY = "document.body.dataset.state === 'ready' && shownUpTo === frames.length"


@pytest.fixture(scope="module")
def run(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return once("walking", lambda folder: finished(folder / "lstm-seed0", data={"preset": "walking"})) / "lstm-seed0"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@contextlib.contextmanager
def serving(run: Path, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run the command; if it still runs at the end it is killed."""
    argv, environment = command("play", run, "--port", port)
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with serving(run) as process:
        yield address(process)


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert found, line + process.stdout.read()
    return found[0]


def view(page: Page) -> str:
    return str(page.value("document.getElementById('frame').src"))


def pose(page: Page) -> list[float]:
    return list(page.value("frames.at(-1).pose"))


def text(page: Page, name: str) -> str:
    return str(page.value(f"document.getElementById('{name}').textContent"))


def step(page: Page, key: str) -> str:
    """Press an arrow key, wait for the new frame, and return it."""
    count = page.value("frames.length")
    page.press(key)
    page.wait(f"frames.length > {count} && {READY}")
    return view(page)


def act(page: Page, key: str, changes: str) -> None:
    page.press(key)
    page.wait(f"{changes} && {READY}")


def test_a_walk_with_keys_and_buttons(browser: Browser, url: str, tmp_path: Path) -> None:
    with browser.page(url) as page:
        page.show(1280, 800)
        page.wait("document.body.dataset.state === 'context'")
        assert text(page, "kind") == "given"
        page.wait(f"{READY} && frames.length === 10")
        start, began = view(page), pose(page)

        seen = [step(page, "ArrowLeft"), step(page, "ArrowLeft"), step(page, "ArrowRight")]
        assert len({start, *seen}) == 4
        assert pose(page)[2] - began[2] == pytest.approx(2 * 3.14159265 / 8, abs=1e-4)
        step(page, "ArrowUp")
        assert pose(page)[:2] != began[:2]
        assert text(page, "number") == "frame 13"
        assert text(page, "kind") in ("recent", "revisit", "partial", "novel")
        assert page.value("document.getElementById('film').children.length") == 14
        assert page.value("document.getElementById('truth').src") == page.value("frames.at(-1).truth")
        assert page.value("document.getElementById('other-figure').hidden")

        ways: list[list[str]] = []
        for key, whose in (("", "its own"), ("r", "emptied"), ("s", "episode 2's")):
            act(page, "n", "frames.length === 10")
            if key:
                act(page, key, "memory.since === 10")
            assert f"memory: {whose}" in text(page, "memory")
            ways.append([step(page, k) for k in ("ArrowLeft", "ArrowLeft", "ArrowRight")])
        assert ways[0] == seen  # the same keys, the same pictures
        assert all(first != other for first, *others in zip(*ways, strict=True) for other in others)
        assert not page.value("document.getElementById('other-figure').hidden")

        page.click("[data-key=left]")
        page.wait(f"frames.length === 14 && {READY}")
        page.click("#reset")
        page.wait("memory.of === null")
        for place in ("#map", "#norm"):  # something is drawn on both
            pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer"
            colours = f"(c => new Set(new Uint32Array({pixels})).size)(document.querySelector('{place}'))"
            assert page.value(colours) > 5
        for scheme in ("light", "dark"):
            page.show(400, 800, scheme)
            assert page.value("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
            page.screenshot(tmp_path / f"{scheme}.png")
        assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()
        assert page.complaints == []
        asked = [urlsplit(request) for request in page.requests]
        assert {part.netloc for part in asked if part.scheme != "data"} == {urlsplit(url).netloc}


def test_tabs_do_not_disturb_each_other(browser: Browser, url: str) -> None:
    keys = ["ArrowLeft", "ArrowRight", "ArrowRight"]
    with browser.page(url) as first, browser.page(url) as second:
        for page in (first, second):
            page.wait(f"typeof world === 'object' && world && {READY}")
        alone = [step(first, key) for key in keys]
        act(first, "n", "frames.length === 10")
        together = []
        for key in keys:
            together.append(step(first, key))
            step(second, "ArrowLeft")
            act(second, "s", "memory.since === frames.length")
        assert together == alone
        assert first.complaints == second.complaints == []


def test_a_server_that_is_gone_is_told_and_one_that_is_back_goes_on(browser: Browser, run: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(run))
        url = address(server)
        page = stack.enter_context(browser.page(url))
        page.wait(f"typeof world === 'object' && world && {READY}")
        assert page.value("document.getElementById('alert').hidden")
        server.send_signal(signal.SIGINT)
        told, _ = server.communicate(timeout=60)
        assert (server.returncode, told) == (0, "stopped\n")
        page.press("ArrowLeft")
        page.wait("!document.getElementById('alert').hidden")
        assert text(page, "problem").startswith("The server does not answer")
        address(stack.enter_context(serving(run, urlsplit(url).port or 0)))
        page.click("#mend")  # tries again: the new server does not know this walk
        page.wait("document.getElementById('mend').textContent === 'Start again'")
        page.click("#mend")
        page.wait(f"document.getElementById('alert').hidden && frames.length === 10 && {READY}")
        step(page, "ArrowLeft")
