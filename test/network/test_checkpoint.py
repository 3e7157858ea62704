"""Model folders are strict: what is missing, surplus or damaged is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import ModelInfo, load_model, save_model
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet
from isfl_ros.network.release import read_release


@pytest.fixture()
def folder(tmp_path):
    config = IsflConfig(width=4, gate_width=4)
    info = ModelInfo(name="m", model="isfl", architecture="isfl", recipe="test", config=config, training={"steps": 1})
    save_model(tmp_path / "m", IsflNet(config), info)
    return tmp_path / "m"


def edit_tensors(folder, change):
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


def edit_description(folder, change):
    document = json.loads((folder / "model.json").read_text())
    change(document)
    (folder / "model.json").write_text(json.dumps(document))


def test_round_trip(tmp_path):
    config = IsflConfig(width=4, grid=4)
    network = IsflNet(config).eval()
    info = ModelInfo(name="x", model="isfl", architecture="isfl", recipe="r", config=config, training={"steps": 7})
    save_model(tmp_path / "x", network, info)
    loaded, found = load_model(tmp_path / "x")
    assert found == info
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"], "nothing may be left beside the folder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.conv.bias"), "lacks tensor 'head.conv.bias'"),
        (lambda t: t.update(extra=torch.zeros(1)), "surplus tensor 'extra'"),
        (lambda t: t.update({"head.conv.bias": torch.zeros(2)}), "'head.conv.bias' does not fit"),
        (lambda t: t.update({"head.conv.bias": torch.zeros(1).half()}), "'head.conv.bias' does not fit"),
        (lambda t: t.update({"head.conv.bias": torch.full((1,), torch.nan)}), "NaN"),
    ],
)
def test_tensors_are_strict(folder, change, message):
    edit_tensors(folder, change)
    with pytest.raises(InputError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["config"].update(depth=3), "unknown key 'depth'"),
        (lambda d: d.update(model="other"), "unknown model"),
        (lambda d: d.update(format_version=99), "format version"),
        (lambda d: d.update(format="x"), "not a model description"),
        (lambda d: d.pop("recipe"), "lacks key 'recipe'"),
    ],
)
def test_description_is_strict(folder, change, message):
    edit_description(folder, change)
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_damaged_and_missing_files_are_named(folder, tmp_path):
    (folder / "weights.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="weights.safetensors is unreadable"):
        load_model(folder)
    with pytest.raises(InputError, match="not a model folder.*no model.json"):
        load_model(tmp_path)


def test_existing_folder_is_kept(folder):
    network, info = load_model(folder)
    before = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists"):
        save_model(folder, IsflNet(info.config), info)
    assert (folder / "weights.safetensors").read_bytes() == before
    (folder / "CARD.md").write_text("card")
    save_model(folder, IsflNet(info.config), info, overwrite=True)
    assert (folder / "CARD.md").read_text() == "card"


def test_importer_refuses_what_it_does_not_know(reference_values, tmp_path):
    tensors = load_file(reference_values / "isfuse_release.safetensors")
    for change, message in (
        (lambda t: t.update({"cfi6.gate.0.weight": torch.zeros(1)}), "unknown tensor 'cfi6.gate.0.weight'"),
        (lambda t: t.update({"cfi3.q_v.weight": torch.zeros(32, 32, 3, 3)}), "'integrators.2.visible.query.weight' does not fit"),
        (lambda t: t.pop("cfi3.q_v.bias"), "lacks tensor 'integrators.2.visible.query.bias'"),
    ):
        changed = dict(tensors)
        change(changed)
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(InputError, match=message):
            read_release(tmp_path / "changed.safetensors")


def test_importer_reads_pth_without_unpickling_code(reference_values, tmp_path):
    tensors = load_file(reference_values / "isfuse_release.safetensors")
    torch.save(tensors, tmp_path / "release.pth")
    from_pth, _ = read_release(tmp_path / "release.pth")
    from_safetensors, _ = read_release(reference_values / "isfuse_release.safetensors")
    for name, tensor in from_safetensors.state_dict().items():
        assert torch.equal(from_pth.state_dict()[name], tensor)
    for content in (b"cos\nsystem\n(S'true'\ntR.", b"", b"hello world", b"."):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(InputError, match="unreadable as a checkpoint"):
            read_release(tmp_path / "bad.pth")
