"""The report as one HTML file that needs nothing beside it: tables, plots, picture sheets, gates of every scale.

Plots are SVG, pictures lossless WebP (in a comparison of detail a lossy one would add its own), both inside the file.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.evaluation import plots, robustness, sheets, tables
from isfl_ros.evaluation.sets import PairSet

if TYPE_CHECKING:
    from isfl_ros.evaluation.report import Evaluation

_LOSSLESS = 101  # OpenCV: a WebP quality above 100
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 100em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 8px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
tbody th, thead th:first-child { text-align: left; }
.best { font-weight: bold; } .better { background: #d9f2d9; } .worse { background: #f8dada; }
.wide { overflow-x: auto; margin: 1em 0; } .warning { background: #fff3cd; padding: .5em 1em; }
.sheet td { padding: 2px; border: 0; text-align: center; font-size: 12px; } .sheet img { display: block; }
.plot { max-width: 100%; } summary { cursor: pointer; font-weight: bold; margin: 1em 0 .5em; }
"""


def html_report(evaluation: Evaluation) -> str:
    """The whole page.

    Raises:
        InputError: a kept picture cannot be read.
    """
    names = ", ".join(_text(name) for name in evaluation.summaries)
    parts = [f"<h1>Fusion of {names}</h1>", _run(evaluation)]
    for pair_set in evaluation.sets:
        parts += _set_parts(evaluation, pair_set)
    body = "\n".join(parts)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>isfl evaluate: {names}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(str(text))


def _run(evaluation: Evaluation) -> str:
    about = evaluation.environment
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    cpu = about["cpu"]
    changed = " with changes" if about["dirty"] is True else ""
    lines = [
        f"<p>Scored {_text(about['date'])}, commit {_text(about['commit'])}{changed},"
        f" {_text(cpu['name'])}, {_text(cpu['usable_cores'])} cores. {_text(versions)}.</p>",
        f"<p>{_text(evaluation.costs_caption)}</p>",
        "<ul>",
    ]
    for method, kept in evaluation.kept.items():
        facts = {**kept.identity, **kept.description}
        if facts.get("kind") != "baseline":
            listed = "; ".join(f"{key}: {value}" for key, value in facts.items())
            lines.append(f"<li><b>{_text(method)}</b> {_text(listed)}</li>")
    return "\n".join([*lines, "</ul>"])


def _set_parts(evaluation: Evaluation, pair_set: PairSet) -> list[str]:
    summary = evaluation.summaries[pair_set.name]
    scores, methods = evaluation.scores, list(evaluation.kept)
    partial = " class=warning" if summary.left_out else ""
    parts = [
        f'<h2 id="{_text(pair_set.name)}">{_text(pair_set.name)}</h2>',
        f"<p{partial}>{_text(tables.set_caption(summary))}</p>",
        tables.means_table(summary, evaluation.costs).html(),
    ]
    figures = []
    verdicts = "".join(f"<li><b>{_text(who)}</b>: {_text(text)}</li>" for who, text in tables.verdict_lines(summary))
    if summary.differences:
        caption = tables.differences_caption(evaluation.references, evaluation.bootstrap)
        parts.append(f"<ul>{verdicts}</ul><p>{_text(caption)}</p>")
    for reference in summary.differences:
        parts.append(tables.differences_table(summary, reference).html())
        plot = plots.differences_plot(summary, reference, evaluation.bootstrap)
        figures.append((f"differences to {reference}", plot))
    figures.append(("spread", plots.spread_plot(scores, pair_set.name, methods)))
    people = plots.people_plot(scores, pair_set.name, methods)
    figures += [("person contrast", people)] if people else []
    if summary.missing:
        parts += [f"<p>{_text(robustness.missing_caption())}</p>", robustness.missing_table(summary).html()]
    if summary.flicker:
        table = robustness.flicker_table(summary, evaluation.references)
        parts += [f"<p>{_text(robustness.flicker_caption(summary))}</p>", table.html()]
        flicker = plots.flicker_plot(scores, pair_set.name, methods)
        figures += [("flicker", flicker)] if flicker else []
    for name, svg in figures:
        parts.append(f'<img class=plot alt="{_text(f"{name} on {pair_set.name}")}" src="{_uri("svg+xml", svg)}">')
    parts.append(_sheet("Pictures", sheets.fused_rows(pair_set, methods, evaluation.predictions), is_open=True))
    for method in methods:
        rows = list(sheets.gate_rows(pair_set, method, evaluation.predictions))
        if rows:
            parts.append(_sheet(f"Gates of {method}, dark blue 0, dark red 1", rows))
    if summary.missing:
        parts.append(_sheet("One modality missing", evaluation.missing_rows(pair_set)))
    if summary.left_out:
        items = "".join(f"<li>{_text(item['stem'])}: {_text(item['why'])}</li>" for item in summary.left_out)
        parts.append(f"<details open><summary>Left out</summary><ul>{items}</ul></details>")
    return parts


def _sheet(title: str, rows: Iterable[sheets.SheetRow], *, is_open: bool = False) -> str:
    lines = []
    for row in rows:
        cells = "".join(
            f'<td><img loading="lazy" alt="{_text(f"{row.stem}, {name}")}" src="{_webp(picture)}">{_text(name)}</td>'
            for name, picture in row.cells.items()
        )
        lines.append(f"<tr><th>{_text(row.stem)}</th>{cells}</tr>")
    opened = " open" if is_open else ""
    table = f"<div class=wide><table class=sheet>{''.join(lines)}</table></div>"
    return f"<details{opened}><summary>{_text(title)}</summary>{table}</details>"


def _webp(picture: np.ndarray) -> str:
    encodable = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    ok, data = cv2.imencode(".webp", encodable, [cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS])
    if not ok:
        raise InputError("this OpenCV cannot write WebP", do="install opencv-python-headless, or pass --no-html")
    return _uri("webp", data.tobytes())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
