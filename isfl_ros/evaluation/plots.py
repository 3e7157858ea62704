"""Plots of a report, as SVG: scalable, and the text in them can be searched."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from isfl_ros.evaluation.baselines import SOURCES
from isfl_ros.evaluation.bootstrap import BootstrapConfig
from isfl_ros.evaluation.compare import PERSON, SetSummary
from isfl_ros.evaluation.metrics import METRICS
from isfl_ros.evaluation.scoring import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_COLOURS = {"better": "tab:green", "worse": "tab:red", "": "grey"}


def _panels(count: int, title: str, row_height: float) -> tuple[Figure, list]:
    from matplotlib.figure import Figure

    rows = math.ceil(count / _COLUMNS)
    figure = Figure(figsize=(3.4 * _COLUMNS, row_height * rows), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, list(axes[:count])


def _svg(figure: Figure) -> bytes:
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "isfl_ros", "svg.fonttype": "none"}):  # the same plot, the same bytes
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def differences_plot(summary: SetSummary, reference: str, bootstrap: BootstrapConfig) -> bytes:
    """A panel a metric: every method's mean difference to the reference, with its interval."""
    differences = summary.differences[reference]
    methods = [method for method in differences if method not in SOURCES]
    directions = {metric.name: metric.better for metric in METRICS.values()} | {PERSON: "up"}
    metrics = [m for m in directions if all(m in differences[method] for method in methods)]
    title = f"minus {reference}, with {bootstrap.confidence:.0%} intervals; right of the line is more"
    figure, axes = _panels(len(metrics), title, 0.9 + 0.24 * len(methods))
    for ax, metric in zip(axes, metrics):
        for y, method in enumerate(methods):
            d = differences[method][metric]
            if not math.isfinite(d.mean):
                continue
            good = {"up": d.mean > 0, "down": d.mean < 0}.get(directions[metric])
            mark = "" if good is None or not d.clear else "better" if good else "worse"
            if d.low is not None:
                ax.plot((d.low, d.high), (y, y), color=_COLOURS[mark], linewidth=2)
            ax.plot(d.mean, y, "o", color=_COLOURS[mark], markersize=4)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks(range(len(methods)), methods if ax in axes[::_COLUMNS] else [""] * len(methods))
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set_title(metric)
        ax.tick_params(axis="x", labelsize=7)
    return _svg(figure)


def spread_plot(scores: Scores, set_name: str, methods: Sequence[str]) -> bytes:
    """A panel a metric: median, quartiles and outliers of every method over the pairs."""
    title = "over the pairs: median, quartiles, whiskers to 1.5 of their distance"
    figure, axes = _panels(len(METRICS), title, 0.9 + 0.24 * len(methods))
    for ax, metric in zip(axes, METRICS):
        for y, method in enumerate(methods):
            values = [row[metric] for row in scores.images if row["method"] == method and row["set"] == set_name]
            finite = [value for value in values if math.isfinite(value)]
            dots = {"markersize": 2}
            ax.boxplot(finite or [math.nan], positions=[y], widths=0.6, orientation="horizontal", flierprops=dots)
        ax.set_yticks(range(len(methods)), methods if ax in axes[::_COLUMNS] else [""] * len(methods))
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set_title(metric)
        ax.tick_params(axis="x", labelsize=7)
    return _svg(figure)


def people_plot(scores: Scores, set_name: str, methods: Sequence[str]) -> bytes | None:
    """Part of the people (0..1) that keep less than a contrast; None where nobody was measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    people = 0
    for method in methods:
        ratios = sorted(row["contrast"] for row in scores.people if row["method"] == method and row["set"] == set_name)
        people = len(ratios)
        if ratios:
            ax.step(ratios, np.arange(1, people + 1) / people, where="post", label=method)
    if not people:
        return None
    ax.set(xlabel="contrast kept of the better source", ylabel="part of the people below", title=f"{people} people")
    ax.set(xlim=(0, 1.5), ylim=(0, 1))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return _svg(figure)


def flicker_plot(scores: Scores, set_name: str, methods: Sequence[str]) -> bytes | None:
    """Flicker of every step of a sequence; None where none was measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    ax = figure.subplots()
    rows = [row for row in scores.flicker if row["set"] == set_name and row["flicker"] is not None]
    if not rows:
        return None
    stems = list(dict.fromkeys(row["stem"] for row in rows))
    for method in methods:
        ax.plot([row["flicker"] for row in rows if row["method"] == method], marker="o", markersize=3, label=method)
    ax.set(xlabel=f"step, from {stems[0]} to {stems[-1]}", ylabel="flicker, grey levels", ylim=(0, None))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return _svg(figure)
