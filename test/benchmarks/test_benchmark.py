"""The benchmark: its arithmetic against counters, its document, its refusals; what it reports is what was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from isfl_ros.backends import choose
from isfl_ros.benchmarks import cost, environment, golden, gpu, memory, networks, operations, peaks, run, training_step
from isfl_ros.benchmarks.frames import WholeFrame
from isfl_ros.benchmarks.inputs import random_pairs
from isfl_ros.benchmarks.timing import Timing, host_clock, take_turns, wall_clock
from isfl_ros.cli.main import main
from isfl_ros.errors import InputError
from isfl_ros.network.baffm import BaffmNet
from isfl_ros.network.checkpoint import ModelInfo, load_model, save_model
from isfl_ros.network.config import ARCHITECTURES, BaffmConfig, IsflConfig
from isfl_ros.network.dictionary import DictionaryRecord, digest_of
from isfl_ros.network.model import IsflNet, for_inference
from isfl_ros.network.plain import plain_forward
from isfl_ros.ops.pooled_cross_attention.folded import whole_frame
from isfl_ros.pipeline import PipelineConfig
from isfl_ros.resources import resolve_model, shared_directory

SIZE = (48, 64)
SMALL = IsflConfig(width=8, grid=4, gate_width=4)


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch):
    """Rates that nobody looks at need no large copy."""
    monkeypatch.setattr(peaks, "_COPIED_BYTES", {"cpu": 1 << 16, "cuda": 1 << 16})
    monkeypatch.setattr(peaks, "_MATRIX_SIDE", {"cpu": 32, "cuda": 32})
    monkeypatch.setattr(peaks, "_CHANNELS", (8,))
    monkeypatch.setattr(peaks, "_ENOUGH_S", 0.0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = IsflNet(SMALL).eval()
    save_model(
        folder, network, ModelInfo(name=folder.name, model="isfl", architecture="isfl", recipe="none", config=SMALL)
    )
    return folder


def benchmark(model: Path | str, *more: str) -> int:
    return main(
        [
            "benchmark",
            "--model",
            str(model),
            "--device",
            "cpu",
            "--size",
            "64x48",
            "--frames",
            "2",
            "--warm-up",
            "1",
            *more,
        ]
    )


# -- the model of operations and bytes ----------------------------------------------------------------------------


def counted(call) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(64, 80), (53, 75)], ids=["even", "odd"])
@pytest.mark.parametrize(
    "config",
    [
        IsflConfig(),
        SMALL,
        IsflConfig(siamese=True, scales=2, refine=False, head_kernel=1, gate_width=0, decoder_order="conv_then_add"),
        IsflConfig(cfi=False),
        ARCHITECTURES["isfl"],
        ARCHITECTURES["isfl-edge"],
        ARCHITECTURES["isfl-paper"],
    ],
    ids=["release", "small", "other", "without CFI", "isfl", "edge", "paper"],
)
def test_operations_of_the_network_are_those_that_torch_counts(config, size):
    network = for_inference(IsflNet(config), implementation="folded")
    pictures = torch.rand(2, 1, 1, *size)
    with whole_frame():
        folded = counted(lambda: network(*pictures))
    assert cost.network(config, *size, 4).flops == folded
    network.set_implementation("reference")
    assert cost.network(config, *size, 4, folded=False).flops == counted(lambda: network(*pictures))


def test_operations_of_the_plain_formulation_are_those_that_torch_counts():
    weights = IsflNet(IsflConfig()).eval().state_dict()
    pictures = torch.rand(2, 1, 1, *SIZE)
    assert cost.network(IsflConfig(), *SIZE, 4, folded=False).flops == counted(
        lambda: plain_forward(weights, *pictures)
    )


def test_integrator_by_hand():
    config = IsflConfig()  # C = 32, T = 64, G = 16
    # A pixel asks in two directions: 64 scores of 32 products, 32 values of 64 products, two operations each.
    assert cost.attend(config, 1, 2) == cost.Cost(flops=2 * (64 * 32 * 2 + 32 * 64 * 2), bytes=3 * 32 * 2)
    assert cost.pool(config, 100, 4) == cost.Cost(flops=0, bytes=2 * 32 * 4 * 100)
    assert cost.blend(config, 1, 2) == cost.Cost(flops=2 * (9 * 32 * 16 + 16), bytes=(3 * 32 + 32 + 1) * 2)
    assert cost.fold(config).flops == 2 * (2 * 64 * 32 * 65)
    assert cost.integrator(config, 10, 2).bytes == 10 * 2 * (64 + 96 + 129)


def test_bytes_of_the_network_by_hand():
    config = IsflConfig(scales=1, refine=False, cfi=False)
    n, c = 10 * 12, 32
    weights = 2 * (9 * c + 9 * c * c) + 9 * c
    maps = 2 * ((1 + c) + (c + c)) + 3 * c + (c + 1)  # two encoders, their sum, the head
    assert cost.network(config, 10, 12, 4).bytes == 4 * (n * maps + weights)
    looking = dataclasses.replace(config, validity_input=True)
    first = 2 * 9 * c + 2 * n  # its weights and maps in the first convolutions of both encoders
    joined = 2 * (1 + 2) * n  # pictures read, pictures and maps written
    assert cost.network(looking, 10, 12, 4).bytes == 4 * (n * maps + weights + first + joined) + 2 * n


@pytest.mark.parametrize(
    "config",
    [
        *(config for config in ARCHITECTURES.values() if isinstance(config, IsflConfig)),
        SMALL,
        IsflConfig(siamese=True, gate_width=0, scales=2),
    ],
    ids=str,
)
def test_weights_are_counted_but_for_biases_and_norms(config):
    matrices = sum(p.numel() for p in IsflNet(config).parameters() if p.dim() > 1)
    assert cost._parameters(config) == matrices


BAFFM_CONFIGS = {
    "baffm": BaffmConfig(),
    "as in the paper": BaffmConfig(mixing=0, siamese=True, scales=2),
    "without the adjustment": BaffmConfig(adjustment="conventional"),
    "gate": BaffmConfig(gate=True, gate_width=4, mixing=2),
    "other sizes": BaffmConfig(width=6, prototypes=7, entries=5, query=9, scales=1),
}


@pytest.mark.parametrize("size", [(64, 80), (53, 75)], ids=["even", "odd"])
@pytest.mark.parametrize("config", BAFFM_CONFIGS.values(), ids=BAFFM_CONFIGS.keys())
def test_operations_of_baffm_are_those_that_torch_counts(config, size):
    network = BaffmNet(config)
    if config.needs_dictionary:
        network.set_dictionaries(*torch.randn(2, config.prototypes, config.entries))
    network = for_inference(network)
    pictures = torch.rand(2, 1, 1, *size)
    assert cost.network(config, *size, 4).flops == counted(lambda: network(*pictures))
    network.set_implementation("reference")
    assert cost.network(config, *size, 4, folded=False).flops == counted(lambda: network(*pictures))
    matrices = sum(p.numel() for p in BaffmNet(config).parameters() if p.dim() > 1)
    assert cost._baffm_parameters(config) == matrices


def test_a_benchmark_of_baffm(tmp_path, capsys):
    """Every section, on a model without CFI, plain formulation or gates: what cannot be measured is said."""
    config = BaffmConfig(width=4, prototypes=3, entries=2, query=2)
    network = BaffmNet(config).eval()
    visible, infrared = torch.randn(2, 3, 2)
    network.set_dictionaries(visible, infrared)
    record = DictionaryRecord(
        backbone="none", backbone_sha256="", backbone_width=2, regions=1, prototypes=3, entries=2, images=3, seed=0,
        explained_variance={}, members={}, sha256=digest_of(visible, infrared),
    )
    info = ModelInfo(
        name="model", model="baffm", architecture="baffm", recipe="test", config=config,
        dictionary=dataclasses.asdict(record),
    )
    save_model(tmp_path / "model", network, info)
    document = run.run_benchmark(
        run.BenchmarkConfig(
            model=str(tmp_path / "model"), device="cpu", sizes=((36, 44),), implementations=("folded",), frames=2, warm_up=1
        )
    )
    assert document["network"][0]["roofline"]["flops"] == cost.network(config, 36, 44, 4).flops
    assert document["model"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert document["frame"] and document["memory"]
    assert all(entry["kind"] == "unavailable" for entry in document["cannot_run"])


def test_the_slower_of_two_rates_is_the_floor():
    assert cost.floor_ms(cost.Cost(2000, 10), bytes_per_s=10.0, flops_per_s=1000.0) == (2000.0, "arithmetic")
    assert cost.floor_ms(cost.Cost(2000, 30), bytes_per_s=10.0, flops_per_s=1000.0) == (3000.0, "memory")
    measured = peaks.Peaks(copy_bytes_per_s=10.0, flops_per_s={"fp16": 1000.0})
    row = measured.roofline(cost.Cost(1000, 30), "fp16", 6000.0)
    assert (
        row["fraction"] == 0.5
        and row["copy_fraction"] == 0.5
        and row["bytes_per_s"] == 5.0
        and row["bound"] == "memory"
    )


def test_measured_peaks_are_positive_rates():
    found = peaks.measure_peaks("cpu", ["fp32", "bf16", "fp32"])
    assert found.copy_bytes_per_s > 0 and set(found.flops_per_s) == {"fp32", "bf16"}
    assert all(rate > 0 for rate in found.flops_per_s.values())


# -- timing -------------------------------------------------------------------------------------------------------


def test_figures_of_a_distribution():
    timing = Timing.of([float(x) for x in range(100, -1, -1)])
    assert timing == Timing(count=101, median_ms=50.0, min_ms=0.0, p10_ms=10.0, p90_ms=90.0, p95_ms=95.0)


def test_opponents_take_turns_and_warm_up_does_not_count():
    seen = []

    class Contender:
        def __init__(self, name):
            self.name = name

        @contextlib.contextmanager
        def settings(self):
            seen.append(f"in {self.name}")
            yield
            seen.append(f"out {self.name}")

        def run(self, index):
            assert not gc.isenabled()
            seen.append((self.name, index))

    ticks = iter(range(100))

    def clock(work):
        work()
        return float(next(ticks))

    samples = take_turns({"a": Contender("a"), "b": Contender("b")}, clock, frames=2, warm_up=1)
    assert samples == {"a": [2.0, 4.0], "b": [3.0, 5.0]}
    assert [entry for entry in seen if isinstance(entry, tuple)] == [(n, k) for k in range(3) for n in "ab"]
    assert seen[:3] == ["in a", ("a", 0), "out a"]
    assert gc.isenabled()


@pytest.mark.parametrize("clock", [host_clock, wall_clock])
def test_clocks_count_the_work_in_milliseconds(clock):
    assert 20.0 <= clock(lambda: time.sleep(0.02)) < 2000.0
    assert clock(lambda: None) < 9.0, "the pause before is not counted"


def test_pictures_differ_and_depend_on_the_seed_alone():
    pairs, again, other = (random_pairs(40, 50, 3, seed) for seed in (0, 0, 1))
    for a, b, c in zip(pairs, again, other):
        np.testing.assert_array_equal(a.rgb, b.rgb)
        assert (a.rgb != c.rgb).any() and a.thermal.shape == (40, 50) and a.rgb.shape == (40, 50, 3)
        assert a.thermal.std() > 10 and a.thermal.dtype == a.rgb.dtype == np.uint8
        assert 0.0 <= a.visible.min() < a.visible.max() <= 1.0
    assert (pairs[0].thermal != pairs[1].thermal).any() and (pairs[0].rgb[:, :, 0] != pairs[0].rgb[:, :, 1]).any()


# -- the document -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One run of the whole verb on the shipped model, with everything that it printed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(peaks, "_COPIED_BYTES", {"cpu": 1 << 16})
    patch.setattr(peaks, "_MATRIX_SIDE", {"cpu": 32})
    patch.setattr(peaks, "_CHANNELS", (8,))
    printed = []
    patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
    path = tmp_path_factory.mktemp("benchmark") / "all.json"
    try:
        status = benchmark(
            "isfl",
            "--threads",
            "1",
            "--implementation",
            "all",
            "auto",
            "--precision",
            "auto",
            "fp16",
            "--json",
            str(path),
        )
    finally:
        patch.undo()
    return SimpleNamespace(status=status, document=json.loads(path.read_text()), lines="\n".join(printed).splitlines())


def test_document_says_what_was_measured_on_what(measured):
    assert measured.status == 0
    document = measured.document
    assert document["complete"] is True
    assert (document["format"], document["format_version"]) == ("isfl_ros-benchmark", 1)
    assert document["command"].startswith("isfl benchmark --model isfl --device cpu --size 64x48 --implementation all")
    assert set(document["environment"]) == {"date", "commit", "dirty", "cpu", "gpu", "threads", "versions"}
    assert document["environment"]["threads"] == 1
    assert document["environment"]["versions"]["torch"] and document["model"]["parameters"] < 240_000
    planned = {(plan["implementation"], plan["precision"]) for plan in document["plans"]}
    assert {("reference", "fp32"), ("folded", "fp32")} <= planned
    for plan in document["plans"]:
        assert plan["implementation_reason"] and plan["precision_reason"] and plan["device_reason"]
    for section in ("network", "frame", "memory"):
        assert {(row["implementation"], row["precision"]) for row in document[section]} == planned, section
    assert all(
        row["timing"]["count"] == 2 for section in ("network", "frame", "operations") for row in document[section]
    )
    assert {row["operation"] for row in document["operations"]} == {"pool", "attention", "blend", "integrator"}


def test_what_cannot_run_is_listed_with_its_reason(measured):
    listed = {(entry["implementation"], entry["precision"]): entry for entry in measured.document["cannot_run"]}
    assert "CUDA device" in listed["triton", "auto"]["reason"] and listed["triton", "auto"]["kind"] == "unavailable"
    assert "fp16" in listed["folded", "fp16"]["reason"]
    assert any(line.startswith("not measured: triton auto: ") for line in measured.lines)


def test_headline_is_what_auto_chooses_and_comes_last(measured):
    document = measured.document
    auto = choose("cpu", "auto", "auto", load_model(resolve_model("isfl"))[0])
    about = document["headline"]
    assert (about["implementation"], about["precision"], about["size"]) == (
        auto.implementation,
        auto.precision,
        "64x48",
    )
    (row,) = [
        row
        for row in document["network"]
        if all(row[key] == about[key] for key in ("implementation", "precision", "size", "mode"))
    ]
    plain = row["opponents"]["plain"]["timing"]["median_ms"]
    assert document["speedup_vs_eager"] == pytest.approx(plain / row["timing"]["median_ms"])
    assert 0.0 < document["mean_abs_diff"] < document["max_abs_diff"] == row["max_abs_diff"] <= 1e-4
    assert measured.lines[-2].startswith(f"speedup_vs_eager: {document['speedup_vs_eager']:.2f} ")
    assert measured.lines[-1].startswith(
        f"max_abs_diff: {document['max_abs_diff']:.2e} (mean_abs_diff: {document['mean_abs_diff']:.2e}"
    )


def test_stages_add_up_to_the_frame(measured):
    for row in measured.document["frame"]:
        stages = sum(timing["median_ms"] for timing in row["stages"].values())
        assert set(row["stages"]) == {"preprocess", "network", "postprocess"}
        assert 0.0 < stages and row["stages"]["network"]["min_ms"] <= row["timing"]["p95_ms"]


def test_difference_is_measured_on_luma_and_on_gates(tmp_path, monkeypatch):
    model = small_model(tmp_path / "model")
    more = ("--implementation", "folded", "--section", "network", "--json", str(tmp_path / "out.json"), "--overwrite")

    def figures() -> dict:
        assert benchmark(model, *more) == 0
        return json.loads((tmp_path / "out.json").read_text())

    assert figures()["max_abs_diff"] < 1e-5

    def broken_weights(weights, *inputs, **more):
        return plain_forward(weights | {"head.conv.bias": weights["head.conv.bias"] + 1.0}, *inputs, **more)

    monkeypatch.setattr(networks, "plain_forward", broken_weights)
    assert figures()["max_abs_diff"] > 0.1 and figures()["mean_abs_diff"] > 1e-3

    def broken_gate(*arguments, **more):
        fused, gates = plain_forward(*arguments, **more)
        return fused, [gates[0], gates[1], gates[2] + 0.25]

    monkeypatch.setattr(networks, "plain_forward", broken_gate)
    assert figures()["max_abs_diff"] == pytest.approx(0.25, abs=1e-4)


def test_second_model_is_an_opponent_besides(tmp_path):
    ours, other = small_model(tmp_path / "ours"), small_model(tmp_path / "other", seed=1)
    more = (
        "--implementation",
        "folded",
        "--section",
        "network",
        "frame",
        "--overwrite",
        "--json",
        str(tmp_path / "out.json"),
    )
    assert benchmark(ours, "--against", str(other), *more) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    row = document["network"][0]
    assert set(row["opponents"]) == {"plain", "model other", "plain of model other"}
    assert row["picture_apart_from_opponent"]["max_abs_diff"] > 1e-3 > row["max_abs_diff"]
    assert set(document["frame"][0]["opponents"]) == {"model other"}
    assert str(tmp_path) not in json.dumps(document), "no paths of this machine"
    assert benchmark(ours, "--against", str(ours), *more) == 0
    assert (
        json.loads((tmp_path / "out.json").read_text())["network"][0]["picture_apart_from_opponent"]["max_abs_diff"]
        < 1e-5
    )


def test_a_contender_that_breaks_does_not_cost_the_others_figures(tmp_path, monkeypatch, capsys):
    whole = networks.Eager.outputs

    def spoiled(self, index):
        outputs = whole(self, index)
        return [output * float("nan") for output in outputs] if self._plan.implementation == "reference" else outputs

    monkeypatch.setattr(networks.Eager, "outputs", spoiled)
    model = small_model(tmp_path / "model")
    more = ("--implementation", "reference", "folded", "--section", "network", "--json", str(tmp_path / "out.json"))
    assert benchmark(model, *more) == 1
    document = json.loads((tmp_path / "out.json").read_text())
    assert [row["implementation"] for row in document["network"]] == ["folded"]
    (failed,) = document["cannot_run"]
    assert failed["kind"] == "failed" and failed["implementation"] == "reference" and "NaN" in failed["reason"]
    assert "failed: network 64x48 reference fp32: ValueError" in capsys.readouterr().out


def test_without_a_plain_formulation_the_rest_is_measured(tmp_path, capsys):
    config = IsflConfig(width=8, grid=4, gate_width=4, siamese=True)
    info = ModelInfo(name="model", model="isfl", architecture="isfl", recipe="none", config=config)
    save_model(tmp_path / "model", IsflNet(config).eval(), info)
    assert benchmark(tmp_path / "model", "--implementation", "folded", "--json", str(tmp_path / "out.json")) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert (
        document["speedup_vs_eager"] is None and document["max_abs_diff"] is None and "siamese" in document["headline"]
    )
    assert document["network"][0]["opponents"] == {} and document["frame"] and document["operations"]
    assert capsys.readouterr().out.splitlines()[-2].startswith("speedup_vs_eager: not measured: ")


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run._Run, "_frame", interrupted)
    path = tmp_path / "out.json"
    assert benchmark(small_model(tmp_path / "model"), "--implementation", "folded", "--json", str(path)) == 130
    document = json.loads(path.read_text())
    assert document["complete"] is False and document["speedup_vs_eager"] > 0 and document["frame"] == []
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--size", "640"), "size unreadable; expected WIDTHxHEIGHT"),
        (("--size", "31x640"), "picture too small.*31x640"),
        (("--size", "x48"), "size unreadable"),
        (("--frames", "0"), "frames out of range"),
        (("--warm-up", "-1"), "warm-up out of range"),
        (("--threads", "-1"), "threads out of range"),
        (("--model", "nothing"), "no model 'nothing'"),
        (("--against", "nothing"), "no model 'nothing'"),
        (("--implementation", "triton"), "nothing of what was asked for can run here.*CUDA device"),
        (("--precision", "fp16"), "nothing of what was asked for can run here.*fp16"),
        (("--device", "cuda"), "nothing of what was asked for can run here.*cuda"),
    ],
)
def test_refusals(more, message, capsys, tmp_path):
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert benchmark("isfl", "--json", str(tmp_path / "out.json"), *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out.json").exists()
    assert re.search(message, error), error


def test_files_are_kept(tmp_path, capsys):
    model = small_model(tmp_path / "model")
    path = tmp_path / "out.json"
    path.write_text("mine")
    quick = ("--implementation", "folded", "--section", "frame")
    assert benchmark(model, *quick, "--json", str(path)) == 2
    assert path.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert benchmark(model, *quick, "--json", str(tmp_path), "--overwrite") == 2
    assert benchmark(model, *quick, "--json", str(path), "--overwrite") == 0
    assert json.loads(path.read_text())["frame"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out.json"], "nothing is left aside"


def test_opponent_runs_with_torchs_defaults_and_ours_as_the_pipeline_does(tmp_path):
    """Denormal numbers are flushed for ours alone, and gradients are off for both."""
    network, _ = load_model(small_model(tmp_path / "model"))
    pairs = random_pairs(*SIZE, 1, 0)
    plan = choose("cpu", "folded", "fp32", network)
    denormal = torch.full((1,), 1e-39)

    def flushed() -> bool:
        assert torch.is_inference_mode_enabled()
        return bool((denormal * 0.5 == 0).item())

    with networks.Eager(network, pairs, plan).settings():
        assert flushed()
    with networks.Plain(network, pairs, device="cpu", variant="plain").settings():
        assert not flushed()


def test_memory_that_stays_is_seen():
    kept = []

    class Leak:
        def settings(self):
            return contextlib.nullcontext()

        def run(self, index):
            kept.append(np.full(1 << 20, index % 250, np.uint8))

    found = memory.resident_growth(Leak(), frames=40, warm_up=2)
    if found["growth_bytes"] is None:
        pytest.skip("this system does not tell")
    assert found["growth_bytes"] > 36 << 20 and found["frames"] == 40


def test_a_frame_that_was_fused_elsewhere_is_an_error(tmp_path, monkeypatch):
    contender = WholeFrame(
        PipelineConfig(model=str(small_model(tmp_path / "model")), device="cpu"), random_pairs(*SIZE, 2, 0)
    )
    contender.run(0)
    assert set(contender.stages(1)) == {"preprocess", "network", "postprocess"}
    monkeypatch.setattr(contender, "_device", "cuda")
    with pytest.raises(RuntimeError, match="fused on cpu"):
        contender.run(1)
    contender.close()


# -- environment --------------------------------------------------------------------------------------------------


def test_commit_is_unknown_without_history_unless_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "shared_directory", lambda: tmp_path)
    monkeypatch.delenv(environment.COMMIT_VARIABLE, raising=False)
    assert environment.describe_source() == {"commit": "unknown", "dirty": "unknown"}
    monkeypatch.setenv(environment.COMMIT_VARIABLE, "abc")
    assert environment.describe_source()["commit"] == "abc"


def test_commit_and_changes_of_a_source_tree(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    if git("init").returncode:
        pytest.skip("no git")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "x")
    monkeypatch.setattr(environment, "shared_directory", lambda: tmp_path)
    assert environment.describe_source() == {"commit": git("rev-parse", "HEAD").stdout.strip(), "dirty": False}
    (tmp_path / "file").write_text("2")
    assert environment.describe_source()["dirty"] is True
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(environment, "shared_directory", lambda: tmp_path / "inner")
    assert environment.describe_source()["commit"] == "unknown", "the commit of another project is not ours"


# -- CUDA, pretended ----------------------------------------------------------------------------------------------


class PretendedCuda(str):
    """A device name that torch reads as the CPU and the benchmark as CUDA."""

    def __eq__(self, other):
        return other == "cuda"

    def __hash__(self):
        return hash("cuda")


@pytest.fixture()
def cuda(monkeypatch):
    """Streams, events, graphs and counters without a device; a graph's replay does nothing, its capture computes."""

    class Stream:
        def wait_stream(self, other):
            pass

        def synchronize(self):
            pass

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = time.perf_counter()

        def synchronize(self):
            pass

        def elapsed_time(self, later):
            return 1e3 * (later.at - self.at)

    class CUDAGraph:
        captured = False

        def replay(self):
            assert self.captured

    @contextlib.contextmanager
    def graph(captured, pool=None, stream=None):
        yield
        captured.captured = True

    names = {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "graph_pool_handle": lambda: 0,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "current_device": lambda: 0,
        "mem_get_info": lambda: (1 << 20, 1 << 30),
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 1100,
        "memory_reserved": lambda: 500,
        "reset_peak_memory_stats": lambda: None,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1 << 10),
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: call)
    real = choose

    def pretended(device, implementation, precision, network):
        name = "folded" if implementation == "auto" else implementation
        plan = real("cpu", name, "fp32", network)
        if precision not in ("auto", "fp32", "tf32"):
            raise InputError(f"precision {precision} is not pretended")
        taken = "fp32" if precision == "auto" else precision
        return type(plan)(**vars(plan) | {"device": PretendedCuda("cpu"), "precision": taken})

    monkeypatch.setattr(run, "choose", pretended)


