"""The real node with a BAFFM folder: no gate topics, said so, and the entropy side by side."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from isfl_ros.network.baffm import BaffmNet
from isfl_ros.network.checkpoint import ModelInfo, save_model
from isfl_ros.network.config import BaffmConfig
from isfl_ros.network.dictionary import DictionaryRecord, digest_of

pytestmark = pytest.mark.dds


def save(folder, **values):
    config = BaffmConfig(width=4, prototypes=3, entries=2, query=2, **values)
    torch.manual_seed(0)
    network = BaffmNet(config)
    dictionaries = torch.randn(2, 3, 2)
    network.set_dictionaries(*dictionaries)
    record = DictionaryRecord(
        backbone="none", backbone_sha256="", backbone_width=2, regions=1, prototypes=3, entries=2, images=3, seed=0,
        explained_variance={}, members={}, sha256=digest_of(*dictionaries),
    )
    info = ModelInfo(
        name=folder.name, model="baffm", architecture="baffm", recipe="test", config=config,
        dictionary=dataclasses.asdict(record),
    )
    save_model(folder, network, info)
    return folder


def topics(client):
    return {name for name, _ in client.node.get_topic_names_and_types() if name.startswith("/fusion/gate")}


def test_without_gates(start_node, make_client, tmp_path):
    node = start_node(parameters={"model": str(save(tmp_path / "baffm")), "device": "cpu", "implementation": "folded"})
    client = make_client(node)
    client.cameras()
    client.listen("fused/image", "debug/side_by_side")
    assert not topics(client)
    stamp = client.publish_pair()
    picture = client.arrived("debug/side_by_side", stamp)
    shown = np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3)
    assert shown[client.HEIGHT :, client.WIDTH :].any(), "the quarter of the gate is not black"
    values = client.wait_report(lambda report: True, "a report")
    said = {key: value for _, _, entry in values.values() for key, value in entry.items()}
    assert said["gates"] == "no" and "entropy" in said["in_place_of_the_gate"]
    assert "the model has no gates: ~/gate/image and ~/gate/overlay do not exist" in node.output


def test_with_the_gate(start_node, make_client, tmp_path):
    folder = save(tmp_path / "gated", gate=True, gate_width=2)
    client = make_client(start_node(parameters={"model": str(folder), "device": "cpu", "implementation": "folded"}))
    client.cameras()
    client.listen("gate/image", "gate/overlay")
    stamp = client.publish_pair()
    gate = client.arrived("gate/image", stamp)
    assert (gate.encoding, gate.width, gate.height) == ("mono8", client.WIDTH, client.HEIGHT)
