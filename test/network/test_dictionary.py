"""Dictionaries on disk: what is missing, damaged or of another origin is named, with what mends it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from isfl_ros.errors import InputError
from isfl_ros.network.baffm import BaffmNet
from isfl_ros.network.checkpoint import ModelInfo, load_model, save_model
from isfl_ros.network.config import BaffmConfig
from isfl_ros.network.dictionary import (
    Dictionaries,
    DictionaryRecord,
    check_origin,
    digest_of,
    read_dictionaries,
    write_dictionaries,
)

RECORD, TENSORS = "dictionary.json", "dictionary.safetensors"
CONFIG = BaffmConfig(width=4, prototypes=3, entries=2, query=2)


@pytest.fixture
def dictionaries():
    visible, infrared = torch.randn(2, 3, 2)
    record = DictionaryRecord(
        backbone="isfl", backbone_sha256="ab", backbone_width=96, regions=4, prototypes=3, entries=2, images=40, seed=1,
        explained_variance={"visible": 0.9, "infrared": 0.8}, members={"visible": [3, 2, 1], "infrared": [4, 1, 1]},
        sha256=digest_of(visible, infrared),
    )
    return Dictionaries(visible, infrared, record)


@pytest.fixture
def model(tmp_path, dictionaries):
    network = BaffmNet(CONFIG)
    network.set_dictionaries(dictionaries.visible, dictionaries.infrared)
    record = dataclasses.asdict(dictionaries.record)
    info = ModelInfo(name="m", model="baffm", architecture="baffm", recipe="r", config=CONFIG, dictionary=record)
    save_model(tmp_path / "m", network, info)
    return tmp_path / "m"


def edit_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_round_trip(tmp_path, dictionaries):
    write_dictionaries(tmp_path / "d", dictionaries)
    found = read_dictionaries(tmp_path / "d")
    assert found.record == dictionaries.record
    assert torch.equal(found.visible, dictionaries.visible) and torch.equal(found.infrared, dictionaries.infrared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / RECORD).unlink(), "not a dictionary folder.*no dictionary.json"),
        (lambda f: (f / TENSORS).unlink(), "not a dictionary folder.*no dictionary.safetensors"),
        (lambda f: (f / RECORD).write_text("{"), "is damaged"),
        (lambda f: (f / TENSORS).write_bytes(b"x"), "is damaged"),
        (lambda f: edit_json(f / RECORD, lambda d: d.pop("images")), "record of the dictionaries is incomplete.*images"),
        (lambda f: edit_json(f / RECORD, lambda d: d.update(age=1)), "unknown key 'age'"),
        (lambda f: edit_json(f / RECORD, lambda d: d.update(images="40")), "images.*wrong type"),
        (lambda f: edit_json(f / RECORD, lambda d: d.update(prototypes=4)), r"lacks visible of shape \(4, 2\)"),
        (lambda f: edit_tensors(f / TENSORS, lambda t: t.pop("infrared")), "lacks infrared"),
        (lambda f: edit_tensors(f / TENSORS, lambda t: t.update(visible=t["infrared"] + 1)), "not those that their record"),
    ],
)
def test_damaged_folders_are_named(tmp_path, dictionaries, change, message):
    write_dictionaries(tmp_path / "d", dictionaries)
    change(tmp_path / "d")
    with pytest.raises(InputError, match=message):
        read_dictionaries(tmp_path / "d")


@pytest.mark.parametrize("key", ["backbone_sha256", "backbone_width", "regions", "images", "seed"])
def test_dictionaries_of_another_origin_are_refused_with_what_is_needed(dictionaries, key):
    wanted = dataclasses.asdict(dictionaries.record)
    check_origin(dictionaries.record, wanted, "here")
    with pytest.raises(InputError, match=f"here: .*otherwise.*expected {key} .*isfl dictionary"):
        check_origin(dictionaries.record, wanted | {key: "other"}, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("adjust_visible.dictionary"), "has no confounder dictionary.*isfl dictionary"),
        (lambda t: t.update({"adjust_infrared.dictionary": torch.zeros(3, 2)}), "not those that their record describes"),
        (lambda t: t.update({"adjust_infrared.dictionary": torch.zeros(3, 3)}), "not those that their record describes"),
        (lambda t: t.pop("head.conv.bias"), "lacks tensor 'head.conv.bias'"),
    ],
)
def test_a_checkpoint_without_its_dictionary_is_refused(model, change, message):
    edit_tensors(model / "weights.safetensors", change)
    with pytest.raises(InputError, match=message):
        load_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("dictionary"), "no record of the confounder dictionaries.*isfl dictionary"),
        (lambda d: d["dictionary"].update(prototypes=25), "another size than the network; expected prototypes 3; got 25"),
        (lambda d: d["dictionary"].update(entries=32), "another size than the network; expected entries 2; got 32"),
        (lambda d: d["dictionary"].update(sha256="0"), "not those that their record describes"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(model, change, message):
    edit_json(model / "model.json", change)
    with pytest.raises(InputError, match=message):
        load_model(model)


def test_the_ablation_has_neither(tmp_path):
    network = BaffmNet(dataclasses.replace(CONFIG, adjustment="conventional"))
    info = ModelInfo(name="m", model="baffm", architecture="baffm", recipe="r", config=network.config)
    save_model(tmp_path / "w", network, info)
    assert "dictionary" not in json.loads((tmp_path / "w" / "model.json").read_text())
    assert load_model(tmp_path / "w")[1] == dataclasses.replace(info, name="w")
