"""What the trials of :mod:`isfl_ros.benchmarks.baffm` say: means, differences by seed, and their Markdown tables.

Two variants are compared seed by seed: the same seed gives both the same data order, crops and encoders at the start.
The interval is Student's over the seeds' differences of set means (so it tells how the difference would move with
another initialisation, on these pictures); with three seeds it is wide, as it should be.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

HEADLINE = ("MI", "VIF", "Qabf", "SSIM")
"""The second paper's metrics, all better when higher; the table also shows ``SSIM_mean0``, its scale of SSIM."""
SHOWN = (*HEADLINE, "SSIM_mean0", "Nabf")
CONFIDENCE = 0.95

Scores = dict[tuple[str, str], dict[str, dict[str, float]]]
"""(method, set) -> stem -> metric -> value."""


def read_scores(path: Path) -> Scores:
    """The values of ``isfl evaluate``'s ``per_image.csv``."""
    scores: Scores = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {metric: float(row[metric]) for metric in SHOWN}
            scores.setdefault((row["method"], row["set"]), {})[row["stem"]] = values
    return scores


def student_interval(values: Sequence[float]) -> tuple[float, float, float | None, float | None]:
    """Mean, standard deviation, and the ends of Student's interval of the mean; None below two values."""
    from scipy import stats

    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, 0.0, None, None
    deviation = float(array.std(ddof=1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(array) - 1)) * deviation / np.sqrt(len(array))
    return mean, deviation, float(mean - half), float(mean + half)


def set_mean(scores: Scores, method: str, set_name: str, metric: str) -> float:
    """Mean of a metric over a set."""
    return float(np.mean([values[metric] for values in scores[method, set_name].values()]))


def compare(scores: Scores, ours: Sequence[str], theirs: Sequence[str], sets: Sequence[str]) -> dict[str, dict]:
    """Two variants, a trial a seed each and in one order: by set and metric the means and the difference of the two.

    Returns:
        Set -> metric -> ``ours``, ``theirs`` (means over seeds), ``difference``, ``low``, ``high`` (Student's interval
        over the seeds; None with one), ``seeds_better``, ``seeds``; and ``better_on``: those of :data:`HEADLINE` with a
        higher mean, ``clear_on``: those whose interval lies above 0.
    """
    document: dict[str, dict] = {}
    for name in sets:
        rows = {}
        for metric in SHOWN:
            a, b = ([set_mean(scores, trial, name, metric) for trial in trials] for trials in (ours, theirs))
            differences = [x - y for x, y in zip(a, b, strict=True)]
            mean, deviation, low, high = student_interval(differences)
            better = sum(d < 0 if metric == "Nabf" else d > 0 for d in differences)
            rows[metric] = {
                "ours": float(np.mean(a)), "theirs": float(np.mean(b)), "difference": mean, "deviation": deviation,
                "low": low, "high": high, "seeds_better": better, "seeds": len(differences),
            }
        document[name] = {
            "metrics": rows,
            "better_on": [metric for metric in HEADLINE if rows[metric]["difference"] > 0],
            "clear_on": [metric for metric in HEADLINE if (rows[metric]["low"] or 0.0) > 0],
        }
    return document


