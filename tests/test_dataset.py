from __future__ import annotations

import hashlib
import io
import json
import random
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from conftest import (
    LFS_POINTER,
    four_problems,
    make_image,
    row,
    run_here,
    save_parquet,
    says_in_one_line,
)
from smmile.data.dataset import DatasetSource, load_problems
from smmile.data.missing_images import candidate_names, find_image
from smmile.data.problems import Defect, Problem, ProblemSet
from smmile.errors import UsageError
from smmile.results.reading import result_files, source_of_run
from smmile.results.run_names import RunName
from smmile.results.schema import ImageData, read_result_file


def load(folder: Path, **other: Any) -> ProblemSet:
    return load_problems(DatasetSource("smmile", path=folder, **other))


def only_defect(rows: list[dict[str, Any]], tmp_path: Path) -> str:
    """The reason why the only defective problem of `rows` cannot be run."""
    problems = load(save_parquet(tmp_path / "defective", rows))
    defects = [entry for entry in problems.entries if isinstance(entry, Defect)]
    assert len(defects) == 1
    assert defects[0].problem_id == "p2"
    assert len(problems.entries) == 4
    return defects[0].reason


def changed(where_id: str, where_order: int, **new: Any) -> list[dict[str, Any]]:
    return [
        item | new if (item["problem_id"], item["order"]) == (where_id, where_order) else item
        for item in four_problems()
    ]


def test_rows_are_grouped_into_problems_and_sorted_by_order(data: Path) -> None:
    problems = load(data)
    assert [entry.problem_id for entry in problems.entries] == ["p1", "p2", "p3", "p4"]
    first = problems.entries[0]
    assert isinstance(first, Problem)
    assert first.answers == ("Answer a", "Answer b", "Answer a")
    assert first.query.image is not None
    assert first.query.image.read() == four_problems()[2]["image"]["bytes"]
    assert first.flags == {"speciality": "radiology", "flag_answer_format": "free response"}


def test_only_the_order_of_first_rows_matters(data: Path, tmp_path: Path) -> None:
    rows = four_problems()
    first_rows = {item["problem_id"]: item for item in reversed(rows)}.values()
    rest = [item for item in rows if item not in first_rows]
    random.Random(3).shuffle(rest)
    shuffled = load(save_parquet(tmp_path / "shuffled", [*reversed(list(first_rows)), *rest]))
    straight = load(data)
    assert shuffled.entries == straight.entries
    assert shuffled.fingerprint == straight.fingerprint

    other = load(save_parquet(tmp_path / "other", sorted(rows, key=lambda item: item["order"])[::-1]))
    assert [entry.problem_id for entry in other.entries] == ["p4", "p3", "p2", "p1"]
    assert other.fingerprint != straight.fingerprint


