"""The HTML report: one file, whole, with nothing outside it."""

from __future__ import annotations

import argparse
import base64
import csv
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
import torch

from isfl_ros.cli import evaluate
from isfl_ros import errors
from isfl_ros.errors import InputError
from isfl_ros.evaluation import methods, page, sheets, tables
from isfl_ros.evaluation.metrics import METRICS
from isfl_ros.evaluation.missing import CASES, missing_path
from isfl_ros.io.folders import read_thermal, write_png
from isfl_ros.network.checkpoint import ModelInfo, save_model
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet
from isfl_ros.visualization import colour_gate

pytest.importorskip("matplotlib")

TINY = IsflConfig(width=4, grid=2, gate_width=2)
STEMS = ("a", "b & <b>", "c")
_VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Reader(html.parser.HTMLParser):
    """Collects elements, refuses what is not closed in order, and keeps the cells of every table."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.tables, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(["", dict(attributes).get("class", "")])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1][0] += data


def _read(text):
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def _run(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    random = np.random.default_rng(0)
    for stem in STEMS:
        infrared = random.integers(0, 256, (47, 61), dtype=np.uint8)
        infrared[15:35, 20:28] = 250
        write_png(root / "night" / "ir" / f"{stem}.png", infrared)
        write_png(root / "night" / "vi" / f"{stem}.png", random.integers(0, 256, (47, 61, 3), dtype=np.uint8))
        label = np.zeros((47, 61), np.uint8)
        label[15:35, 20:28] = 2
        write_png(root / "night" / "labels" / f"{stem}.png", label)
    (root / "night" / "ir" / "d<i>.png").write_bytes(b"no picture")
    write_png(root / "night" / "vi" / "d<i>.png", random.integers(0, 256, (47, 61, 3), dtype=np.uint8))
    info = ModelInfo(name="tiny", model="isfl", architecture="isfl", recipe="untrained", config=TINY)
    torch.manual_seed(0)
    save_model(root / "tiny", IsflNet(TINY), info)
    with pytest.MonkeyPatch.context() as patch:
        for module in (methods, tables):
            patch.setattr(module, "COMPLEXITY_SIZE", (48, 64))
        words = ("--data", root / "night", "--model", f"<tiny>={root / 'tiny'}", "--out", root / "out")
        words += ("--missing", "--missing-pairs", 2, "--sequence", "night")
        _run(*words, "--resamples", 100, "--reference", "average", "maximum", "--bad-pairs", "skip", "--jobs", 1)
    return root / "out"


@pytest.fixture(scope="module")
def reader(out):
    return _read((out / "report.html").read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere(reader, out):
    for tag, attributes in reader.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in page._STYLE and "@import" not in page._STYLE


def _pictures(reader, kind):
    prefix = f"data:image/{kind};base64,"
    return [
        (attributes["alt"], base64.b64decode(attributes["src"][len(prefix) :], validate=True))
        for tag, attributes in reader.elements
        if tag == "img" and attributes["src"].startswith(prefix)
    ]


def test_pictures_are_the_kept_ones_without_loss(reader, out):
    found = {
        alt: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for alt, data in _pictures(reader, "webp")
    }
    columns = ("infrared", "visible", "average", "maximum", "laplacian", "<tiny>")
    for stem in STEMS:
        for method in columns[2:]:
            kept = read_thermal(out / "predictions" / method / "night" / f"{stem}.png")
            expected = cv2.resize(kept, (320, round(320 * 47 / 61)), interpolation=cv2.INTER_AREA)
            shown = found[f"{stem}, {method}"]
            assert np.abs(shown.astype(int) - expected[..., None]).max() == 0
        for scale in range(1, TINY.scales + 1):
            gate = read_thermal(out / "predictions" / "<tiny>" / "night" / "gates" / f"{stem}.{scale}.png")
            (title,) = [alt for alt in found if alt.startswith(f"{stem}, scale {scale}, ")]
            size = f"{61 >> (scale - 1)}x{47 >> (scale - 1)}"
            assert title == f"{stem}, scale {scale}, {size}, mean {gate.mean() / 255:.2f}"
            corner = colour_gate(gate[:1, :1].astype(np.float32) / 255)[0, 0]
            np.testing.assert_array_equal(found[title][0, 0, ::-1], corner)
    for modality, region in CASES:
        kept = read_thermal(missing_path(out / "predictions", "<tiny>", "night", "a", modality, region))
        expected = cv2.resize(kept, (320, round(320 * 47 / 61)), interpolation=cv2.INTER_AREA)
        shown = found[f"a, <tiny>, no {modality}, {region}"]
        assert np.abs(shown.astype(int) - expected[..., None]).max() == 0
    assert len(found) == len(STEMS) * (len(columns) + 1 + TINY.scales) + 2 * len(CASES)


def test_plots_are_svg_with_every_metric(reader):
    svgs = dict(_pictures(reader, "svg+xml"))
    assert list(svgs) == [
        f"{plot} on night"
        for plot in ("differences to average", "differences to maximum", "spread", "person contrast", "flicker")
    ]
    texts = {}
    for name, data in svgs.items():
        root = ElementTree.fromstring(data)
        texts[name] = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert set(METRICS) | {"person", "maximum", "laplacian"} <= texts["differences to average on night"]
    assert set(METRICS) | {"person", "average", "laplacian"} <= texts["differences to maximum on night"]
    assert {"average", "<tiny>", "step, from b & <b> to c"} <= texts["flicker on night"]
    assert set(METRICS) | {"infrared", "average"} <= texts["spread on night"]
    assert "3 people" in texts["person contrast on night"]


def test_the_tables_are_those_of_the_summary(reader, out):
    summary = json.loads((out / "summary.json").read_text())["sets"]["night"]
    means, differences = reader.tables[:2]
    assert [cell for cell, _ in means[0]][:2] == ["method (3 of 4 pairs)", "AG ↑"]
    assert [row[0][0] for row in means[1:]] == list(summary["methods"])
    for row in means[1:]:
        assert row[1][0] == f"{summary['methods'][row[0][0]]['AG']:.4g}"
    assert [cell for cell, _ in differences[0]] == ["minus average (3 of 4 pairs)", "maximum", "laplacian", "<tiny>"]
    nabf = next(row for row in differences if row[0][0].startswith("Nabf"))
    entry = summary["differences"]["average"]["laplacian"]["Nabf"]
    text = f"{entry['mean']:+.3g} [{entry['low']:+.3g}, {entry['high']:+.3g}] {entry['wins']}:{entry['losses']}"
    assert nabf[2] == [text, "worse"] and entry["low"] > 0  # noise: the pyramid makes edges that the mean has not
    with (out / "per_image.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(STEMS) * len(summary["methods"])


def test_what_was_left_out_is_named(reader):
    said = " ".join("".join(reader.text).split())
    assert "3 of 4 pairs: 1 left out for every method (1 unusable file: d<i>)" in said
    assert "d<i>.png is no readable picture" in said
    assert ("p", {"class": "warning"}) in reader.elements


def test_markdown_has_the_same_figures(reader, out):
    lines = (out / "summary.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| laplacian |"))
    cells = [cell.strip().strip("*_") for cell in row.strip("|").split("|")]
    assert cells == [cell for cell, _ in next(r for r in reader.tables[0] if r[0][0] == "laplacian")]


def test_the_same_scores_give_the_same_page(out, tmp_path):
    kept = ("--predictions", out / "predictions", "--data", out.parent / "night", "--bad-pairs", "skip")
    kept += ("--missing", "--missing-pairs", 2, "--sequence", "night")
    pages = []
    for name in ("one", "two"):
        _run(*kept, "--resamples", 100, "--out", tmp_path / name, "--jobs", 1)
        pages.append(re.sub(r"Scored [^,]*,", "", (tmp_path / name / "report.html").read_text()))
    assert pages[0] == pages[1]


def test_without_matplotlib_it_is_said_before_anything_is_fused(out, tmp_path, monkeypatch):
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    words = ("--data", out.parent / "night", "--bad-pairs", "skip", "--baseline", "average", "--out", tmp_path / "x")
    with pytest.raises(InputError, match="matplotlib is missing.*--no-html"):
        _run(*words)
    assert not (tmp_path / "x").exists()


def test_a_sheet_has_a_row_a_pair_and_a_column_a_picture():
    grey, colour = np.full((80, 320), 90, np.uint8), np.full((80, 320, 3), (10, 20, 30), np.uint8)
    sheet = sheets.picture_sheet([sheets.SheetRow("x", {"one": grey, "two": colour})] * 2)
    assert sheet.shape == (160, 640, 3)
    assert (sheet[159, 319] == 90).all() and tuple(sheet[159, 639]) == (10, 20, 30)
