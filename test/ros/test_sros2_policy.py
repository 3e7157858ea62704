"""The SROS2 policy against what running nodes subscribe, publish and serve, and against sros2 where it is installed."""

from __future__ import annotations

import copy
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from isfl_ros.resources import shared_directory

POLICY = shared_directory() / "config" / "sros2" / "fusion_policy.xml"

KINDS = {"subscribe": "subscriber", "publish": "publisher", "reply": "service", "request": "client"}
"""What a rule allows -> what the graph calls it."""

OPTIONAL = {
    "subscribe": {
        "/thermal/image_raw/compressed",  # thermal.transport compressed
        "/rgb/image_raw/compressed",  # rgb.transport compressed
        "/clock",  # use_sim_time
        "/tf",  # registration.mode calibrated, transform from TF
        "/tf_static",
    },
    "publish": {"/fusion/fused/image/compressed"},  # output.compressed
}
"""What a node with default parameters does not have, by the parameter that brings it."""

HERE = Path(__file__).resolve()


def resolved(name: str, profile: ElementTree.Element) -> str:
    """Full name of a topic or service in a profile, as the format defines it."""
    namespace = profile.get("ns").rstrip("/") + "/"
    if name.startswith("~"):
        return namespace + profile.get("node") + name[1:]
    return name if name.startswith("/") else namespace + name


def allowed(profile: ElementTree.Element) -> dict[str, set[str]]:
    """Rule -> names it allows."""
    names = {rule: set() for rule in KINDS}
    for rules in profile:
        for rule in rules.keys():
            assert rules.get(rule) == "ALLOW"
            said = [resolved(element.text, profile) for element in rules]
            assert len(said) == len(set(said)) and not names[rule] & set(said), f"named twice in {said}"
            names[rule] |= set(said)
    return names


@pytest.fixture
def profile():
    (element,) = ElementTree.parse(POLICY).getroot().iter("profile")
    return element


def graph(client, node: str, namespace: str) -> dict[str, set[str]]:
    """Rule -> names that a running node has; empty while it is not known."""
    if (node, namespace) not in client.node.get_node_names_and_namespaces():
        return {}
    return {
        rule: {name for name, _ in getattr(client.node, f"get_{kind}_names_and_types_by_node")(node, namespace)}
        for rule, kind in KINDS.items()
    }


def assert_graph(client, node: str, namespace: str, expected: dict[str, set[str]]) -> None:
    client.poll(lambda: graph(client, node, namespace) == expected, 30.0)
    # once more with the rules one by one, so that a failure shows the names
    has = graph(client, node, namespace)
    for rule, names in expected.items():
        assert has[rule] == names, rule


def test_one_profile_with_no_wildcards_and_nothing_but_permissions_by_name(profile):
    root = ElementTree.parse(POLICY).getroot()
    assert root.tag == "policy" and root.get("version") == "0.2.0"
    assert [enclave.get("path") for enclave in root.iter("enclave")] == ["/fusion"]
    assert (profile.get("ns"), profile.get("node")) == ("/", "fusion")
    names = allowed(profile)
    assert not any(letter in name for said in names.values() for name in said for letter in "*?[")
    assert not names["request"], "the node calls no service"
    assert all(OPTIONAL[rule] < names[rule] for rule in OPTIONAL)


def test_a_running_node_has_what_is_allowed_and_nothing_more(profile, fake_command, start_node, make_client):
    client = make_client(start_node(command=fake_command))
    names = allowed(profile)
    assert_graph(client, "fusion", "/", {rule: names[rule] - OPTIONAL.get(rule, set()) for rule in names})


def test_what_is_optional_is_there_where_it_is_asked_for(profile, fake_command, start_node, make_client):
    parameters = {
        "use_sim_time": True,
        "thermal.transport": "compressed",
        "rgb.transport": "compressed",
        "output.compressed": "jpeg",
        "registration.mode": "calibrated",
    }
    # what stands for tf2_ros there subscribes to /tf_static alone
    folders = (str(HERE.parents[2]), str(HERE.with_name("fake_tf")), os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(filter(None, folders))
    node = start_node(
        command=fake_command, parameters=parameters, remappings={"__ns": "/front"}, environment={"PYTHONPATH": path}
    )
    profile.set("ns", "/front")
    expected = allowed(profile)
    expected["subscribe"] -= {"/front/thermal/image_raw", "/front/rgb/image_raw", "/tf"}
    assert_graph(make_client(node), "fusion", "/front", expected)


@pytest.fixture
def sros2_policy():
    return pytest.importorskip("sros2.policy", reason="sros2 comes with a ROS distribution, not from the package index")


def test_sros2_takes_it(sros2_policy):
    sros2_policy.load_policy(POLICY)  # raises where the schema does not allow it


@pytest.mark.parametrize("namespace", ["/", "/front"])
def test_sros2_makes_of_it_what_is_read_here(sros2_policy, profile, namespace):
    from lxml import etree

    policy = sros2_policy.load_policy(POLICY)
    policy.find(".//profile").set("ns", namespace)
    transform = etree.XSLT(etree.parse(str(sros2_policy.get_transport_template("dds", "permissions.xsl"))))
    permissions = transform(policy)
    schema = etree.parse(str(sros2_policy.get_transport_schema("dds", "permissions.xsd")))
    etree.XMLSchema(schema).assertValid(permissions)

    profile = copy.deepcopy(profile)
    profile.set("ns", namespace)
    names = allowed(profile)
    replies = {f"rr{name}Reply" for name in names["reply"]}
    requests = {f"rq{name}Request" for name in names["reply"]}
    rule = permissions.find(".//allow_rule")
    dds = {kind: {topic.text for topic in rule.iterfind(f"{kind}/topics/topic")} for kind in ("publish", "subscribe")}
    assert dds["publish"] == {"rt" + name for name in names["publish"]} | replies
    assert dds["subscribe"] == {"rt" + name for name in names["subscribe"]} | requests
    assert permissions.findtext(".//subject_name") == "CN=/fusion"
    assert permissions.findtext(".//default") == "DENY"
