"""Colours of HDR video → sRGB, with HDR's reference white as white.

FFmpeg's own conversion prepares a table for seconds first. Numbers are from ITU-R BT.2100 (transfer functions), BT.2087
(primaries) and BT.2408 (reference white).
"""

from functools import cache

import numpy as np

# numbers of ITU-T H.273, which FFmpeg uses
PQ, HLG = 16, 18  # transfer characteristics
BT2020 = 9  # colour primaries
WHITE = 203.0  # cd/m² of reference white
PEAK = 1000.0  # cd/m² of the screen for which HLG is shown
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
LUMINANCE = np.array([0.2627, 0.678, 0.0593], dtype=np.float32)  # of BT.2020


def to_srgb(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Convert frames of HDR or BT.2020 to sRGB. What is brighter than reference white becomes white.

    Args:
        pixels: uint16[H, W, 3].
        transfer, primaries: numbers of ITU-T H.273; other transfer characteristics than PQ and HLG count as sRGB.

    Returns:
        uint8[H, W, 3].
    """
    light = _table(transfer)[pixels]
    if transfer == HLG:
        light *= (light @ LUMINANCE)[..., None] ** 0.2 * (PEAK / WHITE)
    if primaries == BT2020:
        light = light @ TO_BT709.T
    light = light.clip(0, 1)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * coded).astype(np.uint8)


@cache
def _table(transfer: int) -> np.ndarray:
    """Return the light of each coded value, float32[65536]: 1 is reference white, or HLG's brightest scene light."""
    signal = np.linspace(0, 1, 1 << 16)
    if transfer == PQ:
        power = signal ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        light *= 10000 / WHITE
    elif transfer == HLG:
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    else:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)
