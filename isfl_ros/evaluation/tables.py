"""The tables of a report, made once for Markdown and HTML alike."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isfl_ros.evaluation.baselines import SOURCES
from isfl_ros.evaluation.bootstrap import BootstrapConfig, Difference
from isfl_ros.evaluation.compare import HEADLINE, PERSON, SetSummary
from isfl_ros.evaluation.methods import COMPLEXITY_SIZE, Complexity
from isfl_ros.evaluation.metrics import METRICS

Mark = Literal["", "best", "better", "worse"]

_PERSON_COLUMNS = {"person_median": "up", "person_p10": "up", "people": "shown"}
_COST_COLUMNS = ("parameters", "GMAC", "ms")
_ARROWS = {"up": " ↑", "down": " ↓", "shown": ""}
NOTHING = "-"
"""A cell without a value."""


@dataclass(frozen=True)
class Cell:
    """Plain text, and what it is among its neighbours."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """``head`` and every row have one length; the first column names the rows."""

    head: list[str]
    rows: list[tuple[str, list[Cell]]]

    def markdown(self) -> str:
        """Best and clearly better bold, clearly worse in italics."""
        emphasis = {"": "", "best": "**", "better": "**", "worse": "_"}

        def one_line(parts: list[str]) -> str:
            return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"

        lines = [one_line(self.head), "|---|" + "--:|" * (len(self.head) - 1)]
        for name, cells in self.rows:
            lines.append(one_line([name] + [f"{emphasis[c.mark]}{c.text}{emphasis[c.mark]}" for c in cells]))
        return "\n".join(lines)

    def html(self) -> str:
        """A ``<table>``; marks are the classes of its cells."""

        def cell(c: Cell) -> str:
            return f"<td{f' class={c.mark}' if c.mark else ''}>{html.escape(c.text)}</td>"

        head = "".join(f"<th>{html.escape(text)}</th>" for text in self.head)
        rows = "".join(f"<tr><th>{html.escape(name)}</th>{''.join(map(cell, cells))}</tr>" for name, cells in self.rows)
        return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def corner(what: str, summary: SetSummary) -> str:
    """First cell of a table: says in the table itself when it is not over the whole set."""
    return what if summary.pairs == summary.total else f"{what} ({summary.pairs} of {summary.total} pairs)"


def means_table(summary: SetSummary, costs: Mapping[str, Complexity]) -> Table:
    """A row a method: means over the set, the best of those that fuse marked; person contrast; what it costs."""
    better = {metric.name: metric.better for metric in METRICS.values()}
    if summary.labelled_pairs:
        better |= _PERSON_COLUMNS

    def best_of(column: str) -> float | None:
        values = [row[column] for name, row in summary.methods.items() if column in row and name not in SOURCES]
        if better[column] == "shown" or not values:
            return None
        return max(values) if better[column] == "up" else min(values)

    best = {column: best_of(column) for column in better}

    def cell(name: str, row: Mapping[str, float], column: str) -> Cell:
        if column not in row:
            return Cell(NOTHING)
        return Cell(f"{row[column]:.4g}", "best" if row[column] == best[column] and name not in SOURCES else "")

    head = [corner("method", summary)] + [column + _ARROWS[better[column]] for column in better]
    rows = [(name, [cell(name, row, column) for column in better]) for name, row in summary.methods.items()]
    if costs:
        head += _COST_COLUMNS
        rows = [(name, cells + _cost_cells(costs.get(name))) for name, cells in rows]
    return Table(head, rows)


def _cost_cells(cost: Complexity | None) -> list[Cell]:
    if cost is None:
        return [Cell(NOTHING)] * len(_COST_COLUMNS)
    macs = NOTHING if cost.macs is None else f"{cost.macs / 1e9:.2f}"
    return [Cell(f"{cost.parameters:,}"), Cell(macs), Cell(f"{cost.latency_ms:.1f}")]


def differences_table(summary: SetSummary, reference: str) -> Table:
    """A row a metric, a column a method that fuses: its difference to the reference, the interval, wins:losses."""
    differences = summary.differences[reference]
    shown = [method for method in differences if method not in SOURCES]
    metrics = {metric.name: metric.better for metric in METRICS.values()}
    if any(PERSON in differences[method] for method in shown):
        metrics[PERSON] = "up"
    rows = [
        (metric + _ARROWS[better], [_difference_cell(differences[method].get(metric), better) for method in shown])
        for metric, better in metrics.items()
    ]
    better_means = [Cell(str(len(summary.verdict(method, reference).better_on))) for method in shown]
    rows.append((f"better mean, of {len(HEADLINE)}", better_means))
    return Table([corner(f"minus {reference}", summary)] + shown, rows)


def verdict_lines(summary: SetSummary) -> list[tuple[str, str]]:
    """For every method that fuses and every reference: who, and on which headline metrics its mean is better."""
    lines = []
    for reference, differences in summary.differences.items():
        for method in differences:
            if method in SOURCES:
                continue
            verdict = summary.verdict(method, reference)
            lost = f" (not {', '.join(verdict.lost)})" if verdict.lost else ""
            nabf = f"{'not worse' if verdict.nabf_not_worse else 'worse'} ({differences[method]['Nabf'].mean:+.2g})"
            text = f"better mean on {len(verdict.better_on)} of {len(HEADLINE)}{lost}, Nabf {nabf}"
            lines.append((f"{method} against {reference}", text))
    return lines


def _difference_cell(difference: Difference | None, better: str) -> Cell:
    if difference is None:
        return Cell(NOTHING)
    text = f"{difference.mean:+.3g}"
    if difference.low is not None:
        text += f" [{difference.low:+.3g}, {difference.high:+.3g}]"
    if difference.wins is not None:
        text += f" {difference.wins}:{difference.losses}"
    if better == "shown" or not difference.clear:
        return Cell(text)
    return Cell(text, "better" if (difference.mean > 0) == (better == "up") else "worse")


def set_caption(summary: SetSummary) -> str:
    """What a set's tables are over."""
    text = f"{summary.pairs} pairs, means over all of them"
    if summary.pairs != summary.total:
        left = summary.total - summary.pairs
        text = f"{summary.pairs} of {summary.total} pairs: {left} left out for every method ({_causes(summary)})"
    if summary.labelled_pairs:
        text += (
            "; person columns: contrast kept of the better source (1: all), median and 10th percentile over the people"
            f" in {summary.labelled_pairs} labelled pairs"
        )
    return text + "."


