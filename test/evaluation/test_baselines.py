"""The free baselines. The Laplacian pyramid is also held to the golden values in test_metrics.py."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from isfl_ros.evaluation.baselines import BASELINES


def _pictures(height=61, width=47, seed=0):
    random = np.random.default_rng(seed)
    return tuple(random.integers(0, 256, (height, width), dtype=np.uint8) for _ in range(2))


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("size", [(61, 47), (33, 41), (480, 640)])
def test_shape_dtype_and_untouched_input(name, size):
    infrared, luma = _pictures(*size)
    copies = infrared.copy(), luma.copy()
    fused = BASELINES[name](infrared, luma)
    assert fused.shape == size and fused.dtype == np.uint8
    fused[:] = 7  # the result is nobody else's memory
    np.testing.assert_array_equal(infrared, copies[0])
    np.testing.assert_array_equal(luma, copies[1])


@pytest.mark.parametrize("name", BASELINES)
def test_a_picture_fused_with_itself_is_itself(name):
    picture, _ = _pictures()
    np.testing.assert_array_equal(BASELINES[name](picture, picture), picture)


def test_pixelwise_baselines_on_every_pair_of_levels():
    infrared, luma = (x.astype(np.uint8) for x in np.mgrid[0:256, 0:256])
    expected = {
        "average": [[(i + v + 1) // 2 for v in range(256)] for i in range(256)],
        "maximum": [[max(i, v) for v in range(256)] for i in range(256)],
        "infrared": infrared,
        "visible": luma,
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(BASELINES[name](infrared, luma), values, err_msg=name)


def test_laplacian_keeps_the_detail_of_the_livelier_source():
    height, width = 64, 96
    pattern = 30 * ((np.arange(width) // 2 % 2) * 2 - 1)  # stripes finer than the base can hold
    infrared, luma = np.full((height, width), 100), np.full((height, width), 160)
    infrared[:, :48] += pattern[:48]
    luma[:, 48:] += pattern[48:]
    fused = BASELINES["laplacian"](infrared.astype(np.uint8), luma.astype(np.uint8)).astype(int)
    for columns in (slice(16, 32), slice(64, 80)):  # clear of the seam and the borders
        part = fused[16:48, columns]
        assert part.std() == pytest.approx(30, abs=1.5)
        assert part.mean() == pytest.approx(130, abs=3)


def _blend(infrared, luma, levels):
    """The definition, as a recursion: blended detail on top of the blend of the next coarser pair."""
    if levels == 0:
        return (infrared + luma) / 2
    size = luma.shape[1], luma.shape[0]
    down_ir, down_vi = cv2.pyrDown(infrared), cv2.pyrDown(luma)
    detail_ir, detail_vi = infrared - cv2.pyrUp(down_ir, dstsize=size), luma - cv2.pyrUp(down_vi, dstsize=size)
    e_ir, e_vi = (cv2.GaussianBlur(np.abs(detail), (5, 5), 1.0) for detail in (detail_ir, detail_vi))
    detail = np.where(e_vi / (e_vi + e_ir + 1e-6) > 0.5, detail_vi, detail_ir)
    return cv2.pyrUp(_blend(down_ir, down_vi, levels - 1), dstsize=size) + detail


@pytest.mark.parametrize("size", [(61, 47), (120, 161)])
@pytest.mark.parametrize("kind", ["noise", "equal energies"])
def test_laplacian_is_its_definition(kind, size):
    infrared, luma = _pictures(*size)
    if kind == "equal energies":  # mirrored details: infrared has to win the tie
        luma = 255 - infrared
    expected = _blend(infrared.astype(np.float32), luma.astype(np.float32), levels=4)
    fused = BASELINES["laplacian"](infrared, luma)
    np.testing.assert_array_equal(fused, np.clip(np.round(expected), 0, 255).astype(np.uint8))
