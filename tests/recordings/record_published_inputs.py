"""Record what the published calls sent to each model, with the versions of transformers that they used.

    python tests/recordings/record_published_inputs.py --packages DIR

installs transformers 4.46.3 and 4.51.0 in DIR (if they are not there; outside of the project), and writes
published_inputs.json beside this file, the same bytes each time. Run it in the suite's environment: the old
versions use its torch, NumPy and Pillow. `tests/test_published_inputs.py` reads the recording.

The calls: the chat template rendered to text, then `processor(images=[...], text=text)`. MedGemma's
template was applied and tokenized in one call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FULL_SIZE = ", full size"
HERE = Path(__file__).resolve().parent
RECORDING = HERE / "published_inputs.json"
_COMMON = ("huggingface_hub==0.30.2", "requests==2.32.3", "urllib3==2.2.3", "charset_normalizer==3.4.0")
PACKAGES = {
    "4.46.3": ("transformers==4.46.3", "tokenizers==0.20.3", *_COMMON),
    "4.51.0": ("transformers==4.51.0", "tokenizers==0.21.1", *_COMMON),
}
# Architecture: processor, image processor, tokenizer class (the old processors insist on theirs).
OLD_CLASSES = {
    "llava_llama": ("LlavaProcessor", "CLIPImageProcessor", "PreTrainedTokenizerFast"),
    "llava_next": ("LlavaNextProcessor", "LlavaNextImageProcessor", "PreTrainedTokenizerFast"),
    "llava_onevision": ("LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor", "Qwen2TokenizerFast"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2TokenizerFast"),
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2TokenizerFast"),
    "gemma3": ("Gemma3Processor", "Gemma3ImageProcessor", "PreTrainedTokenizerFast"),
    "mllama": ("MllamaProcessor", "MllamaImageProcessor", "PreTrainedTokenizerFast"),
}


def main() -> None:
    """Record from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True, metavar="DIR", help="for the old versions")
    parser.add_argument("--worker", nargs=2, metavar=("VERSION", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        _record_in_old_version(args.worker[0], Path(args.worker[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_inputs(Path(folder))
        recording: dict[str, Any] = {"versions": {}, "runs": {}, "tensors": {}}
        for version, packages in PACKAGES.items():
            _install(packages, args.packages / version)
            _run_worker(version, args.packages, folder)
            part = json.loads((Path(folder) / f"{version}.json").read_text())
            for section, content in part.items():
                recording[section] |= content
    RECORDING.write_text(_compact(recording), encoding="utf-8")
    print(f"{RECORDING}: {RECORDING.stat().st_size} bytes")


def _compact(recording: dict[str, Any]) -> str:
    """JSON with a line per case and per tensor, so that a change can be read."""
    sections = []
    for name, content in sorted(recording.items()):
        lines = [
            f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'), sort_keys=True)}"
            for key, value in sorted(content.items())
        ]
        sections.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def _install(packages: tuple[str, ...], folder: Path) -> None:
    if not (folder / "transformers").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, *packages], check=True)


def _run_worker(version: str, packages: Path, folder: str) -> None:
    environment = os.environ | {"PYTHONPATH": str((packages / version).resolve()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--packages", str(packages), "--worker", version, folder]
    subprocess.run(command, check=True, env=environment)


def _write_inputs(folder: Path) -> None:
    """Save the tiny checkpoints' parts, the conversations and their images for the old versions."""
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "inference_and_evaluation")]
    import transformers

    from recordings.published_cases import RECORDED, cases, family_of, full_size_checkpoint
    from smmile.prompting.conversation import ImagePart
    from tiny_checkpoints import save_tiny

    transformers.logging.disable_progress_bar()
    (folder / "images").mkdir()
    for name, recorded in RECORDED.items():
        family = family_of(recorded.command)
        for full_size in (False, True):
            part = folder / f"{name}{FULL_SIZE if full_size else ''}"
            save_tiny(recorded.checkpoint, part)
            if full_size:
                full_size_checkpoint(part, recorded.full_size)
            conversations: dict[str, Any] = {}
            for case in cases(family, full_size=full_size):
                for image in case.conversation.images:
                    (folder / "images" / image.sha256).write_bytes(image.read())
                conversations[case.name] = [
                    {
                        "role": turn.role,
                        "content": [
                            {"type": "image", "sha256": part.image.sha256}
                            if isinstance(part, ImagePart)
                            else {"type": "text", "text": part.text}
                            for part in turn.content
                        ],
                    }
                    for turn in case.conversation.turns
                ]
            (part / "conversations.json").write_text(json.dumps(conversations))


# In the old version, which has the suite's packages but not its transformers.


def _record_in_old_version(version: str, folder: Path) -> None:
    import tokenizers
    import transformers

    assert transformers.__version__ == version
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "inference_and_evaluation")]
    from recordings.published_cases import RECORDED, described, run_lengths

    runs: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for family, recorded in RECORDED.items():
        if version not in recorded.versions:
            continue
        for name in (family, family + FULL_SIZE):
            processor = _old_processor(folder / name, recorded.checkpoint)
            for case, turns in json.loads((folder / name / "conversations.json").read_text()).items():
                run: dict[str, Any] = {}
                try:
                    sent = _published_call(
                        processor, turns, folder, one_call=recorded.checkpoint == "gemma3"
                    )
                except ValueError as error:
                    run["error"] = str(error)
                else:
                    [ids] = sent.pop("input_ids").tolist()
                    assert sent.pop("attention_mask").min() == 1
                    run["input_ids"], run["tensors"] = run_lengths(ids), {}
                    for key, tensor in sent.items():
                        one = described(tensor)
                        run["tensors"][key] = hashed = one.pop("sha256")
                        tensors[hashed] = one
                runs[f"{name}, {version}, {case}"] = run
    versions = {version: f"transformers {version}, tokenizers {tokenizers.__version__}"}
    (folder / f"{version}.json").write_text(
        json.dumps({"versions": versions, "runs": runs, "tensors": tensors})
    )


def _old_processor(folder: Path, checkpoint: str) -> Any:
    """The old version's processor, made from the parts of a checkpoint that the new version has saved."""
    import transformers

    kind, image_kind, tokenizer_kind = (getattr(transformers, name) for name in OLD_CLASSES[checkpoint])
    settings = json.loads((folder / "processor_config.json").read_text())
    image_settings = settings.pop("image_processor")
    for name in ("image_processor_type", "processor_class"):
        image_settings.pop(name, None)
        settings.pop(name, None)
    if "merge_size" in image_settings:  # Qwen2-VL had its budget of pixels under other names
        size = image_settings.pop("size")
        image_settings |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    known = json.loads((folder / "tokenizer_config.json").read_text())
    extra = {
        name: token for name, token in known.items() if name in ("image_token", "boi_token", "eoi_token")
    }
    tokens = {name: known[name] for name in ("bos_token", "eos_token", "pad_token") if known[name]}
    tokenizer = tokenizer_kind(
        tokenizer_file=str(folder / "tokenizer.json"),
        model_input_names=["input_ids", "attention_mask"],  # as in the real checkpoints
        **tokens,
    )
    for name, token in extra.items():  # the old tokenizers take them from the checkpoint's other files
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    parts = {"image_processor": image_kind(**image_settings), "tokenizer": tokenizer}
    if checkpoint == "llava_onevision":
        parts["video_processor"] = transformers.LlavaOnevisionVideoProcessor()
    return kind(**parts, **settings, chat_template=(folder / "chat_template.jinja").read_text())


def _published_call(processor: Any, turns: list[dict[str, Any]], folder: Path, *, one_call: bool) -> Any:
    from PIL import Image

    images = []
    for part in (part for turn in turns for part in turn["content"] if part["type"] == "image"):
        with Image.open(folder / "images" / part.pop("sha256")) as image:
            images.append(image.convert("RGB"))
        if one_call:
            part["image"] = images[-1]
    if one_call:
        return processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    return processor(images=images, text=text, return_tensors="pt")


if __name__ == "__main__":
    main()
