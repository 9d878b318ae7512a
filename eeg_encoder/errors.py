"""The one error users see for bad input, and how the command lines print it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))


class InputError(ValueError):
    """Bad input, said in one line: where, which field, what was found, what was expected.

    Parameters
    ----------
    where
        The file, folder or argument that holds the bad value.
    field
        The field inside it, as a user would look it up (``dataset[3].eeg``).
    found, expected
        The value found, and what would have been right.
    """

    def __init__(self, where: object, field: str, found: object, expected: object) -> None:
        self.where, self.field, self.found, self.expected = where, field, found, expected
        super().__init__(f"{where}: {field}: found {found}, expected {expected}")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn :class:`InputError`, a full disk and Ctrl-C into a line on stderr and a non-zero exit.

    Our own files raise :class:`InputError` when the disk is full; those of libraries, their logs
    for instance, raise a plain ``OSError``.
    """
    import sys

    import typer

    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        where = error.filename or "disk"
        expected = "a disk with room for the file"
        print(f"error: {InputError(where, 'write', error.strerror, expected)}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(130) from None
