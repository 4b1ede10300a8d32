"""Sizes and durations as text."""

import pytest

from rad_bench.units import show_bytes, show_seconds


def test_sizes_have_three_digits_and_the_largest_unit_that_leaves_one_before_the_point():
    sizes = {0: "0 bytes", 512: "512 bytes", 999.4: "999 bytes", 51_200: "51.2 kB", 999_900: "1 MB", 3e13: "30 TB"}
    assert {count: show_bytes(count) for count in sizes} == sizes


def test_durations_have_two_digits():
    durations = {0.0123: "12 ms", 0.999: "1 s", 47.8: "48 s", 99.9: "1.7 min", 40_000: "11 h"}
    assert {seconds: show_seconds(seconds) for seconds in durations} == durations


@pytest.mark.parametrize("show", [show_bytes, show_seconds])
def test_no_number_is_written_with_an_exponent(show):
    assert not [text for power in range(-3, 15) for text in [show(9.999 * 10**power)] if "e+" in text]
