"""A folder of images as a data set, and what check_dataset.py says of data sets."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import (
    LFS_POINTER,
    encoded,
    four_problems,
    make_image,
    row,
    run_here,
    save_parquet,
    says_in_one_line,
)
from smmile.data.dataset import DatasetSource, load_outlines, load_problems
from smmile.data.problems import Defect, Problem, ProblemSet


def save_images(folder: Path, rows: Sequence[Mapping[str, Any]], kind: str = "csv") -> Path:
    """Save rows as a folder of images with a metadata file; a row may name its own file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    items = []
    for number, item in enumerate(rows):
        name = item.get("file_name", f"images/blood-test {number}.png")
        if "file_name" not in item:
            (folder / name).write_bytes(item["image"]["bytes"])
        items.append({"file_name": name} | {key: value for key, value in item.items() if key != "image"})
    with (folder / f"metadata.{kind}").open("w", newline="", encoding="utf-8-sig") as stream:
        if kind == "jsonl":
            stream.writelines(json.dumps(item) + "\n" for item in items)
        else:
            table = csv.DictWriter(stream, dict.fromkeys(key for item in items for key in item))
            table.writeheader()
            table.writerows(items)
    return folder


def load(folder: Path) -> ProblemSet:
    return load_problems(DatasetSource("smmile", path=folder))


def changed(number: int, **new: Any) -> list[dict[str, Any]]:
    rows = four_problems()
    rows[number] |= new
    return rows


def check(folder: Path, *words: object) -> tuple[int, str]:
    """The exit code of check_dataset.py and its output on one line."""
    finished = run_here("check_dataset.py", folder, *words)
    assert all(len(line) < 80 and line.isprintable() for line in finished.out.splitlines())
    assert finished.err == ""
    return finished.code, " ".join(finished.out.split())


def skipped_by_a_run(folder: Path) -> set[str]:
    words = [
        "--baseline",
        "majority",
        "--dataset-path",
        folder,
        "--output-dir",
        folder / "out",
        "--dry-run",
    ]
    return set(re.findall(r"skipped problem (\S+):", run_here("inference_baselines.py", *words).err))


# The folder as a data set.


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_images_is_the_same_data_set_as_a_parquet_file(kind: str, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "mine", four_problems(), kind)
    expected = load(save_parquet(tmp_path / "parquet", four_problems()))
    assert load(folder).entries == expected.entries
    assert load(folder).fingerprint == expected.fingerprint
    assert folder.rename(tmp_path / "moved").is_dir()
    assert load(tmp_path / "moved").fingerprint == expected.fingerprint
    (tmp_path / "splits").mkdir()
    (tmp_path / "moved").rename(tmp_path / "splits" / "train")
    save_images(tmp_path / "splits" / "test", four_problems()[:3])
    assert load(tmp_path / "splits").fingerprint == expected.fingerprint


def test_texts_are_read_as_written(tmp_path: Path) -> None:
    answers = ["None", "N/A", "nan", "", "true", "007", "1.50", " NULL ", 'two\r\nlines, "quoted"', "Größe"]
    rows = [row("007", f"{order}.0", answer) for order, answer in enumerate(answers, start=1)]
    rows[3] |= {"answer": "-", "question": "=1+1", "flag_x": "NA"}
    (entry,) = load(save_images(tmp_path, rows)).entries
    assert isinstance(entry, Problem)
    assert entry.problem_id == "007"
    assert entry.answers == (*answers[:3], "-", *answers[4:])
    assert entry.examples[3].question == "=1+1"
    assert [entry.flags[name] for name in ("speciality", "flag_x")] == ["radiology", "None"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_add_is_no_row(delimiter: str, tmp_path: Path) -> None:
    file = save_images(tmp_path, four_problems()) / "metadata.csv"
    before = load(tmp_path).fingerprint
    text = file.read_text().replace("file_name,", " file_name ,", 1)
    text = "\n".join(line + ",," for line in text.splitlines()) + "\n\n,,,,,,,,,\n"
    file.write_text(text.replace(",", delimiter))
    assert load(tmp_path).fingerprint == before


def test_an_edited_folder_is_read_again(tmp_path: Path) -> None:
    """Also where neither the size nor the time of a file shows the edit."""
    file = save_images(tmp_path / "mine", four_problems()) / "metadata.csv"
    first = load(file.parent)
    time = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes().replace(b"Answer b", b"Answer x"))
    os.utime(file, ns=(time, time))
    edited = load(file.parent)
    assert isinstance(edited.entries[0], Problem)
    assert edited.entries[0].answers == ("Answer a", "Answer x", "Answer a")
    (file.parent / "images" / "blood-test 0.png").write_bytes(make_image(999))
    assert len({one.fingerprint for one in (first, edited, load(file.parent))}) == 3
    # What was loaded before stays as it was.
    image = edited.entries[0].examples[0].image
    assert image is not None
    assert image.read() == four_problems()[0]["image"]["bytes"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("../secret.png", "is outside the folder"),
        ("images/../../secret.png", "is outside the folder"),
        ("..\\secret.png", "is outside the folder"),
        ("{root}/secret.png", "is outside the folder"),
        ("link.png", "is outside the folder"),
        ("linked/secret.png", "is outside the folder"),
        ("file://{root}/secret.png", "is not in the folder"),
        ("loop.png", "is not in the folder"),
        ("pipe.png", "is not in the folder"),
        ("images", "is not in the folder"),
        ("absent.png", "is not in the folder"),
        ("x" * 5000, "is not in the folder"),
        ("nul\0.png", "is not in the folder"),
        ("", "is empty"),
        ("empty.png", "does not decode"),
        ("text.png", "does not decode"),
        ("pointer.png", "is a pointer of git-lfs"),
    ],
)
def test_an_image_is_a_file_of_the_folder(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(make_image(777))
    rows = changed(4, file_name=name.format(root=tmp_path), image_url="")
    folder = save_images(tmp_path / "mine", rows, "jsonl")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "pointer.png").write_bytes(LFS_POINTER)
    entries = load(folder).entries
    assert [isinstance(entry, Defect) for entry in entries] == [False, True, False, False]
    assert isinstance(entries[1], Defect)
    assert what in entries[1].reason
    code, out = check(folder)
    assert code == 3
    assert re.search(rf"problem p2 \(line 4, 5, 6\) line 5, (file_name|image): .*{what}", out)


