"""The sentences of faults of a disk, folder or index that a user chose, for the command line and for programs."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError, is_full
from pipeline.store.index import WITHOUT_LOCKS, remedy


def disk_trouble(error: Exception) -> str | None:
    """The sentence for a fault of a disk or folder that the user chose; None for any other error."""
    if is_full(error):
        return f"the disk is full ({error}): what was finished is kept; free some space, then run again"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"{error.filename} cannot be used: {error.strerror}"
    if isinstance(error, OSError) and (error.errno in WITHOUT_LOCKS or "unable to lock file" in str(error)):
        return (
            f"a file system here has no locks ({error}); keep the store on a local disk or mount with locks, and set "
            "HDF5_USE_FILE_LOCKING=FALSE for HDF5 files of your own that lie there"
        )
    if isinstance(error, sqlite3.OperationalError) and "readonly database" in str(error):
        return "the store cannot be written: its index is read-only"
    if isinstance(error, sqlite3.OperationalError) and "Could not decode" not in str(error):
        return f"the store's index cannot be used: {remedy(error)}"
    if isinstance(error, sqlite3.ProgrammingError) and "thread" in str(error):
        return "an opened store belongs to the thread that opened it; open it again in this one"
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return "the store was closed; open it again"
    if isinstance(error, sqlite3.DatabaseError):
        return (
            f"the store's index is damaged ({error}); `crossreel store verify --repair` with the store's folder "
            "rebuilds it from the segments"
        )
    return None


@contextmanager
def in_sentences() -> Iterator[None]:
    """Raise faults of a disk, folder or index as UserError, with the sentence of the command line."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if not (trouble := disk_trouble(error)):
            raise
        raise UserError(trouble) from error