def test_save_to_disk_and_parquet_load_the_same_data(data: Path, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict, load_dataset

    dataset = load_dataset(str(data), split="train")
    assert isinstance(dataset, Dataset)
    dataset.save_to_disk(str(tmp_path / "plain"))
    DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "dict"))
    expected = load(data)
    # What an earlier `save_to_disk` has left, and a file of another kind, are not read.
    [shard] = (tmp_path / "plain").glob("*.arrow")
    (tmp_path / "plain" / "data-00000-of-00002.arrow").write_bytes(shard.read_bytes())
    (tmp_path / "plain" / "a.parquet").write_bytes(b"PAR1 rubbish")
    for name in ("plain", "dict"):
        assert load(tmp_path / name).fingerprint == expected.fingerprint
        assert load(tmp_path / name).entries == expected.entries


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ({"question": None}, "the question of its row with order 2 is empty"),
        ({"question": " \n"}, "the question of its row with order 2 is empty"),
        ({"answer": None}, "the answer of its row with order 2 is empty"),
        ({"answer": ""}, "the answer of its row with order 2 is empty"),
        ({"order": 1}, "two of its rows have order 1"),
        ({"image": {"bytes": b"no image", "path": None}}, "row with order 2 does not decode"),
        ({"image": {"bytes": make_image(5, (64, 64))[:90], "path": None}}, "does not decode"),
        ({"image": {"bytes": make_image(5, (64, 64), "JPEG")[:-90], "path": None}}, "does not decode"),
        ({"image": None}, "1 of its 3 images missing"),
        ({"image": {"bytes": b"", "path": None}}, "1 of its 3 images missing"),
        ({"image": {"bytes": None, "path": "/etc/passwd"}}, "stored as paths, which are not followed"),
    ],
)
def test_a_defect_has_a_reason_and_does_not_affect_other_problems(
    new: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert reason in only_defect(changed("p2", 2, **new), tmp_path)


def test_numeric_answers_are_rejected(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    rows = [item | {"answer": item["order"]} for item in four_problems()]
    features = Features({name: Value("string") for name in rows[0]})
    features |= {"image": Image(), "order": Value("int64"), "answer": Value("int64")}
    Dataset.from_list(rows, features=Features(features)).to_parquet(str(tmp_path / "train.parquet"))
    finished = run_here("inference_baselines.py", "--baseline", "majority", "--dataset-path", tmp_path)
    assert finished.code == 2
    assert "skipped problem p4: the answer of its row with order 1 is 1, not text" in finished.err
    assert "none of the 4 problems can be run" in finished.err.splitlines()[-1]


def test_a_missing_image_is_loaded_once(tmp_path: Path) -> None:
    rows = [item | {"image": None, "image_url": "https://x.invalid/one.png"} for item in four_problems()]
    (tmp_path / "one.png").write_bytes(make_image(1))
    problems = load(save_parquet(tmp_path / "d", rows), image_dir=tmp_path)
    images = [t.image for entry in problems.entries if isinstance(entry, Problem) for t in entry.triplets]
    assert len(images) == 12
    assert len({id(image.stored) for image in images if image}) == 1


def test_an_order_that_is_not_a_number(tmp_path: Path) -> None:
    rows = [item | {"order": str(item["order"])} for item in four_problems()]
    strings = load(save_parquet(tmp_path / "strings", rows))
    assert strings.entries == load(save_parquet(tmp_path / "whole", four_problems())).entries
    assert strings.fingerprint == load(tmp_path / "whole").fingerprint
    rows[4]["order"] = "second"
    assert "'second' is not a whole number" in only_defect(rows, tmp_path)


def test_images_over_the_limit_of_pixels_are_skipped_with_a_reason(tmp_path: Path) -> None:
    folder = save_parquet(
        tmp_path / "d", changed("p2", 2, image={"bytes": make_image(5, (30, 20)), "path": None})
    )
    words = ["--baseline", "majority", "--dataset-path", folder, "--output-dir", tmp_path, "--dry-run"]
    within = run_here("inference_baselines.py", *words, "--max-image-pixels", "600")
    assert "4 problems, 0 skipped" in within.out
    over = run_here("inference_baselines.py", *words, "--max-image-pixels", "599")
    assert "3 problems, 1 skipped" in over.out
    reason = "the image of its row with order 2 has 30 x 20 pixels, more than --max-image-pixels 599"
    assert f"skipped problem p2: {reason}" in over.err
    checked = run_here("check_dataset.py", folder, "--max-image-pixels", "599")
    assert checked.code == 3
    assert "scale it down, or raise --max-image-pixels" in " ".join(checked.out.split())


@pytest.mark.parametrize("column", ["question", "answer", "image", "problem_id", "order"])
def test_a_missing_column_is_a_usage_error(column: str, tmp_path: Path) -> None:
    rows = [{name: value for name, value in item.items() if name != column} for item in four_problems()]
    folder = save_parquet(tmp_path / "short", rows)
    finished = run_here("inference_baselines.py", "--baseline", "majority", "--dataset-path", folder)
    says_in_one_line(finished, f"no column {column}", "short")


def test_an_image_column_of_another_type_is_a_usage_error(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [item | {"image": "/etc/passwd"} for item in four_problems()]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    finished = run_here("inference_baselines.py", "--baseline", "majority", "--dataset-path", tmp_path)
    says_in_one_line(finished, "its column image contains string, not images")


def test_flags_may_be_null_or_absent(tmp_path: Path) -> None:
    rows = [{**item, "flag_rarity": None} for item in four_problems()]
    for item in rows:
        del item["image_url"]
    entry = load(save_parquet(tmp_path / "d", rows)).entries[0]
    assert isinstance(entry, Problem)
    assert entry.flags["flag_rarity"] == "None"


def save_nothing(folder: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"question": []}).save_to_disk(str(folder))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda folder: None, ["does not exist"]),
        (lambda folder: folder.write_text("rows"), ["is a file; give the folder"]),
        (save_nothing, []),
        (lambda folder: (folder.mkdir(), (folder / "a.jsonl").touch()), ["cannot be read as a data set"]),
        (lambda folder: folder.mkdir(), ["cannot be read as a data set"]),
        (
            lambda folder: (folder.mkdir(), (folder / "train.parquet").write_bytes(b"PAR1 rubbish")),
            ["cannot be read as a data set"],
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "train.parquet").write_bytes(LFS_POINTER)),
            ["train.parquet is a pointer of git-lfs, not the file itself; run git lfs pull"],
        ),
    ],
)
def test_an_invalid_data_set_folder_is_a_usage_error(make: Any, parts: list[str], tmp_path: Path) -> None:
    make(tmp_path / "where")
    words = ["--baseline", "majority", "--dataset-path", tmp_path / "where", "--output-dir", tmp_path]
    says_in_one_line(run_here("inference_baselines.py", *words), "where", *parts)


