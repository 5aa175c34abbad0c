"""Records what LLaVA-Med's published calls send: token ids and pixels made by transformers 4.36.2.

The published code split a prompt at `<image>` and tokenized each piece alone with the slow sentencepiece
tokenizer, and padded images to a square for CLIP's processor. To make `llava_med.json` again:

    pip install --no-deps --target DIR transformers==4.36.2 tokenizers==0.15.0 huggingface_hub==0.20.3 \
      requests==2.32.3 urllib3==2.2.3 charset_normalizer==3.4.0
    python tests/recordings/record_llava_med.py DIR

The second command runs in the suite's environment and starts itself again with the old packages.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from smmile.data.images import StoredImage
    from smmile.prompting.conversation import Conversation

RECORDING = Path(__file__).with_name("llava_med.json")
IMAGE = -200  # the original code's id of `<image>`
MOST_IMAGES = 9
IMAGE_NUMBERS = range(1, 2 * MOST_IMAGES)
SIZES = [(90, 40), (30, 71), (64, 64), (1, 60), (500, 333), (9, 8), (336, 336), (333, 700), (80, 3)]
QUESTIONS = [
    "What is shown?",
    "Is there a  fracture?\n",
    " Qué se ve?\n\n\tFindings: 12.5 % – naïve",
    "日本 😀 [x](y) 'quoted' <b>",
    "What is the diagnosis?",
]
# Some end with a blank or a new line, which the separator follows.
ANSWERS = ["Right lung", "Yes, renal cell carcinoma. ", "no\n", "12.5 %", "  Two words", "Ödem…", "(B)"]


@functools.cache
def stored_image(number: int) -> StoredImage:
    """Image `number`, drawn by a formula that no library can change."""
    import numpy as np
    from PIL import Image

    from smmile.data.images import StoredImage

    width, height = SIZES[number % len(SIZES)]
    y, x, channel = np.ogrid[:height, :width, :3]
    values = (x * 7 + y * 13 + x * y * (number + 2) + channel * 85) % 256
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(out, "PNG")
    return StoredImage(hashlib.sha256(out.getvalue()).hexdigest(), out.tell(), out.getvalue())


@functools.cache
def conversations() -> dict[str, Conversation]:
    """The recorded conversations by name: the suite's, of problems with one to nine images each."""
    from smmile.data.problems import Problem, Triplet
    from smmile.prompting.conversation import Recipe, build_conversation
    from smmile.prompting.options import make_options

    def triplet(number: int) -> Triplet:
        question, answer = QUESTIONS[number % len(QUESTIONS)], ANSWERS[number % len(ANSWERS)]
        return Triplet(question, answer, stored_image(number))

    problems = []
    for count in range(1, MOST_IMAGES + 1):
        *examples, query = map(triplet, range(count, 2 * count))
        problems.append(Problem(f"{count}", tuple(examples), query))
    options = make_options(problems, 42)
    found = {}
    for problem in problems:
        count = len(problem.triplets)
        for task_format, shown in (("open", None), ("mcqa", options[problem.problem_id])):
            name = f"ICL {task_format}, images: {count}"
            found[name] = build_conversation(problem, Recipe(), "ICL", shown)
            if count <= len(QUESTIONS):
                name = f"0-shot {task_format}, problem {count}"
                found[name] = build_conversation(problem, Recipe(), "0-shot", shown)
    return found


def pixel_summary(pixels: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The shape of a tensor of pixels, a fixed sample of values and a hash of them all."""
    import numpy as np

    flat = np.ascontiguousarray(pixels, dtype=np.float32).reshape(-1)
    sample = flat[:: flat.size // 12][:12]
    return {
        "shape": list(pixels.shape),
        "sample": [round(float(value), 6) for value in sample],
        "sha256": hashlib.sha256(flat.tobytes()).hexdigest()[:16],
    }


def record(folder: Path) -> dict[str, Any]:
    """What the published calls make of the cases in `folder`; runs with the old packages."""
    import tokenizers
    import transformers
    from PIL import Image

    tokenizer = transformers.LlamaTokenizer.from_pretrained(folder)
    clip = transformers.CLIPImageProcessor.from_pretrained(folder / "clip")
    colour = tuple(int(part * 255) for part in clip.image_mean)

    def squared(image: Image.Image) -> Image.Image:
        side = max(image.size)
        square = Image.new("RGB", (side, side), colour)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    cases = json.loads((folder / "cases.json").read_text())
    pixels, ids = {}, {}
    for number in IMAGE_NUMBERS:
        with Image.open(folder / f"{number}.png") as image:
            shown = clip(squared(image.convert("RGB")), return_tensors="np")["pixel_values"][0]
        pixels[str(number)] = pixel_summary(shown)
    for name, turns in cases.items():
        prompt = "".join(
            f"[INST] {turn['text']} [/INST]" if turn["role"] == "user" else f" {turn['text']} </s>"
            for turn in turns
        )
        pieces = [tokenizer(piece).input_ids for piece in prompt.split("<image>")]
        assert all(piece[0] == tokenizer.bos_token_id for piece in pieces)
        ids[name] = pieces[0] + [token for piece in pieces[1:] for token in (IMAGE, *piece[1:])]
    return {
        "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
        "pixels": pixels,
        "ids": ids,
    }


def _write_cases(folder: Path) -> str:
    """Write the tiny checkpoint, conversations and images to `folder`; returns the tokenizer's hash."""
    from original_llava import MEAN, STD, save_original_llava

    save_original_llava(folder)
    preprocessor = {"size": {"shortest_edge": 336}, "crop_size": 336, "image_mean": MEAN, "image_std": STD}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    for number in IMAGE_NUMBERS:
        (folder / f"{number}.png").write_bytes(stored_image(number).read())
    cases = {
        name: [
            {
                "role": turn.role,
                "text": "".join(getattr(part, "text", "<image>\n") for part in turn.content),
            }
            for turn in conversation.turns
        ]
        for name, conversation in conversations().items()
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    return tokenizer_hash(folder)


def tokenizer_hash(folder: Path) -> str:
    """A short hash of a checkpoint's tokenizer, on which recorded ids depend."""
    return hashlib.sha256((folder / "tokenizer.model").read_bytes()).hexdigest()[:16]


def main() -> None:
    """Write the recording, or, with --record FOLDER, print what the old packages make of its cases."""
    if sys.argv[1:2] == ["--record"]:
        print(json.dumps(record(Path(sys.argv[2]))))
        return
    here = Path(__file__).resolve()
    sys.path[:0] = [str(here.parents[1]), str(here.parents[2] / "inference_and_evaluation")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded = {"tokenizer": _write_cases(folder)}
        environment = os.environ | {"PYTHONPATH": str(Path(sys.argv[1]).resolve())}
        command = [sys.executable, "-W", "ignore", str(here), "--record", name]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        recorded |= json.loads(done.stdout)
    lines = [f"{json.dumps(key)}: {_lines(value)}" for key, value in recorded.items()]
    RECORDING.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _lines(value: Any) -> str:
    """JSON with an entry of an object on each line."""
    if not isinstance(value, dict):
        return json.dumps(value)
    entries = (
        f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in value.items()
    )
    return "{\n" + ",\n".join(entries) + "\n}"


if __name__ == "__main__":
    main()
