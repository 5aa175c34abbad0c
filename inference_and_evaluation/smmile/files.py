"""Atomic file writes, and messages for folders that cannot be written."""

from __future__ import annotations

import errno
import glob
import os
from contextlib import suppress
from pathlib import Path

from smmile.errors import UsageError, one_line


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents. Raises UsageError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def encode_json(content: object) -> bytes:
    """`content` as JSON to read, a line for each value."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


def write_whole(file: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace `file` by `content` atomically; if `durable`, it is on disk when this returns.

    Files that can be recomputed need not be `durable`, which is slow. Terminals, pipes and the like are
    written directly. Raises UsageError if writing fails; the previous file is then unchanged.
    """
    file = file.resolve() if file.is_symlink() else file
    if file.exists() and not file.is_file():
        try:
            file.write_bytes(content)
        except OSError as error:
            raise cannot_write(file, error) from error
        return
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        remove_abandoned_drafts(file)
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        draft.replace(file)
        if durable:
            sync_folder(file.parent)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise cannot_write(file, error) from error


def remove_abandoned_drafts(file: Path) -> None:
    """Remove temporary files of `file` whose processes were killed."""
    for draft in file.parent.glob(f"{glob.escape(file.name)}.*.tmp"):
        process = draft.name[len(file.name) + 1 : -len(".tmp")]
        if process.isdecimal() and not _is_alive(int(process)):
            draft.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Flush renames and removals in `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> UsageError:
    """The error for a file or folder that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    fix = "free some space and repeat the command" if full else "choose another folder"
    if error.errno == errno.ENAMETOOLONG:
        fix = "use a shorter name"
    return UsageError(f"{one_line(path)} cannot be written ({error.strerror or error}); {fix}")