ROWS = Path("data", "train-00000-of-00001.parquet")


def test_files_of_each_kind_are_read_whatever_else_a_folder_has(data: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(data / ROWS)
    without = table.set_column(table.schema.get_field_index("image"), "image", [[None] * len(table)])
    (tmp_path / "images").mkdir()
    for cells in table.to_pylist():
        name = cells["image_url"].rpartition("/")[2]
        (tmp_path / "images" / name).write_bytes(cells["image"]["bytes"])
    other = b"PAR1 rubbish"
    for number, (files, reads_images) in enumerate(
        [
            ({"odd [1] *?.parquet": (data / ROWS).read_bytes()}, True),
            ({"training.parquet": (data / ROWS).read_bytes(), "test/a.parquet": other}, True),
            ({"train/x.parquet": (data / ROWS).read_bytes(), "val-1.parquet": other, "a.csv": b"a"}, True),
            ({"a.arrow": _arrow_file(table)}, True),
            ({"a.ndjson": "".join(map(_json_line, without.to_pylist())).encode()}, False),
            ({"a.csv": without.to_pandas().to_csv(index=False).encode()}, False),
            ({"a.csv": without.drop(["image"]).to_pandas().to_csv(index=False).encode()}, False),
        ]
    ):
        folder = tmp_path / f"set {number}"
        files |= {
            "README.md": b"---\nconfigs:\n- data_dir: .\n---\n[unclosed",
            "loader.py": b"raise RuntimeError",
            ".cache/x.parquet": other,
            "dataset_info.json": b"{}",
        }
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        found = load(folder, image_dir=tmp_path / "images")
        assert [entry.problem_id for entry in found.entries] == ["p1", "p2", "p3", "p4"], files
        if reads_images:
            assert found.fingerprint == load(data).fingerprint
        assert all(isinstance(entry, Problem) for entry in found.entries)


def _json_line(cells: dict[str, Any]) -> str:
    return json.dumps(cells) + "\n"


def _arrow_file(table: Any) -> bytes:
    import pyarrow as pa

    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def test_a_data_set_folder_names_no_file_outside_of_it(data: Path, tmp_path: Path) -> None:
    """Neither by a card, a script, an archive, a link, nor by what `save_to_disk` wrote."""
    import datasets

    def card(path: str) -> bytes:
        return f"---\nconfigs:\n- config_name: a\n  data_files: {json.dumps(path)}\n---\n".encode()

    pickled = io.BytesIO()
    with tarfile.open(fileobj=pickled, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("0.pkl"))
    for number, (name, content, part) in enumerate(
        [
            ("README.md", card(str(data / ROWS)), "the files that it may name are not followed outside"),
            ("README.md", card("../a.parquet"), "not followed"),
            (
                "README.md",
                card("a.parquet"),
                "README.md names a.parquet, which the folder does not contain",
            ),
            ("README.md", b"---\nconfigs: [unclosed\n---\n", "README.md has configs that cannot be read"),
            (
                "README.md",
                b"---\nconfigs: [{config_name: a}, {config_name: b}]\n---",
                "has the configs a, b;",
            ),
            ("README.md", card(f"file://{data / ROWS}"), "not followed"),
            ("README.md", card("http://127.0.0.1:9/a.parquet"), "not followed"),
            ("README.md", card("s3://bucket/a.parquet"), "not followed"),
            ("loader.py", b"raise RuntimeError", "loader.py: scripts are not run"),
            ("a.jsonl.gz", b"", "a.jsonl.gz: compressed: unpack it"),
            ("a.tsv", b"", "a.tsv: save it with commas"),
            ("$HOME.parquet", b"", "$HOME.parquet has $ or :: in its path"),
            ("a::b.jsonl", b"", "a::b.jsonl has $ or :: in its path"),
            ("a.tar", pickled.getvalue(), "a.tar: archives are not opened"),
            ("a.pkl", b"", "a.pkl: pickles can run programs"),
            ("a.eps", b"%!PS", "a.eps: not a format with rows"),
        ]
    ):
        folder = tmp_path / f"set {number}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(UsageError, match=re.escape(part)):
            load(folder)

    for name, target in (
        ("loop.parquet", Path("loop.parquet")),
        ("broken.parquet", Path("other.parquet")),
        ("a.parquet", data / ROWS),
        ("metadata.csv", data / ROWS),
        ("data", data / "data"),
    ):
        folder = tmp_path / f"link {name}"
        folder.mkdir()
        (folder / name).symlink_to(target)
        with pytest.raises(UsageError, match=f"{name}.* link"):
            load(folder)

    saved = tmp_path / "saved"
    datasets.Dataset.from_parquet(str(data / ROWS)).save_to_disk(saved)
    [shard] = saved.glob("*.arrow")
    shard.rename(tmp_path / shard.name)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"../{shard.name}"}]}))
    with pytest.raises(UsageError, match="it contains no data files"):
        load(saved)


