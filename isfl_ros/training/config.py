"""Training configuration: one YAML file, refused where it has a key or a value that does not exist."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from torch import nn

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import MODELS
from isfl_ros.network.config import ARCHITECTURES, config_from_dict
from isfl_ros.resources import shared_directory

VARIANTS = ("complementary", "identical", "drop_infrared", "drop_visible")


def _require(ok: bool, key: str, expected: str, got: object) -> None:
    if not ok:
        raise InputError(f"{key} out of range", expected=expected, got=repr(got))


def _choice(value: str, key: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, f"one of {', '.join(choices)}", value)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pairs, and how patches are cut from them."""

    sets: tuple[str, ...] = ()
    """Set specifications (see isfl_ros.io.dataset), relative to the data root."""
    validation: tuple[str, ...] = ()
    """Sets on which the fusion loss is reported; never trained on."""
    validation_pairs: int = 8
    """Pairs of each validation set that are used."""
    patch: int = 256
    """Side of the square patches in pixels."""
    batch: int = 16
    """Patches in a step, over all processes."""
    people_share: float = 0.0
    """Part of the patches of pairs with labelled persons that is placed on one of them, chosen by area; the rest lies anywhere."""
    least_scale: float = 1.0
    """Patches are cut at a random scale between this and 1 and reduced to the patch size; 1 switches it off."""
    tone: float = 0.0
    """Half of the patches get a random exposure and contrast, each picture its own: a power of exp(+-this), contrast down to
    exp(-2 * this) of itself, and any brightness that this leaves room for: other cameras, other gain controls."""
    sharpen: float = 0.0
    """Half of the patches are sharpened (unsharp mask of 1 px) by a random amount up to this, each picture by its own: sharper
    cameras than those of the training pairs; 0 switches it off."""

    def __post_init__(self) -> None:
        _require(self.patch >= 32, "data.patch", ">= 32", self.patch)
        _require(self.batch >= 1, "data.batch", ">= 1", self.batch)
        _require(0.1 <= self.least_scale <= 1.0, "data.least_scale", "0.1 to 1", self.least_scale)
        _require(0.0 <= self.people_share <= 1.0, "data.people_share", "0 to 1", self.people_share)
        _require(0.0 <= self.tone <= 1.0, "data.tone", "0 to 1", self.tone)
        _require(0.0 <= self.sharpen <= 4.0, "data.sharpen", "0 to 4", self.sharpen)
        _require(self.validation_pairs >= 1, "data.validation_pairs", ">= 1", self.validation_pairs)


