"""Lines of what is kept: the later counts, an interrupted one does not, a damaged one is named."""

from __future__ import annotations

import pytest

from isfl_ros.errors import InputError
from isfl_ros.evaluation.ledger import Ledger

KEY = ("set", "stem")


def test_lines_are_found_by_their_key_and_the_later_counts(tmp_path):
    path = tmp_path / "kept.jsonl"
    ledger = Ledger(path, KEY)
    for digest in ("1", "2"):
        ledger.add({"set": "a", "stem": "x", "digest": digest})
    for again in (ledger, Ledger(path, KEY)):
        assert again.find("a", "x")["digest"] == "2" and again.find("a", "y") is None
        assert again.has({"set": "a", "stem": "x", "digest": "2"}) and not again.has({"set": "a", "stem": "x", "digest": "1"})


def test_a_write_that_was_interrupted_is_forgotten(tmp_path):
    path = tmp_path / "kept.jsonl"
    Ledger(path, KEY).add({"set": "a", "stem": "x"})
    path.write_text(path.read_text() + '{"set": "a", "st')
    ledger = Ledger(path, KEY)
    ledger.mend()
    ledger.add({"set": "a", "stem": "y"})
    assert Ledger(path, KEY).find("a", "y") and path.read_text().count("\n") == 2


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"set": "a"}', b"3", b"", b"\xff\xfe"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "kept.jsonl"
    path.write_bytes(b'{"set": "a", "stem": "x"}\n' + line + b"\n")
    with pytest.raises(InputError, match="kept.jsonl is damaged in line 2"):
        Ledger(path, KEY)
