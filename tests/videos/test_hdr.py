"""Colours of HDR."""

import numpy as np
import pytest

from sparse_vlm.videos.hdr import BT2020, HLG, PQ, to_srgb

BT709, SRGB = 1, 13


def grey(signal: float) -> np.ndarray:
    return np.full((1, 1, 3), round(65535 * signal), np.uint16)


# BT.2408, table 1: signals of reference white and of a grey card (18 % to 26 cd/m²) on a screen of 1000 cd/m²
@pytest.mark.parametrize(("transfer", "white", "card"), [(PQ, 0.58, 0.38), (HLG, 0.75, 0.38)])
def test_reference_white_and_the_grey_card(transfer: int, white: float, card: float) -> None:
    assert to_srgb(grey(white), transfer, BT2020).min() >= 253
    assert to_srgb(grey(0), transfer, BT2020).max() == 0
    found = to_srgb(grey(card), transfer, BT2020)[0, 0]
    assert np.ptp(found) <= 1
    linear = ((found[0] / 255 + 0.055) / 1.055) ** 2.4
    assert linear == pytest.approx(26 / 203, abs=0.02)


def test_colours_of_bt2020_without_hdr() -> None:
    signal = np.arange(0, 1.01, 0.1)
    same = to_srgb(np.repeat(np.rint(65535 * signal)[None, :, None], 3, 2).astype(np.uint16), SRGB, BT2020)
    assert np.allclose(same[0, :, 0], 255 * signal, atol=1)
    red = np.array([[[50000, 20000, 20000]]], np.uint16)  # is redder in the smaller gamut
    assert to_srgb(red, SRGB, BT2020)[0, 0, 0] > to_srgb(red, SRGB, BT709)[0, 0, 0]
