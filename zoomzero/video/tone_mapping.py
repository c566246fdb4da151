"""High dynamic range shown on an ordinary display: PQ and HLG to BT.709, by the curve of ITU-R BT.2390.

1. Code values become light on a display of 1000 cd/m2: PQ by the EOTF of SMPTE ST 2084, HLG by the inverse OETF and
   the OOTF of ITU-R BT.2100 with a system gamma of 1.2.
2. The largest of R, G and B is brought from 1000 to 203 cd/m2 (the white of ITU-R BT.2408) by the EETF of BT.2390-8,
   5.4.1, in PQ: straight up to the knee, then a Hermite spline. All three are scaled alike, so hues stay.
3. BT.2020 colours become BT.709 ones (ITU-R BT.2087); what lies outside is cut.
4. Light becomes code values by the inverse of BT.1886: (light / 203) ** (1 / 2.4).

Light above 1000 cd/m2 is cut to it; mastering metadata is not looked at, so that a frame's pixels depend on its code
values alone.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

PEAK = 1000.0
WHITE = 203.0

# SMPTE ST 2084.
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
# ITU-R BT.2100, HLG.
_A = 0.17883277
_B, _C = 1 - 4 * _A, 0.5 - _A * np.log(4 * _A)
_SYSTEM_GAMMA = 1.2
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
# ITU-R BT.2087: BT.2020 to BT.709 in linear light.
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
DISPLAY_GAMMA = 2.4

# Transfer characteristics as ITU-T H.273 numbers them.
PQ, HLG = 16, 18
BT2020_PRIMARIES = 9

_STEPS = 65535
# Rows converted at a time: 10 MB of a frame 4096 pixels wide.
_BAND_ROWS = 128

Floats = npt.NDArray[np.floating]


def pq_to_light(signal: Floats) -> Floats:
    """cd/m2 of PQ code values in [0, 1]."""
    power = np.power(signal, 1 / _M2)
    result: Floats = 10000 * np.power(np.maximum(power - _C1, 0) / (_C2 - _C3 * power), 1 / _M1)
    return result


def light_to_pq(light: Floats) -> Floats:
    """PQ code values in [0, 1] of cd/m2."""
    power = np.power(np.maximum(light, 0) / 10000, _M1)
    result: Floats = np.power((_C1 + _C2 * power) / (1 + _C3 * power), _M2)
    return result


def hlg_to_scene(signal: Floats) -> Floats:
    """Scene light in [0, 1] of HLG code values in [0, 1]."""
    result: Floats = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - _C) / _A) + _B) / 12)
    return result


def tone_curve(light: Floats) -> Floats:
    """cd/m2 on a display of WHITE for cd/m2 on one of PEAK: the EETF of BT.2390 for a black of 0."""
    peak = float(light_to_pq(np.array(PEAK)))
    most = float(light_to_pq(np.array(WHITE))) / peak
    knee = 1.5 * most - 0.5
    level = np.minimum(light_to_pq(light) / peak, 1)
    t = (level - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return pq_to_light(np.where(level < knee, level, spline) * peak)


@functools.cache
def _pq_table() -> npt.NDArray[np.float32]:
    """Light, in PEAKs, of a 16-bit PQ code value."""
    return np.minimum(pq_to_light(np.arange(_STEPS + 1) / _STEPS) / PEAK, 1).astype(np.float32)


@functools.cache
def _hlg_table() -> npt.NDArray[np.float32]:
    return hlg_to_scene(np.arange(_STEPS + 1) / _STEPS).astype(np.float32)


@functools.cache
def _gain_table() -> npt.NDArray[np.float32]:
    """Light of an ordinary display, in WHITEs, per light in PEAKs; by the square root of the latter."""
    light = (np.arange(_STEPS + 1) / _STEPS) ** 2
    light[0] = light[1]
    return (tone_curve(light * PEAK) / WHITE / light).astype(np.float32)


@functools.cache
def _code_table() -> npt.NDArray[np.uint8]:
    """Code values by the square root of light in WHITEs."""
    return np.round(255 * (np.arange(_STEPS + 1) / _STEPS) ** (2 / DISPLAY_GAMMA)).astype(np.uint8)


def _by_root(light: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return (np.sqrt(light) * _STEPS + 0.5).astype(np.uint16)


def to_sdr(codes: npt.NDArray[np.uint16], transfer: int, primaries: int) -> npt.NDArray[np.uint8]:
    """The frame an ordinary display shows.

    Args:
        codes: uint16 [H, W, 3], R'G'B' in full range.
        transfer: PQ or HLG.
        primaries: as H.273 numbers them; BT.2020's (and none stated) are converted to BT.709's.

    Returns:
        uint8 [H, W, 3].
    """
    frame = np.empty(codes.shape, dtype=np.uint8)
    for top in range(0, len(codes), _BAND_ROWS):
        band = codes[top : top + _BAND_ROWS]
        if transfer == PQ:
            light = _pq_table()[band]
        else:
            scene = _hlg_table()[band]
            light = scene * np.power(np.maximum(scene @ _LUMINANCE, 1e-9), _SYSTEM_GAMMA - 1)[..., None]
        light = light * _gain_table()[_by_root(light.max(axis=-1))][..., None]
        if primaries in (BT2020_PRIMARIES, 2, 0):
            light = light @ _TO_BT709.T
        frame[top : top + _BAND_ROWS] = _code_table()[_by_root(np.clip(light, 0, 1))]
    return frame