@dataclass(frozen=True, kw_only=True)
class InterventionConfig:
    """The interventions of paper section 3.2; each can be switched off."""

    complementary: bool = True
    """Masks that never occlude both modalities at one pixel (equation 2)."""
    identical: bool = True
    """One mask for both modalities (equation 3)."""
    drop_infrared: bool = True
    """The whole infrared picture missing (equation 4)."""
    drop_visible: bool = True
    """The whole visible picture missing (equation 4)."""
    per_step: int = 0
    """Interventions drawn at random in a step; 0 takes all. Sums over them are scaled, so that their
    expectation stays."""
    square: int = 16
    """Side of an occluding square in pixels."""
    most_squares: int = 6
    """One to this many squares a picture."""
    most_area: float = 0.5
    """Largest occluded part of the patch."""
    disks: float = 0.0
    """Part of the squares that are disks instead (release: 0.3)."""
    overlap: str = "trim"
    """Complementary squares that meet: ``trim`` (the visible's stay) or ``coin`` (drawn per pixel, release)."""
    large: float = 0.0
    """Probability that a complementary sample gets one large region instead (band, half frame, irregular holes)."""
    specks: float = 0.0
    """Probability that it gets scattered single pixels and squares of 2 or 3 px instead: dead pixels, NaN."""

    def __post_init__(self) -> None:
        _choice(self.overlap, "interventions.overlap", ("trim", "coin"))
        _require(0 <= self.per_step <= len(VARIANTS), "interventions.per_step", "0 to 4", self.per_step)
        _require(self.square >= 1, "interventions.square", ">= 1", self.square)
        _require(self.most_squares >= 1, "interventions.most_squares", ">= 1", self.most_squares)
        for key in ("most_area", "disks", "large", "specks"):
            _require(0.0 <= getattr(self, key) <= 1.0, f"interventions.{key}", "0 to 1", getattr(self, key))

    def active(self) -> tuple[str, ...]:
        """Names of the interventions that are on."""
        return tuple(name for name in VARIANTS if getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Every term of the objective with its weight (0 switches it off) and its reading."""

    intensity: float = 1.0
    """Weight of the intensity term (equation 10)."""
    intensity_target: str = "sources"
    """``sources``: |F - vi| + |F - ir| (equation 10); ``maximum``: |F - max(vi, ir)|, which keeps the contrast of what is bright."""
    structure: float = 1.0
    """lambda_1: weight of the structure term (equation 10)."""
    structure_operator: str = "laplacian4"
    """``laplacian4``, ``laplacian8`` (release) or ``sobel``."""
    structure_reading: str = "signed_max"
    """``signed_max`` (as printed), ``absolute`` (absolute values on both sides, release), ``larger`` (the signed value of
    larger magnitude) or ``weighted`` (the mean, weighted by the energy that each has around the pixel)."""
    structure_scales: int = 1
    """Octaves at which the structure term is taken, each on the pictures halved once more."""
    structure_decay: float = 1.0
    """Weight of each octave relative to the one before, finer one."""
    structure_gain: float = 1.0
    """Factor on the target of the structure term."""
    structure_gain_conflict: float = 0.0
    """That factor where both sources have an edge and the two disagree (readings ``larger`` and ``weighted``): strengthening one buries the other
    there. 0: as elsewhere."""
    structure_gain_scales: int = 6
    """Octaves, finest first, to which the factor applies; 1 on the others."""
    detail: float = 0.0
    """Weight of the detail term: the energy of the edges around a pixel is what ``detail_keep`` and ``detail_yield`` ask for; not in the paper."""
    detail_keep: float = 1.17
    """Part of the stronger source's edges that is asked for."""
    detail_yield: float = 0.55
    """Part of the weaker source's edges that is taken off again: where both are full of edges, strengthening one buries the
    other."""
    detail_sharp: float = 0.0
    """How much more edges are asked for in sharper pictures, where strengthening costs less: the factor is 1 plus this times the
    sharpness above the usual (:func:`isfl_ros.training.losses.sharpness`), at least 0.5."""
    detail_sharp_most: float = 1.2
    """Largest such factor: the sharpest pictures would otherwise drift towards grain."""
    overshoot: float = 0.0
    """Weight of edges stronger than the stronger source's where that buries the weaker source's; not in the paper."""
    overshoot_sharp: float = 0.0
    """How much less such edges cost in sharper pictures: the factor is 1 minus this times the sharpness above the usual, at most 1.5."""
    overshoot_sharp_least: float = 0.35
    """Least such factor."""
    ssim: float = 0.0
    """Weight of (1 - SSIM(F, vi)) + (1 - SSIM(F, ir)); not in the paper."""
    target: float = 0.0
    """Weight of the hot-target term: local contrast of thermally salient regions is kept; not in the paper."""
    people: float = 0.0
    """Weight of the people term: every labelled person stands out as much as in the better source, bright or dark as infrared has
    them; not in the paper. Pairs without labels do not take part."""
    base: float = 0.0
    """Weight of the base term: brightness of the surroundings is the mean of the two pictures'; not in the paper."""
    correlation: float = 0.0
    """Weight of (1 - correlation(F, vi)) + (1 - correlation(F, ir)) over a patch, less for a flat source; not in the paper."""
    fidelity: float = 0.0
    """Weight of |F - surviving modality| where exactly one modality is valid; not in the paper."""
    undisturbed: float = 0.0
    """Weight of the difference that a mask makes where both modalities are valid, mostly near its edge; not in the paper."""
    alpha: float = 0.1
    """Weight of the intervention consistency (equation 9)."""
    consistency_gates: str = "original"
    """Gates that weigh the differences: of the ``original`` pass or of the ``masked`` passes (release)."""
    consistency_detach: bool = False
    """Whether those weights are cut off from the gradient."""
    consistency_region: str = "all"
    """``all`` pixels, or those where ``both_valid``."""
    regularizer: float = 1.0
    """Weight of the gate regularisation R inside the consistency term (equation 12)."""
    eta: float = 0.3
    """Target of the mean gate (equation 12)."""
    entropy: str = "pixel"
    """``pixel`` (binary entropy of each gate value), ``spatial`` (of the normalised map, over its maximum) or ``off``."""
    entropy_sign: str = "reward"
    """``reward`` (minus H, as printed) or ``penalise`` (plus H, "binary-like decisions" as the text says)."""
    entropy_weight: float = 1.0
    """Weight of the entropy inside R, relative to the distance to eta."""
    stability: float = 0.0
    """Weight of the term that opens gates where the picture stays the same under intervention; not in the paper."""
    beta: float = 0.05
    """Weight of the modal necessity (equation 9)."""
    necessity: str = "literal"
    """``literal`` (differences minimised, as printed and released) or ``contrast`` (kept above a margin, as the text says)."""
    necessity_margin: float = 0.1
    """Mean absolute difference above which ``contrast`` asks for no more."""

    def __post_init__(self) -> None:
        _choice(self.intensity_target, "loss.intensity_target", ("sources", "maximum"))
        _choice(self.structure_operator, "loss.structure_operator", ("laplacian4", "laplacian8", "sobel"))
        _choice(self.structure_reading, "loss.structure_reading", ("signed_max", "absolute", "larger", "weighted"))
        _choice(self.consistency_gates, "loss.consistency_gates", ("original", "masked"))
        _choice(self.consistency_region, "loss.consistency_region", ("all", "both_valid"))
        _choice(self.entropy, "loss.entropy", ("pixel", "spatial", "off"))
        _choice(self.entropy_sign, "loss.entropy_sign", ("reward", "penalise"))
        _choice(self.necessity, "loss.necessity", ("literal", "contrast"))
        for key, number in vars(self).items():
            _require(not isinstance(number, float) or math.isfinite(number), f"loss.{key}", "a finite number", number)
        _require(1 <= self.structure_scales <= 6, "loss.structure_scales", "1 to 6", self.structure_scales)
        _require(0.0 < self.structure_decay <= 1.0, "loss.structure_decay", "above 0, at most 1", self.structure_decay)
        conflict = self.structure_gain_conflict
        _require(0.0 <= conflict <= 4.0, "loss.structure_gain_conflict", "0 to 4", conflict)
        _require(
            not conflict or self.structure_reading in ("larger", "weighted"),
            "loss.structure_gain_conflict",
            "0 with this structure_reading: only larger and weighted know a weaker edge",
            conflict,
        )
        _require(0 <= self.structure_gain_scales <= 6, "loss.structure_gain_scales", "0 to 6", self.structure_gain_scales)
        _require(self.detail_sharp_most >= 1.0, "loss.detail_sharp_most", ">= 1", self.detail_sharp_most)
        _require(0.0 <= self.overshoot_sharp_least <= 1.0, "loss.overshoot_sharp_least", "0 to 1", self.overshoot_sharp_least)
        _require(0.0 < self.eta < 1.0, "loss.eta", "between 0 and 1", self.eta)
        _require(0.0 < self.structure_gain <= 4.0, "loss.structure_gain", "above 0, at most 4", self.structure_gain)
        _require(self.necessity_margin >= 0.0, "loss.necessity_margin", ">= 0", self.necessity_margin)
        for key in ("intensity", "structure", "detail", "detail_keep", "detail_yield", "detail_sharp", "overshoot", "overshoot_sharp", "ssim", "target", "people", "base", "correlation", "fidelity", "undisturbed", "alpha", "regularizer", "entropy_weight", "stability", "beta"):
            _require(getattr(self, key) >= 0.0, f"loss.{key}", ">= 0", getattr(self, key))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam and its learning rate."""

    lr: float = 1e-4
    """Learning rate after warm-up."""
    schedule: str = "constant"
    """``constant``, or ``cosine`` down to ``least_lr`` at the last step."""
    least_lr: float = 1e-6
    """Learning rate at the end of ``cosine``."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 0."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 switches clipping off."""

    def __post_init__(self) -> None:
        _choice(self.schedule, "optimizer.schedule", ("constant", "cosine"))
        _require(0.0 < self.lr <= 1.0, "optimizer.lr", "above 0, at most 1", self.lr)
        _require(0.0 <= self.least_lr <= self.lr, "optimizer.least_lr", "0 to lr", self.least_lr)
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", ">= 0", self.warmup_steps)
        _require(0.0 <= self.clip_norm < float("inf"), "optimizer.clip_norm", "0 or more", self.clip_norm)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Learning from a trained network besides the pictures."""

    teacher: str = ""
    """Name of a shipped model, or a model folder; empty: none."""
    weight: float = 0.0
    """Weight of the difference to the teacher's picture, averaged over the passes of a step; 0 switches it off."""

    def __post_init__(self) -> None:
        _require(0.0 <= self.weight < math.inf, "distillation.weight", "0 or more", self.weight)
        _require(bool(self.teacher) or not self.weight, "distillation.teacher", "a model, where distillation.weight is above 0", self.teacher)


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """Where the confounder dictionaries of the model baffm come from; number and entries of the prototypes are the
    network's. Other models have none."""

    backbone: str = "isfl"
    """Name of a shipped model, or a model folder: its encoders give the features."""
    regions: int = 4
    """Every picture gives this number squared of features, the means over a grid; 1 is the paper's one a picture."""
    folder: str = ""
    """What ``isfl dictionary`` wrote; empty: built from the training pairs before the first step."""

    def __post_init__(self) -> None:
        _require(1 <= self.regions <= 16, "dictionary.regions", "1 to 16", self.regions)
        _require(bool(self.backbone), "dictionary.backbone", "a model", self.backbone)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One training run."""

    recipe: str = "custom"
    """Name that the model folder carries."""
    model: str = "isfl"
    """Which network: a key of ``isfl_ros.network.checkpoint.MODELS``."""
    architecture: str = ""
    """Named architecture of that network; empty: the one that has its name."""
    network: dict = field(default_factory=dict)
    """Keys of the network configuration that differ from the architecture's (ablations)."""
    data: DataConfig = field(default_factory=DataConfig)
    interventions: InterventionConfig = field(default_factory=InterventionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    steps: int = 6750
    """Optimiser steps."""
    initial: str = ""
    """Model folder, or name of a shipped model, whose weights the run begins with; empty: drawn by ``seed``."""
    seed: int = 0
    """Seed of weights, order, patches and masks."""
    precision: str = "fp32"
    """``fp32``; ``bf16`` or ``fp16`` (autocast; ``fp16`` with a scaled loss, on a CUDA device only)."""
    accumulate: int = 1
    """Parts into which every process cuts its batch, one after the other in memory; their gradients are averaged. With live
    norms each part is normalised by its own batch statistics and moves the running ones once, as a smaller batch would; with
    frozen ones the number of parts changes nothing but rounding."""
    batchnorm_update: str = "all"
    """Which passes move the running statistics: ``all`` (release) or ``original``."""
    batchnorm_freeze: float = 1.0
    """Part of the run after which running statistics are frozen and used; 1 never freezes, 0 from the first step."""
    batchnorm_sync: bool = False
    """With several processes on GPUs: batch statistics of a pass over all of them. Without, every process normalises by its own
    samples, and the running statistics are averaged over the processes after each step."""
    checkpoint_every: int = 250
    """Steps between resumable checkpoints."""
    log_every: int = 20
    """Steps between TensorBoard scalars."""
    validate_every: int = 500
    """Steps between validation losses and pictures."""

    def __post_init__(self) -> None:
        _choice(self.model, "model", tuple(MODELS))
        if not self.architecture:
            object.__setattr__(self, "architecture", self.model)
        config_class = MODELS[self.model][0]
        named = tuple(name for name, config in ARCHITECTURES.items() if isinstance(config, config_class))
        _choice(self.architecture, "architecture", named)
        _choice(self.precision, "precision", ("fp32", "bf16", "fp16"))
        _choice(self.batchnorm_update, "batchnorm_update", ("all", "original"))
        _require(self.steps >= 1, "steps", ">= 1", self.steps)
        _require(self.seed >= 0, "seed", ">= 0", self.seed)
        _require(0.0 <= self.batchnorm_freeze <= 1.0, "batchnorm_freeze", "0 to 1", self.batchnorm_freeze)
        _require(self.accumulate >= 1, "accumulate", ">= 1", self.accumulate)
        for key in ("checkpoint_every", "log_every", "validate_every"):
            _require(getattr(self, key) >= 1, key, ">= 1", getattr(self, key))
        default = DictionaryConfig()
        _require(
            hasattr(config_class, "needs_dictionary") or self.dictionary == default,
            "dictionary",
            f"left out, or its defaults: model {self.model} has no confounder dictionaries",
            {key: value for key, value in vars(self.dictionary).items() if value != getattr(default, key)},
        )
        terms = ("intensity", "structure", "detail", "ssim", "target", "base", "correlation")
        _require(
            any(getattr(self.loss, key) > 0 for key in terms), "loss", "a weight above 0 for at least one term of the fused picture", "none"
        )
        self.network_config()

    def network_config(self):
        """The architecture's configuration with this run's differences, of the class that belongs to the model."""
        values = dataclasses.asdict(ARCHITECTURES[self.architecture]) | dict(self.network)
        return config_from_dict(MODELS[self.model][0], values, "network")

    def build_network(self) -> nn.Module:
        """The network of the run, initialised by torch's current seed."""
        return MODELS[self.model][1](self.network_config())


_SECTIONS = {
    "data": DataConfig,
    "interventions": InterventionConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "distillation": DistillationConfig,
    "dictionary": DictionaryConfig,
}


def parse_config(document: dict, where: str) -> TrainingConfig:
    """Builds the configuration from a mapping as YAML gives it.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of range.
    """
    if not isinstance(document, dict):
        raise InputError(f"{where} is not a mapping", expected="keys and values", got=type(document).__name__)
    values = dict(document)
    for key, cls in _SECTIONS.items():
        if key in values:
            values[key] = _typed(cls, values[key], f"{where}: {key}")
    return _typed(TrainingConfig, values, where)


def recipe_path(name: str | Path, folder: str = "config/train") -> Path:
    """A YAML file as given, or the shipped one of that name in ``folder`` where the name has no suffix."""
    path = Path(name)
    return path if path.suffix else shared_directory() / folder / f"{name}.yaml"


def read_config(path: str | Path) -> TrainingConfig:
    """Reads a YAML file; see :func:`parse_config`.

    ``based_on: NAME`` begins with another recipe, a shipped one or a file beside this one (``other.yaml``): the keys of this file
    replace its keys, section by section.

    Raises:
        InputError: as :func:`parse_config`; a file is missing or no YAML, or it is based on itself.
    """
    return parse_config(read_document(path), str(path))


def read_document(path: str | Path) -> dict:
    """A YAML file with the ones that it is based on: what :func:`read_config` parses.

    Raises:
        InputError: a file is missing or no YAML, or it is based on itself.
    """
    return _read_document(Path(path), ())


def merge_documents(base: dict, changes: dict) -> dict:
    """``base`` with the keys of ``changes`` in place of its own, section by section; neither is changed."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = {**base[key], **value} if both else value
    return merged


def _read_document(path: Path, before: tuple[Path, ...]) -> dict:
    if path.resolve() in before:
        raise InputError(f"{path} is based on itself", got=" -> ".join(p.name for p in (*before, path)))
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        asked = f", which {before[-1].name} is based on," if before else ""
        raise InputError(f"{path}{asked} cannot be read", got=error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML", got=" ".join(str(error).split())) from error
    if not isinstance(document, dict) or "based_on" not in document:
        return document
    name = document.pop("based_on")
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: based_on has the wrong type", expected="name of a recipe or a file", got=repr(name))
    base = recipe_path(name)
    base = _read_document(base if base.is_absolute() else path.parent / base, (*before, path.resolve()))
    if not isinstance(base, dict):
        what = f"{name}, which {path.name} is based on, is not a mapping"
        raise InputError(what, expected="keys and values", got=type(base).__name__)
    return merge_documents(base, document)


def _typed(cls: type, values: dict, where: str):
    """``config_from_dict`` with the scalar types checked: YAML reads ``1e-4`` as text and ``yes`` as a boolean."""
    if not isinstance(values, dict):
        raise InputError(f"{where} is not a mapping", expected="keys and values", got=type(values).__name__)
    kinds = {f.name: f.type for f in dataclasses.fields(cls)}
    converted = {}
    for key, value in values.items():
        kind = kinds.get(key)
        if kind == "float" and isinstance(value, (int, str)) and not isinstance(value, bool):
            try:
                value = float(value)
            except ValueError:
                raise InputError(f"{where}: {key} is no number", got=repr(value)) from None
        elif kind == "tuple[str, ...]" and isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise InputError(f"{where}: {key} has the wrong type", expected="a list of texts", got=repr(value))
            value = tuple(value)
        expected = {"float": float, "int": int, "bool": bool, "str": str, "tuple[str, ...]": tuple, "dict": dict}.get(kind)
        if expected and (not isinstance(value, expected) or (expected is int and isinstance(value, bool))):
            raise InputError(f"{where}: {key} has the wrong type", expected=kind, got=repr(value))
        converted[key] = value
    return config_from_dict(cls, converted, where)
