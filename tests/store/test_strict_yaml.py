"""Values are read by the rules of YAML 1.2, and what we write every reader of YAML reads alike."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rad_bench.config import SlurmConfig
from rad_bench.store import strict_yaml
from tests.sweep.tiny import LAUNCH, TINY, run_here


@pytest.mark.parametrize(
    "text",
    ["12:00:00", "4:30", "1:2:3.5", "yes", "no", "on", "Off", "NO", "y", "1_000", "0b101", "2026-11-28", "1.2.3", "e5",
     "<<", "="],
)  # fmt: skip
def test_what_only_yaml_1_1_reads_as_a_number_or_a_truth_is_text(text):
    assert strict_yaml.load(f"a: {text}") == {"a": text}
    assert strict_yaml.load(f"{{{text}: 1}}") == {text: 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("-3", -3), ("+3", 3), ("0", 0), ("0o17", 15), ("0x1F", 31), ("1e-3", 1e-3), ("1.5E3", 1500.0),
     (".5", 0.5), ("3.", 3.0), ("true", True), ("FALSE", False), ("~", None), ("", None), ("null", None)],
)  # fmt: skip
def test_numbers_truths_and_nothing_are_those_of_yaml_1_2(text, value):
    found = strict_yaml.load(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["010", "0123", "-007", "00"])
def test_a_number_with_leading_zeros_is_refused_with_its_place_and_what_to_write(text):
    with pytest.raises(yaml.YAMLError) as refused:
        strict_yaml.load(f"name: x\nseed: {text}\n")
    told = strict_yaml.reason(refused.value)
    assert told.startswith("line 2, column 7: ") and f"write {int(text)}, or '{text}'" in told
    assert strict_yaml.load(f"'{text}'") == text


SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
WORDS = st.sampled_from(["on", "0123", "0o17", "12:00:00", "1e3", ".5", "089", "null", "~", "", "0x1F", "1_0", "yes"])
TREES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(TREES)
def test_what_is_written_is_read_again_by_us_and_by_readers_of_yaml_1_1(tree):
    text = strict_yaml.dump(tree)
    assert strict_yaml.load(text) == tree == yaml.safe_load(text)


def test_times_are_what_sbatch_makes_of_them_and_messages_quote_what_was_written(tmp_path):
    minutes = {"12:00:00": 720, "1-12:30:00": 2190, "00:01:30": 2, "90m": 90, "1.5h": 90}
    assert {time: SlurmConfig(timeout=time).minutes for time in minutes} == minutes
    for time in ("4:00", "12:00:00:00", "-1:00:00", "1:75:00"):
        sweep = TINY.replace(LAUNCH, f"launch: {{slurm: {{timeout: {time}}}}}")
        (tmp_path / "s.yaml").write_text(sweep)
        told = run_here("plan", "s.yaml", cwd=tmp_path, expect=2).stderr
        assert f"launch.slurm.timeout: is '{time}'" in told and "such as 12:00:00" in told


def test_a_grid_may_name_its_points_on_and_off(tmp_path):
    points = "grid:\n  probe: {on: {evaluation.probe: 4}, off: {evaluation.probe: 0}}\n"
    (tmp_path / "s.yaml").write_text(TINY.split("grid:")[0] + points)
    told = run_here("sweep", "s.yaml", "--dry-run", cwd=tmp_path).stdout
    assert "none / on" in told.replace("\n", " ") or " on" in told, told
