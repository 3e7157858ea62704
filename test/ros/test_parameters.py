from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from isfl_ros.errors import InputError
from isfl_ros.images import GainControlConfig
from isfl_ros.pipeline import PipelineConfig
from isfl_ros.resources import shared_directory
from isfl_ros.ros.messages import MAX_PIXELS
from isfl_ros.ros.parameters import BY_NAME, TABLE, settings_from
from isfl_ros.ros.registrar import RegistrationConfig

DEFAULTS = {parameter.name: parameter.default for parameter in TABLE}


def flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def test_defaults_are_those_of_the_pipeline():
    settings = settings_from(DEFAULTS)
    assert settings.pipeline == PipelineConfig()
    assert settings.pipeline.gain == GainControlConfig()
    assert (settings.slop_ns, settings.warmup_size, settings.reference) == (50_000_000, (480, 640), "rgb")


def test_every_field_of_the_gain_control_is_a_parameter():
    assert {n.removeprefix("agc.") for n in BY_NAME if n.startswith("agc.")} == set(vars(GainControlConfig()))


def test_the_yaml_file_is_the_table():
    text = (shared_directory() / "config" / "fusion_node.yaml").read_text()
    tree = yaml.safe_load(text)
    assert list(tree) == ["/**"] and list(tree["/**"]) == ["ros__parameters"]
    values = flatten(tree["/**"]["ros__parameters"])
    assert values == DEFAULTS
    assert {name: type(value) for name, value in values.items()} == {n: type(v) for n, v in DEFAULTS.items()}
    comments = " ".join(re.findall(r"#\s*(.*)", text))
    for parameter in TABLE:
        assert parameter.description in comments, parameter.name
        assert parameter.constraint in comments, parameter.name


def test_the_documentation_names_every_parameter_with_its_default():
    text = (Path(__file__).parents[2] / "docs" / "node.md").read_text()  # documents are not installed
    for parameter in TABLE:
        default = str(parameter.default).lower() if isinstance(parameter.default, bool) else str(parameter.default)
        assert f"| `{parameter.name}` | {parameter.type_name} | {default} |" in text, parameter.name


def test_a_whole_number_is_a_fine_value_for_a_double():
    value = BY_NAME["sync.slop_ms"].check(50)
    assert value == 50.0 and isinstance(value, float)


@pytest.mark.parametrize(
    "name, value",
    [
        ("sync.slop_ms", -0.1),
        ("sync.slop_ms", float("nan")),
        ("sync.slop_ms", True),
        ("sync.slop_ms", "50"),
        ("qos.depth", 0),
        ("qos.depth", 2.0),
        ("reference", "depth"),
        ("autostart", 1),
        ("agc.mode", "PERCENTILE"),
        ("output.encoding", "rgba8"),
    ],
)
def test_refusals_say_what_was_expected_and_what_came(name, value):
    with pytest.raises(InputError, match=rf"{re.escape(name)}; expected .*; got ") as raised:
        settings_from(DEFAULTS | {name: value})
    assert "\n" not in str(raised.value)


def test_values_are_checked_together():
    with pytest.raises(InputError, match="agc.low_percentile < agc.high_percentile"):
        settings_from(DEFAULTS | {"agc.low_percentile": 60.0, "agc.high_percentile": 40.0})
    with pytest.raises(InputError, match="warmup.width"):
        settings_from(DEFAULTS | {"warmup.width": 16})


def test_registration_is_checked_as_a_whole():
    homography, calibrated = {"registration.mode": "homography"}, {"registration.mode": "calibrated"}
    with pytest.raises(InputError, match="registration.homography_file; expected a file"):
        settings_from(DEFAULTS | homography)
    settings = settings_from(DEFAULTS | homography | {"registration.homography_file": "h.yaml"})
    assert (settings.registration.mode, settings.registration.homography_file) == ("homography", "h.yaml")
    turned = {"registration.transform.qx": 0.5}
    settings_from(DEFAULTS | calibrated | turned)  # TF is asked, not the parameters
    settings_from(DEFAULTS | {"registration.transform.source": "parameters"} | turned)
    with pytest.raises(InputError, match="qx, qy, qz and qw; expected a quaternion of length 1; got 0.5, 0, 0, 1"):
        settings_from(DEFAULTS | calibrated | {"registration.transform.source": "parameters"} | turned)


def test_registration_has_the_defaults_of_its_config_and_each_its_own_field():
    assert settings_from(DEFAULTS).registration == RegistrationConfig()
    names = [f"registration.transform.{axis}" for axis in ("x", "y", "z", "qx", "qy", "qz", "qw")]
    values = {name: (number + 1) / 10 for number, name in enumerate(names)}
    config = settings_from(DEFAULTS | values | {"registration.plane_depth_m": 3}).registration
    assert (config.translation, config.quaternion, config.plane_depth_m) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6, 0.7), 3.0)
    assert all(BY_NAME[name].live for name in (*names, "registration.plane_depth_m"))


def test_no_warm_up():
    assert settings_from(DEFAULTS | {"warmup.width": 0}).warmup_size is None


def test_the_largest_picture():
    assert settings_from(DEFAULTS).max_pixels >= 3840 * 2160
    assert settings_from(DEFAULTS | {"input.max_pixels": 640 * 480}).max_pixels == 640 * 480
    for value in (0, MAX_PIXELS + 1):
        with pytest.raises(InputError, match=f"input.max_pixels; expected 1024 to {MAX_PIXELS}; got"):
            settings_from(DEFAULTS | {"input.max_pixels": value})
    with pytest.raises(InputError, match="warmup.width and warmup.height; expected .*307199.*; got 640 and 480"):
        settings_from(DEFAULTS | {"input.max_pixels": 640 * 480 - 1})


def test_descriptors_carry_description_and_range():
    slop, model = BY_NAME["sync.slop_ms"].descriptor(), BY_NAME["model"].descriptor()
    assert slop.floating_point_range[0].to_value == BY_NAME["sync.slop_ms"].maximum and not slop.read_only
    assert model.read_only and model.description == BY_NAME["model"].description
