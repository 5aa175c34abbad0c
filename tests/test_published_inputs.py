"""The inputs of local models, compared with a recording of the published calls.

`tests/recordings/record_published_inputs.py` makes the recording. A difference is a failure unless KNOWN
lists it, and so is an entry of KNOWN that does not occur.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import SUITE
from recordings.published_cases import RECORDED, cases, described, expanded, family_of, full_size_checkpoint
from recordings.record_published_inputs import FULL_SIZE, PACKAGES, RECORDING
from smmile.backends.interface import Request
from smmile.backends.local.checkpoints import find_checkpoint
from smmile.backends.local.inputs import ModelInputs
from smmile.backends.local.loading import quiet
from smmile.backends.local.processors import load_processor

Tiny = Callable[[str], Path]

# What is compared: every recorded family as its script runs it, and its flags that change inputs.
COMPARED = {
    **{name: (name, recorded.command) for name, recorded in RECORDED.items()},
    "LLaVA-OneVision, --multi-image single": (
        "LLaVA-OneVision",
        RECORDED["LLaVA-OneVision"].command + " --multi-image single",
    ),
    "Llama 3.2, --published-tokens": ("Llama 3.2", RECORDED["Llama 3.2"].command + " --published-tokens"),
}


@dataclass(frozen=True)
class Known:
    """A known difference: in which models and cases (patterns), of what kind, by how much, and why.

    `by` is the least and the greatest that was measured: for ids how many more ours are, for values the
    largest deviation of a normalized pixel in the recorded sample, for shapes ours over the published size.
    """

    models: str
    cases: str
    kind: str
    by: tuple[float, float]
    reason: str


KNOWN = (
    Known(
        "LLaVA-OneVision, --multi-image single",
        "ICL/*",
        "other ids",
        (-9761, -38),
        "one tile for each of several images, as in transformers 5",
    ),
    Known(
        "LLaVA-OneVision, --multi-image single",
        "ICL/*",
        "shape of pixel_values",
        (0.059, 0.5),
        "as above",
    ),
    Known(
        "LLaVA-OneVision, --multi-image single",
        "0-shot/*",
        "values of pixel_values",
        (0.028, 3.384),
        "images are padded for tiling as in transformers 5 (see below)",
    ),
    Known(
        "Llama 3.2",
        "*",
        "first id missing",
        (-1, -1),
        "the published prompts began with two begin-of-text tokens, one of the template and one of the "
        "tokenizer; `--published-tokens` sends both",
    ),
    Known(
        "*",
        "*/control-tokens",
        "other ids",
        (2, 10),
        "a question that spells a control token, such as `</s>`, is sent as text; the published calls "
        "turned it into the token",
    ),
    Known(
        "Qwen2.5-VL",
        "*/image-of-9x7",
        "refused",
        (0, 0),
        "4.51.0 refused images with a side under 28 pixels; transformers 5 enlarges them",
    ),
    Known("MedVLM-R1", "*/image-of-9x7", "refused", (0, 0), "as for Qwen2.5-VL"),
)

# What today's processors send besides, and why the published ones did not need it.
ADDED = {
    "batch_num_images": "from it the model of transformers 5 knows which images have tiles: all",
    "mm_token_type_ids": "marks image tokens, from which transformers 5 computes positions; 4 found them",
}


@dataclass(frozen=True)
class Difference:
    """A difference in one case; `by` as in Known."""

    case: str
    kind: str
    by: float


@dataclass
class Comparison:
    """A model's inputs compared with those that one version of transformers made."""

    cases: int = 0
    equal_ids: int = 0
    tensors: int = 0
    equal_tensors: int = 0


Results = tuple[dict[tuple[str, str], Comparison], dict[str, list[Difference]], set[str]]


