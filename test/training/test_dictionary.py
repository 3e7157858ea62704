"""Confounder dictionaries from training pairs: against an oracle, and their way through a run."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch

from isfl_ros.cli.main import main
from isfl_ros.errors import InputError
from isfl_ros.network.baffm import BaffmNet
from isfl_ros.network.checkpoint import ModelInfo, load_model, save_model
from isfl_ros.network.config import BaffmConfig, IsflConfig
from isfl_ros.network.dictionary import digest_of, read_dictionaries, write_dictionaries
from isfl_ros.network.model import IsflNet, for_inference
from isfl_ros.training.config import DictionaryConfig, parse_config
from isfl_ros.training.data import LoadedPair
from isfl_ros.training.dictionary import SHEETS, Backbone, build_dictionaries

pytest.importorskip("sklearn", reason="scikit-learn is an optional dependency: pip install 'isfl_ros[train]'")

NETWORK = {"width": 4, "prototypes": 3, "entries": 2, "query": 2, "scales": 2}
SHAPE = BaffmConfig(**NETWORK)


def save_backbone(folder, seed, width=4):
    torch.manual_seed(seed)
    config = IsflConfig(width=width, gate_width=2, grid=2, scales=2, head="affine", reduction=2)
    info = ModelInfo(name=folder.name, model="isfl", architecture="isfl", recipe="r", config=config)
    save_model(folder, IsflNet(config), info)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbones") / "small", 0)


@pytest.fixture(scope="session")
def pairs():
    """Nine pairs of odd sizes and three kinds: dark, mid and bright, which 2 x 2 regions show plainly."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(9):
        planes = []
        for level in (30 + 90 * (index % 3), 220 - 90 * (index % 3)):
            noise = rng.normal(level, 3.0, (47 + index, 61)).clip(0, 255)
            planes.append(noise.astype(np.uint8))
        found.append(LoadedPair(f"p{index}", *planes))
    return found


