"""A directory of the user's own in a place where others may write as well, such as /tmp.

Its name is known beforehand, so somebody else may have made it, or a link in its place. What is
not ours alone is refused.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from holdfast.domain.errors import HoldfastError

__all__ = ["UnsafeDirectory", "own_directory"]


class UnsafeDirectory(HoldfastError):
    """A directory is not safely ours. The text says what to do."""


def own_directory(path: Path, *, make: bool, variable: str) -> Path | None:
    """`path`, of which it is certain that only this user can write there, or read.

    Args:
        path: of the directory.
        make: whether it is made, with mode 0700, where there is none; else that is `None`.
        variable: of the environment, that names another place; for the text of the error.

    Raises:
        UnsafeDirectory: it is a link, not a directory, somebody else's, or open to others.
    """
    if make:
        try:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
        except OSError as error:
            raise UnsafeDirectory(f"{path}: cannot be made: {error.strerror}") from error
    try:
        found = path.lstat()  # not `stat`: a link could lead anywhere
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnsafeDirectory(f"{path}: cannot be looked at: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeDirectory(f"{path}: is not a directory; remove it")
    if found.st_uid != os.getuid():
        raise UnsafeDirectory(
            f"{path}: belongs to user {found.st_uid}, not to {os.getuid()}; "
            f"set {variable} to a directory of your own"
        )
    if found.st_mode & 0o077:
        raise UnsafeDirectory(f"{path}: is open to other users; run: chmod 700 {path}")
    return path
