"""`inference_hf.py` on types that have no script of their own, and code that a checkpoint brings."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import (
    SUITE,
    Finished,
    encoded,
    row,
    run_command,
    run_here,
    save_parquet,
    says_in_one_line,
    script_command,
)
from fake_hub import SHA, FakeHub, running
from smmile.backends.local import image_cache
from smmile.backends.local.checkpoints import find_checkpoint
from smmile.backends.local.templates import template_defect
from tiny_checkpoints import change_json
from tiny_types import OUTCOMES, TYPES, missing_packages, save_type

PAGE = SUITE / "docs" / "model-types.md"
MARKS = (
    "<image> <|image_pad|> <|image|> <IMG_CONTEXT> [IMG] <image_soft_token> <|IMG_PATCH|> <IMG_ATOM> "
    "<image_placeholder> <fake_token_around_image> <|img|> <imgpad> </s> <user> <s>"
)
# Types whose whole check is quick enough for each test run.
QUICK = ("smolvlm", "internvl", "pixtral")
EVERY_TYPE = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in sorted(TYPES)
]

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Returns the folder of a tiny checkpoint, which is made at the first call."""
    folder = tmp_path_factory.mktemp("types")

    def checkpoint(name: str) -> Path:
        return folder / name if (folder / name).is_dir() else save_type(name, folder / name)

    return checkpoint


def noise(seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """An image of coarse noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return {"bytes": encoded(Image.fromarray(pixels).resize(size)), "path": None}


SIZES = ((60, 90), (120, 50), (70, 70))


def problem(
    name: str,
    count: int,
    *,
    replaced: int | None = None,
    question: str = "What is it?",
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> Any:
    """Rows of a problem with `count` images, of which one may be replaced by another of its size."""
    return [
        row(
            name,
            place + 1,
            f"Answer {place}",
            question=question if place < count - 1 else "Which one is seen?",
            image=noise(place if place != replaced else 100 + place, sizes[place]),
        )
        for place in range(count)
    ]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of three images, but for `two`: as they are, one image replaced, and other texts."""
    rows = problem("whole", 3) + problem("two", 2)
    rows += [line for place in range(3) for line in problem(f"other_{place}", 3, replaced=place)]
    rows += problem("marks", 3, question=f"Is {MARKS} seen?")
    wide = [(150, 40), (40, 150), (30, 30)]
    rows += problem("long", 3, question="Please select the best answer: is it seen or not?", sizes=wide)
    return save_parquet(tmp_path_factory.mktemp("problems"), rows)


def run(checkpoint: Path, data: Path, output: Path, *words: object) -> Finished:
    base = ["--checkpoint", checkpoint, "--name", "tiny", "--dataset-path", data, "--output-dir", output]
    return run_here("inference_hf.py", *base, "--max_new_tokens", 8, *words)


def result(output: Path, mode: str = "ICL") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / f"result_tiny_{mode}_open.json").read_text())
    return content


