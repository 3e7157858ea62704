"""docs/no_image.md against what the node really says.

Every message is made by the code that makes it in the node, from made-up facts: all values of a few kinds for every
field that decides about a message, so that a new field brings its new message by itself. Then:
- every message stands on the page, in the section of its entry;
- every message that the page quotes is one of them;
- every statement with words in it, in the modules that make messages, has run: where none of the facts here leads to
  a new message, the test names its line.

The page quotes messages in headings of the third level, and in the first column of tables whose head says `message`;
`<word>` in a quote stands for any word, `<several words>` for any text, and messages may be joined with a semicolon.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import itertools
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from builtin_interfaces.msg import Time
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from isfl_ros.backends import fallback
from isfl_ros.errors import InputError
from isfl_ros.registration import Homography, Registration, Transform, cameras, homography
from isfl_ros.registration.alignment import Alignment, SizeMismatch
from isfl_ros.ros import (
    compressed,
    degraded,
    diagnostics,
    inputs,
    messages,
    node_registration,
    outputs,
    parameters,
    processing,
    qos,
)
from isfl_ros.ros import registrar as registrar_module
from isfl_ros.ros.accounting import Ledger, StreamCounts
from isfl_ros.ros.degraded import Condition, DegradedConfig, Supervisor
from isfl_ros.ros.diagnostics import Facts, InputFacts
from isfl_ros.ros.inputs import CameraInput, Refusals
from isfl_ros.ros.jobs import Frame
from isfl_ros.ros.messages import MalformedImage
from isfl_ros.ros.qos import Conflicts
from isfl_ros.ros.registrar import NoTransform, Registrar, RegistrationConfig, at_once
from isfl_ros.ros.router import Router
from isfl_ros.ros.sync import STREAMS, PairMatcher

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "no_image.md"

WATCHED = {
    **dict.fromkeys((diagnostics, degraded, messages, compressed, qos, registrar_module, fallback)),
    cameras: "concerns",
    homography: "concerns",
}
"""Modules that make messages -> in which function; None: everywhere."""


# what the page quotes


def quotes() -> dict[str, list[str]]:
    """Title of each section -> the messages that it quotes."""
    sections: dict[str, list[str]] = {}
    title, quoted_column = "", False
    lines = PAGE.read_text().splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("### "):
            found = re.findall(r"`([^`]+)`", line)
            assert len(found) == 1, line
            sections.setdefault(title, []).extend(found)
        elif line.startswith("|"):
            first = line.split("|")[1].strip()
            if set(following) <= set("|-: ") and "-" in following:
                quoted_column = first == "message"
            elif quoted_column and not first.startswith("--"):
                assert re.fullmatch(r"`[^`]+`", first), line
                sections.setdefault(title, []).append(first.strip("`"))
        else:
            quoted_column = False
    return sections


def section(*words: str) -> list[str]:
    """What the one section quotes whose title has all these words."""
    (found,) = [quoted for title, quoted in quotes().items() if all(word in title for word in words)]
    assert len(found) == len(set(found)), "quoted twice"
    return found


def pattern(quote: str) -> str:
    """Regular expression for the messages that a quote stands for."""
    parts = re.split(r"<([^<>]+)>", quote)
    assert sum(map(len, parts[::2])) >= 2, f"{quote!r} stands for anything"
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [".+" if " " in name else r"\S+" for name in parts[1::2]]
    return "".join(parts)


def compare(quoted: list[str], said: Iterable[str]) -> None:
    """Whether every message of `said` is quoted, alone or joined, and every quote is said."""
    used, missing = set(), []
    for text in sorted(set(said)):
        assert "\n" not in text
        parts = text.split("; ")
        # all ways to see it as messages joined by semicolons: some have a semicolon of their own
        for cuts in itertools.product((False, True), repeat=len(parts) - 1):
            pieces = [parts[0]]
            for cut, part in zip(cuts, parts[1:]):
                pieces[-1:] = [pieces[-1], part] if cut else [f"{pieces[-1]}; {part}"]
            hits = [[quote for quote in quoted if re.fullmatch(pattern(quote), piece)] for piece in pieces]
            if all(hits):
                # of several, the one that says most
                used |= {max(found, key=lambda quote: len(re.sub("<[^<>]+>", "", quote))) for found in hits}
                break
        else:
            missing.append(text)
    assert not missing, f"not on the page: {missing}"
    assert not set(quoted) - used, f"on the page, but never said: {sorted(set(quoted) - used)}"


# what the node says


class Lines:
    """Which lines of the watched modules ran inside `with`."""

    def __init__(self) -> None:
        self.run: dict[str, set[int]] = {module.__file__: set() for module in WATCHED}

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_) -> None:
        sys.settrace(self._before)

    def _call(self, frame: types.FrameType, event: str, argument: object) -> Callable | None:
        lines = self.run.get(frame.f_code.co_filename)
        if lines is None:
            return None

        def line(frame: types.FrameType, event: str, argument: object) -> Callable:
            lines.add(frame.f_lineno)
            return line

        return line


def statements_with_words(module: types.ModuleType, function: str | None) -> list[tuple[int, int]]:
    """First and last line of every simple statement that has words in a text, in one function or in all of them.

    Refusals of parameters (InputError) are answers to whoever set them, and are left out.
    """
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt) and not hasattr(child, "body"):
                texts = [part.value for part in ast.walk(child) if isinstance(part, ast.Constant)]
                names = {part.id for part in ast.walk(child) if isinstance(part, ast.Name)}
                docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                words = any(isinstance(text, str) and re.search(r"\w \w", text) for text in texts)
                if inside and words and not docstring and "InputError" not in names:
                    found.append((child.lineno, child.end_lineno))
            else:
                visit(child, inside or (isinstance(child, ast.FunctionDef) and function in (None, child.name)))

    visit(ast.parse(Path(module.__file__).read_text()), False)
    return found


def texts_in(module: types.ModuleType) -> list[str]:
    """Every text in the code of a module, with 7 in the place of its values."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "7" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%\w", "7", node.value))
        else:
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(Path(module.__file__).read_text()))
    return found