def test_cells_of_csv_files_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "problem_id,order,question,answer,image_url\n007,1,Is it?,None,x.png\n007,2,Is it?,01,x.png\n"
    )
    (tmp_path / "x.png").write_bytes(make_image(1))
    [entry] = load(tmp_path, image_dir=tmp_path).entries
    assert isinstance(entry, Problem)
    assert (entry.problem_id, entry.answers) == ("007", ("None", "01"))


def test_metadata_is_found_further_down_and_beside_hidden_files(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "x.png").write_bytes(make_image(1))
    (inner / "METADATA.CSV").write_text(
        "file_name,problem_id,order,question,answer\nx.png,p,1,Is it?,Yes\n"
    )
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.parquet").touch()
    [entry] = load(tmp_path).entries
    assert isinstance(entry, Problem)


@pytest.mark.parametrize(
    "data_files",
    [
        "a/*.parquet",
        ["a/x.parquet"],
        [{"split": "train", "path": "a/x*"}, {"split": "test", "path": "b/*"}],
    ],
)
def test_the_card_of_a_folder_names_its_files(data_files: Any, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with card"
    for name in ("a/x.parquet", "a/b/x.parquet", "b/x.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((data / ROWS).read_bytes())
    configs = [{"config_name": "all"}, {"config_name": "one", "default": True, "data_files": data_files}]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n# Rows\n")
    assert load(folder).entries == load(data).entries


def test_a_snapshot_in_the_cache_of_the_hub_is_read(data: Path, tmp_path: Path) -> None:
    """Its files are links to a folder beside it."""
    blob, snapshot = tmp_path / "blobs" / "0a1b", tmp_path / "snapshots" / "2c3d"
    blob.parent.mkdir()
    (data / ROWS).rename(blob)
    (snapshot / ROWS).parent.mkdir(parents=True)
    (snapshot / ROWS).symlink_to(blob)
    assert load(snapshot).entries


def test_texts_that_pose_as_images_are_not_fetched(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(data / ROWS)
    at = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    named = pa.array([{"bytes": None, "path": "http://127.0.0.1:9/a.eps"}] * len(table), at)
    info = json.loads(table.schema.metadata[b"huggingface"])
    info["info"]["features"]["flag_x"] = {"_type": "Image"}
    table = table.append_column("flag_x", named).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, data / ROWS)
    entry = load(data).entries[0]
    assert isinstance(entry, Problem)
    assert "http://127.0.0.1:9/a.eps" in entry.flags["flag_x"]


def test_a_missing_problem_id_is_reported_with_its_row(tmp_path: Path) -> None:
    folder = save_parquet(tmp_path / "d", [*four_problems(), row(None, 1)])
    with pytest.raises(UsageError, match="row 13 has no problem_id"):
        load(folder)


# Images that the data set refers to but does not contain.


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x.invalid/a/b/scan.png", "scan.png"),
        ("https://x.invalid/a/b/what%3Fscan%20one.png", "what%3Fscan%20one.png"),
        ("https://x.invalid/a/b/what%3Fscan%20one.png", "whatscan one.png"),
        ("https://x.invalid/a/b/caf%C3%A9.png", "café.png"),
        ("https://x.invalid/a/scan.png?width=300", "scan.png"),
        ("https://x.invalid/a/scan.png?width=300", "scan.pngwidth=300"),
        ("https://x.invalid/a/scan*1:2.png", "scan*1:2.png"),
        ("https://x.invalid/a/Shot%E2%80%AFPM.png", "Shot\u202fPM.png"),
        ("https://x.invalid/a/b\\c.png", "b\\c.png"),
        ("https://x.invalid/a/scan*1:2.png", "scan12.png"),
    ],
)
def test_a_missing_image_is_found_under_any_candidate_name(url: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"found")
    assert find_image(url, tmp_path) == b"found"