def test_features_are_means_over_regions_of_every_scale(backbone, pairs):
    network, _ = load_model(backbone)
    picture = pairs[1].infrared
    got = Backbone(str(backbone)).features(picture, "infrared", 2)
    with torch.inference_mode():
        scales = for_inference(network).encode(torch.from_numpy(picture)[None, None].float() / 255, "infrared")
    assert got.shape == (4, 2 * 4)
    for index, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        wanted = []
        for feature in scales:
            h, w = feature.shape[-2:]
            rows = slice(row * h // 2, -(-(row + 1) * h // 2))
            columns = slice(column * w // 2, -(-(column + 1) * w // 2))
            wanted += feature[0, :, rows, columns].mean(dim=(1, 2)).tolist()
        np.testing.assert_allclose(got[index], wanted, rtol=1e-4, atol=1e-6)
    other = Backbone(str(backbone)).features(picture, "visible", 2)
    assert not np.allclose(got, other), "every modality has its own encoder"


def test_prototypes_are_the_means_of_the_clusters(backbone, pairs):
    """Three kinds of pictures, far apart: whatever K-Means++ does, the clusters can only be these."""
    config = DictionaryConfig(backbone=str(backbone), regions=2)
    found, sheets = build_dictionaries(pairs, config, SHAPE, seed=0, quiet=True)
    source = Backbone(str(backbone))
    for modality in ("visible", "infrared"):
        features = np.concatenate([source.features(getattr(p, modality), modality, 2) for p in pairs]).astype(np.float64)
        centred = features - features.mean(axis=0)
        directions = np.linalg.svd(centred, full_matrices=False)[2][:2]  # principal components, up to sign
        reduced = centred @ directions.T
        kinds = np.repeat(np.arange(9) % 3, 4)
        means = np.stack([reduced[kinds == kind].mean(axis=0) for kind in range(3)])
        means /= np.sqrt((means**2).mean())
        got = getattr(found, modality).double().numpy()
        assert got.shape == (3, 2) and (got**2).mean() == pytest.approx(1.0, rel=1e-5)
        # Distances know neither the signs of components nor the order of clusters.
        apart = lambda z: np.sort(np.linalg.norm(z[:, None] - z[None], axis=-1).ravel())  # noqa: E731
        np.testing.assert_allclose(apart(got), apart(means), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.sort(np.linalg.norm(got, axis=1)), np.sort(np.linalg.norm(means, axis=1)), rtol=1e-4)
        part = (reduced**2).sum() / (centred**2).sum()
        assert found.record.explained_variance[modality] == pytest.approx(part)
        assert found.record.members[modality] == [12, 12, 12]
        assert sheets[modality].ndim == 3 and sheets[modality].dtype == np.uint8
    record = found.record
    assert (record.backbone, record.backbone_width, record.regions, record.images) == ("small", 8, 2, 9)
    assert record.sha256 == digest_of(found.visible, found.infrared)


def test_a_row_of_the_sheet_shows_its_cluster(backbone, pairs):
    """Nearest regions, at most one of a picture: three pictures of a kind are in the row, and nothing else."""
    config = DictionaryConfig(backbone=str(backbone), regions=2)
    _, sheets = build_dictionaries(pairs, config, SHAPE, seed=0, quiet=True)
    cell = 88
    grey = sheets["visible"][..., 0].astype(float)
    levels = []
    for row in range(2):  # two rows of the first column of rows; the third cluster stands in the second column
        cells = [grey[row * cell : (row + 1) * cell, (1 + k) * cell : (2 + k) * cell].mean() for k in range(6)]
        assert np.ptp(cells[:3]) < 3
        levels.append(cells[0])
    assert abs(levels[0] - levels[1]) > 60


def test_the_same_pairs_and_seed_give_the_same_dictionaries(backbone, pairs):
    config = DictionaryConfig(backbone=str(backbone), regions=3)
    rng = np.random.default_rng(1)
    mixed = [
        LoadedPair(f"{k}", *(cv2.GaussianBlur(rng.integers(0, 256, (40, 45), np.uint8), (0, 0), 2) for _ in range(2)))
        for k in range(6)
    ]
    first, again, other = (
        build_dictionaries(mixed, config, SHAPE, seed=seed, quiet=True)[0].record.sha256 for seed in (0, 0, 7)
    )
    assert first == again
    assert first != other, "clusters of noise depend on where K-Means++ begins"


@pytest.mark.parametrize(
    ("network", "count", "regions", "message"),
    [
        ({"prototypes": 10}, 9, 4, "fewer training images than prototypes; expected at least 10 pairs.*got 9; name more sets"),
        ({"entries": 9}, 9, 2, "more principal components.*at most 8; got 9"),
        ({"prototypes": 3}, 1, 2, "fewer training images than prototypes; expected at least 3"),
    ],
)
def test_too_little_is_refused(backbone, pairs, network, count, regions, message):
    config = DictionaryConfig(backbone=str(backbone), regions=regions)
    shape = dataclasses.replace(SHAPE, **network)
    with pytest.raises(InputError, match=message):
        build_dictionaries(pairs[:count], config, shape, seed=0, quiet=True)


def test_pictures_without_difference_are_refused(backbone):
    flat = [LoadedPair(str(k), np.full((40, 40), 7, np.uint8), np.full((40, 40), 9, np.uint8)) for k in range(5)]
    with pytest.raises(InputError, match="visible training pictures have fewer different regions.*got 1"):
        build_dictionaries(flat, DictionaryConfig(backbone=str(backbone), regions=1), SHAPE, seed=0, quiet=True)


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_run(make_trainer, backbone):
    def make(out, *, network=None, dictionary=None, **values):
        source = {"backbone": str(backbone), "regions": 2} | (dictionary or {})
        return make_trainer(out, model="baffm", network=network or NETWORK, dictionary=source, **values)

    return make


def test_one_key_trains_the_other_model(make_run, tmp_path):
    """Everything else of the document is that of the tests of ISFL, interventions and gate terms included."""
    t = make_run(tmp_path / "run")
    before = t.network.adjust_visible.dictionary.clone()
    assert torch.isfinite(before).all()
    network, info = load_model(t.run(resume=False))
    assert isinstance(network, BaffmNet) and (info.model, info.architecture) == ("baffm", "baffm")
    assert torch.equal(network.adjust_visible.dictionary, before), "the optimiser must not move it"
    made = read_dictionaries(tmp_path / "run" / "dictionary")
    assert info.dictionary == dataclasses.asdict(made.record) and made.record.images == 4
    assert all((tmp_path / "run" / "dictionary" / name).is_file() for name in SHEETS.values())


def test_without_the_adjustment_no_dictionary_is_made(make_run, tmp_path):
    t = make_run(tmp_path / "run", network=NETWORK | {"adjustment": "conventional"})
    folder = t.run(resume=False)
    assert t.dictionaries is None and not (tmp_path / "run" / "dictionary").exists()
    assert load_model(folder)[1].dictionary == {}


def test_a_gate_joins_the_terms_of_gates(make_run, tmp_path):
    with_gate = make_run(tmp_path / "a", network=NETWORK | {"gate": True, "gate_width": 2}).train_step()
    without = make_run(tmp_path / "b").train_step()
    assert set(with_gate) - set(without) == {"gate"}


def test_a_resumed_run_keeps_its_dictionary(make_run, tmp_path, monkeypatch):
    whole = make_run(tmp_path / "whole")
    whole.run(resume=False)
    first = make_run(tmp_path / "cut")
    for _ in range(3):
        first.train_step()
    first.save_checkpoint()

    def never(*args, **kwargs):
        raise AssertionError("the dictionary of the run is there")

    monkeypatch.setattr("isfl_ros.training.loop.build_dictionaries", never)
    second = make_run(tmp_path / "cut")
    second.run(resume=True)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], tensor), name