def answers(output: Path, mode: str = "ICL") -> dict[str, Any]:
    records = result(output, mode)["records"]
    return {item["problem_id"]: (item["full_response"], item["prompt_tokens"]) for item in records}


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_a_type_answers_or_is_refused_as_documented(
    name: str, types: Tiny, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image and text is sent, placeholders in texts stay text; batches and caches change nothing."""
    outcome, checkpoint = OUTCOMES[name], types(name)
    missing = missing_packages(name)
    if missing:
        refused = run(checkpoint, problems, tmp_path)
        says_in_one_line(refused, "which needs the package", f"pip install {missing[0]}")
        return
    if outcome.refusal:
        says_in_one_line(run(checkpoint, problems, tmp_path), outcome.refusal)
        return

    zero_shot = run(checkpoint, problems, tmp_path, "--inference_mode", "0-shot")
    assert zero_shot.code == 0, zero_shot.err
    with_examples = run(checkpoint, problems, tmp_path / "1", "--batch-size", 1)
    if outcome.example_error:
        assert with_examples.code == 3
        return
    assert with_examples.code == 0, with_examples.err
    one_by_one = answers(tmp_path / "1")
    assert run(checkpoint, problems, tmp_path / "8", "--batch-size", 8).code == 0
    assert answers(tmp_path / "8") == one_by_one
    if find_checkpoint(checkpoint, None).model_type in image_cache.ENCODES_ALONE:
        monkeypatch.setattr(image_cache.ImageCache, "get", None)  # fails if it is used
        monkeypatch.setattr(image_cache, "ENCODES_ALONE", set())
        assert run(checkpoint, problems, tmp_path / "whole", "--batch-size", 8).code == 0
        assert answers(tmp_path / "whole") == one_by_one

    whole, tokens = one_by_one["whole"]
    for place in range(3):
        other, as_long = one_by_one[f"other_{place}"]
        assert as_long == tokens
        # Gemma 3n's large random vision part changes the logits, but not always the tokens.
        assert other != whole or name == "gemma3n", f"image {place} has no effect"
    assert answers(tmp_path, "0-shot")["whole"][1] < one_by_one["two"][1] < tokens
    assert one_by_one["marks"][1] > tokens + 100
    backend = result(tmp_path / "1")["run"]["generation"]["effective"]["image_processor"]
    assert backend == ("torchvision" if outcome.needs == ("torchvision",) else "pil")


def test_the_page_of_types_says_what_the_tests_show() -> None:
    rows = [
        f"| `{name}` | {outcome.checkpoints} | {outcome.words()} |"
        for name, outcome in sorted(OUTCOMES.items())
    ]
    shown = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert shown == rows
    assert sorted(TYPES) == sorted(OUTCOMES)


# Code that comes with a checkpoint.

OWN_CODE = {
    "configuration_scanner.py": """
from transformers import LlavaConfig

class ScannerConfig(LlavaConfig):
    model_type = "scanner"
""",
    "modeling_scanner.py": """
from transformers import LlavaForConditionalGeneration
from .configuration_scanner import ScannerConfig

class ScannerForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = ScannerConfig
""",
    "processing_scanner.py": """
from transformers import LlavaProcessor

class ScannerProcessor(LlavaProcessor):
    pass
""",
}


def with_own_code(tiny: Tiny, folder: Path) -> Path:
    """A tiny LLaVA of a type that only its own code knows."""
    from safetensors.torch import save_file
    from transformers import LlavaForConditionalGeneration

    shutil.copytree(tiny("llava_llama"), folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})  # names of now
    for file, code in OWN_CODE.items():
        (folder / file).write_text(code)
    processor = {"AutoProcessor": "processing_scanner.ScannerProcessor"}
    classes = {
        "AutoConfig": "configuration_scanner.ScannerConfig",
        "AutoModelForImageTextToText": "modeling_scanner.ScannerForConditionalGeneration",
    }
    change_json(folder / "config.json", model_type="scanner", auto_map=classes | processor)
    change_json(folder / "processor_config.json", processor_class="ScannerProcessor", auto_map=processor)
    return folder


def test_a_checkpoints_own_code_runs_only_when_trusted(tiny: Tiny, problems: Path, tmp_path: Path) -> None:
    checkpoint = with_own_code(tiny, tmp_path / "scanner")
    refused = run(checkpoint, problems, tmp_path)
    says_in_one_line(refused, "type scanner", "needs code that comes with it", "--trust-remote-code")

    trusted = run(checkpoint, problems, tmp_path, "--trust-remote-code")
    assert trusted.code == 0, trusted.err
    assert trusted.err.startswith("warning: --trust-remote-code runs code from the checkpoint")
    assert run(tiny("llava_llama"), problems, tmp_path / "plain").code == 0
    assert answers(tmp_path) == answers(tmp_path / "plain")
    assert result(tmp_path)["run"]["generation"]["trust_remote_code"] is True
    assert "trust_remote_code" not in result(tmp_path / "plain")["run"]["generation"]

    code = checkpoint / "modeling_scanner.py"
    code.write_text(code.read_text() + "# changed\n")
    changed = run(checkpoint, problems, tmp_path, "--trust-remote-code")
    assert changed.code == 2
    assert "of a different run: checkpoint_revision" in changed.err


def test_own_code_of_a_known_type_never_runs(tiny: Tiny, problems: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "known"
    shutil.copytree(tiny("llava_llama"), checkpoint)
    (checkpoint / "modeling_known.py").write_text("raise SystemExit('the code has run')\n")
    classes = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText"), "modeling_known.Known")
    change_json(checkpoint / "config.json", auto_map=classes)
    assert run(checkpoint, problems, tmp_path, "--limit", 1, "--trust-remote-code").code == 0


def test_own_code_that_cannot_be_run_is_one_line(tiny: Tiny, problems: Path, tmp_path: Path) -> None:
    checkpoint = with_own_code(tiny, tmp_path / "scanner")
    code = checkpoint / "processing_scanner.py"
    code.write_text(f"import einops_of_tomorrow\n{code.read_text()}")
    needed = run(checkpoint, problems, tmp_path, "--trust-remote-code")
    assert needed.code == 2
    assert "pip install einops" in needed.err.splitlines()[-1]
    other = {"AutoProcessor": "someone/else--processing.Processor"}
    change_json(checkpoint / "processor_config.json", auto_map=other)
    elsewhere = run(checkpoint, problems, tmp_path, "--trust-remote-code")
    assert elsewhere.code == 2
    assert "names code in another repository" in elsewhere.err.splitlines()[-1]


def test_code_that_a_processor_names_never_runs_unasked(
    tiny: Tiny, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on the terminal; a script's input may say yes."""
    checkpoint = tmp_path / "nested"
    shutil.copytree(tiny("llava_llama"), checkpoint)
    ran = tmp_path / "ran"
    (checkpoint / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Images: pass\n")
    own = {"image_processor_type": "Images", "auto_map": {"AutoImageProcessor": "own.Images"}}
    change_json(checkpoint / "processor_config.json", image_processor=own)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 5))
    finished = run(checkpoint, problems, tmp_path)
    assert not ran.exists()
    assert finished.code == 2
    assert "custom code" not in finished.out


