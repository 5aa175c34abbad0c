"""Measures local models: one conversation at a time against batches, on this machine.

    python benchmarks/bench_local.py [--write]
    python benchmarks/bench_local.py --part lists [--write]  # one minute

Makes a tiny and a half-billion-weight Qwen2.5-VL with random weights in a temporary folder (1.5 GB) and
has each answer the demo set with 64 new tokens, in one process per model: batch size 1, then auto. The
second command measures both modes and formats as one command with lists against four commands. With --write
the table goes into docs/benchmarks.md. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import product
from operator import eq
from pathlib import Path

from document import machine, markdown_table, write_section

SUITE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SUITE / "inference_and_evaluation"), str(SUITE / "tests")]

NEW_TOKENS = 64
# As Qwen2.5-0.5B; the vision part is a small one of the same kind, and an image has at most 16 tokens, as
# in the tiny model.
HALF_BILLION_TEXT = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
HALF_BILLION_VISION = {
    "depth": 8,
    "hidden_size": 640,
    "intermediate_size": 1720,
    "num_heads": 10,
    "fullatt_block_indexes": [3, 7],
    "window_size": 112,
}
# Model, mode, type.
MEASURED = (
    ("tiny", "0-shot", "float32"),
    ("tiny", "ICL", "float32"),
    ("half", "0-shot", "float32"),
    ("half", "ICL", "float32"),
    ("half", "ICL", "bfloat16"),
)


def make_checkpoints(folder: Path) -> None:
    import torch

    from tiny_checkpoints import Size, qwen, save_tiny

    save_tiny("qwen2_5_vl", folder / "tiny")
    size = Size(text=HALF_BILLION_TEXT, vision=HALF_BILLION_VISION, pixels=28 * 28 * 16)
    torch.manual_seed(0)
    model, processor = qwen("2.5", size)
    model.to(torch.bfloat16).save_pretrained(folder / "half")
    processor.save_pretrained(folder / "half")


def measure(checkpoint: Path, mode: str, dtype: str) -> Mapping[str, object]:
    """Seconds for all answers at both batch sizes, after a first conversation that does not count."""
    from smmile.backends.interface import Request, Response
    from smmile.backends.local.checkpoints import find_checkpoint
    from smmile.backends.local.decoding import DecodingSettings
    from smmile.backends.local.loading import LoadSettings
    from smmile.backends.local.model import LocalModel, LocalSettings
    from smmile.data.dataset import DatasetSource, load_problems
    from smmile.inference.plan import make_plan
    from smmile.prompting.conversation import Recipe

    problems = load_problems(DatasetSource("demo"))
    plan = make_plan(
        problems, Recipe(), "ICL" if mode == "ICL" else "0-shot", "open", seed=42, limit=None, decoding={}
    )
    seconds, tokens, prompts = {}, 0, 0
    for size in (1, None):
        settings = LocalSettings(
            LoadSettings("float32", dtype="bfloat16" if dtype == "bfloat16" else None),
            DecodingSettings("greedy", NEW_TOKENS, seed=42),
            batch_size=size,
        )
        model = LocalModel(find_checkpoint(checkpoint, None), settings)
        requests = [Request(item.key, item.conversation) for item in plan.requests]
        list(model.answer(requests[:1]))
        started = time.perf_counter()
        replies = [reply for batch in model.answer(requests) for _, reply in batch]
        seconds["auto" if size is None else "1"] = time.perf_counter() - started
        answers = [reply for reply in replies if isinstance(reply, Response)]
        if len(answers) != len(plan.requests):
            raise RuntimeError(f"not every problem was answered: {replies}")
        tokens = sum(reply.completion_tokens or 0 for reply in answers)
        prompts = sum(reply.prompt_tokens or 0 for reply in answers)
        del model
    return {"seconds": seconds, "tokens": tokens, "prompts": prompts, "problems": len(plan.requests)}


def line(folder: Path, model: str, mode: str, dtype: str) -> tuple[str, ...]:
    command = [sys.executable, __file__, "--measure", str(folder / model), mode, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    single, batched = found["seconds"]["1"], found["seconds"]["auto"]
    count, tokens = found["problems"], found["tokens"]
    shown = (
        {"tiny": "tiny", "half": "0.54 B"}[model],
        f"{mode}, {found['prompts'] // count} tokens",
        dtype,
        f"{single:.1f} s, {tokens / single:.0f} tokens/s, {count / single:.2f} problems/s",
        f"{batched:.1f} s, {tokens / batched:.0f} tokens/s, {count / batched:.2f} problems/s",
        f"{single / batched:.1f}",
    )
    print(*shown, sep=" | ", flush=True)
    return shown


def lists_table(folder: Path, bases: int, orders: int) -> str:
    """Both modes and formats of a small SMMILE++: one command with lists against four commands."""
    from bench_gpu import save_checkpoint, triplet

    save_checkpoint("tiny", folder / "tiny")
    (folder / "data").mkdir()
    rows = []
    for base in range(bases):
        triplets = [triplet(6 * base + place) for place in range(6)]
        for place, each in enumerate(triplets):
            (folder / "data" / f"{base}-{place}.jpg").write_bytes(each.image.read())
        for order in range(orders):
            shown = [*random.Random(order).sample(range(5), 5), 5]
            for number, place in enumerate(shown, start=1):
                file, each = f"{base}-{place}.jpg", triplets[place]
                rows.append((file, f"{base}_perm_{order}", number, each.question, each.answer))
    with (folder / "data" / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "problem_id", "order", "question", "answer"), *rows])
    both = [("ICL", "0-shot"), ("open", "mcqa")]
    found: dict[str, tuple[float, float]] = {}
    for name, commands in (("four commands", list(product(*both))), ("one command, lists", [both])):
        before, started = sum(os.times()[2:4]), time.perf_counter()
        for mode, task_format in commands:
            words = ["--checkpoint", folder / "tiny", "--dataset-path", folder / "data"]
            words += ["--name", "tiny", "--max_new_tokens", 8, "--output-dir", folder / name]
            for flag, values in (("--inference_mode", mode), ("--task_format", task_format)):
                words += [flag, *([values] if isinstance(values, str) else values)]
            subprocess.run(
                [sys.executable, "inference_hf.py", *map(str, words)],
                cwd=SUITE / "inference_and_evaluation",
                capture_output=True,
                check=True,
            )
        found[name] = time.perf_counter() - started, sum(os.times()[2:4]) - before
    same, count = 0, 0
    for result in (folder / "four commands").glob("result_*.json"):
        pair = [json.loads((folder / name / result.name).read_text())["records"] for name in found]
        texts = [[record["full_response"] for record in records] for records in pair]
        same, count = same + sum(map(eq, *texts)), count + len(texts[0])
    cells: list[tuple[str, ...]] = [
        (name, f"{wall:.1f} s", f"{cpu:.1f} s") for name, (wall, cpu) in found.items()
    ]
    return (
        f"Measured on {machine()}: both modes and formats of {bases * orders} problems ({bases} in "
        f"{orders} orders, six JPEGs of 1000x800 each), a tiny Qwen2.5-VL, 8 new tokens, float32. "
        f"{same} of {count} answers are equal.\n\n"
        + markdown_table(("both modes, both formats", "time", "CPU time"), cells)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--part", choices=("batches", "lists"), default="batches")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        checkpoint, mode, dtype = args.measure
        print(json.dumps(measure(Path(checkpoint), mode, dtype)))
        return 0
    if args.part == "lists":
        with tempfile.TemporaryDirectory() as temporary:
            text = lists_table(Path(temporary), 5, 4)
        print(text)
        if args.write:
            write_section("benchmarks/bench_local.py --part lists", text)
        return 0
    head = ("model", "conversations", "type", "one at a time", "batches (auto)", "ratio")
    with tempfile.TemporaryDirectory() as temporary:
        make_checkpoints(Path(temporary))
        rows = [line(Path(temporary), *what) for what in MEASURED]
    text = (
        f"Measured on {machine()}: the demo set's 13 problems, {NEW_TOKENS} new tokens each.\n\n"
        + markdown_table(head, rows)
    )
    if args.write:
        write_section("benchmarks/bench_local.py", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