def tf32_switches():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_the_program_for_cuda_on_a_pretended_device(cuda, tmp_path):
    """Every line of it but the profiler's runs; figures mean nothing."""
    config = run.BenchmarkConfig(
        model=str(small_model(tmp_path / "model")),
        sizes=(SIZE, (53, 70)),
        implementations=("reference", "folded"),
        precisions=("fp32", "tf32", "fp16"),
        frames=2,
        warm_up=1,
        sections=("network", "operations", "memory"),
    )
    before = tf32_switches()
    document = run.run_benchmark(config)
    assert before == tf32_switches(), "switches are put back"
    assert {entry["reason"] for entry in document["cannot_run"]} == {"precision fp16 is not pretended"}
    assert len(document["network"]) == 2 * 2 * 2 * 2
    assert document["headline"]["size"] == "64x48"
    for row in document["network"]:
        assert (
            set(row["opponents"]) == {"plain_tf32_off", "plain_tf32_on", "plain_torch_default"}
            and row["max_abs_diff"] < 1e-4
        )
    assert document["headline"]["mode"] == "graph" and document["headline"]["opponent"] == "plain_tf32_off"
    assert set(document["headline"]["speedups"]) == {"plain_tf32_off", "plain_tf32_on", "plain_torch_default"}
    names = {(row["operation"], row["contender"]) for row in document["operations"]}
    assert {
        ("integrator", name) for name in ("reference nchw", "reference channels_last", "compiled reference", "folded")
    } <= names
    assert all(row["speedup_vs_compiled"] for row in document["operations"])
    assert [row["peak_bytes"] for row in document["memory"] if "peak_bytes" in row] == [1000] * 10
    assert [row["held_bytes"] for row in document["memory"] if "held_bytes" in row] == [0] * 8


