"""A small demo data set, in the columns of the hub's, to try the suite on and to test it with.

The folder `demo_set` holds it, laid out as docs/data.md says for a data set of your own. Its images are
schematic and were drawn for the suite, so they show no patient. What an answer means has to be learnt from
the examples' images.
"""

from __future__ import annotations

import csv
from pathlib import Path

from smmile.files import make_folder, replacing

_FOLDER = Path(__file__).with_name("demo_set")


def demo_rows() -> list[dict[str, object]]:
    """The rows of the demo data set, one per question-image-answer triplet, in the hub's columns.

    The rows of a problem share its `problem_id` and flags. Their `order` counts from 1; the last is the
    query and those before it are its in-context examples.
    """
    with (_FOLDER / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        return [_row(cells) for cells in csv.DictReader(stream)]


def _row(cells: dict[str, str]) -> dict[str, object]:
    file = _FOLDER / cells["file_name"]
    return {
        "question": cells["question"],
        "answer": cells["answer"],
        "image": {"bytes": file.read_bytes(), "path": None},
        "image_url": f"https://demo.invalid/{cells['problem_id']}/{cells['order']}{file.suffix}",
        "problem_id": cells["problem_id"],
        "order": int(cells["order"]),
        "parquet_path": "",
        **{name: text for name, text in cells.items() if name == "speciality" or name.startswith("flag_")},
    }


def save_demo(folder: Path) -> None:
    """Write the demo data set to a folder in the hub's layout, a parquet file."""
    from datasets import Dataset, Features, Image, Value

    rows = demo_rows()
    features = Features({column: Value("string") for column in rows[0]})
    features["image"], features["order"] = Image(), Value("int64")
    path = folder / "data" / "train-00000-of-00001.parquet"
    make_folder(path.parent)
    with replacing(path) as stream:
        Dataset.from_list(rows, features=features).to_parquet(stream)
