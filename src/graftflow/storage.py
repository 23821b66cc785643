"""A full or read-only disk, told in one line instead of a traceback."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graftflow.errors import InputError

UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ENAMETOOLONG,
}


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Turn the disk's refusals inside the block into an :class:`InputError` that names the folder.

    Args:
        folder: where the block writes; the message names it unless the error tells of a file elsewhere.

    Raises:
        InputError: the disk is full, over quota, read-only, broken, or refuses so large a file or
            so long a name.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise cannot_write(error, folder) from error


def cannot_write(error: OSError, folder: str | Path) -> InputError:
    """Return the line for a disk's refusal.

    Args:
        error: of the operating system.
        folder: that is named where the error tells of no file, or of one in it.
    """
    return InputError(f"Cannot write in folder '{place_of(error, folder)}': {error.strerror}.")


def place_of(error: OSError, folder: str | Path) -> Path:
    """Return the folder of the file that an error tells of; ``folder`` where it tells of none, or of one in it."""
    within = Path(folder)
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return within  # bytes that found no room tell of no file, and a descriptor is none
    path = Path(os.fsdecode(error.filename))
    return within if path.absolute().is_relative_to(within.absolute()) else path.parent
