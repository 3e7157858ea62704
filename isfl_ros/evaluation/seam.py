"""How visible the edge of a region is in a fused picture, where a modality is missing inside the region.

What an eye takes for a seam is a step of brightness that follows the edge and that the scene does not have. So:

1. Along the edge and along parallel lines, up to 10 px to either side and 2 px apart, the step across a line is the
   mean of the 2 px on its inner side minus that of the 2 px on its outer side, over a run of about 16 px along the
   line. A mean over a run takes out texture; runs are short, because a seam may be brighter here and darker there.
2. What is there anyway: a step between 0 and those of the two complete sources at the same place is the scene. Only how
   far the fused picture's step lies outside that range counts; the mean over all runs, weighted by their length.
3. A gradual transition is no seam: from each line's mean that of the lines 4 and 6 px to either side of it is taken.
4. The figure is the largest over the edge and the lines up to 4 px from it, where a network may have put its
   transition; not below 0.

In grey levels: a hard step of k on flat ground is k, a ramp over 4 px about k/2, one over 16 px about k/20, texture and
edges of the scene about 0. Detail that no source has scatters it on a short edge.
"""

from __future__ import annotations

import numpy as np

from isfl_ros.evaluation.regions import nearest_inside, signed_distance

BAND_PX = 2
"""Width of the bands whose means are compared, and distance of the lines."""
RUN_PX = 16
"""Side of the cells into which the edge is cut."""
_BANDS = 12  # six on either side of the edge
_EDGE = _BANDS // 2 - 1  # index of the line that is the edge: line k lies between bands k and k + 1
_NEAR = range(_EDGE - 2, _EDGE + 3)
_PARALLEL = (-3, -2, 2, 3)  # lines 4 and 6 px to either side
_LEAST_PIXELS = 8  # of a band in a run: a quarter of a whole one


def seam(fused: np.ndarray, infrared: np.ndarray, visible: np.ndarray, region: np.ndarray) -> float | None:
    """The figure of this module.

    Args:
        fused: (H, W) uint8, made with one modality missing in the region.
        infrared, visible: (H, W) uint8, both complete.
        region: (H, W) bool.

    Returns:
        Grey levels >= 0; None where there is too little edge.
    """
    if region.all() or not region.any():
        return None
    distance = signed_distance(region)
    reach = BAND_PX * _BANDS // 2
    near = np.abs(distance) < reach
    band = (np.floor(distance[near] / BAND_PX) + _BANDS // 2).astype(np.intp)
    rows, columns = np.divmod(nearest_inside(region)[near], region.shape[1])
    cells = (rows // RUN_PX) * (region.shape[1] // RUN_PX + 1) + columns // RUN_PX
    runs, run = np.unique(cells, return_inverse=True)
    place = run * _BANDS + band

    def per_run(weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(place, weights, len(runs) * _BANDS).reshape(-1, _BANDS)

    counts = per_run()
    known = counts >= _LEAST_PIXELS

    def steps(picture: np.ndarray) -> np.ndarray:
        """(runs, lines), inner minus outer; whatever where a band is not known."""
        return np.diff(per_run(picture[near].astype(np.float64)) / np.maximum(counts, 1), axis=1)

    in_sources = np.stack([steps(infrared), steps(visible), np.zeros((len(runs), _BANDS - 1))])
    excess = np.abs(steps(fused) - np.clip(steps(fused), in_sources.min(axis=0), in_sources.max(axis=0)))
    weights = np.where(known[:, 1:] & known[:, :-1], counts[:, [_EDGE + 1]], 0).astype(np.float64)
    length = weights.sum(axis=0)
    if not length[_EDGE]:
        return None
    means = np.divide((weights * excess).sum(axis=0), length, out=np.full(len(length), np.nan), where=length > 0)
    found = []
    for line in _NEAR:
        parallel = means[[line + offset for offset in _PARALLEL]]
        if np.isfinite(means[line]) and np.isfinite(parallel).any():
            found.append(means[line] - np.nanmean(parallel))
    return max(0.0, float(max(found))) if found else None
