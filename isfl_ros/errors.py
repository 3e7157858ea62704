"""The one exception type that a user of the package can cause and mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user handed in is wrong; the message is one line that says how to mend it.

    The command line prints it without a traceback and exits with status 2; the node names it in its diagnostics.

    Args:
        what: what is wrong, naming the thing (a path, a key, a topic).
        expected: what would have been right.
        got: what was found instead.
        do: what the user can do about it.
    """

    def __init__(self, what: str, *, expected: str | None = None, got: str | None = None, do: str | None = None):
        parts = [what.rstrip(".")]
        if expected is not None:
            parts.append(f"expected {expected}")
        if got is not None:
            parts.append(f"got {got}")
        if do is not None:
            parts.append(do)
        super().__init__("; ".join(parts))
