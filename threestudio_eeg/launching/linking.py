"""The one-file shim with which ``python launch.py`` in a checkout of threestudio loads us.

It lies in ``custom/threestudio-eeg``. The folder must not be called ``threestudio_eeg``: what
threestudio loads goes into ``sys.modules`` under the folder's name, where the package belongs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file

from .checkout import Threestudio

FOLDER = "threestudio-eeg"
MARKER = "# Written by `threestudio-eeg link`; `threestudio-eeg unlink` removes it."
TEXT = f"{MARKER}\nimport threestudio_eeg.plugin  # noqa: F401\n"


def link(threestudio: Threestudio) -> str:
    """Write the shim; writing it again changes nothing. Returns what was done, in a sentence.

    Raises
    ------
    InputError
        When there is no ``launch.py`` to load it, or something that is not ours is in its place.
    """
    if threestudio.script is None:
        expected = "a checkout with launch.py, or threestudio-eeg launch, which needs no link"
        raise InputError(threestudio.root, "launch.py", "no such file", expected)
    shim = shim_of(threestudio)
    _refuse_what_is_not_ours(shim)
    if shim.is_file() and shim.read_text(encoding="utf-8") == TEXT:
        return f"linked already: {shim}"
    with whole_file(shim) as temporary:
        temporary.write_text(TEXT, encoding="utf-8")
    return f"linked: {shim}"


def unlink(threestudio: Threestudio) -> str:
    """Remove the shim, if it is there. Returns what was done, in a sentence.

    Raises
    ------
    InputError
        When something that is not ours is in its place.
    """
    shim = shim_of(threestudio)
    _refuse_what_is_not_ours(shim)
    if not shim.exists():
        return f"not linked: no {shim}"
    shim.unlink()
    shutil.rmtree(shim.parent / "__pycache__", ignore_errors=True)
    left = sorted(path.name for path in shim.parent.iterdir())
    if left:
        return f"unlinked: {shim} (its folder stays, with {', '.join(left)})"
    shim.parent.rmdir()
    return f"unlinked: {shim}"


def is_linked(threestudio: Threestudio) -> bool:
    """Whether the shim is in place."""
    shim = shim_of(threestudio)
    return shim.is_file() and _is_ours(shim)


def shim_of(threestudio: Threestudio) -> Path:
    return threestudio.extensions / FOLDER / "__init__.py"


def _refuse_what_is_not_ours(shim: Path) -> None:
    expected = f"nothing there, or the file of threestudio-eeg link (its first line: {MARKER})"
    folder = shim.parent
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(folder, "link", "something that is not a folder of ours", expected)
    if not shim.exists() and folder.is_dir() and any(folder.glob("*.py")):
        raise InputError(folder, "link", "a folder with other modules", expected)
    if shim.is_symlink() or (shim.exists() and not _is_ours(shim)):
        raise InputError(shim, "link", "a file that threestudio-eeg did not write", expected)


def _is_ours(shim: Path) -> bool:
    try:
        return shim.read_text(encoding="utf-8").splitlines()[:1] == [MARKER]
    except (OSError, UnicodeDecodeError):
        return False
