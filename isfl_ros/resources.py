"""Where shipped files lie: models, configuration, launch files."""

from __future__ import annotations

from pathlib import Path

from isfl_ros.errors import InputError


def shared_directory() -> Path:
    """The folder that holds ``models/``, ``config/`` and ``launch/``.

    It is the source tree for a checkout (editable installs and ``colcon build --symlink-install`` too), else the
    ``share/isfl_ros`` above the installed package. The environment is not asked, so it works without sourcing anything.

    Raises:
        InputError: the package was installed without its shared files.
    """
    package = Path(__file__).resolve().parent
    if (package.parent / "package.xml").is_file():
        return package.parent
    for parent in package.parents:
        candidate = parent / "share" / "isfl_ros"
        if (candidate / "package.xml").is_file():
            return candidate
    raise InputError("the shared files of isfl_ros are missing", expected="share/isfl_ros/package.xml", do="install it again")


def resolve_model(name_or_directory: str) -> Path:
    """A model folder from its path or from the name of a shipped one.

    Raises:
        InputError: neither; the message lists the shipped names.
    """
    models = shared_directory() / "models"
    for candidate in (Path(name_or_directory).expanduser(), models / name_or_directory):
        if (candidate / "model.json").is_file():
            return candidate
    shipped = sorted(path.parent.name for path in models.glob("*/model.json"))
    raise InputError(
        f"no model {name_or_directory!r}",
        expected=f"a folder with model.json, or a shipped name ({', '.join(shipped) or 'none is shipped'})",
    )
