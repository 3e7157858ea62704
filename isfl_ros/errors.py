"""The one exception type that a user of the package can cause and mend."""

from __future__ import annotations

import importlib.util


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


def require_module(module: str, *, extra: str, otherwise: str | None = None) -> None:
    """Asks for an optional library before the work that needs it, not after.

    Args:
        module: name to import.
        extra: of the package, with which it is installed.
        otherwise: what can be done without it.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        do = f"install the package with its extra: pip install 'isfl_ros[{extra}]'"
        raise InputError(f"{module} is missing", do=f"{do}, or {otherwise}" if otherwise else do)
