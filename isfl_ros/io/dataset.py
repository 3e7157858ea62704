"""Sets of pairs by one line of text: a folder, or a selection from a manifest.

``NAME=`` in front names the set. A manifest is a CSV with the columns ``set``, ``name``, ``ir_file``, ``vi_file`` (relative
to the manifest), and optionally ``label_file`` and ``suggested_use``; what follows its path after a colon selects rows:

    night=recordings/2026-03
    MANIFEST.csv:set=roadscene,use=val
    MANIFEST.csv:set=msrs_test,name_from=00130,name_below=01190,exclude=*D
    MANIFEST.csv:set=msrs_test,outside=00130..01190                         (the names that the line above leaves out, *D apart)
"""

from __future__ import annotations

import csv
import fnmatch
import re
from pathlib import Path

from isfl_ros.errors import InputError
from isfl_ros.io.folders import Pair, find_dataset

_SELECTORS = ("set", "use", "name_from", "name_below", "outside", "exclude")
_NAMED = re.compile(r"^(?P<name>[\w.-]+)=(?P<spec>.+)$")


def set_name(spec: str) -> str:
    """The name of a set: the one in front of ``=``, else the selected set's, else the folder's."""
    name, source, selectors = _parse(spec)
    if name:
        return name
    return "-".join(value for key, value in selectors.items() if key in ("set", "use")) or source.resolve().name


def select_pairs(spec: str, *, root: str | Path = ".") -> list[Pair]:
    """The pairs of a set; a relative path in the specification starts at ``root``.

    Raises:
        InputError: a file or folder is missing, a selector is unknown, or nothing was selected.
    """
    _, source, selectors = _parse(spec)
    source = Path(root) / source
    if source.suffix.lower() != ".csv":
        if selectors:
            raise InputError(f"{spec}: selectors need a manifest", expected="a path ending in .csv before the colon")
        return find_dataset(source)
    if not source.is_file():
        raise InputError(f"{source} not found", expected="a manifest")
    pairs = []
    with source.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        for column in ("set", "name", "ir_file", "vi_file"):
            if column not in (reader.fieldnames or ()):
                raise InputError(f"{source} is not a manifest", expected=f"a column {column!r}")
        for row in reader:
            if None in row.values():
                raise InputError(f"{source} has a short row", got=f"line {reader.line_num}")
            if _selected(row, selectors):
                label = row.get("label_file") or ""
                pairs.append(
                    Pair(
                        stem=row["name"],
                        thermal=source.parent / row["ir_file"],
                        rgb=source.parent / row["vi_file"],
                        label=source.parent / label if label.endswith(".png") else None,
                    )
                )
    if not pairs:
        raise InputError(f"{spec} selects no pair", do="check the values after the colon against the manifest")
    missing = [path for pair in pairs for path in (pair.thermal, pair.rgb) if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]} is listed in {source} but missing", got=f"{len(missing)} missing in all")
    return sorted(pairs, key=lambda pair: pair.stem)


def _parse(spec: str) -> tuple[str | None, Path, dict[str, str]]:
    named = _NAMED.match(spec)
    # "a.csv:set=x" has its first "=" behind a colon and is no name.
    name, rest = (named["name"], named["spec"]) if named else (None, spec)
    path, colon, tail = rest.rpartition(":")
    if not colon or "=" not in tail:
        return name, Path(rest), {}
    selectors = {}
    for item in tail.split(","):
        key, equals, value = item.partition("=")
        if not equals or key not in _SELECTORS:
            raise InputError(f"{spec}: unknown selector {item!r}", expected=f"one of {', '.join(_SELECTORS)} with a value")
        if key == "outside" and value.count("..") != 1:
            raise InputError(f"{spec}: outside of another form", expected="FROM..BELOW", got=repr(value))
        selectors[key] = value
    return name, Path(path), selectors


def _selected(row: dict[str, str], selectors: dict[str, str]) -> bool:
    return (
        selectors.get("set", row["set"]) == row["set"]
        and selectors.get("use", row.get("suggested_use")) == row.get("suggested_use")
        and selectors.get("name_from", "") <= row["name"]
        and ("name_below" not in selectors or row["name"] < selectors["name_below"])
        and not ("outside" in selectors and _between(row["name"], *selectors["outside"].split("..")))
        and not ("exclude" in selectors and fnmatch.fnmatch(row["name"], selectors["exclude"]))
    )


def _between(name: str, first: str, below: str) -> bool:
    return first <= name < below
