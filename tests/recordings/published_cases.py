"""The cases of the recording: what both the recorder and the test put in.

A case is a problem in an inference mode and a task format. Its conversation comes from the script of the
model family, so that recorder and test see the family's own recipe.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from conftest import encoded, stored
from smmile.data.problems import Problem, Triplet
from smmile.task import InferenceMode

if TYPE_CHECKING:
    from smmile.inference.local_models import Family
    from smmile.prompting.conversation import Conversation

_GRID = [384 * number for number in range(1, 7)]


@dataclass(frozen=True)
class Recorded:
    """A model family in the recording: its script, its tiny checkpoint, the versions that were recorded.

    `full_size` changes the tiny processor's settings to those of the real checkpoint.
    """

    command: str
    checkpoint: str
    versions: tuple[str, ...]
    full_size: Mapping[str, Any]


RECORDED = {
    "LLaVA 1.5": Recorded(
        "inference_llava.py --model_name llava_7b",
        "llava_llama",
        ("4.46.3",),
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
    "LLaVA-NeXT": Recorded(
        "inference_llava.py --model_name llavanext_7b",
        "llava_next",
        ("4.46.3",),
        {
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
    ),
    "LLaVA-OneVision": Recorded(
        "inference_llava.py --model_name llavaonevision_7b",
        "llava_onevision",
        ("4.46.3", "4.51.0"),
        {
            "size": {"height": 384, "width": 384},
            "image_grid_pinpoints": [[height, width] for height in _GRID for width in _GRID],
            "num_image_tokens": 729,
        },
    ),
    "Qwen2.5-VL": Recorded(
        "inference_qwen.py --models 7B",
        "qwen2_5_vl",
        ("4.51.0",),
        {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}},
    ),
    "MedVLM-R1": Recorded(
        "inference_medr1.py",
        "qwen2_vl",
        ("4.51.0",),
        {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}},
    ),
    "MedGemma": Recorded(
        "inference_medgemma.py",
        "gemma3",
        ("4.51.0",),
        {"size": {"height": 896, "width": 896}, "image_seq_length": 256},
    ),
    "Llama 3.2": Recorded(
        "inference_llama32v.py", "mllama", ("4.51.0",), {"size": {"height": 560, "width": 560}}
    ),
}

# Width and height: square, landscape, portrait, odd, below a tile, above a grid of tiles, long.
SIZES = ((56, 56), (90, 60), (50, 120), (113, 111), (31, 29), (300, 200), (230, 330), (400, 60), (40, 350))
# For processors with a real checkpoint's settings.
FULL_SIZES = ((1400, 1250), (437, 640), (1100, 210))
# How many images each problem has, the query's included.
IMAGES = (2, 3, 4, 5, 6, 7, 8, 9, 3)
# Answers as the data set has them, with blanks and line breaks at their ends.
ANSWERS = ("Pneumonia", "No finding ", "left lung\n", "Größe > 5 mm; {x}", "Pneumonia", "it's (B)")
# A text that holds the end-of-turn tokens of the families.
CONTROL_TOKENS = "Is </s> <|im_end|> <|eot_id|> <end_of_turn> seen?"


@dataclass(frozen=True)
class Case:
    """One conversation; `name` is mode/format/problem."""

    name: str
    conversation: Conversation


def family_of(command: str) -> Family:
    """The family that a script's command line runs."""
    from smmile.inference import local_models

    script, *words = command.split()
    found: list[Family] = []

    def note(_args: object, family: Family, _models: Mapping[str, object]) -> list[object]:
        found.append(family)
        return []

    module = importlib.import_module(script.removesuffix(".py"))
    with mock.patch.object(local_models, "family_specifications", note):
        module.specifications(module.make_parser().parse_args(words))
    return found[0]