@pytest.fixture(scope="module")
def results(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Comparisons by model and version, all differences by model, and the names that only we send."""
    recording = json.loads(RECORDING.read_text())
    comparisons: dict[tuple[str, str], Comparison] = {}
    differences: dict[str, list[Difference]] = {}
    added: set[str] = set()
    for model, (name, command) in COMPARED.items():
        differences[model] = []
        recorded, family = RECORDED[name], family_of(command)
        for full_size in (False, True):
            folder = tiny(recorded.checkpoint)
            if full_size:
                folder = tmp_path_factory.mktemp("full") / recorded.checkpoint
                shutil.copytree(tiny(recorded.checkpoint), folder)
                full_size_checkpoint(folder, recorded.full_size)
            with quiet():
                processor = load_processor(find_checkpoint(folder, None))
            inputs = ModelInputs(name, processor, family.inputs)
            for case in cases(family, full_size=full_size):
                ours = dict(inputs.make([Request(case.name, case.conversation)]))
                for version in recorded.versions:
                    theirs = recording["runs"][f"{name}{FULL_SIZE * full_size}, {version}, {case.name}"]
                    comparison = comparisons.setdefault((model, version), Comparison())
                    found = compare(ours, theirs, recording["tensors"], comparison)
                    differences[model] += [Difference(case.name, *one) for one in found]
                added |= set(ours) - set(theirs.get("tensors", ours)) - {"input_ids", "attention_mask"}
    return comparisons, differences, added


def compare(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], recorded: Mapping[str, Any], counts: Comparison
) -> list[tuple[str, float]]:
    """The differences (kind, by) of one case, which is counted."""
    counts.cases += 1
    if "error" in theirs:
        return [("refused", 0)]
    found: list[tuple[str, float]] = []
    published, ids = expanded(theirs["input_ids"]), ours["input_ids"][0].tolist()
    more = len(ids) - len(published)
    counts.equal_ids += ids == published
    if ids != published:
        found.append(("first id missing" if ids == published[1:] else "other ids", more))
    for name, hashed in theirs["tensors"].items():
        if more and name in ("token_type_ids", "cross_attention_mask"):
            continue  # as long as the ids
        mine, other = described(ours[name]), recorded[hashed]
        counts.tensors += 1
        if mine["sha256"] == hashed and mine["shape"] == other["shape"]:
            counts.equal_tensors += 1
        elif mine["shape"] == other["shape"]:
            pairs = zip(mine["values"], other["values"], strict=True)
            found.append((f"values of {name}", max(abs(one - two) for one, two in pairs)))
        else:
            sizes = [float(_product(one["shape"])) for one in (mine, other)]
            found.append((f"shape of {name}", sizes[0] / sizes[1]))
    return found


def _product(numbers: list[int]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product


def known(model: str, difference: Difference) -> Known | None:
    for entry in KNOWN:
        if (
            fnmatch.fnmatchcase(model, entry.models)
            and fnmatch.fnmatchcase(difference.case, entry.cases)
            and difference.kind == entry.kind
        ):
            return entry
    return None


@pytest.mark.parametrize("model", COMPARED)
def test_inputs_are_the_published_ones_but_for_known_differences(model: str, results: Results) -> None:
    unknown = [found for found in results[1][model] if known(model, found) is None]
    assert not unknown
    assert sum(item.cases for (name, _), item in results[0].items() if name == model) >= 29


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: f"{entry.models}, {entry.kind}")
def test_known_differences_occur_and_are_as_large_as_listed(entry: Known, results: Results) -> None:
    sizes = [
        found.by
        for model, differences in results[1].items()
        for found in differences
        if known(model, found) is entry
    ]
    assert sizes, "this difference no longer occurs; remove it"
    assert (min(sizes), max(sizes)) == pytest.approx(entry.by, abs=1e-3)


def test_nothing_else_is_sent(results: Results) -> None:
    assert results[2] == set(ADDED)


def test_the_recording_is_of_the_published_versions() -> None:
    recording = json.loads(RECORDING.read_text())
    assert {version.split(" ")[1].rstrip(",") for version in recording["versions"].values()} == set(
        PACKAGES
    )


def page_tables(results: Results) -> str:
    """The tables of docs/inputs.md."""
    lines = [
        "| model | recorded with transformers | conversations | identical token ids | identical tensors |",
        "|---|---|---:|---:|---:|",
    ]
    for (model, version), item in results[0].items():
        lines.append(
            f"| {shown(model)} | {version} | {item.cases} | {item.equal_ids} | "
            f"{item.equal_tensors} of {item.tensors} |"
        )
    lines += ["", "| models | conversations | difference | by | reason |", "|---|---|---|---|---|"]
    for entry in KNOWN:
        low, high = (f"{value:.4g}" for value in entry.by)
        by = "-" if entry.kind == "refused" else low if low == high else f"{low} to {high}"
        models = "all" if entry.models == "*" else shown(entry.models)
        lines.append(f"| {models} | {shown_cases(entry.cases)} | {entry.kind} | {by} | {entry.reason} |")
    return "\n".join(lines)


def shown(model: str) -> str:
    name, _, flags = model.partition(", ")
    return f"{name}, `{flags}`" if flags else name


def shown_cases(pattern: str) -> str:
    return {"*": "all", "ICL/*": "ICL", "0-shot/*": "0-shot"}.get(
        pattern, f"`{pattern.rpartition('/')[2]}`"
    )


def test_the_page_shows_these_results(results: Results) -> None:
    page = (SUITE / "docs" / "inputs.md").read_text()
    for line in page_tables(results).splitlines():
        assert line in page, f"put these tables into docs/inputs.md:\n{page_tables(results)}"
