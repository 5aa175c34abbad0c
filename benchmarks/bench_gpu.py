"""Measures a local model of a real shape: rates, image cache, batch sizes, attention, 16 bits.

    python benchmarks/bench_gpu.py                                  # 7B on one GPU
    python benchmarks/bench_gpu.py --shape tiny --part images --orders 20  # two CPU cores
    python benchmarks/bench_gpu.py --shape tiny --orders 2          # only to see that it runs

Made to take less than ten minutes on a GPU, where it has not been run yet.

The model is a Qwen2.5-VL with random weights, made in a temporary folder (7B: 17 GB). Problems are those of
a small SMMILE++: each base problem has five examples, shown in several orders, and all images are JPEGs of
1000x800. With --write the tables go into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from document import machine, markdown_table, write_section

SUITE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SUITE / "inference_and_evaluation"), str(SUITE / "tests")]

from bench_local import HALF_BILLION_TEXT, HALF_BILLION_VISION  # noqa: E402

if TYPE_CHECKING:
    from smmile.backends.interface import Request, Response
    from smmile.backends.local.model import LocalModel

VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
VISION |= {"fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}  # type: ignore[dict-item]
LONG: dict[str, Any] = {"max_position_embeddings": 128000}
# Text part, vision part, and the most tokens of an image.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "tiny": (LONG, {}, 64),
    "0.5B": (HALF_BILLION_TEXT, HALF_BILLION_VISION, 64),
    "3B": (
        LONG
        | {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
        | {"num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936}
        | {"tie_word_embeddings": True},
        VISION,
        16384,
    ),
    "7B": (
        LONG
        | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
        | {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
        VISION,
        16384,
    ),
}
RUNS = (("ICL", "open"), ("ICL", "mcqa"), ("0-shot", "open"), ("0-shot", "mcqa"))
Row = tuple[str, ...]


def save_checkpoint(shape: str, folder: Path) -> None:
    import torch

    from tiny_checkpoints import Size, qwen

    text, vision, tokens = SHAPES[shape]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.float32 if shape == "tiny" else torch.bfloat16)
        model, processor = qwen("2.5", Size(text=text, vision=vision, pixels=28 * 28 * tokens))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def requests_of(mode: Any, task_format: Any, bases: int, orders: int, first: int = 0) -> list[Request]:
    """The distinct requests of one run: `orders` orders of each of `bases` problems from `first` on."""
    from smmile.backends.interface import Request
    from smmile.data.problems import Problem
    from smmile.prompting.conversation import Recipe, build_conversation
    from smmile.prompting.options import make_options

    problems = []
    for base in range(first, first + bases):
        triplets = [triplet(6 * base + place) for place in range(6)]
        for order in range(orders):
            examples = random.Random(order).sample(triplets[:-1], 5)
            problems.append(Problem(f"{base}_perm_{order}", tuple(examples), triplets[-1]))
    options = make_options(problems, 42)
    chosen = [options[problem.problem_id] if task_format == "mcqa" else None for problem in problems]
    made = [
        build_conversation(problem, Recipe(), mode, each)
        for problem, each in zip(problems, chosen, strict=True)
    ]
    return [Request(str(number), conversation) for number, conversation in enumerate(dict.fromkeys(made))]


def triplet(number: int) -> Any:
    import numpy as np
    from PIL import Image

    from conftest import stored
    from smmile.data.problems import Triplet

    samples = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(samples).resize((1000, 800)).save(jpeg, "JPEG", quality=90)
    question = f"What does image {number} show, and which finding supports the diagnosis?"
    return Triplet(question, f"Finding {number % 7}", stored(jpeg.getvalue()))


def load(folder: Path, dtype: str, new_tokens: int, attention: str = "auto") -> LocalModel:
    from smmile.backends.local.checkpoints import find_checkpoint
    from smmile.backends.local.decoding import DecodingSettings
    from smmile.backends.local.loading import LoadSettings
    from smmile.backends.local.model import LocalModel, LocalSettings

    loading = LoadSettings("bfloat16", dtype=cast(Any, dtype), attention=attention)
    settings = LocalSettings(loading, DecodingSettings("greedy", new_tokens, 42), verbose=False)
    return LocalModel(find_checkpoint(folder, None), settings)


def timed(what: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Seconds, and what it returned."""
    import torch

    started = time.perf_counter()
    found = what(*given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def answers(model: LocalModel, requests: Sequence[Request]) -> dict[str, tuple[str, int | None]]:
    from smmile.backends.interface import Response

    found = dict(pair for batch in model.answer(requests) for pair in batch)
    failed = [outcome for outcome in found.values() if not isinstance(outcome, Response)]
    if failed:
        raise RuntimeError(f"not every request was answered: {failed[0]}")
    responses = cast("dict[Request, Response]", found)
    return {item.key: (response.text, response.completion_tokens) for item, response in responses.items()}


def images_table(folder: Path, dtype: str, size: tuple[int, int]) -> Iterator[Row]:
    """Every mode and format in one process, alternately without and with the cache."""
    model = load(folder, dtype, new_tokens=8)
    answers(model, requests_of("0-shot", "open", 1, 1, first=size[0]))
    totals = [0.0, 0.0]
    for mode, task_format in RUNS:
        requests = requests_of(mode, task_format, *size)
        seconds, found = [], []
        for place, cached in enumerate((False, True)):
            model._encodes_alone = cached
            taken, answered = timed(answers, model, requests)
            seconds.append(taken)
            found.append(answered)
            totals[place] += taken
        shown = [image.sha256 for item in requests for image in item.conversation.images]
        same = sum(found[0][key] == found[1][key] for key in found[0])
        yield (
            f"{mode}, {task_format}",
            f"{len(requests)}, {len(shown)} of {len(set(shown))}",
            *(f"{each:.1f} s" for each in seconds),
            f"{seconds[0] / seconds[1]:.1f}",
            f"{same} of {len(requests)}",
        )
    yield ("all", "", *(f"{each:.1f} s" for each in totals), f"{totals[0] / totals[1]:.1f}", "")


def rates_table(folder: Path, dtype: str, sizes: Sequence[int]) -> Iterator[Row]:
    """Prompt and decoding rates per batch size, as shares of what a plain product and copy reach."""
    import torch

    model = load(folder, dtype, new_tokens=40)
    inner = model._model
    text = inner.model.language_model
    head = inner.get_output_embeddings().weight
    weights = sum(each.numel() for each in text.parameters()) - text.embed_tokens.weight.numel()
    side = 8192 if torch.cuda.is_available() else 1024
    square = torch.ones(side, side, dtype=inner.dtype, device=inner.device)
    timed(torch.mm, square, square)
    product, _ = timed(lambda: [square @ square for _ in range(10)])
    copy, _ = timed(lambda: [square.clone() for _ in range(10)])
    operations, bandwidth = 20 * side**3 / product, 20 * square.nbytes / copy
    requests = requests_of("ICL", "open", 2, max(1, max(sizes) // 2))
    for size in sizes:
        prepared = model.prepare(requests[:size])
        try:
            model._new_tokens(prepared, 1)  # the images' features
        except torch.OutOfMemoryError:
            yield str(size), "does not fit into memory", "", "", ""
            continue
        first, _ = timed(model._new_tokens, prepared, 1)
        whole, _ = timed(model._new_tokens, prepared, 33)
        tokens = prepared.inputs["input_ids"].numel()
        step = max(whole - first, 1e-9) / 32
        read = (weights + head.numel()) * inner.dtype.itemsize
        yield (
            str(len(prepared.keys)),
            f"{tokens / first:,.0f} tokens/s",
            f"{2 * weights * tokens / first / operations:.0%} of {operations / 1e12:.1f} TFLOP/s",
            f"{len(prepared.keys) / step:,.0f} tokens/s",
            f"{read / step / bandwidth:.0%} of {bandwidth / 1e9:,.0f} GB/s",
        )


def choices_table(folder: Path, dtype: str, size: tuple[int, int]) -> Iterator[Row]:
    """Attention implementations and batch sizes: seconds, and how many answers are the first row's."""
    import torch

    from smmile.backends.local.model import PreparedBatch
    from smmile.errors import UsageError

    requests = requests_of("ICL", "open", *size)
    first: dict[str, Any] = {}
    for attention, batch in (("sdpa", 1), ("sdpa", None), ("flash_attention_2", None), ("eager", None)):
        try:
            model = load(folder, dtype, new_tokens=32, attention=attention)
        except UsageError as error:
            yield attention, "auto", str(error).partition(";")[0], "", "", ""
            continue
        model._settings = type(model._settings)(**{**vars(model._settings), "batch_size": batch})
        batches: list[int] = []
        generate = model.generate

        def counted(
            prepared: PreparedBatch,
            generate: Callable[[PreparedBatch], list[Response]] = generate,
            batches: list[int] = batches,
        ) -> list[Response]:
            batches.append(len(prepared.keys))
            return generate(prepared)

        model.generate = counted  # type: ignore[method-assign]
        seconds, found = timed(answers, model, requests)
        first = first or found
        same = sum(found[key] == first[key] for key in first)
        peak = f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB" if torch.cuda.is_available() else ""
        shown = "auto: " + ", ".join(map(str, batches)) if batch is None else str(batch)
        yield attention, shown, f"{seconds:.1f} s", peak, f"{same} of {len(first)}", dtype
        del model


def table(head: Row, rows: Iterator[Row]) -> str:
    found = []
    for row in rows:
        print(*row, sep=" | ", flush=True)
        found.append(row)
    return markdown_table(head, found)


def measured(shape: str, part: str, orders: int) -> Iterator[str]:
    """A line and the tables of one shape."""
    import torch

    on_gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if on_gpu else machine()
    dtype = "bfloat16" if on_gpu else "float32"
    yield (
        f"Measured on {where}, Qwen2.5-VL of shape {shape} with random weights, {dtype}, images of "
        f"1000x800 shrunk to at most {SHAPES[shape][2]} tokens:"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_checkpoint(shape, folder)
        head: Row = ("run, 8 new tokens", "requests, images", "each time", "once", "ratio", "equal answers")
        yield table(head, images_table(folder, dtype, (5, orders)))
        if part == "images":
            return
        head = ("batch", "prompt", "of a plain product", "decoding", "of a plain copy")
        yield table(head, rates_table(folder, dtype, (1, 16, 64) if on_gpu else (1, 4)))
        head = ("attention", "batches", "time", "memory", "answers as in the first row", "type")
        for kind in dict.fromkeys((dtype, "bfloat16")):
            yield table(head, choices_table(folder, kind, (4, 16) if on_gpu else (2, 3)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=tuple(SHAPES), default=["7B"])
    parser.add_argument("--part", choices=("all", "images"), default="all")
    parser.add_argument("--orders", type=int, default=8, help="orders of each of five problems (8)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    args = parser.parse_args()
    text = "\n\n".join(part for shape in args.shape for part in measured(shape, args.part, args.orders))
    if args.write:
        write_section("benchmarks/bench_gpu.py", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