def test_switches_of_the_opponents_variants(cuda, tmp_path):
    network, _ = load_model(small_model(tmp_path / "model"))
    pairs = random_pairs(*SIZE, 1, 0)

    def switches(variant):
        with networks.Plain(network, pairs, device=PretendedCuda("cpu"), variant=variant).settings():
            return (*tf32_switches(), torch.backends.cudnn.benchmark)

    assert switches("plain_tf32_off") == ("ieee", "ieee", False)
    assert switches("plain_tf32_on") == ("tf32", "tf32", False)
    assert switches("plain_torch_default") == (*tf32_switches(), torch.backends.cudnn.benchmark)


def test_the_kernels_that_are_looked_for_exist():
    sources = "".join(path.read_text() for path in (shared_directory() / "isfl_ros" / "ops").glob("*/kernels.py"))
    for name in operations.KERNELS:
        assert f"\ndef {name}(" in sources, name


@pytest.mark.parametrize("implementation", ["folded", "triton"])
def test_operations_agree_with_their_reference(implementation):
    """What is timed side by side computes the same."""
    if implementation == "triton":
        pytest.importorskip("triton")
    network = IsflNet(IsflConfig(width=16, grid=2, gate_width=4)).eval()
    maps = operations._feature_sets(16, (32, 36), "fp32", "cpu", 0)[0]
    seen = set()
    for operation in operations._operations(network, (32, 36), "fp32", "cpu", [implementation]):
        calls = {**operation.reference, **operation.fused}
        with torch.no_grad():
            results = {name: call(*maps[: operation.inputs]) for name, call in calls.items()}
        wanted = results.pop("nchw")
        seen.add(operation.name)
        for name, got in results.items():
            for a, b in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (got, wanted)), strict=True):
                torch.testing.assert_close(
                    a, b, rtol=1e-4, atol=1e-4, msg=lambda text: f"{operation.name} {name}: {text}"
                )
    assert seen == {"pool", "attention", "blend", "integrator"}


