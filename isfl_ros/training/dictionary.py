"""Builds the confounder dictionaries of the second paper (section 3.2) from training pairs, and shows what they hold.

Features of a frozen backbone, principal components, K-Means++, and of every cluster the mean. The paper's backbone is
an ImageNet classifier; ours is an encoder of this package, which needs no weights from elsewhere. Its features say what
a place looks like (sky, foliage, lamp, road), less what scene it is part of, so that every picture gives the means over
a grid of regions and not over the whole: a region is also what a query of a single pixel can resemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from isfl_ros.errors import InputError, require_module
from isfl_ros.io.folders import write_png
from isfl_ros.network.baffm import MODALITIES
from isfl_ros.network.checkpoint import load_model, weights_sha256
from isfl_ros.network.config import MINIMUM_SIZE, BaffmConfig
from isfl_ros.network.dictionary import Dictionaries, DictionaryRecord, digest_of
from isfl_ros.network.model import for_inference
from isfl_ros.resources import resolve_model
from isfl_ros.training.config import DictionaryConfig
from isfl_ros.training.data import LoadedPair
from isfl_ros.visualization import captioned

SHEETS = {modality: f"prototypes_{modality}.png" for modality in MODALITIES}
"""Files in which the prototypes of each modality are shown."""
_STARTS = 8  # of K-Means++; the best is kept
_SHOWN, _CELL_PX, _COLUMNS = 6, 88, 2


class Backbone:
    """The encoders whose features the dictionaries are made of, frozen.

    Args:
        name: name of a shipped model, or a model folder.
        device: where it runs.

    Raises:
        InputError: there is no such model, or it has no encoders.
    """

    def __init__(self, name: str, *, device: torch.device | str = "cpu"):
        directory = resolve_model(name)
        network, info = load_model(directory)
        if not hasattr(network, "encode"):
            raise InputError(f"backbone {name} has no encoders", expected="a model isfl or baffm", got=info.model)
        self.name = info.name
        self.sha256 = weights_sha256(directory)
        self._network = for_inference(network, device=device)
        self._device = device

    @torch.inference_mode()
    def features(self, picture: np.ndarray, modality: str, regions: int) -> np.ndarray:
        """Means over a grid of regions of a picture, every scale's channels one after the other.

        Args:
            picture: (H, W) uint8, H and W >= 32.
            modality: ``visible`` or ``infrared``.
            regions: regions along each side.

        Returns:
            (regions^2, scales * width) float32, row by row of the grid.
        """
        tensor = torch.tensor(picture, device=self._device).to(torch.float32)[None, None] / 255.0
        pooled = [F.adaptive_avg_pool2d(f, regions)[0].flatten(1) for f in self._network.encode(tensor, modality)]
        return torch.cat(pooled).T.cpu().numpy()


def build_dictionaries(
    pairs: Sequence[LoadedPair],
    config: DictionaryConfig,
    network: BaffmConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> tuple[Dictionaries, dict[str, np.ndarray]]:
    """Both dictionaries of a set of training pairs. The same pairs, configuration and seed give the same ones.

    Args:
        pairs: the training pairs.
        config: backbone and regions.
        network: number and entries of the prototypes.
        seed: of K-Means++.
        device: of the backbone.
        quiet: no progress bar.

    Returns:
        The dictionaries, and a picture sheet (h, w, 3) uint8 for each modality.

    Raises:
        InputError: fewer pictures than prototypes, fewer different features than prototypes, more principal components
            than features have entries, a picture below 32 pixels, or no scikit-learn.
    """
    require_module("sklearn", extra="train")
    if len(pairs) < network.prototypes:
        raise InputError(
            "fewer training images than prototypes",
            expected=f"at least {network.prototypes} pairs (network.prototypes)",
            got=str(len(pairs)),
            do="name more sets in data.sets or lower network.prototypes",
        )
    backbone = Backbone(config.backbone, device=device)
    gathered: dict[str, list[np.ndarray]] = {modality: [] for modality in MODALITIES}
    for pair in tqdm(pairs, desc="dictionary: features", unit="pair", leave=False, disable=quiet):
        if min(pair.visible.shape) < MINIMUM_SIZE:
            got = f"{pair.stem} {pair.visible.shape[1]}x{pair.visible.shape[0]}"
            raise InputError("a training picture is too small", expected=f"{MINIMUM_SIZE} px and more", got=got)
        for modality in MODALITIES:
            gathered[modality].append(backbone.features(getattr(pair, modality), modality, config.regions))
    tensors: dict[str, Tensor] = {}
    sheets: dict[str, np.ndarray] = {}
    explained, members = {}, {}
    for modality in tqdm(MODALITIES, desc="dictionary: clusters", unit="modality", leave=False, disable=quiet):
        features = np.concatenate(gathered[modality]).astype(np.float64)
        different = len(np.unique(features, axis=0))
        if different < network.prototypes:
            raise InputError(
                f"the {modality} training pictures have fewer different regions than prototypes",
                expected=f"at least {network.prototypes}",
                got=str(different),
                do="name other sets in data.sets or lower network.prototypes",
            )
        reduced, explained[modality] = _principal_components(features, network.entries)
        means, labels = _cluster_means(reduced, network.prototypes, seed)
        members[modality] = np.bincount(labels).tolist()
        nearest = _nearest(reduced, means, config.regions**2)
        sheets[modality] = _sheet(pairs, modality, config.regions, nearest, members[modality])
        # One factor for all: distances keep their proportions, and scores start at a size that softmax can use.
        tensors[modality] = torch.from_numpy((means / np.sqrt(np.mean(means**2))).astype(np.float32))
    record = DictionaryRecord(
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        backbone_width=gathered["visible"][0].shape[1],
        regions=config.regions,
        prototypes=network.prototypes,
        entries=network.entries,
        images=len(pairs),
        seed=seed,
        explained_variance=explained,
        members=members,
        sha256=digest_of(tensors["visible"], tensors["infrared"]),
    )
    return Dictionaries(tensors["visible"], tensors["infrared"], record), sheets


def write_sheets(folder: Path, sheets: dict[str, np.ndarray]) -> None:
    """Writes a PNG for each modality."""
    for modality, sheet in sheets.items():
        write_png(folder / SHEETS[modality], sheet)


def _principal_components(features: np.ndarray, entries: int) -> tuple[np.ndarray, float]:
    """(n, F) to (n, entries), and the part of the variance that is left."""
    from sklearn.decomposition import PCA

    if entries > min(features.shape):
        raise InputError(
            "more principal components than the features have",
            expected=f"network.entries of at most {min(features.shape)}",
            got=str(entries),
            do="lower network.entries, raise dictionary.regions or choose a wider backbone",
        )
    components = PCA(n_components=entries, svd_solver="full")
    reduced = components.fit_transform(features)
    return reduced, float(components.explained_variance_ratio_.sum())


def _cluster_means(features: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (count, D) of K-Means++'s clusters, the most numerous first, and the cluster of every feature (n,)."""
    from sklearn.cluster import KMeans

    labels = KMeans(n_clusters=count, init="k-means++", n_init=_STARTS, random_state=seed).fit(features).labels_
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    labels = np.argsort(order)[labels]
    return np.stack([features[labels == k].mean(axis=0) for k in range(count)]), labels