def test_a_checkpoint_with_another_dictionary_is_refused(make_run, tmp_path):
    first = make_run(tmp_path / "run")
    first.train_step()
    first.network.adjust_infrared.dictionary += 1.0
    first.save_checkpoint()
    with pytest.raises(InputError, match="step_000001: the dictionaries are not those that their record describes"):
        make_run(tmp_path / "run").run(resume=True)


def test_a_dictionary_folder_is_used_and_checked(make_run, tmp_path, backbone, pairs):
    config = DictionaryConfig(backbone=str(backbone), regions=2)
    found, _ = build_dictionaries(pairs, config, SHAPE, seed=5, quiet=True)
    write_dictionaries(tmp_path / "d", found)
    t = make_run(tmp_path / "a", dictionary={"folder": str(tmp_path / "d")})
    assert torch.equal(t.network.adjust_infrared.dictionary, found.infrared)
    assert t.dictionaries.record == found.record
    other = save_backbone(tmp_path / "other", 3)
    for values, message in (
        ({"dictionary": {"folder": str(tmp_path / "d"), "backbone": str(other)}}, "expected backbone_sha256"),
        ({"dictionary": {"folder": str(tmp_path / "d"), "regions": 3}}, "expected regions 3; got 2; make one"),
        ({"network": NETWORK | {"entries": 3}, "dictionary": {"folder": str(tmp_path / "d")}}, "expected entries 3; got 2"),
        ({"network": NETWORK | {"prototypes": 4}, "dictionary": {"folder": str(tmp_path / "d")}}, "expected prototypes 4"),
        ({"dictionary": {"folder": str(tmp_path / "none")}}, "none is not a dictionary folder"),
        ({"dictionary": {"backbone": "nonesuch"}}, "no model 'nonesuch'"),
    ):
        with pytest.raises(InputError, match=message):
            make_run(tmp_path / "b", **values)


