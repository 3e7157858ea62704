"""Which pictures are kept, and what they were made of: a file of JSON lines that survives an interrupted write."""

from __future__ import annotations

import json
from pathlib import Path

from isfl_ros.errors import InputError
from isfl_ros.io.staging import write_bytes


class Ledger:
    """Lines by their key; of two with one key the later counts."""

    def __init__(self, path: Path, key: tuple[str, ...]):
        """Reads what is there.

        Args:
            path: file, need not exist.
            key: fields of a line that tell it from the others.

        Raises:
            InputError: a line that was written to its end is damaged.
        """
        self._path, self._key = path, key
        self._lines: dict[tuple[str, ...], dict[str, str]] = {}
        lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        for number, text in enumerate(lines[:-1], 1):  # an interrupted write leaves a last line without its end
            try:
                line = json.loads(text)
                self._lines[tuple(line[field] for field in key)] = line
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} is damaged in line {number}",
                    expected=f"a JSON object with {', '.join(key)}",
                    got=repr(text[:80]),
                    do="remove that line: what it stood for is made again",
                ) from error

    def find(self, *key: str) -> dict[str, str] | None:
        """The line of a key."""
        return self._lines.get(key)

    def has(self, line: dict[str, str]) -> bool:
        """Whether exactly this line is there."""
        return self.find(*(line[field] for field in self._key)) == line

    def mend(self) -> None:
        """Removes a last line without its end, so that lines can be added."""
        data = self._path.read_bytes() if self._path.is_file() else b""
        if data and not data.endswith(b"\n"):
            write_bytes(self._path, data[: data.rfind(b"\n") + 1])

    def add(self, line: dict[str, str]) -> None:
        """Appends a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._lines[tuple(line[field] for field in self._key)] = line