def test_an_operation_that_breaks_does_not_cost_the_others_figures(tmp_path, monkeypatch, capsys):
    def broken(*arguments, **more):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(operations, "attend_folded", broken)
    model = small_model(tmp_path / "model")
    more = ("--implementation", "folded", "--section", "operations", "--json", str(tmp_path / "out.json"))
    assert benchmark(model, *more) == 1
    document = json.loads((tmp_path / "out.json").read_text())
    assert {row["operation"] for row in document["operations"]} == {"pool", "attention", "blend", "integrator"}
    assert [row["contender"] for row in document["operations"] if row["operation"] == "attention"] == [
        "reference nchw",
        "reference channels_last",
    ]
    (failed,) = document["cannot_run"]
    assert (failed["operation"], failed["contender"], failed["kind"]) == ("attention", "folded", "failed")
    assert failed["reason"] == "RuntimeError: no such kernel"


def test_kernels_are_timed_by_the_profiler_of_the_device(cuda, monkeypatch):
    """With a profiler that reports what one would."""
    pytest.importorskip("triton")
    from torch.autograd import DeviceType

    def event(name, microseconds, device=DeviceType.CUDA):
        return SimpleNamespace(
            name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: microseconds)
        )

    found = [event("attend_kernel", us) for us in (2000.0, 1000.0, 3000.0)]
    found += [event("finish_tokens_kernel", 5.0), event("other", 1.0), event("attend_kernel", 9.0, DeviceType.CPU)]

    @contextlib.contextmanager
    def profile(activities):
        yield SimpleNamespace(events=lambda: found)

    monkeypatch.setattr(torch.profiler, "profile", profile)
    config = IsflConfig(width=16, grid=2, gate_width=4)
    maps = operations._feature_sets(16, (32, 36), "fp32", "cpu", 0)[:1]
    monkeypatch.setattr(operations, "_PROFILED_RUNS", 1)
    monkeypatch.setattr(operations, "_WARM_UP_RUNS", 0)
    rates = peaks.Peaks(copy_bytes_per_s=1e9, flops_per_s={"fp32": 1e12})
    arguments = (IsflNet(config).eval(), (32, 36), maps, "fp32", PretendedCuda("cpu"), rates)
    rows = {row["operation"]: row for row in operations._kernels(*arguments)}
    assert set(rows) == {"kernel attend_kernel", "kernel finish_tokens_kernel"}
    attend = rows["kernel attend_kernel"]
    assert attend["timing"]["median_ms"] == 2.0 and attend["timing"]["count"] == 3
    assert attend["roofline"]["copy_fraction"] == pytest.approx(3 * 16 * 32 * 36 * 4 / 2e-3 / 1e9)
    assert "roofline" not in rows["kernel finish_tokens_kernel"]
    found.clear()
    with pytest.raises(RuntimeError, match="none of the fused kernels"):
        operations._kernels(*arguments)


