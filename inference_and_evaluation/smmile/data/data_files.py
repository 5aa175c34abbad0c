"""The files that hold the rows of a data set folder: found by their names, and inside the folder only.

`datasets` would also read what a README.md or a state.json names outside of the folder, and archives with
pickles in them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from smmile.data.card import card_patterns, matching
from smmile.data.rows import check_columns
from smmile.errors import UsageError, one_line, pluralize

SPLIT = "train"

# The kind of arrow files that `save_to_disk` has written. The others are called as `datasets` does.
SAVED = "saved"

# If a folder has several kinds of files with rows, the first is read.
_ENDINGS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".csv": "csv"}
_ENDINGS |= dict.fromkeys((".jsonl", ".ndjson"), "json")
_KINDS = (SAVED, "parquet", "arrow", "json", "csv")
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".jp2")
_UNREAD = {
    **dict.fromkeys((".py", ".ipynb"), "scripts are not run"),
    **dict.fromkeys((".tar", ".zip", ".tgz", ".7z"), "archives are not opened"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst"), "compressed: unpack it"),
    ".tsv": "save it with commas, as a .csv",
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".npy"), "pickles can run programs"),
    **dict.fromkeys((".md", ".yaml", ".yml"), "the files that it may name are not followed"),
}

# How the file begins that git leaves in place of one in git-lfs.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# As `datasets` reads the split off a file's name, else off those of its folders.
_SHARD = re.compile(r"(?:.*/)?data/(\w+)-\d{5}-of-\d{5}\.")
_SPLITS = {
    SPLIT: "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}


def find_data_files(folder: Path) -> tuple[str, list[Path]]:
    """The kind and the files, sorted, of a folder's split `train`, or of its only split.

    Raises UsageError if there are none, if one is a link out of the folder or cannot be read, or if there
    are several splits and none is `train`.
    """
    root = folder.resolve()
    found = list(files_in(root))
    split, found = _as_the_card_says(root, found, folder)
    saved = {place: _saved_names(place) for place in {file.parent for file in found} if is_saved(place)}
    kinds = {file: _kind(file, saved.get(file.parent)) for file in found}
    for kind in _KINDS:
        files = [file for file in found if kinds[file] == kind]
        for file in files:
            if fault := _path_fault(root, file, kind):
                raise UsageError(
                    f"--dataset-path {one_line(folder)}: {one_line(file.relative_to(root))} {fault}"
                )
        if files:
            return kind, files if split else _of_one_split(root, files, kind, folder.name)
    if any(file.suffix.lower() in _IMAGES for file in found):
        check_columns(["image"], root.name)  # which says that there is no metadata
    unread = [f"{one_line(file.relative_to(root), 80)}: {_why_unread(file)}" for file in found[:3]]
    if len(found) > 3:
        unread.append(pluralize(len(found) - 3, "more file"))
    raise UsageError(
        f"--dataset-path {one_line(folder)} cannot be read as a data set (it contains no data files"
        f"{'; not read: ' if unread else ''}{'; '.join(unread)}); use a folder of images with a "
        "metadata.csv, of parquet, JSON lines or CSV files, or one written by save_to_disk"
    )


def files_in(root: Path) -> Iterator[Path]:
    """The files in a folder, sorted, and its links to other folders; none that are hidden."""
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in sorted([*names, *links]) if not name.startswith("."))


def _as_the_card_says(root: Path, found: list[Path], folder: Path) -> tuple[str | None, list[Path]]:
    """The split that a README.md names and its files; None and `found` if it names none."""
    card = root / "README.md"
    if card not in found or is_saved(root):
        return None, found
    try:
        if fault := _path_fault(root, card, "card"):
            raise UsageError(f"README.md {fault}")
        patterns = card_patterns(card)
        if patterns is None:
            return None, found
        split = choose_split(list(patterns), folder.name)
        return split, matching(root, patterns[split], found)
    except UsageError as error:
        raise UsageError(f"--dataset-path {one_line(folder)}: {error}") from error


def _path_fault(root: Path, file: Path, kind: str) -> str | None:
    """Why a file is not read, and how to fix it; None if it can be read."""
    # The hub's cache keeps the files of a snapshot beside it.
    allowed = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    target = Path(os.path.realpath(file))  # which, unlike `resolve`, accepts a loop of links
    if not any(target.is_relative_to(place) for place in allowed):
        return (
            "is a link out of the folder, which is not followed; copy the file into it "
            "(cp -rL does for all)"
        )
    if not target.is_file():
        return "is a broken link or no file; remove it, or copy the file into the folder"
    try:
        with target.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                return "is a pointer of git-lfs, not the file itself; run git lfs pull in the folder"
    except OSError as error:
        return f"cannot be read ({error.strerror}); change who may read it"
    # `datasets` would expand environment variables and chained URLs.
    if kind != SAVED and ("$" in str(file) or "::" in str(file)):
        return "has $ or :: in its path, which cannot be read; rename it"
    return None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written a data set into the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _kind(file: Path, saved: set[str] | None) -> str | None:
    """The kind of a file with rows; None for any other. `saved` are the names in a state.json beside it."""
    if file.name in _NO_ROWS or file.is_dir():
        return None
    kind = _ENDINGS.get(file.suffix.lower())
    if kind == "arrow" and saved is not None:
        return SAVED if file.name in saved else None
    return kind


def _saved_names(folder: Path) -> set[str]:
    """The names of the files that `save_to_disk` wrote last; others may be left from before."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return {str(item["filename"]) for item in state["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def _why_unread(file: Path) -> str:
    return "a link" if file.is_symlink() else _UNREAD.get(file.suffix.lower(), "not a format with rows")


def _of_one_split(root: Path, files: list[Path], kind: str, label: str) -> list[Path]:
    splits = [_split(root, file, kind) for file in files]
    named = [split for split in dict.fromkeys(splits) if split is not None]
    chosen = choose_split(named, label) if named else None
    return [file for file, split in zip(files, splits, strict=True) if split == chosen]


def _split(root: Path, file: Path, kind: str) -> str | None:
    """The split that a file belongs to; None if its path does not say."""
    if kind == SAVED:  # in a folder for each split
        return None if file.parent == root else file.parent.name
    path = file.relative_to(root)
    if shard := _SHARD.match(path.as_posix()):
        return shard[1]
    for place in (path.name, f"{path.parent.as_posix()}/"):
        for split, words in _SPLITS.items():
            if re.search(rf"(?:^|[-._ 0-9/])(?:{words})[-._ 0-9/]", place):
                return split
    return None


def choose_split(names: list[str], label: str) -> str:
    """`train`, or the only split. Raises UsageError otherwise."""
    if SPLIT in names or len(names) == 1:
        return SPLIT if SPLIT in names else names[0]
    raise UsageError(
        f"data set {one_line(label)} has the splits {one_line(', '.join(names)) or '(none)'}; "
        f"it needs one named {SPLIT}"
    )