def cases(family: Family, *, full_size: bool = False) -> Iterator[Case]:
    """The cases of a family, in a fixed order; with `full_size` the one for a full-size processor.

    Multiple choice has a third of the problems.
    """
    from smmile.prompting.conversation import build_conversation
    from smmile.prompting.options import make_options

    if full_size:
        problem = _problem("full-size", 901, FULL_SIZES)
        yield Case("ICL/open/full-size", build_conversation(problem, family.recipe, "ICL", None))
        return
    problems = _problems()
    options = make_options(problems, 42, shuffled=family.recipe.shuffle_options)
    modes: tuple[InferenceMode, ...] = ("ICL", "0-shot")
    for mode in modes:
        for problem in problems:
            conversation = build_conversation(problem, family.recipe, mode, None)
            yield Case(f"{mode}/open/{problem.problem_id}", conversation)
        for problem in problems[::3]:
            conversation = build_conversation(problem, family.recipe, mode, options[problem.problem_id])
            yield Case(f"{mode}/mcqa/{problem.problem_id}", conversation)


def full_size_checkpoint(folder: Path, full_size: Mapping[str, Any]) -> None:
    """Change the saved processor in `folder` to a real checkpoint's settings."""
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    for name, value in full_size.items():
        for part in (config, config["image_processor"]):
            if name in part:
                part[name] = value
    file.write_text(json.dumps(config))


@functools.cache
def _problems() -> list[Problem]:
    problems = [
        _problem(
            f"{number + 1}-images-{count}",
            number * 100,
            tuple(SIZES[(number + place) % len(SIZES)] for place in range(count)),
        )
        for number, count in enumerate(IMAGES)
    ]
    first = problems[0]
    marked = replace(first.query, question=CONTROL_TOKENS)
    minute = replace(first.query, image=stored(encoded(_image(7, (9, 7)))))
    problems.append(Problem("control-tokens", first.examples, marked))
    problems.append(Problem("image-of-9x7", first.examples, minute))
    return problems


@functools.cache
def _problem(problem_id: str, seed: int, sizes: tuple[tuple[int, int], ...]) -> Problem:
    triplets = [
        Triplet(
            f"What  does image {place + 1} show?\nOne word {{please}}, e.g. 'µ'.",
            ANSWERS[(seed // 100 + place) % len(ANSWERS)],
            stored(encoded(_image(seed + place, size))),
        )
        for place, size in enumerate(sizes)
    ]
    return Problem(problem_id, tuple(triplets[:-1]), triplets[-1])


def _image(seed: int, size: tuple[int, int]) -> Any:
    """Noise: fine, coarse, or around one colour, in turn."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    width, height = size
    fine = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if seed % 3 == 0:
        return Image.fromarray(fine)
    if seed % 3 == 1:
        coarse = generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        return Image.fromarray(coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width])
    colour = generator.integers(30, 226, 3, dtype=np.uint8)
    return Image.fromarray((colour + fine // 9 - 14).astype(np.uint8))


# How a recording is written down.

SAMPLED = 32  # values kept of each tensor


def run_lengths(ids: Sequence[int]) -> list[int | list[int]]:
    """Token ids with runs of equal ones as [id, count]."""
    runs: list[int | list[int]] = []
    for token, group in itertools.groupby(ids):
        count = len(list(group))
        runs += [token] * count if count < 3 else [[token, count]]
    return runs


def expanded(runs: Sequence[int | list[int]]) -> list[int]:
    """Token ids from `run_lengths`."""
    ids: list[int] = []
    for run in runs:
        ids += [run] if isinstance(run, int) else [run[0]] * run[1]
    return ids


def described(tensor: Any) -> dict[str, Any]:
    """A tensor's shape, kind, SHA-256, and `SAMPLED` of its values at even distances."""
    array = np.ascontiguousarray(tensor)
    array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    flat = array.reshape(-1)
    places = np.linspace(0, flat.size - 1, min(SAMPLED, flat.size)).astype(int)
    return {
        "shape": list(array.shape),
        "kind": "float" if array.dtype.kind == "f" else "int",
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        "values": [
            float(f"{value:.7g}") if array.dtype.kind == "f" else int(value) for value in flat[places]
        ],
    }