def _nearest(features: np.ndarray, means: np.ndarray, regions: int) -> list[list[int]]:
    """Of every mean the indices of the nearest features, one of a picture at most."""
    found = []
    for mean in means:
        order = np.argsort(((features - mean) ** 2).sum(axis=1), kind="stable")
        _, first = np.unique(order // regions, return_index=True)  # the nearest of every picture
        found.append(order[np.sort(first)][:_SHOWN].tolist())
    return found


def _sheet(
    pairs: Sequence[LoadedPair], modality: str, regions: int, nearest: list[list[int]], members: list[int]
) -> np.ndarray:
    """A row a prototype, in two columns of rows."""
    strips = []
    for number, (indices, count) in enumerate(zip(nearest, members), 1):
        cells = [np.zeros((_CELL_PX, _CELL_PX), np.uint8)]
        for index in indices:
            picture, place = divmod(index, regions**2)
            patch = _region(getattr(pairs[picture], modality), *divmod(place, regions), regions)
            cells.append(cv2.resize(patch, (_CELL_PX, _CELL_PX), interpolation=cv2.INTER_AREA))
        cells += [np.zeros((_CELL_PX, _CELL_PX), np.uint8)] * (1 + _SHOWN - len(cells))
        strips.append(captioned(np.hstack(cells), f"z{number} n={count}"))
    rows = -(-len(strips) // _COLUMNS)
    strips += [np.zeros_like(strips[0])] * (rows * _COLUMNS - len(strips))
    return np.hstack([np.vstack(strips[k * rows : (k + 1) * rows]) for k in range(_COLUMNS)])


def _region(picture: np.ndarray, row: int, column: int, regions: int) -> np.ndarray:
    """The part of a picture that adaptive average pooling takes for a region."""
    height, width = picture.shape
    top, left = row * height // regions, column * width // regions
    bottom, right = -(-(row + 1) * height // regions), -(-(column + 1) * width // regions)
    return picture[top:bottom, left:right]