def test_own_model_code_with_transformers_processor_runs(
    tiny: Tiny, problems: Path, tmp_path: Path
) -> None:
    """Qwen's processor has a part for videos, which cannot be loaded here."""
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLForConditionalGeneration

    checkpoint = tmp_path / "scanner"
    shutil.copytree(tiny("qwen2_5_vl"), checkpoint)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    save_file(model.state_dict(), checkpoint / "model.safetensors", {"format": "pt"})  # names of now
    for file, code in OWN_CODE.items():
        if not file.startswith("processing"):
            own = code.replace("LlavaConfig", "Qwen2_5_VLConfig")
            (checkpoint / file).write_text(own.replace("LlavaFor", "Qwen2_5_VLFor"))
    classes = {
        "AutoConfig": "configuration_scanner.ScannerConfig",
        "AutoModelForImageTextToText": "modeling_scanner.ScannerForConditionalGeneration",
    }
    change_json(checkpoint / "config.json", model_type="scanner", auto_map=classes)
    trusted = run(checkpoint, problems, tmp_path, "--trust-remote-code")
    assert trusted.code == 0, trusted.err
    assert run(tiny("qwen2_5_vl"), problems, tmp_path / "plain").code == 0
    assert answers(tmp_path) == answers(tmp_path / "plain")


@pytest.mark.slow
def test_own_code_is_downloaded_with_its_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = with_own_code(tiny, tmp_path / "scanner")
    with running(FakeHub("org/scanner", checkpoint, kind="models")) as hub:
        words = ["--checkpoint", "org/scanner", "--dataset", "demo", "--limit", 1, "--max_new_tokens", 2]
        finished = run_command(
            script_command("inference_hf.py", *words, "--trust-remote-code", "--output-dir", tmp_path),
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path / "home"),
            HF_HUB_OFFLINE="0",
        )
    assert finished.code == 0, finished.err
    [file] = tmp_path.glob("result_*scanner*.json")
    assert json.loads(file.read_text())["run"]["checkpoint_revision"] == SHA


