"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

from isfl_ros.errors import InputError


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file aside and moves it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(aside, 0o644)  # mkstemp makes it private
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def check_replaceable(out: str | Path, *, marker: str, overwrite: bool) -> None:
    """Refuses a folder that a command must not replace.

    Args:
        out: the folder; missing or empty is always fine.
        marker: a file that only an earlier run of the same command left there.
        overwrite: whether an earlier run may be replaced.

    Raises:
        InputError: ``out`` holds something, and ``overwrite`` is false, or it is no earlier run.
    """
    out = Path(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{out} exists", do="choose another folder or pass --overwrite")
    if not (out / marker).is_file():
        # The whole folder would be replaced: never one that holds something else.
        raise InputError(
            f"{out} was not written by this command", expected=f"a folder with {marker}", do="choose another or remove it yourself"
        )


@contextlib.contextmanager
def staged_folder(out: str | Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that becomes ``out`` at the end, or vanishes when the block fails.

    Raises:
        InputError: as :func:`check_replaceable`.
    """
    out = Path(out).resolve()
    check_replaceable(out, marker=marker, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        folder = aside / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            os.replace(out, aside / "old")
        try:
            os.replace(folder, out)
        except BaseException:
            if (aside / "old").exists():  # neither the old nor the new may be lost
                os.replace(aside / "old", out)
            raise
    finally:
        shutil.rmtree(aside)
