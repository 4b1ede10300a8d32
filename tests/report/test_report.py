"""The report says what the frames hold, names what is missing, and stands alone."""

import hashlib
import html.parser
import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from rad_bench.report import write_report
from rad_bench.report.ablation import ablation_rows
from rad_bench.report.reading import read_sweep
from tests.report.synthetic import BASE, SWAP_LOSS, write_sweep

WRITE = """
import pathlib, sys, rad_bench.report
rad_bench.report.write_report(pathlib.Path(sys.argv[1]))
print(*sorted(name for name in ("torch", "torchvision", "triton") if name in sys.modules))
"""


@pytest.fixture
def sweep(once):
    """A sweep and its report, written by a process of its own, which says whether it has loaded torch."""

    def fill(folder):
        write_sweep(folder, failed=["ttt-seed0"])
        argv = [sys.executable, "-c", WRITE, str(folder)]
        (folder / "loaded").write_text(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)

    return once("synthetic-report", fill)


def page_of(folder):
    return (folder / "report" / "index.html").read_text()


def text_of(page):
    """What a reader sees, without tags, styles and drawings."""
    page = re.sub(r"<(style|svg|script).*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_the_summary_holds_what_the_frames_hold(sweep):
    summary = pd.read_csv(sweep / "summary.csv").set_index(["block", "task"])
    frames = pd.read_parquet(sweep / "frames.parquet")
    for block in BASE:
        own = frames[(frames.block == block) & (frames.task == "retrieval") & (frames.intervention == "keep")]
        row = summary.loc[(block, "retrieval")]
        assert row["revisit_psnr"] == pytest.approx(own[own.kind == "revisit"].psnr.mean())
        assert row["novel_psnr"] == pytest.approx(own[own.kind == "novel"].psnr.mean())
    assert summary.loc[("lstm", "retrieval"), "swap_drop"] == pytest.approx(6.0, abs=0.3)
    assert summary.loc[("lstm", "retrieval"), "over_none"] == pytest.approx(6.0, abs=0.3)


def test_a_block_that_loses_nothing_by_a_swap_is_not_shown_to_use_its_memory(sweep):
    verdicts = pd.read_csv(sweep / "summary.csv").set_index(["block", "task"])["verdict"]
    assert verdicts["mamba2", "retrieval"] == "not shown to use its memory"
    assert verdicts["lstm", "retrieval"] == "uses its memory"
    assert verdicts["none", "retrieval"] == "carries none"
    assert "Not shown to use their memory: mamba2." in text_of(page_of(sweep))


def test_a_metric_that_was_not_measured_has_no_column_and_the_page_says_why(sweep):
    assert not [column for column in pd.read_csv(sweep / "summary.csv") if "lpips" in column]
    assert "LPIPS" not in (sweep / "report" / "tables" / "headline.md").read_text()
    assert "unavailable: weights missing" in text_of(page_of(sweep))


def test_the_state_at_the_end_is_the_one_after_most_frames(sweep):
    """Counts of frames are text in result.json, and as text 100 comes before 20."""
    summary = pd.read_csv(sweep / "summary.csv").set_index("block")
    for column, expected in {"state_bytes_start": 512, "state_bytes_end": 51_200}.items():
        assert (summary[column].drop(["none", "copy-last"]) == expected).all()


def test_what_is_missing_is_named_with_its_reason_and_cannot_inject(sweep):
    page = page_of(sweep)
    assert "ttt-seed0: RuntimeError: &lt;b&gt;no such luck&lt;/b&gt;" in page
    assert "<b>no such luck" not in page


def test_the_page_needs_nothing_from_outside(sweep):
    class Collector(html.parser.HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            for name, value in attributes:
                if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                    self.found.append(value)

    Collector().feed(page_of(sweep))
    assert all(link.startswith(("data:", "#")) for link in Collector.found), Collector.found
    assert "@import" not in page_of(sweep)


@pytest.mark.slow
def test_the_same_folder_gives_the_same_report_to_the_byte(sweep, tmp_path):
    def hashes(sweep):
        files = sorted(path for path in (sweep / "report").rglob("*") if path.is_file())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = hashes(sweep)
    sweep = shutil.copytree(sweep, tmp_path / sweep.name)
    shutil.rmtree(sweep / "report")
    write_report(sweep)
    assert hashes(sweep) == before


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_one_seed_is_called_evaluation_noise(tmp_path):
    folder = write_sweep(tmp_path, seeds=(0,), episodes=2)
    write_report(folder)
    assert "evaluation noise only" in text_of(page_of(folder))
    assert "one seed" in (folder / "report" / "tables" / "pairs.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("without_pdf")
def test_a_single_block_without_interventions_is_still_reported(tmp_path):
    folder = write_sweep(tmp_path, base={"lstm": 18.0}, swap_loss=SWAP_LOSS, episodes=2)
    frames = pd.read_parquet(folder / "frames.parquet")
    frames[frames.intervention == "keep"].to_parquet(folder / "frames.parquet")
    write_report(folder)
    assert "not measured" in (folder / "report" / "tables" / "interventions.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_a_sweep_over_two_axes_is_read_one_axis_at_a_time(tmp_path):
    base = {"lstm / short": 15.0, "lstm / long": 18.0, "mamba2 / short": 20.0, "mamba2 / long": 20.0}
    folder = write_sweep(tmp_path, base=base, swap_loss=dict.fromkeys(base, 5.0), episodes=4)
    for path in folder.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        memory, clip = result["block"].split(" / ")
        path.write_text(json.dumps({**result, "axes": {"memory": memory, "clip": clip, "seed": result["seed"]}}))
    write_report(folder)
    rows = {
        (row.axis, row.others, row.value): row for row in ablation_rows(read_sweep(folder)) if row.task == "retrieval"
    }
    assert rows["clip", "lstm", "short"].less_first is None
    assert rows["clip", "lstm", "long"].less_first.mean == pytest.approx(3.0, abs=0.3)
    assert rows["clip", "lstm", "long"].p_holm < 0.05 < rows["clip", "mamba2", "long"].p_holm
    assert rows["memory", "clip=long", "mamba2"].less_first.mean == pytest.approx(2.0, abs=0.3)
    assert "One axis at a time" in page_of(folder)


def test_a_sweep_over_blocks_alone_has_no_such_table(sweep):
    assert "One axis at a time" not in page_of(sweep)


HOSTILE = [
    '<script>alert(1)</script>$\\frac{1}{0}$ & % _ | "',
    "=cmd|' /C calc'!A0",
    "@x](javascript:alert(1)) [a](b) **c** `d` ~~e~~ &lt;",
    "_hidden $ $$ \\$ $x^",
    "[opt] \\input{/etc/passwd} ^ ~ {{ 7 * 7 }} {% raw %} {0.__class__}",
    "a\nb\x00\x1b[31m\u202e\u2028c",
    "-->]]><!--",
    "x" * 150,
]


@pytest.mark.slow
def test_no_label_is_read_as_markup_mathematics_or_a_formula(tmp_path):
    import csv
    import xml.etree.ElementTree as ElementTree

    base = {"none": 12.0, **{label: 15.0 + place for place, label in enumerate(HOSTILE)}}
    folder = write_sweep(tmp_path, seeds=(0, 1), base=base, swap_loss=dict.fromkeys(base, 3.0))
    path = folder / "runs" / "none-seed0" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "commit": HOSTILE[0] + "\ud800", "axes": {"<b>": HOSTILE[0]}}))
    write_report(folder)

    class Tags(html.parser.HTMLParser):
        found: set[str] = set()  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            Tags.found.add(tag)
            assert not [name for name, _ in attributes if name.startswith("on")]

    page = page_of(folder)
    Tags().feed(page)
    assert not Tags.found & {"iframe", "b", "img", "a"}
    assert page.count("<script") == 1 and "alert(1)" not in page.partition("<script>")[2]
    assert "{{ 7 * 7 }}" in page
    for plot in (folder / "report" / "plots").glob("*.svg"):
        texts = [e.text or "" for e in ElementTree.parse(plot).iter() if e.tag.endswith("text")]
        if plot.name.startswith(("gap", "loss")):
            assert any(text == HOSTILE[0] for text in texts), texts  # as it is, nothing made of $ or \frac
            assert any("hidden" in text for text in texts)  # in the legend for all its underscore
    for row in csv.DictReader((folder / "summary.csv").open()):
        assert not row["block"].startswith(("=", "+", "-", "@", "\t", "\r"))
    rows = 2 * len(base)
    markdown = (folder / "report" / "tables" / "headline.md").read_text().splitlines()
    lines = [line for line in markdown if line.startswith("|")]
    assert len(lines) == rows + 2
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1
    assert not re.search(r"(?<!\\)<|\]\(|(?<!\\)\$|(?<!\\)`", "".join(lines))
    latex = (folder / "report" / "tables" / "headline.tex").read_text()
    body = latex.partition("\\midrule\n")[2].split("\\bottomrule")[0].replace("\\midrule\n", "")
    assert len(body.splitlines()) == rows and r"\& \% \_" in body
    plain = re.sub(r"\\(?:text(?:backslash|asciitilde|asciicircum|less|greater|bar)\{\}|textbf|\\|[&%$#_{}])", "", body)
    assert not re.search(r"[\\$%#_^~]|^\[", plain, re.M), plain
    assert not re.search(r"\\frac|\\input", body)


def test_a_report_needs_no_torch(sweep):
    assert (sweep / "loaded").read_text().split() == []