def test_a_folder_of_images_works_with_other_scripts(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "mine", changed(1, file_name="absent.png"))
    results = tmp_path / "results"
    words = ["--dataset-path", folder, "--output-dir", results]
    assert run_here("inference_baselines.py", "--baseline", "majority", *words).code == 0
    assert run_here("evaluate_EM.py", results).code == 0
    strata = run_here("stratify.py", results, "--eval_type", "em")
    assert strata.code == 0
    assert "radiology" in strata.out
    assert run_here("build_review.py", results, "--sample", 2).code == 0
    plusplus = tmp_path / "plusplus"
    built = run_here("build_plusplus.py", "--dataset-path", folder, "--output", plusplus)
    assert built.code == 0
    assert "left out problem p1: the file_name in line 3: 'absent.png' is not in the folder" in built.err
    assert len(load_outlines(DatasetSource("augmented", path=plusplus))) == 6
    assert check(plusplus)[0] == 0


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"file_name,problem_id,order,question,answer\n", ["has no rows"]),
        (b"", ["no column question, answer, file_name, problem_id, order"]),
        (b"file_name,problem_id,order,question\na.png,p,1,q\n", ["no column answer", "file_name"]),
        (b"question,question\n", ["several columns question"]),
        (b'file_name,problem_id\na.png,"p\n', ["metadata.csv, line 2: not valid CSV"]),
        (b"file_name\nGr\xfc\xdfe.png\n", ["metadata.csv, line 2: not UTF-8"]),
    ],
)
def test_a_metadata_file_that_cannot_be_read(content: bytes, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes(content)
    says_in_one_line(run_here("check_dataset.py", tmp_path), *parts)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"question": "q"}\n["q"]\n')
    says_in_one_line(run_here("check_dataset.py", tmp_path), "has metadata.csv, metadata.jsonl; keep one")
    (tmp_path / "metadata.csv").unlink()
    says_in_one_line(run_here("check_dataset.py", tmp_path), "metadata.jsonl, line 2: not a JSON object")


# The check.


@pytest.mark.parametrize(
    ("number", "new", "line"),
    [
        (4, {"question": " "}, "line 5, question: is empty; write the question"),
        (4, {"answer": None}, "line 5, answer: is empty; write the answer"),
        (4, {"answer": 3}, "line 5, answer: is 3, not text; store it as text"),
        (4, {"order": "second"}, "line 5, order: is 'second', not a whole number; number"),
        (4, {"order": None}, "line 5, order: is empty"),
        (4, {"order": 1}, "line 5, order: is 1, as in line 4"),
        (
            4,
            {"file_name": None},
            "line 5, image: is missing; save https://images.invalid/p2/2.png as 2.png",
        ),
        (
            5,
            {"problem_id": "lone"},
            "line 6, problem_id: has no other row, so there are no examples for ICL",
        ),
        (5, {"problem_id": None}, "line 6, problem_id: is empty, so that no run starts; fill it in"),
    ],
)
def test_each_row_that_a_run_would_skip_is_named(
    number: int, new: dict[str, Any], line: str, tmp_path: Path
) -> None:
    folder = save_images(tmp_path, changed(number, **new), "jsonl")
    code, out = check(folder)
    assert code == 3
    assert line in out
    if new.get("problem_id", "named"):
        assert set(re.findall(r"problem (\S+) \(line", out)) == skipped_by_a_run(folder) != set()