def test_initial_weights_bring_their_dictionary(make_run, tmp_path):
    first = make_run(tmp_path / "first")
    first.run(resume=False)
    folder = tmp_path / "first" / "model"
    second = make_run(tmp_path / "second", initial=str(folder), seed=9)
    assert second.dictionaries.record == first.dictionaries.record
    assert torch.equal(second.network.adjust_visible.dictionary, first.dictionaries.visible)
    other = save_backbone(tmp_path / "other", 3)
    third = make_run(tmp_path / "third", initial=str(folder), dictionary={"backbone": str(other)})
    assert third.dictionaries.record == first.dictionaries.record, "they belong to the weights"
    with pytest.raises(InputError, match="initial and dictionary.folder both bring dictionaries"):
        make_run(tmp_path / "fourth", initial=str(folder), dictionary={"folder": str(tmp_path / "first" / "dictionary")})


def test_scikit_learn_is_asked_for_before_decoding_and_only_where_a_dictionary_is_made(make_run, tmp_path, monkeypatch):
    first = make_run(tmp_path / "first")
    first.run(resume=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "sklearn" else True)
    make_run(tmp_path / "second", initial=str(tmp_path / "first" / "model"))
    make_run(tmp_path / "third", dictionary={"folder": str(tmp_path / "first" / "dictionary")})
    make_run(tmp_path / "first")  # to be resumed

    def decoded(*args, **kwargs):
        raise AssertionError("minutes of decoding first")

    monkeypatch.setattr("isfl_ros.training.loop.Trainer._load_pairs", decoded)
    with pytest.raises(InputError, match="sklearn is missing"):
        make_run(tmp_path / "fourth")


def test_backbone_without_encoders(tmp_path, monkeypatch, backbone):
    monkeypatch.delattr(IsflNet, "encode")
    with pytest.raises(InputError, match="has no encoders"):
        Backbone(str(backbone))


@pytest.mark.parametrize("values", [{"regions": 0}, {"regions": 17}, {"backbone": ""}])
def test_configuration_is_checked(values):
    with pytest.raises(InputError, match=f"dictionary.{next(iter(values))} out of range"):
        DictionaryConfig(**values)


# -- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def yaml_file(tmp_path, document, backbone):
    values = document(model="baffm", network=NETWORK, dictionary={"backbone": str(backbone), "regions": 2})
    path = tmp_path / "my.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def test_verb_makes_what_training_makes(make_run, tmp_path, yaml_file, pairs_root, capsys):
    out = tmp_path / "dictionary"
    command = ["dictionary", str(yaml_file), "--data", str(pairs_root), "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    assert "visible: 3 prototypes of 4 pictures, 2 of 8 components" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == sorted(["dictionary.json", "dictionary.safetensors", *SHEETS.values()])
    assert read_dictionaries(out).record == make_run(tmp_path / "run").dictionaries.record
    assert main(command) == 2 and "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--prototypes", "2"]) == 0
    assert read_dictionaries(out).record.prototypes == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prototypes", "5"], "fewer training images than prototypes; expected at least 5 pairs"),
        (["--backbone", "nonesuch"], "no model 'nonesuch'"),
        (["--threads", "-1"], "--threads out of range"),
    ],
)
def test_verb_refuses_in_one_line_and_writes_nothing(tmp_path, yaml_file, pairs_root, capsys, words, message):
    out = tmp_path / "dictionary"
    assert main(["dictionary", str(yaml_file), "--data", str(pairs_root), "--out", str(out), "--device", "cpu", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and message in lines[0]
    assert not out.exists()


def test_verb_refuses_a_network_without_dictionary(tmp_path, document, pairs_root, capsys):
    path = tmp_path / "isfl.yaml"
    path.write_text(json.dumps(document()))
    assert main(["dictionary", str(path), "--data", str(pairs_root), "--out", str(tmp_path / "d")]) == 2
    assert "takes no dictionary; expected model baffm" in capsys.readouterr().err


def test_shipped_recipes_are_baffm_with_equation_10_alone():
    from isfl_ros.training.config import recipe_path, read_config

    for name in ("baffm", "baffm-cpu"):
        config = read_config(recipe_path(name))
        assert (config.model, config.architecture) == ("baffm", "baffm")
        assert config.interventions.active() == () and config.loss.alpha == config.loss.beta == 0.0
        assert config.network_config().needs_dictionary
    assert parse_config({"model": "baffm"}, "x").dictionary == DictionaryConfig()