# Chat templates that leave something out.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{% for turn in messages %}", "{% for turn in messages[-1:] %}"), "leaves out turn 1 of 3"),
        (("<image>\n", ""), "leaves out image 1 of 2"),
        (
            ("{% for turn", "{% if messages | length > 2 %}{{ 1 + 'x' }}{% endif %}{% for turn"),
            "cannot be used",
        ),
        (("{% for part in", "{{ turn['content'] }}{% for part in"), "Python data"),
    ],
)
def test_a_template_that_leaves_something_out_is_refused(
    change: tuple[str, str], words: str, tiny: Tiny, problems: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny("llava_llama"), checkpoint)
    template = checkpoint / "chat_template.jinja"
    assert change[0] in template.read_text()
    template.write_text(template.read_text().replace(*change))
    refused = run(checkpoint, problems, tmp_path)
    assert refused.code == 2
    assert "its chat template" in refused.err.splitlines()[-1]
    assert words in refused.err.splitlines()[-1]
    if words.startswith(("leaves out turn", "cannot be used")):  # what the query alone needs is written
        assert run(checkpoint, problems, tmp_path, "--inference_mode", "0-shot", "--limit", 1).code == 0


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ 'x'.encode('nosuch') }}", "{{ nothing.at.all }}"])
def test_a_template_that_raises_is_refused(
    template: str, tiny: Tiny, problems: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(template)
    refused = run(tiny("llava_llama"), problems, tmp_path, "--chat-template", file)
    says_in_one_line(refused, "the given chat template cannot be used", "--chat-template")


def test_a_template_or_tokenizer_of_another_kind_is_refused(
    tiny: Tiny, problems: Path, tmp_path: Path
) -> None:
    number = tmp_path / "number"
    shutil.copytree(tiny("llava_llama"), number)
    (number / "chat_template.jinja").unlink()
    change_json(number / "tokenizer_config.json", chat_template=5)
    says_in_one_line(run(number, problems, tmp_path), "its chat template is not a text")
    endless = tmp_path / "endless"
    shutil.copytree(tiny("llava_llama"), endless)
    change_json(endless / "tokenizer_config.json", pad_token=None, eos_token=None)
    says_in_one_line(run(endless, problems, tmp_path), "neither a padding nor an end token")


def test_a_template_without_a_system_turn_is_found_out() -> None:
    shape = (("system", ("text",)), ("user", ("image", "text")))

    def render(turns: list[dict[str, Any]]) -> str:
        return "".join(part.get("text", "<image>") for part in turns[-1]["content"])

    assert template_defect(shape, render) == "leaves out turn 1 of 2, which has the role system"
    assert template_defect(shape[1:], render) is None
    assert template_defect((("user", ("image",)),), render) is None


@pytest.mark.slow
def test_the_scripts_own_example_runs(types: Tiny, tmp_path: Path) -> None:
    """As its help shows it, with a tiny SmolVLM on a hub of our own."""
    shown = run_command(script_command("inference_hf.py", "--help")).out
    [example] = [line for line in shown.splitlines() if "python inference_hf.py --checkpoint" in line]
    words = shlex.split(example[example.index("inference_hf.py") :])
    with running(FakeHub(words[words.index("--checkpoint") + 1], types("smolvlm"), kind="models")) as hub:
        finished = run_command(
            script_command(*words, "--dataset", "demo", "--limit", 2, "--output-dir", tmp_path),
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path / "home"),
            HF_HUB_OFFLINE="0",
        )
    assert finished.code == 0, finished.err
    [file] = tmp_path.glob("result_smolvlm2_*.json")
    assert [record["status"] for record in json.loads(file.read_text())["records"]] == ["ok", "ok"]