def refused(decode: Callable, *arguments: object) -> str:
    with pytest.raises(MalformedImage) as caught:
        decode(*arguments)
    return str(caught.value)


def refused_images() -> list[str]:
    good = {"encoding": "mono8", "width": 40, "height": 40, "step": 40, "data": bytes(1600)}
    bad = [{"encoding": "h264"}, {"width": 31}, {"height": 99_999}, {"step": 39}, {"data": bytes(1599)}]
    return [refused(messages.check_image, Image(**good | change), stream) for change in bad for stream in STREAMS]


def refused_compressed_images(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the pictures with which that module is tested, and one of a size that is never."""
    spec = importlib.util.spec_from_file_location("test_compressed", Path(__file__).with_name("test_compressed.py"))
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)

    def rows(test: Callable) -> list:
        return next(mark.args[1] for mark in test.pytestmark if mark.name == "parametrize")

    pictures = [(data, form, stream) for data, form, stream, _ in rows(tests.test_causes_seen_without_decoding)]
    pictures += [(data, "x", "rgb") for data in rows(tests.test_what_only_the_decoder_can_see)]
    pictures.append((tests.SIGNATURE + tests.header(99_999, 40), "png", "rgb"))
    decode = {"thermal": compressed.decode_compressed_thermal, "rgb": compressed.decode_compressed_rgb}
    said = [refused(decode[stream], tests.message(data, form)) for data, form, stream in pictures]
    with monkeypatch.context() as patched:  # a decoder that does not keep to what the header says
        patched.setattr(compressed.cv2, "imdecode", lambda *_: np.zeros((1, 2), np.uint8))
        return [*said, refused(decode["rgb"], tests.message(tests.GREY8, "png"))]


def incompatibilities() -> list[str]:
    """Of a subscription and of a publisher, before and after it is known who does not fit."""
    strict, lax = (QoSProfile(depth=1, reliability=ReliabilityPolicy[name]) for name in ("RELIABLE", "BEST_EFFORT"))
    said = []
    for offers, own, other in ((False, strict, lax), (True, lax, strict)):
        conflicts = Conflicts("/rgb/image_raw", offers=offers)
        conflicts.report(types.SimpleNamespace(last_policy_kind=QoSPolicyKind.RELIABILITY))
        said.append(conflicts.text)
        endpoint = types.SimpleNamespace(qos_profile=other, node_namespace="/front", node_name="camera")
        conflicts.update(own, [endpoint])
        said.append(conflicts.text)
    return said


def elsewhere() -> str:
    """Of a camera whose pictures are published by the other transport only."""
    node = types.SimpleNamespace(
        resolve_topic_name=lambda topic: f"/{topic.lstrip('/')}",
        get_publishers_info_by_topic=lambda topic: [],
        count_publishers=lambda topic: 1,
        create_subscription=lambda *arguments, **_: types.SimpleNamespace(qos_profile=arguments[3]),
    )
    ledger, good = Ledger(STREAMS), StreamCounts(received=0, fused=0, dropped={}, pending=0)
    camera = CameraInput(
        node,
        "rgb",
        settings=parameters.settings_from({parameter.name: parameter.default for parameter in parameters.TABLE}),
        decode_rgb=None,
        ledger=ledger,
        refusals=Refusals(ledger, None),
        on_image=None,
        on_info=None,
    )
    camera.open()
    return camera.facts(counts=good, since=good, info_wanted=False, info_misfit=None, condition=None).elsewhere


def camera_info(stream: str, *, focal: float = 50.0, centre: float = 19.5, frame: str = "") -> CameraInfo:
    info = CameraInfo(width=40, height=40, k=[focal, 0.0, centre, 0.0, focal, 19.5, 0.0, 0.0, 1.0])
    info.header.frame_id = frame or f"{stream}_optical"
    return info


class Tf:
    """Answers every question in the same way."""

    def __init__(self, answer: Transform | Exception):
        self._answer = answer

    def lookup(self, *, target: str, source: str) -> Transform:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def registrar(answer: Transform | Exception, *infos: CameraInfo, submit: Callable = at_once) -> Registrar:
    topics = {stream: f"/{stream}/camera_info" for stream in STREAMS}
    config = RegistrationConfig(mode="calibrated")
    made = Registrar(config, reference="rgb", info_topics=topics, transforms=Tf(answer), submit=submit)
    for stream, info in zip(STREAMS, infos):
        made.take_info(stream, info)
    return made


def registrations() -> tuple[list[str], list[str]]:
    """Why there is no registration, and what looks wrong with one."""
    here = Transform(rotation=np.eye(3), translation=(0.1, 0.0, 0.0))
    turned = Transform(rotation=np.diag([-1.0, 1.0, -1.0]), translation=(0.1, 0.0, 0.0))
    good = [camera_info(stream) for stream in STREAMS]
    missing = [
        registrar(here),
        registrar(here, good[0]),
        registrar(here, good[0], camera_info("rgb", focal=0.0)),
        registrar(here, *(camera_info(stream, focal=0.0) for stream in STREAMS)),
        registrar(here, *(camera_info("", frame="one") for _ in STREAMS)),
        registrar(NoTransform('"thermal_optical" does not exist'), *good),
        registrar(InputError("transform: no unit quaternion", expected="length 1"), *good),
        registrar(turned, *good),
        registrar(here, *good, submit=lambda work: Future()),
    ]
    restless = registrar(here, *good, submit=lambda work: Future())
    for frame in ("front", "rear", "front"):
        restless.take_frame_id("thermal", frame)
    missing.append(restless)
    recalibrated = registrar(here, *good)
    for focal in (51.0, 52.0):
        recalibrated.take_info("thermal", camera_info("thermal", focal=focal))
    good[1].header.frame_id = ""
    missing.append(registrar(here, *good))
    shrunk = Homography(matrix=np.diag([0.25, 0.25, 1.0]), from_size=(40, 40), to_size=(40, 40))
    concerns = [
        registrar(here, camera_info("thermal", centre=0.0), camera_info("rgb")).concern,
        registrar(here, *(camera_info(stream, centre=0.0) for stream in STREAMS)).concern,
        *Registration(shrunk).concerns,
        recalibrated.concern,
    ]
    return [made.missing for made in missing], concerns


def size_mismatches() -> list[str]:
    """Of pictures without a registration, and of pictures that do not fit theirs."""
    texts = {text for text in texts_in(processing) if text.startswith("size mismatch")}
    assert "size mismatch: 7" in texts and len(texts) == 2, texts
    alignment = Alignment(Registration(Homography(matrix=2 * np.eye(3), from_size=(40, 30), to_size=(80, 60))))
    for thermal, rgb in (((60, 80), (30, 40)), ((20, 40), (60, 80))):
        with pytest.raises(SizeMismatch) as caught:
            alignment.grid(thermal=thermal, rgb=rgb)
        texts.add(f"size mismatch: {caught.value}")
    return sorted(texts - {"size mismatch: 7"})


class Device:
    """A CUDA device, or the CPU in its place, that does nothing and fails when told to."""

    error: Exception | None = None

    def fuse(self, frame, *, gate):
        if self.error is not None:
            raise self.error
        return "a picture"

    def probe(self):
        if "lost" in str(self.error):
            raise RuntimeError("gone")

    def close(self):
        pass


def troubles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a device that fails in every way and then works again, where it can."""
    monkeypatch.setattr(fallback, "_LOST", [])
    monkeypatch.setattr(fallback, "RETRY_AFTER_S", 0.0)
    said = []
    for error in (torch.OutOfMemoryError("2 GiB"), RuntimeError("no kernel image"), RuntimeError("lost")):
        device = Device()
        backend = fallback.FallbackBackend(lambda device=device: device, Device(), probe=device.probe)
        device.error = error
        backend.fuse(None, gate=False)
        said.append(backend.trouble)
        device.error = None
        backend.fuse(None, gate=False)
    return said


class Cameras:
    """What a supervisor says of cameras that fail in every way."""

    def __init__(self) -> None:
        self.events: set[str] = set()
        self.consequences: set[str] = set()
        self.conditions: dict[object, Condition] = {}
        behaviour = ("silent", "good", "stamps", "good", "bytes", "good", "silent", "slow", "very slow")
        for mode, rgb in itertools.product(degraded.MODES, ("good", "silent")):
            self._watch(DegradedConfig(mode=mode), behaviour, rgb)
        for mode in degraded.MODES:
            self._watch_unpaired(DegradedConfig(mode=mode))

    def _watch_unpaired(self, config: DegradedConfig) -> None:
        """Both cameras are alive, a clock is set and set back."""
        now, events = 0, []
        worker = types.SimpleNamespace(submit=lambda job: None, offer=lambda job: True)
        ledger = Ledger(STREAMS)
        router = Router(PairMatcher(slop_ns=1), ledger, reference="rgb", say=events.append, now_ns=lambda: now)
        router.start(worker, config)
        for now in range(0, 3_000_000_000, 50_000_000):
            ahead = 5_000_000_000 if 1_000_000_000 < now < 2_000_000_000 else 0
            for stream, stamp in (("thermal", now), ("rgb", now + ahead)):
                router.offer(stream, stamp, Frame(ledger.receive(stream), None, now), now + ahead)
            if router.unpaired:
                self.consequences.add(router.consequence)
        self.events |= {event.text for event in events}

    def _watch(self, config: DegradedConfig, thermal: tuple[str, ...], rgb: str) -> None:
        step_ns = 50_000_000
        supervisor = Supervisor(config, started_ns=0)
        for number in range(len(thermal) * 300):
            now = number * step_ns
            supervisor.woke(now)
            for stream, behaviour in (("thermal", thermal[number // 300]), ("rgb", rgb)):
                period = {"silent": 0, "slow": 20, "very slow": 60}.get(behaviour, 1)
                if period and number % period == 0:
                    stamp, same = (1 if behaviour == "stamps" else now + 2), behaviour == "bytes"
                    supervisor.accept(stream, stamp, now, 7 if same else number + 8)
                condition = supervisor.condition(stream)
                kind = (condition.state, condition.cause, condition.started, condition.slow and condition.pace()[-20:])
                self.conditions.setdefault(kind, condition)
            self.events |= {event.text for event in supervisor.tick(now)}
            self.consequences |= {supervisor.consequence} - {None}


class Entries:
    """Messages of the four entries, for every value of every fact and for every two of them.

    Args:
        said: field of a fact -> texts that come from elsewhere in the node.
        conditions: of a camera.
    """

    def __init__(self, said: Mapping[str, list[str]], conditions: list[Condition]):
        self._said = said
        self._conditions = sorted(conditions, key=lambda condition: condition.state != "alive" or condition.slow)
        words = {text for text in texts_in(diagnostics) if text.isidentifier()}
        self._reasons = sorted(words | set(messages.CAUSES) | set(degraded.DROP_REASONS))
        self.messages: dict[str, set[str]] = {}
        for facts in self._varied(Facts):
            for entry in diagnostics.report(facts, Time()).status:
                self.messages.setdefault(entry.name, set()).add(entry.message)

    def _varied(self, cls: type) -> Iterable:
        """Instances that differ from the first in at most two fields."""
        kinds = typing.get_type_hints(cls)
        values = {field.name: self._values(field.name, kinds[field.name]) for field in dataclasses.fields(cls)}
        first = {name: choices[0] for name, choices in values.items()}
        yield cls(**first)
        for names in (*((name,) for name in values), *itertools.combinations(values, 2)):
            for choice in itertools.product(*(values[name][1:] for name in names)):
                yield cls(**first | dict(zip(names, choice)))

    def _values(self, name: str, kind: object) -> list:
        """What a field is set to; the first is what a node has where all is well."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            some = [part for part in arguments if part is not types.NoneType]
            return [None, *(value for part in some for value in self._values(name, part))]
        if origin is typing.Literal:
            return list(arguments)
        if name == "inputs":
            thermal = list(self._varied(InputFacts))
            rgb = dataclasses.replace(thermal[0], stream="rgb")
            kept = {diagnostics.judge_input(facts, 0): facts for facts in reversed(thermal)}
            kept |= {str(facts.since): facts for facts in reversed(thermal)}
            return [(thermal[0], rgb), (), *((facts, rgb) for facts in thermal if facts in kept.values())]
        if kind is StreamCounts:
            good = StreamCounts(received=10, fused=10, dropped={}, pending=0)
            none = dataclasses.replace(good, received=0, fused=0)
            dropped = [dataclasses.replace(good, dropped={r: n}) for r in self._reasons for n in (3, 10)]
            return [good, none, *dropped] if name == "since" else [good]
        if kind is Condition:
            return self._conditions
        if origin is not None and issubclass(origin, Mapping):
            return [dict.fromkeys(STREAMS, self._values(name, arguments[1])[0]) if arguments[1] is StreamCounts else {}]
        simple = {bool: [False, True], int: [1, 0, 10**12], float: [1.0, 0.0, 1e9], str: [f"made-up {name}"]}
        assert kind in simple, f"what values has {name}: {kind}?"
        return self._said.get(name, simple[kind])


@pytest.fixture(scope="module")
def said():
    """Messages by where they are to be found, and the lines that ran for them."""
    with pytest.MonkeyPatch.context() as monkeypatch, Lines() as lines:
        cameras = Cameras()
        raw, packed = refused_images(), refused_compressed_images(monkeypatch)
        missing, concerns = registrations()
        conflicts = incompatibilities()
        texts = {
            "stream": ["thermal"],
            "topic": ["/thermal/image_raw"],
            "info_topic": ["/thermal/camera_info"],
            "state": ["active", "inactive"],
            "publisher_names": ["/front/camera, /front/other"],
            "elsewhere": [elsewhere()],
            "incompatibility": [text for text in conflicts if "offered best_effort, requested" not in text],
            "unreachable": [text for text in conflicts if "requested reliable, offered" not in text],
            "unregistered": missing,
            "concern": concerns,
            "malformed": raw[:1],
            "consequence": sorted(cameras.consequences),
            "size_mismatch": size_mismatches(),
            "failure": ["RuntimeError: made up"],
            "internal_error": ["RuntimeError: made up"],
            "age_s": [None, 1.5, -0.2],
            "info_misfit": [text for text in texts_in(processing) if text.startswith("camera_info is for")],
            "trouble": troubles(monkeypatch),
        }
        entries = Entries(texts, list(cameras.conditions.values()))
    return types.SimpleNamespace(
        lines=lines.run, entries=entries.messages, events=cameras.events, refused=raw, refused_compressed=packed
    )


# the page against the node


@pytest.mark.parametrize("name", ["fusion: input thermal", "fusion: pairing", "fusion: processing"])
def test_every_message_of_an_entry_is_explained_under_its_name(said, name):
    assert list(said.entries) == ["fusion: input thermal", "fusion: input rgb", "fusion: pairing", "fusion: processing"]
    # what all entries say is explained once, in the section that comes first
    common = {"OK", "the node is active", "the node is inactive"}
    messages = said.entries[name]
    assert "OK" in messages
    compare(section(f"`{name}`"), messages - (set() if "input" in name else common))


def test_every_refusal_is_explained(said):
    compare(section("Refused images"), said.refused)
    prefix = re.compile(r"(thermal|rgb) image with format '[^']*' ")
    assert all(prefix.match(text) for text in said.refused_compressed)
    compare(section("Refused compressed images"), {prefix.sub("", text, 1) for text in said.refused_compressed})


def test_every_line_in_the_log_is_explained(said):
    log = section("In the log")
    entries = [*section("`fusion: input thermal`"), *section("`fusion: pairing`")]
    modules = (processing, fallback, inputs, outputs, node_registration)
    texts = [text for module in modules for text in texts_in(module)]
    known = {text for text in texts if any(re.fullmatch(pattern(quote), text) for quote in log)}
    shown = said.entries["fusion: input thermal"] | said.entries["fusion: pairing"]
    compare([*log, *entries], said.events | known | shown)


@pytest.mark.parametrize("module", WATCHED, ids=lambda module: module.__name__)
def test_every_statement_with_words_has_run(said, module):
    statements = statements_with_words(module, WATCHED[module])
    assert statements
    ran = said.lines[module.__file__]
    silent = [first for first, last in statements if not ran & set(range(first, last + 1))]
    assert not silent, f"no made-up facts lead to what is said in {module.__file__}, lines {silent}"


def test_its_anchors_parameters_and_causes_exist():
    text = PAGE.read_text()
    titles = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
    groups = {name.split(".")[0] for name in parameters.BY_NAME if "." in name}
    spans = re.findall(r"`([^`\n]+)`", text)
    named = {word for span in spans for word in re.findall(r"(?<![\w./~])[a-z]+\.[a-z_]+(?![\w./])", span)}
    named = {name for name in named if name.split(".")[0] in groups}
    assert len(named) > 5 and named <= set(parameters.BY_NAME), named - set(parameters.BY_NAME)
    causes = {*messages.CAUSES, *compressed.COMPRESSED_CAUSES}
    assert causes <= set(spans), causes - set(spans)


def test_the_node_page_leads_to_it():
    assert "(no_image.md)" in (PAGE.with_name("node.md")).read_text()