def _causes(summary: SetSummary) -> str:
    stems: dict[str, list[str]] = {}
    for item in summary.left_out:
        stems.setdefault(item["cause"], []).append(item["stem"])
    return "; ".join(f"{len(names)} {cause}: {', '.join(names)}" for cause, names in sorted(stems.items()))


def differences_caption(references: Sequence[str], bootstrap: BootstrapConfig) -> str:
    """How the comparison is to be read."""
    return (
        f"Mean difference to {' or '.join(references)} over the same pairs, its {bootstrap.confidence:.0%} interval"
        f" (percentile bootstrap over pairs, {bootstrap.resamples} draws, seed {bootstrap.seed}), wins:losses by pair"
        f" (for {PERSON} by person, pictures drawn whole). Marked where the interval leaves out 0: bold or green"
        " better, italic or red worse."
        f" Last row: of {', '.join(HEADLINE)}."
    )


def costs_caption(costs: Mapping[str, Complexity]) -> str:
    """Where parameters, GMAC and ms come from; empty without costs."""
    if not costs:
        return ""
    height, width = COMPLEXITY_SIZE
    runs = sorted({cost.run for cost in costs.values()})
    timed = f"timed in one run ({runs[0]})"
    if len(runs) > 1:
        timed = f"timed in {len(runs)} different runs, which are hardly comparable ({'; '.join(runs)})"
    return (
        f"GMAC: multiply-accumulates of convolutions and matrix products at {width}x{height}. ms: median of a frame of"
        f" that size, pictures in, pictures out, a model's gates included, {timed}."
    )
