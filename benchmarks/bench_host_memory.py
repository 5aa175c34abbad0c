"""Measures the host memory that images take before they are on a GPU, on this machine.

    python benchmarks/bench_host_memory.py [--write]

First, for the image processors of six families at their real resolutions: what 40 images of 1000x800 take
once they are prepared and at most while they are. Then 128 conversations of two such images each in batches
of Qwen2.5-VL in bfloat16, with and without a limit. The model itself does not run, as on a GPU it would
take no host memory. Takes about five minutes on two cores and needs 12 GB. With --write the tables go into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from document import machine, markdown_table, write_section

SUITE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SUITE / "inference_and_evaluation"), str(SUITE / "tests")]

IMAGES, WIDTH, HEIGHT = 40, 1000, 800
CONVERSATIONS, IMAGES_EACH = 128, 2
LIMIT = 2 << 30
FAMILIES = {
    "qwen": "Qwen2.5-VL",
    "llava": "LLaVA-1.5",
    "next": "LLaVA-NeXT",
    "onevision": "LLaVA-OneVision, one tile",
    "gemma": "MedGemma",
    "mllama": "Llama 3.2",
}


class PeakMemory:
    """The most anonymous memory that this process had beyond what it had at first, in bytes."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._before = self._most = _anonymous_memory()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """The peak so far."""
        return self._most - self._before

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self._most = max(self._most, _anonymous_memory())


def _anonymous_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))


def image_processor(family: str) -> Any:
    """A family's image processor with the settings of the published checkpoints."""
    import transformers as hf

    llava = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    makers: dict[str, Callable[[], Any]] = {
        "qwen": hf.Qwen2VLImageProcessorPil,
        "llava": lambda: hf.CLIPImageProcessorPil(**llava),
        "next": lambda: hf.LlavaNextImageProcessorPil(**llava),
        "onevision": hf.LlavaOnevisionImageProcessorPil,
        "gemma": lambda: hf.Gemma3ImageProcessorPil(size={"height": 896, "width": 896}),
        "mllama": lambda: hf.MllamaImageProcessorPil(size={"height": 560, "width": 560}, max_image_tiles=4),
    }
    return makers[family]()


def noise(width: int, height: int) -> Any:
    import numpy as np
    from PIL import Image

    samples = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(samples)


def measure_processor(family: str) -> Mapping[str, float]:
    """Bytes of 40 prepared images, and the peak while they are prepared."""
    processor, image = image_processor(family), noise(WIDTH, HEIGHT)
    processor(images=[image], return_tensors="pt")
    with PeakMemory() as peak:
        made = processor(images=[[image.copy() for _ in range(IMAGES)]], return_tensors="pt")
    return {"prepared": made["pixel_values"].nbytes, "peak": peak.bytes}


def measure_batches(
    checkpoint: str, size: str, limit: float, conversations: int, width: int, height: int
) -> Mapping[str, object]:
    """The peak while conversations are prepared in batches, how large those were, and what was reported.

    `size` is that of `--batch-size`, `limit` in bytes; each conversation has two images.
    """
    import contextlib
    import io

    from conftest import encoded, stored
    from smmile.backends.interface import Request, Response
    from smmile.backends.local.checkpoints import find_checkpoint
    from smmile.backends.local.decoding import DecodingSettings
    from smmile.backends.local.loading import LoadSettings
    from smmile.backends.local.model import LocalModel, LocalSettings, PreparedBatch
    from smmile.prompting.conversation import Conversation, ImagePart, TextPart, Turn

    sizes = []

    preparing = threading.Lock()

    class OnDevice(LocalModel):
        """A model that answers without host memory, and not before the next batch is prepared."""

        def prepare(self, requests: Sequence[Request]) -> PreparedBatch:
            with preparing:
                return super().prepare(requests)

        def generate(self, prepared: PreparedBatch) -> list[Response]:
            sizes.append(len(prepared.keys))
            for image in prepared.images:
                image.pixels = None  # as once it is encoded
            time.sleep(0.1)
            with preparing:
                return [Response(key) for key in prepared.keys]

        def _host_limit(self) -> float:
            return limit

        def _max_tokens(self) -> float:
            return float("inf")

    jpeg = encoded(noise(width, height), "JPEG", quality=90)
    requests = []
    for number in range(conversations):  # what follows a JPEG's end makes the images different
        images = [ImagePart(stored(jpeg + bytes([number, place]))) for place in range(IMAGES_EACH)]
        turn = Turn("user", (*images, TextPart("What is the diagnosis?")))
        requests.append(Request(str(number), Conversation((turn,))))
    settings = LocalSettings(
        LoadSettings("bfloat16", dtype="bfloat16"),
        DecodingSettings("greedy", 64, seed=42),
        batch_size=None if size == "auto" else int(size),
    )
    model = OnDevice(find_checkpoint(Path(checkpoint), None), settings)
    model.prepare(requests[:1])
    with PeakMemory() as peak, contextlib.redirect_stderr(io.StringIO()) as reported:
        answers = [answer for batch in model.answer(requests) for _, answer in batch]
    if not all(isinstance(answer, Response) for answer in answers):
        raise RuntimeError(f"not every request was answered: {answers}")
    return {"peak": peak.bytes, "largest": max(sizes), "reported": reported.getvalue()}


def measured(*what: object) -> Mapping[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", *map(str, what)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(*what, found, flush=True)
    return found


def processors_table() -> str:
    decoded = IMAGES * WIDTH * HEIGHT * 8
    rows: list[tuple[str, ...]] = []
    for family, name in FAMILIES.items():
        found = measured("processor", family)
        factor = (found["peak"] - decoded) / found["prepared"]
        rows.append((name, _megabytes(found["prepared"]), _megabytes(found["peak"]), f"{factor:.1f}"))
    return markdown_table(("processor", "prepared, float32", "peak", "factor"), rows)


def batches_table() -> str:
    from tiny_checkpoints import Size, qwen

    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        model, processor = qwen("2.5", Size(pixels=16384 * 28 * 28))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for size in ("16", "64"):
            for limit in (float("inf"), LIMIT):
                found = measured("batches", folder, size, limit, CONVERSATIONS, WIDTH, HEIGHT)
                shown = "none" if limit == float("inf") else _megabytes(limit)
                rows.append((size, shown, _megabytes(found["peak"]), str(found["largest"])))
    return markdown_table(("--batch-size", "limit", "peak", "largest batch"), rows)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.measure:
        kind, what, *rest = args.measure
        found: Mapping[str, object] = {}
        if kind == "processor":
            found = measure_processor(what)
        else:
            size, limit, conversations, width, height = rest
            found = measure_batches(what, size, float(limit), int(conversations), int(width), int(height))
        print(json.dumps(found))
        return 0
    text = (
        f"Measured on {machine()}, memory as the peak of RssAnon. {IMAGES} images of {WIDTH}x{HEIGHT}; the "
        "factor is the peak, less 8 bytes per pixel of the decoded images, over what is prepared:\n\n"
        f"{processors_table()}\n\n"
        f"{CONVERSATIONS} conversations of {IMAGES_EACH} such images, Qwen2.5-VL in bfloat16:\n\n"
        f"{batches_table()}"
    )
    if args.write:
        write_section("benchmarks/bench_host_memory.py", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