@pytest.mark.slow
def test_references_compile_as_one_graph():
    """Broken graphs would handicap the compiled opponent."""
    network, _ = load_model(resolve_model("isfl"))
    maps = operations._feature_sets(network.config.width, (40, 56), "fp32", "cpu", 0)[0]
    for operation in operations._operations(network, (40, 56), "fp32", "cpu", []):
        for call in operation.reference.values():
            torch.compiler.reset()
            compiled = torch.compile(call, backend="eager", fullgraph=True, dynamic=False)
            with torch.no_grad():
                compiled(*maps[: operation.inputs])


# -- the one command for a GPU ------------------------------------------------------------------------------------


def test_parts_are_listed_without_a_device_and_fit_ten_minutes(capsys, tmp_path):
    assert gpu.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    parts = gpu.gpu_parts(tmp_path, model="isfl", reference=None)
    assert [line.split()[0] for line in lines] == [part.name for part in parts]
    assert sum(part.limit_s + gpu._ENDING_S for part in parts) < 570
    assert gpu.main(["--list", "--parts", "golden"]) == 0
    assert "skipped: no --reference folder" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_is_refused_in_one_line(capsys, tmp_path):
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("gpu: error: device cuda asked for") and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_unknown_part_is_refused(capsys):
    assert gpu.main(["--list", "--parts", "kernel"]) == 2
    assert "unknown part; expected one of kernels, backends" in capsys.readouterr().err