def test_every_fault_is_listed_and_hostile_text_is_escaped(tmp_path: Path) -> None:
    hostile = {"order": "\x1b]0;x\x07", "question": "", "file_name": "\u202eno"}
    rows = changed(3, problem_id="\x1b[31m" + "p" * 300, **hostile)
    rows[0] |= {"question": "two\nlines", "answer": "blank "}
    rows[7] |= {"question": ""}
    rows[8] |= {"order": "x"}
    folder = save_images(tmp_path, rows)
    with (folder / "metadata.csv").open("a") as stream:
        stream.write("absent.png,one, two,,p4,4,,,,,more\n")
    assert {one.problem_id for one in load_outlines(DatasetSource("smmile", path=folder))} == {"p1", "p2"}
    with (folder / "metadata.csv").open("a") as stream:
        stream.write("absent.png,q,a,,,4\n")
    out = check(folder)[1]
    assert "blanks at an end, sent and compared as they are: line 2 " in out
    assert "line 6, order: is '\\x1b]0;x\\x07', not a whole number" in out
    assert "line 6, question: is empty" in out
    assert "line 6, file_name: '\\u202eno' is not in the folder" in out
    assert re.search("line 10, question: is empty.* line 11, order: is 'x'", out)
    assert "line 15, cells: are 11, and the header has 8" in out
    assert "line 16, file_name: 'absent.png' is not in the folder" in out


def test_warnings_do_not_change_the_exit_code(tmp_path: Path) -> None:
    rows = changed(0, answer="answer A ", flag_answer_format="other")
    rows[3] |= {"image": rows[5]["image"]}
    rows[6:9] = reversed(rows[6:9])
    rows[7] |= {"file_name": "long.tiff"}
    rows[8] |= {"file_name": "frames.gif"}
    rows[9:] = [item | {"problem_id": "p4 "} for item in rows[9:]]
    (tmp_path / "long.tiff").write_bytes(encoded(Image.new("L", (8001, 1)), "TIFF"))
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    code, out = check(save_images(tmp_path, rows))
    assert code == 0
    for line in (
        "answers with blanks at an end, sent and compared as they are: line 2",
        "problems with options that differ only in case, blanks or punctuation: p1",
        "problems whose query has an answer that no example has: p3, p4",
        "problems whose rows differ in their flags (the query's count): p1",
        "problem ids with blanks at an end: 'p4 '",
        "examples that show the query's image: line 5",
        "images in the format TIFF, which services get as PNG: line 9",
        "images over the limits of Anthropic, which gets them scaled down: line 9",
        "images with several frames, of which models see the first: line 10",
        "Data set " + tmp_path.name + ": 4 problems, 12 rows",
        "examples per problem: 2 to 2, median 2 specialities: radiology 4 images: 11 different",
        "8 x 8 to 8001 x 1 pixels; PNG 9, GIF 1, TIFF 1 A run skips no row.",
    ):
        assert line in out


def test_other_data_sets_are_checked_too(data: Path, tmp_path: Path) -> None:
    assert check(data)[0] == 0
    assert "71 rows" in run_here("check_dataset.py", "--dataset", "demo").out
    folder = save_parquet(tmp_path / "d", changed(4, image={"bytes": None, "path": "/etc/passwd"}))
    assert "row 5, image: is stored as a path, which is not followed; use save_to_disk" in check(folder)[1]
    says_in_one_line(run_here("check_dataset.py", data, "--dataset-path", data), "name two data sets")
    says_in_one_line(run_here("check_dataset.py", tmp_path / "none"), "does not exist")
    (tmp_path / "labelled").mkdir()
    (tmp_path / "labelled" / "labels.csv").write_text(
        "file_name,problem_id,order,question,answer\na.png,p,1,q,a\n"
    )
    says_in_one_line(
        run_here("check_dataset.py", tmp_path / "labelled"), "rename that file to metadata.csv"
    )


def test_a_link_to_another_folder_is_not_followed(tmp_path: Path) -> None:
    save_images(tmp_path / "elsewhere", four_problems())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train").symlink_to(tmp_path / "elsewhere")
    says_in_one_line(run_here("check_dataset.py", tmp_path / "mine"), "it contains no data files")


def test_images_without_a_metadata_file_are_one_line(tmp_path: Path) -> None:
    save_images(tmp_path / "plain", four_problems())
    (tmp_path / "plain" / "metadata.csv").unlink()
    finished = run_here("check_dataset.py", tmp_path / "plain")
    says_in_one_line(finished, "data set plain has images, but no metadata.csv", "docs/data.md")
