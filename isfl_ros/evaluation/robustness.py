"""The tables on what the metrics do not see, a modality that is missing and flicker, for Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Sequence

from isfl_ros.evaluation.compare import SetSummary
from isfl_ros.evaluation.missing import INNER_PX, LEAST_SSIM, MOST_DIFFERENCE, MissingFigure
from isfl_ros.evaluation.regions import MODALITIES, PARTS, REGIONS, WHOLE
from isfl_ros.evaluation.tables import NOTHING, Cell, Table, corner

_TITLES = {"band5": "band 5 % ↓", "band25": "band 25 % ↓", "half": "half ↓", "holes": "holes ↓", WHOLE: "whole ↓"}


def missing_table(summary: SetSummary) -> Table:
    """A row a method and modality that is missing; means over the pairs, in brackets the worst pair."""
    measured = summary.missing
    head = [f"missing on {measured.pairs} of {summary.total} pairs", "SSIM ↑"]
    head += [_TITLES[region] for region in REGIONS] + [f"seam {_TITLES[region]}" for region in PARTS]
    rows = []
    for method in summary.methods:
        if method not in measured.methods:
            rows.append((method, [Cell(NOTHING)] * (len(head) - 1)))
            continue
        for modality in MODALITIES:
            of = measured.methods[method][modality]
            cells = [_cell(of[WHOLE].get("SSIM"), 3, least=LEAST_SSIM)]
            cells += [_cell(of[region].get("difference"), 1, most=MOST_DIFFERENCE) for region in REGIONS]
            cells += [_seam_cell(of[region].get("seam"), of[region].get("hard_seam")) for region in PARTS]
            rows.append((f"{method}, no {modality}", cells))
    return Table(head, rows)


def _cell(
    figure: MissingFigure | None, digits: int, *, least: float | None = None, most: float | None = None
) -> Cell:
    if figure is None:
        return Cell(NOTHING)
    met = figure.mean >= least if least is not None else figure.mean <= most
    return Cell(f"{figure.mean:.{digits}f} ({figure.worst:.{digits}f})", "better" if met else "worse")


def _seam_cell(figure: MissingFigure | None, hard: MissingFigure | None) -> Cell:
    if figure is None or hard is None:
        return Cell(NOTHING)
    return Cell(f"{figure.mean:.1f} ({figure.worst:.1f}) / {hard.mean:.1f}")


def missing_caption() -> str:
    """How it is to be read."""
    return (
        "Missing: one modality taken away from the whole picture, or from a region (bands along one border, half a"
        f" frame, irregular holes over {PARTS['holes']:.0%}; the same for every method), and fused as the node does."
        " SSIM of fused luma and remaining picture, the whole modality missing. Then their mean absolute difference in"
        f" grey levels: over the whole picture, and inside the regions at least {INNER_PX:g} px from their edge. Seam:"
        " step of brightness along the region's edge beyond what scene and gradual transition explain, in grey levels;"
        " after the slash what a hard switch between the two pictures would score. In brackets the worst pair. Marked"
        f" bold or green: mean SSIM at least {LEAST_SSIM}, mean difference at most {MOST_DIFFERENCE:g}; italic or red:"
        f" not. `{NOTHING}`: no network, or no pixel so far inside."
    )


def flicker_table(summary: SetSummary, references: Sequence[str]) -> Table:
    """A row a method."""
    measured = summary.flicker
    head = [f"flicker over {measured.steps} of {measured.total} steps", "flicker ↓", "worst step ↓", "change"]
    head += [f"lower than {reference}" for reference in references]
    lowest = min((found.flicker for found in measured.methods.values()), default=None)
    rows = []
    for method in summary.methods:
        found = measured.methods.get(method)
        if found is None:
            rows.append((method, [Cell(NOTHING)] * (len(head) - 1)))
            continue
        cells = [Cell(f"{found.flicker:.3f}", "best" if found.flicker == lowest else "")]
        cells += [Cell(f"{found.worst:.3f}"), Cell(f"{found.change:.3f}")]
        for reference in references:
            lower = found.lower_than.get(reference)
            cells.append(Cell(NOTHING if lower is None else f"{lower} of {measured.steps}"))
        rows.append((method, cells))
    return Table(head, rows)


def flicker_caption(summary: SetSummary) -> str:
    """How it is to be read."""
    measured = summary.flicker
    text = (
        "Flicker: mean over steps and pixels of the fused luma's change from frame to frame, after motion (optical flow"
        " of the visible luma), where it exceeds the larger of the two sources' own change, in grey levels; beside it"
        f" the whole change. {measured.left_out:.1%} of the pixels have no valid flow and are left out. No interval:"
        " frames depend on each other."
    )
    if measured.steps < measured.total:
        missed = measured.total - measured.steps
        text += f" {missed} steps are not measured: a frame was left out, or no flow is valid."
    return text