def test_earlier_runs_are_kept_and_replaced_whole(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "choose_device", lambda name: None)
    monkeypatch.setattr(
        gpu, "gpu_parts", lambda out, **_: [Part("fine", "print('hello')"), Part("other", "", result="other.json")]
    )
    out = tmp_path / "out"
    assert gpu.main(["--out", str(out), "--parts", "fine"]) == 0
    assert gpu.main(["--out", str(out), "--parts", "fine"]) == 2 and "--overwrite" in capsys.readouterr().err
    (out / "other.json").write_text("old")
    assert gpu.main(["--out", str(out), "--parts", "fine", "--overwrite"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "summary.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    assert gpu.main(["--out", str(tmp_path / "mine"), "--overwrite"]) == 2


def Part(name, program, **more):
    return gpu.Part(**{"name": name, "about": f"about {name}", "command": ("-c", program), "limit_s": 60.0} | more)


def test_a_part_that_fails_is_recorded_and_the_others_go_on(tmp_path, capsys):
    parts = [
        Part("breaks", "import sys; print('it broke'); sys.exit(3)"),
        Part("hangs", "import time; print('waiting', flush=True); time.sleep(60)", limit_s=3.0),
        Part("skipped", "", skip="nothing to do"),
        Part(
            "writes",
            f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, 'r.json').write_text('[]');"
            " print(os.environ['X'], os.getcwd())",
            result="r.json",
            environment={"X": "y"},
        ),
    ]
    start = time.monotonic()
    records = gpu.run_parts(parts, tmp_path, root=shared_directory())
    assert time.monotonic() - start < 50
    assert [record["status"] for record in records] == ["failed", "timed out", "skipped", "passed"]
    assert records[0]["reason"].startswith("exit status 3") and records[0]["last_line"] == "it broke"
    # A shell starts what it runs in the background with SIGINT ignored, and children inherit that: such a part is killed.
    interrupted = "waiting" if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else "KeyboardInterrupt"
    assert "limit of 3 s" in records[1]["reason"] and records[1]["last_line"] == interrupted, "it may end in order"
    assert records[2]["reason"] == "nothing to do"
    assert records[3]["result"] == "r.json" and records[3]["last_line"] == "y .", "paths mean something elsewhere"
    log = (tmp_path / "log.txt").read_text()
    assert (
        all(f"==== {part.name}: " in log for part in parts) and "it broke" in log and str(shared_directory()) not in log
    )
    assert json.loads((tmp_path / "summary.json").read_text())["parts"] == records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "r.json", "summary.json"]


