"""Blocks look the same everywhere, and apart for every eye."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from rad_bench.report.style import BUILT_IN, COLOURS, block_styles

# What an eye without one kind of cones sees of linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def seen(colour, eye):
    rgb = np.clip(np.array(EYES[eye]) @ linear(colour), 0, 1)
    return rgb2lab(np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055))


def contrast(colour, ground):
    high, low = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (colour, ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("eye", EYES)
def test_the_main_blocks_differ_in_colour_for_every_eye_and_all_blocks_in_colour_or_marker(eye):
    main = ("none", "lstm", "mamba2", "ttt", "attention")
    for a, b in itertools.combinations(BUILT_IN, 2):
        apart = deltaE_ciede2000(seen(BUILT_IN[a][0], eye), seen(BUILT_IN[b][0], eye))
        if a in main and b in main:
            assert apart > 10, (a, b, apart)
        assert apart > 20 or BUILT_IN[a][1] != BUILT_IN[b][1], (a, b)


def test_colours_are_seen_on_white_and_on_a_dark_page():
    forms = [f"{name}(size={size})" for name in BUILT_IN for size in range(4)]
    for colour in [*COLOURS, *(style.colour for style in block_styles(forms).values())]:
        assert contrast(colour, "#ffffff") > 1.4 and contrast(colour, "#161616") > 1.6, colour


def test_a_block_looks_the_same_whatever_else_a_sweep_holds():
    alone = block_styles(["mamba2"])["mamba2"]
    mine = block_styles(["MyMemory"])["MyMemory"]
    together = block_styles(["none", "mamba2", "MyMemory", "attention", "copy-last"])
    assert together["mamba2"] == alone and together["MyMemory"] == mine


def test_controls_are_told_apart():
    styles = block_styles(["none", "copy-last", "autoencoder"])
    assert len(set(styles.values())) == 3


def test_users_blocks_never_look_alike_in_one_sweep():
    names = [f"Block{number}" for number in range(30)]
    styles = block_styles([*names, *BUILT_IN])
    assert len(set(styles.values())) == len(styles)
    assert block_styles([*reversed(names), *BUILT_IN]) == styles


def test_forms_of_a_block_share_a_hue_and_differ():
    styles = block_styles(["ttt(inner=a)", "ttt(inner=b)", "ttt(inner=c)", "lstm / w=1", "lstm / w=2"])
    assert len(set(styles.values())) == 5
    assert styles["ttt(inner=b)"].colour == BUILT_IN["ttt"][0]