@pytest.mark.parametrize(
    "url",
    [
        "https://x.invalid/a/..%2F..%2Fsecret.png",
        "https://x.invalid/a/%2E%2E%2Fsecret.png",
        "https://x.invalid/../secret.png/..",
        "..%2Fsecret.png",
        "https://x.invalid/..",
        "https://x.invalid/",
        "",
        "/etc/passwd",
        "https://x.invalid/link.png",
        "https://x.invalid/" + "n" * 5000,
        "https://x.invalid/\0.png",
        "https://[broken/secret.png",
    ],
)
def test_a_malicious_url_cannot_escape_the_folder(url: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert find_image(url, folder) is None
    for name in candidate_names(url):
        assert "/" not in name
        assert name not in (".", "..")


def test_problems_with_missing_images_are_skipped_until_the_images_exist(tmp_path: Path) -> None:
    rows = changed("p2", 2, image=None, image_url="https://x.invalid/dir/my%20scan.png?dl=1")
    folder = save_parquet(tmp_path / "d", rows)
    images = tmp_path / "images"
    images.mkdir()
    words = ["--baseline", "nearest", "--dataset-path", folder, "--image-dir", images]
    words += ["--output-dir", tmp_path / "out"]
    without = run_here("inference_baselines.py", *words)
    assert without.code == 0
    assert "skipped problem p2: 1 of its 3 images missing" in without.err
    assert "save https://x.invalid/dir/my%20scan.png?dl=1 as my%20scan.png" in without.err
    assert f"save missing images in {images} (--image-dir)" in without.err
    assert "3 problems answered, 0 errors, 1 skipped" in without.out

    (images / "my scan.png").write_bytes(make_image(9))
    found = run_here("inference_baselines.py", *words)
    assert found.code == 0
    assert "4 problems answered, 0 errors, 0 skipped; 1 request sent" in found.out


def test_different_urls_with_one_file_name_cause_a_warning(tmp_path: Path) -> None:
    rows = [
        item | {"image": None, "image_url": f"https://x.invalid/{item['problem_id']}/image.png"}
        if item["order"] == 1
        else item
        for item in four_problems()
    ]
    folder = save_parquet(tmp_path / "d", rows)
    (tmp_path / "image.png").write_bytes(make_image(1))
    words = ["--baseline", "majority", "--dataset-path", folder, "--output-dir", tmp_path / "out"]
    finished = run_here("inference_baselines.py", *words, "--image-dir", tmp_path)
    assert finished.code == 0
    assert "4 problems answered" in finished.out
    assert "https://x.invalid/p1/image.png, https://x.invalid/p2/image.png" in finished.err
    assert "each is looked up as image.png" in finished.err


def test_a_decoding_error_is_deterministic(tmp_path: Path) -> None:
    rows = changed("p2", 2, image={"bytes": b"no image", "path": None})
    assert "does not decode (its format is none of PNG, JPEG, " in only_defect(rows, tmp_path)


def test_a_replaced_image_is_sent_again_and_the_run_records_its_data_set(tmp_path: Path) -> None:
    rows = [item | ({"image": None} if item["order"] == 3 else {}) for item in four_problems()]
    folder = save_parquet(tmp_path / "d", rows)
    images = tmp_path / "images"
    images.mkdir()
    for item in rows:
        if item["image"] is None:
            (images / f"{item['order']}.png").write_bytes(make_image(9))
    words = ["--baseline", "nearest", "--dataset-path", folder, "--output-dir", tmp_path / "out"]
    first = run_here("inference_baselines.py", *words, "--image-dir", images)
    assert "4 requests sent" in first.out
    (images / "3.png").write_bytes(make_image(10))
    second = run_here("inference_baselines.py", *words, "--image-dir", images)
    assert "4 problems answered, 0 errors, 0 skipped; 4 requests sent" in second.out
    assert "warning: dropped 4 earlier answers to other requests (an image was replaced)" in second.err
    result = read_result_file(tmp_path / "out" / "result_nearest_ICL_open.json")
    turns = result.records[0].turns or ()
    hashes = {part.sha256 for part in turns[-1].content if isinstance(part, ImageData)}
    assert hashes == {hashlib.sha256(make_image(10)).hexdigest()}
    assert (result.run.dataset.path, result.run.dataset.image_dir) == ("../d", "../images")
    source = source_of_run(result.run, tmp_path / "out")
    assert load_problems(source).fingerprint == result.run.dataset.fingerprint


def test_a_renamed_result_file_is_scored_as_the_run_it_contains(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    original = tmp_path / "result_majority_ICL_open.json"
    copy = tmp_path / "result_gpt-4o_ICL_open.json"
    copy.write_bytes(original.read_bytes())
    found = result_files(tmp_path)
    assert list(found.values()) == [original]
    assert any(
        "gpt-4o_ICL_open.json contains the run result_majority_ICL_open" in one for one in found.warnings
    )
    assert any("gpt-4o_ICL_open.json is ignored" in one for one in found.warnings)
    original.unlink()
    assert result_files(tmp_path) == {RunName("majority", "ICL", "open"): copy}


def test_an_answer_whose_image_was_removed_is_kept_with_a_warning(tmp_path: Path) -> None:
    rows = four_problems()
    rows[2] |= {"image": None}  # the query of p1
    folder = save_parquet(tmp_path / "d", rows)
    images = tmp_path / "images"
    images.mkdir()
    (images / "3.png").write_bytes(make_image(9))
    words = ["--baseline", "nearest", "--dataset-path", folder, "--output-dir", tmp_path / "out"]
    assert run_here("inference_baselines.py", *words, "--image-dir", images).code == 0
    (images / "3.png").unlink()
    again = run_here("inference_baselines.py", *words, "--image-dir", images)
    assert "skipped problem p1" in again.err
    assert "4 problems answered" in again.out
    assert "warning: the earlier answers to 1 skipped problem are kept" in again.err


def test_an_answer_to_a_problem_that_the_data_set_lacks(data: Path, tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset-path", data, "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    file = tmp_path / "result_majority_ICL_open.json"
    file.write_text(file.read_text().replace('"p2"', '"p\\u001b[7m"'))
    for script, more in (("evaluate_EM.py", []), ("stratify.py", ["--eval_type", "em"])):
        assert run_here(script, tmp_path, *more).code == 0
    again = run_here("inference_baselines.py", *words)
    says_in_one_line(again, r"result_majority_ICL_open has an answer to problem p\x1b[7m", "data_set lacks")
    assert run_here("inference_baselines.py", *words, "--overwrite").code == 0


def test_a_damaged_arrow_file_is_a_usage_error(tmp_path: Path) -> None:
    """It crashed the process, since texts and images are read where the file says they are."""
    import numpy as np
    import pyarrow as pa

    beyond = pa.py_buffer(np.array([0, 1 << 30, 7], dtype=np.int32))
    texts = pa.Array.from_buffers(pa.string(), 2, [None, beyond, pa.py_buffer(b"damaged")])
    columns = dict.fromkeys(("question", "answer", "image", "problem_id", "order"), texts)
    table = pa.table(columns)
    name = "data-00000-of-00001.arrow"
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pa.ipc.new_stream(tmp_path / name, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UsageError, match="check its saved files"):
        load(tmp_path)