def test_commands_of_the_parts_are_understood(tmp_path, monkeypatch):
    """Each is parsed by the program that it calls; nothing is measured."""
    (tmp_path / golden.CHECKPOINT).touch()
    (tmp_path / golden.GOLDEN).touch()
    parts = gpu.gpu_parts(tmp_path, model="isfl", reference=tmp_path)
    assert all(part.skip is None for part in parts)

    def measure(*arguments, **more):
        raise Measured(*arguments, more)

    monkeypatch.setattr(run, "run_benchmark", measure)
    monkeypatch.setattr(golden, "measure_accuracy", measure)
    monkeypatch.setattr(training_step, "profile_training_step", measure)
    programs = {
        "isfl_ros.cli.main": main,
        "isfl_ros.benchmarks.golden": golden.main,
        "isfl_ros.benchmarks.training_step": training_step.main,
    }
    seen = {}
    for part in parts:
        if part.command[1] == "pytest":
            assert part.environment == {"ISFL_TEST_DEVICE": "cuda"}
            continue
        with pytest.raises(Measured) as measured:
            programs[part.command[1]](list(part.command[2:]))
        seen[part.name] = measured.value.args
    assert len(seen) == 6
    for size, shape in (("640x480", (480, 640)), ("1280x1024", (1024, 1280))):
        whole, parts_of_it = seen[f"benchmark-{size}"][0], seen[f"operations-{size}"][0]
        assert whole.sizes == parts_of_it.sizes == (shape,) and whole.device == parts_of_it.device == "cuda"
        assert whole.implementations == ("triton", "folded", "reference"), "what auto takes comes first"
        assert whole.precisions == parts_of_it.precisions == ("fp16", "fp32", "tf32", "bf16")
        assert sorted(whole.sections + parts_of_it.sections) == sorted(run.SECTIONS)
    assert seen["golden"] == (tmp_path, {"device": "cuda"})
    assert (seen["training"][-1]["patch"], seen["training"][-1]["batch"]) == (256, 16)


