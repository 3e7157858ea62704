from __future__ import annotations

import threading

from isfl_ros.ros.accounting import Ledger


def test_a_message_ends_once_and_the_first_end_stands():
    ledger = Ledger(("thermal", "rgb"))
    a, b = ledger.receive("thermal"), ledger.receive("rgb")
    ledger.drop("shutdown", a, b)
    assert ledger.fuse(a, b) is False
    ledger.drop("failed", a)
    counts = ledger.snapshot()
    for row in counts.values():
        assert (row.received, row.fused, dict(row.dropped), row.pending) == (1, 0, {"shutdown": 1}, 0)


def test_every_snapshot_adds_up_while_threads_write():
    ledger = Ledger(("thermal", "rgb"))
    stop = threading.Event()

    def write(reason):
        while not stop.is_set():
            pair = ledger.receive("thermal"), ledger.receive("rgb")
            ledger.fuse(*pair) if reason == "" else ledger.drop(reason, *pair)

    threads = [threading.Thread(target=write, args=(reason,)) for reason in ("", "unmatched", "failed")]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2000):
            for row in ledger.snapshot().values():
                assert row.received == row.fused + sum(row.dropped.values()) + row.pending
                assert 0 <= row.pending <= len(threads)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(row.pending == 0 for row in ledger.snapshot().values())
