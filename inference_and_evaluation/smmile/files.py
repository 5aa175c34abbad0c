"""Atomic file writes, messages for folders that cannot be written, and the form and hash of data."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from smmile.errors import UsageError, one_line

# Folders of links to a process's own streams.
_STREAMS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))


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


def data_hash(data: object) -> str:
    """The SHA-256 of plain data in canonical JSON, hexadecimal."""
    import msgspec

    return hashlib.sha256(json.dumps(msgspec.to_builtins(data), sort_keys=True).encode()).hexdigest()


def write_whole(file: Path, content: bytes | Iterable[bytes], *, durable: bool = True) -> None:
    """Replace `file` by `content` atomically; if `durable`, it is on disk when this returns.

    Content in parts is written part by part. Files that can be recomputed need not be `durable`, which is
    slow. A link is replaced, not followed, but for /dev/stdout and the like; pipes and terminals are
    written directly. Raises UsageError if writing fails; the previous file is then unchanged.
    """
    parts = (content,) if isinstance(content, bytes) else content
    is_stream = file.parent in _STREAMS
    if is_stream and file.is_file():
        file = file.resolve()
    elif file.exists() and not file.is_file() and (is_stream or not file.is_symlink()):
        try:
            with file.open("wb") as stream:
                stream.writelines(parts)
        except OSError as error:
            raise cannot_write(file, error) from error
        return
    with replacing(file, durable=durable) as draft:
        draft.writelines(parts)


def has_content(file: Path, parts: Iterable[bytes]) -> bool:
    """Whether `file` contains exactly these parts."""
    with file.open("rb") as stream:
        return all(stream.read(len(part)) == part for part in parts) and not stream.read(1)


@contextmanager
def replacing(file: Path, drafts: Path | None = None, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content replaces `file` at the end, as by `write_whole`, unless there was an error.

    Until then it is a draft in the folder `drafts` (default: the file's), of a name that cannot be guessed.
    Raises UsageError if writing fails.
    """
    drafts = drafts or file.parent
    draft = None
    try:
        _remove_abandoned_drafts(drafts)
        draft, stream = _open_draft(drafts)
        with stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
            draft.replace(file)
        if durable:
            sync_folder(file.parent)
    except OSError as error:
        raise cannot_write(file, error) from error
    finally:
        if draft is not None:
            with suppress(OSError):
                draft.unlink()


def _open_draft(folder: Path) -> tuple[Path, BinaryIO]:
    """A new file, locked while it is open."""
    while True:
        draft = folder / f".smmile-{secrets.token_hex(8)}.tmp"
        stream = draft.open("xb")  # fails where there is anything, also a link
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        if draft.exists():
            return draft, stream
        stream.close()  # taken for an abandoned one before it was locked


def _remove_abandoned_drafts(folder: Path) -> None:
    """Remove the drafts in `folder` whose processes, on any machine, have lost their locks by ending."""
    for draft in folder.glob(".smmile-*.tmp"):
        with suppress(OSError):
            descriptor = os.open(draft, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink()
            finally:
                os.close(descriptor)


def check_replaceable(file: Path) -> None:
    """Raise UsageError if `file` could not be replaced by `write_whole`; its content stays the same."""
    if file.is_file():
        with file.open("rb") as stream:
            write_whole(file, stream, durable=False)
    elif file.is_dir():
        raise UsageError(f"{one_line(file)} is a folder; move it away")


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
    if error.errno == errno.ELOOP:
        fix = "it is a link, which is not followed: remove it"
    return UsageError(f"{one_line(path)} cannot be written ({error.strerror or error}); {fix}")