class Measured(Exception):
    """Ends a program where it would begin to measure."""


def test_golden_accuracy_keeps_its_bars(reference_values, tmp_path, capsys):
    assert (
        golden.main(["--reference", str(reference_values), "--device", "cpu", "--json", str(tmp_path / "golden.json")])
        == 0
    )
    rows = json.loads((tmp_path / "golden.json").read_text())["rows"]
    exact = [row for row in rows if row["precision"] == "fp32" and "reason" not in row]
    assert {row["implementation"] for row in exact} >= {"reference", "folded"}
    for row in exact:
        assert row["within"] is True and 0 < row["fused_max_abs_diff"] <= 1e-4 and row["gates_max_abs_diff"] <= 1e-4
    assert any("CUDA device" in row.get("reason", "") for row in rows)
    assert "within the bar" in capsys.readouterr().out


def test_golden_accuracy_notices_another_network(reference_values, tmp_path, monkeypatch):
    def spoiled(path):
        network, info = whole(path)
        with torch.no_grad():
            network.head.conv.bias += 0.01
        return network, info

    whole = golden.read_release
    monkeypatch.setattr(golden, "read_release", spoiled)
    monkeypatch.setattr(run, "IMPLEMENTATIONS", ("folded",))
    assert (
        golden.main(["--reference", str(reference_values), "--device", "cpu", "--json", str(tmp_path / "golden.json")])
        == 1
    )


def test_golden_accuracy_without_its_files(tmp_path, capsys):
    assert golden.main(["--reference", str(tmp_path), "--device", "cpu", "--json", str(tmp_path / "golden.json")]) == 2
    assert "isfuse_release.safetensors not found" in capsys.readouterr().err


def test_training_step_is_the_trainers_for_every_implementation():
    rows = training_step.profile_training_step(
        device="cpu",
        implementations=("folded", "reference"),
        precisions=("fp32",),
        patch=32,
        batch=2,
        steps=2,
        warm_up=1,
    )
    assert [(row["implementation"], row["variants"], row["timing"]["count"]) for row in rows] == [
        ("folded", 5, 2),
        ("reference", 5, 2),
    ]
    folded, reference = rows
    assert folded["first_loss"] == pytest.approx(reference["first_loss"], rel=1e-4), "same weights, batch and masks"
    assert folded["speedup"] == pytest.approx(reference["timing"]["median_ms"] / folded["timing"]["median_ms"])
    assert reference["speedup"] == 1.0 and folded["peak_bytes"] is None and folded["hottest"]
    assert len(training_step.format_rows(rows).splitlines()) == 2


def test_a_training_step_that_fails_is_listed(tmp_path, capsys):
    arguments = (
        "--device cpu --precision fp32 --patch 32 --batch 1 --steps 1 --warm-up 0 --implementation unknown folded"
    )
    assert training_step.main([*arguments.split(), "--json", str(tmp_path / "x.json")]) == 1
    failed, fine = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert "unknown" in failed["reason"] and fine["implementation"] == "folded" and fine["timing"]["count"] == 1
    assert "unknown fp32: failed: " in capsys.readouterr().out


def test_training_step_refuses_a_precision_that_training_has_not(tmp_path, capsys):
    assert training_step.main(["--device", "cpu", "--precision", "fp16", "--json", str(tmp_path / "x.json")]) == 2
    assert "unknown training precision; expected one of fp32, tf32, bf16" in capsys.readouterr().err


def test_verb_starts_quickly():
    """The dispatcher loads the verb's file without torch."""
    program = "import sys, isfl_ros.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