def read_missing(path: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Set -> method -> missing modality -> means over the pairs of ``isfl evaluate --missing``: ``SSIM`` to the surviving picture
    where the other is missing altogether, ``difference`` to it in grey levels there, and ``parts``, that where parts are
    missing."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = (row["set"], row["method"], row["modality"])
            values = found.setdefault(key, {"SSIM": [], "difference": [], "parts": []})
            if row["region"] == "whole":
                values["SSIM"].append(float(row["SSIM"]))
                values["difference"].append(float(row["difference"]))
            elif row["difference"]:  # a region too narrow to be looked at away from its edge has none
                values["parts"].append(float(row["difference"]))
    document: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for (name, method, modality), values in found.items():
        means = {key: float(np.mean(column)) for key, column in values.items() if column}
        document.setdefault(name, {}).setdefault(method, {})[modality] = means
    return document


def figures_of(
    part: str, scores: Scores, variants: Mapping[str, Sequence[str]], summary: Mapping, *, missing: Path | None = None
) -> dict:
    """What a part found, ready for JSON, with its tables as ``markdown``.

    Args:
        part: one of :data:`isfl_ros.benchmarks.baffm.PARTS`.
        scores: of everything that was evaluated.
        variants: variant -> names of its trials, a seed each.
        summary: the evaluation's ``summary.json``.
        missing: its ``missing.csv``, where a camera was taken away.
    """
    sets = list(summary["sets"])
    pairs = {name: summary["sets"][name]["pairs"] for name in sets}
    if part in ("adjustment", "bias", "gate"):
        (first, ours), (second, theirs) = variants.items()
        comparison = compare(scores, ours, theirs, sets)
        return {
            "ours": first, "theirs": second, "comparison": comparison,
            "markdown": _comparison_markdown(part, comparison, first, second, pairs),
        }
    rows = {name: list(trials) for name, trials in variants.items()}
    if part == "comparison":
        rows |= {name: [name] for name in summary["methods"] if name not in {t for ts in variants.values() for t in ts}}

    def mean_over_seeds(trials: Sequence[str], name: str) -> dict[str, float]:
        return {m: float(np.mean([set_mean(scores, trial, name, m) for trial in trials])) for m in SHOWN}

    means = {name: {row: mean_over_seeds(trials, name) for row, trials in rows.items()} for name in sets}
    costs = {
        row: cost
        for row, trials in rows.items()
        if (cost := (summary["methods"].get(trials[0]) or {}).get("complexity")) is not None
    }
    markdown = _means_markdown(part, means, costs, rows, pairs)
    if missing is None:
        return {"means": means, "costs": costs, "markdown": markdown}
    row_of = {trial: row for row, trials in rows.items() for trial in trials}
    without = {name: {row_of[m]: values for m, values in methods.items()} for name, methods in read_missing(missing).items()}
    return {"means": means, "costs": costs, "missing": without, "markdown": markdown + _missing_markdown(without)}


def _missing_markdown(missing: Mapping[str, dict]) -> str:
    lines = [
        "A camera missing: SSIM to the other's picture and difference to it in grey levels; in parts: the difference where bands, a",
        "half or holes are missing.",
        "",
    ]
    lines += ["| set | | missing | SSIM ↑ | difference ↓ | in parts ↓ |", "|---|---|---|--:|--:|--:|"]
    for name, methods in missing.items():
        for method, modality, values in ((m, k, v) for m, cameras in methods.items() for k, v in cameras.items()):
            parts = f"{values['parts']:.2f}" if "parts" in values else "-"
            lines.append(f"| {name} | `{method}` | {modality} | {values['SSIM']:.4f} | {values['difference']:.2f} | {parts} |")
    return "\n".join([*lines, ""])


_TITLES = {
    "adjustment": "With and without the back-door adjustment, parameters matched",
    "bias": "Scene bias: trained on night scenes alone, with and without the adjustment",
    "gate": "ISFL's gate over the adjusted features",
    "size": "Size of the dictionaries",
    "comparison": "Comparison",
}


def _comparison_markdown(
    part: str, comparison: Mapping[str, dict], ours: str, theirs: str, pairs: Mapping[str, int]
) -> str:
    lines = [f"## {_TITLES[part]}", ""]
    for name, found in comparison.items():
        seeds = next(iter(found["metrics"].values()))["seeds"]
        lines += [
            f"**{name}** ({pairs[name]} pairs, {seeds} seed{'s' if seeds > 1 else ''})", "",
            f"| metric | `{ours}` | `{theirs}` | difference [{CONFIDENCE:.0%} over seeds] | seeds better |",
            "|---|--:|--:|--:|--:|",
        ]
        for metric, row in found["metrics"].items():
            interval = "" if row["low"] is None else f" [{row['low']:+.4f}, {row['high']:+.4f}]"
            lines.append(
                f"| {metric} {'↓' if metric == 'Nabf' else '↑'} | {row['ours']:.4f} | {row['theirs']:.4f} |"
                f" {row['difference']:+.4f}{interval} | {row['seeds_better']} of {row['seeds']} |"
            )
        clear = ", ".join(found["clear_on"]) or "none"
        lines += [
            "",
            f"`{ours}` has the better mean on {len(found['better_on'])} of {len(HEADLINE)}"
            f" ({', '.join(found['better_on']) or 'none'}); interval above 0: {clear}.",
            "",
        ]
    return "\n".join(lines)


def _means_markdown(
    part: str,
    means: Mapping[str, dict],
    costs: Mapping[str, dict],
    rows: Mapping[str, Sequence[str]],
    pairs: Mapping[str, int],
) -> str:
    lines = [f"## {_TITLES[part]}", ""]
    head = [f"{m} {'↓' if m == 'Nabf' else '↑'}" for m in SHOWN]
    for name, table in means.items():
        lines += [f"**{name}** ({pairs[name]} pairs)", ""]
        lines += ["| | " + " | ".join([*head, "seeds"]) + " |", "|---|" + "--:|" * (len(head) + 1)]
        for row, values in table.items():
            cells = [f"{values[metric]:.4f}" for metric in SHOWN] + [str(len(rows[row]))]
            lines.append(f"| `{row}` | " + " | ".join(cells) + " |")
        lines.append("")
    if costs and part == "comparison":
        lines += ["| at 640x480 | parameters | GMAC | ms a frame, maps included |", "|---|--:|--:|--:|"]
        for row, cost in costs.items():
            macs = "-" if cost["macs"] is None else f"{cost['macs'] / 1e9:.2f}"
            lines.append(f"| `{row}` | {cost['parameters']:,} | {macs} | {cost['latency_ms']:.1f} |")
        lines += ["", f"Timed: {next(iter(costs.values()))['run']}.", ""]
    return "\n".join(lines)
