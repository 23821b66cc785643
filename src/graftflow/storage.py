"""A full or read-only disk, told in one line instead of a traceback."""

import errno
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
        folder: where the block writes; only used in the message.

    Raises:
        InputError: the disk is full, over quota, read-only, broken, or refuses so large a file or
            so long a name.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise InputError(f"Cannot write in folder '{folder}': {error.strerror}.") from error
