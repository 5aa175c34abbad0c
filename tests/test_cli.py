from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import (
    SCRIPTS,
    SUITE,
    four_problems,
    make_image,
    row,
    run_here,
    run_script,
    save_parquet,
    says_in_one_line,
)
from smmile import LAYERS

ALL_SCRIPTS = sorted(file.name for file in SCRIPTS.glob("*.py"))
INFERENCE = [name for name in ALL_SCRIPTS if name.startswith("inference_")]
# These have no results folder as their argument.
OTHERS = ("build_plusplus.py", "check_dataset.py", "sweep.py")
SCORING = [name for name in ALL_SCRIPTS if name not in (*INFERENCE, *OTHERS)]
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "pandas",
    "matplotlib",
    "numpy",
    "PIL",
    "pyarrow",
    "rich",
    "msgspec",
}

NOT_FOR_SCORING = {"torch", "transformers", "datasets", "pandas", "matplotlib", "pyarrow"}
# What a scoring script is given besides a folder, and what it has to import for that.
NEEDS: dict[str, tuple[list[str], set[str]]] = {
    "evaluate_experts.py": (["no_labels.csv"], set()),
    "evaluate_LLMJudge.py": (["--visualize-only"], set()),
    "export_results.py": ([], {"pandas", "pyarrow"}),
    "plot_results.py": (["--look", "light"], {"matplotlib", "pandas"}),
    "stratify.py": (["--eval_type", "em", "--dataset", "demo"], set()),
}


def output_and_modules(*command: str) -> tuple[str, set[str]]:
    """What a script prints, and the top-level packages that its process has imported when it ends."""
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('MODULES', *{name.split('.')[0] for name in sys.modules}))\n"
        f"sys.argv = {list(command)!r}\nsys.path.insert(0, '.')\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    out, _, modules = done.stdout.partition("MODULES")
    return out, set(modules.split())


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_help_shows_defaults_and_an_example_and_imports_nothing_heavy(script: str) -> None:
    out, loaded = output_and_modules(script, "--help")
    assert f"example:\n  python {script} " in out
    assert "(default: " in out
    assert "smmile" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("script", ALL_SCRIPTS)
@pytest.mark.parametrize("words", [["--no-such-flag"], ["--inference_mode", "both"], ["--inf", "ICL"]])
def test_wrong_flags_are_one_line(script: str, words: list[str]) -> None:
    finished = run_here(script, *words)
    says_in_one_line(finished, "error: ", f"{script} --help")


def test_scoring_does_not_import_what_models_need(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    for script in SCORING:
        more, needed = NEEDS.get(script, ([], set()))
        _, loaded = output_and_modules(script, str(tmp_path), *more)
        assert "msgspec" in loaded
        assert not loaded & (NOT_FOR_SCORING - needed), script


def test_flags_may_be_written_with_dashes_or_underscores(tmp_path: Path) -> None:
    with_dashes = ["--inference-mode=ICL", "--task-format", "mcqa", "--max-new-tokens", "9", "--dry-run"]
    with_underscores = ["--inference_mode", "ICL", "--task_format=mcqa", "--max_new_tokens=9", "--dry_run"]
    for number, words in enumerate((with_dashes, with_underscores)):
        base = ["--baseline", "random", "--dataset", "demo", "--output_dir", tmp_path / str(number)]
        assert run_here("inference_baselines.py", *base, *words).code == 0
    assert (tmp_path / "0" / "requests_random_ICL_mcqa.jsonl").read_bytes() == (
        tmp_path / "1" / "requests_random_ICL_mcqa.jsonl"
    ).read_bytes()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--limit", "0"], ["--limit", "'0'"]),
        (["--limit", "-3"], ["--limit"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--gpu-devices", "0;rm"], ["--gpu-devices", "'0;rm'"]),
        (["--dataset", "demo", "--augmented"], ["--dataset demo and --augmented"]),
        (["--dataset-id", "a/b", "--dataset-path", "."], ["--dataset-path and --dataset-id"]),
        (["--dataset", "demo", "--dataset-path", "."], ["--dataset demo and --dataset-path"]),
        (["--dataset", "demo", "--dataset-revision", "v1"], ["--dataset-revision", "--dataset demo"]),
    ],
)
def test_wrong_values_are_one_line(words: list[str], parts: list[str]) -> None:
    says_in_one_line(run_here("inference_baselines.py", "--baseline", "majority", *words), *parts)


def test_gpu_devices_take_effect_before_anything_else(tmp_path: Path) -> None:
    code = (
        "import atexit, os, runpy, sys\n"
        "sys.argv = ['inference_baselines.py', '--baseline', 'majority', '--gpu_devices', '1,3',"
        f"'--dataset', 'demo', '--output-dir', {str(tmp_path)!r}]\n"
        "atexit.register(lambda: print(os.environ['CUDA_VISIBLE_DEVICES']))\n"
        "sys.path.insert(0, '.')\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "1,3"


def test_the_readmes_commands_of_these_scripts_parse(shared: Path) -> None:
    """As published they name the hub; here only their command lines are tried (test_hub runs them)."""
    commands = [
        shlex.split(line) for line in (shared / "readme_commands.txt").read_text().splitlines() if line
    ]
    ours = [words[1:] for words in commands if words[1] in ALL_SCRIPTS]
    assert {words[0] for words in ours} >= {
        "inference_baselines.py",
        "evaluate_EM.py",
        "variance_analysis.py",
    }
    for words in ours:
        finished = run_here(*words)
        assert finished.code in (0, 2), finished
        assert "see" not in finished.err, finished.err  # what the parser refuses points to --help


def test_results_default_to_the_suites_own_folders() -> None:
    from argparse import Namespace

    from smmile import cli

    for dataset, augmented, folder in (
        (None, None, "results"),
        ("augmented", None, "results_augmented"),
        (None, "augmented", "results_augmented"),
        ("demo", None, "results_demo"),
    ):
        args = Namespace(output_dir=None, dataset=dataset, augmented=augmented)
        assert cli.output_folder(args) == SUITE / folder


def test_a_terminal_with_another_encoding_and_a_reader_that_leaves(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    finished = run_script("variance_analysis.py", tmp_path, PYTHONIOENCODING="ascii")
    assert finished.code == 0, finished.err
    assert "? bootstrap" in finished.out
    command = f"{sys.executable} evaluate_EM.py {tmp_path} | true"
    piped = subprocess.run(command, shell=True, cwd=SCRIPTS, capture_output=True, text=True, check=False)
    assert piped.stderr == ""


# The dry run.


def requests_of(folder: Path, *words: object) -> tuple[list[dict[str, Any]], str]:
    base = ["--baseline", "majority", "--dataset-path", folder, "--output-dir", folder / "out", "--dry-run"]
    finished = run_here("inference_baselines.py", *base, *words)
    assert finished.code == 0, finished.err
    [file] = (folder / "out").iterdir()
    assert file.name.startswith("requests_majority_ICL_")
    return [json.loads(line) for line in file.read_text().splitlines()], finished.out


def test_a_dry_run_writes_exactly_what_would_be_sent(data: Path) -> None:
    lines, out = requests_of(data)
    rows = four_problems()
    assert [line["problem_id"] for line in lines] == ["p1", "p2", "p3", "p4"]
    expected = []
    for number, item in enumerate(rows[:3]):
        sha = hashlib.sha256(item["image"]["bytes"]).hexdigest()
        parts = [{"type": "image", "sha256": sha}, {"type": "text", "text": item["question"]}]
        expected.append({"role": "user", "content": parts})
        if number < 2:
            expected.append({"role": "assistant", "content": [{"type": "text", "text": item["answer"]}]})
    assert lines[0]["turns"] == expected
    assert lines[0]["options"] is lines[0]["shown_order"] is lines[0]["correct_option"] is None
    size = sum(len(item["image"]["bytes"]) for item in rows)
    assert f"4 problems, 0 skipped, 4 unique requests, 12 images, {size} image bytes" in out


def test_a_dry_run_of_multiple_choice_and_equal_requests(tmp_path: Path) -> None:
    """One option each, so that the shuffle cannot tell the equal problems apart."""
    twins = [
        row(problem_id, order, "same", question="What?", image={"bytes": make_image(order), "path": None})
        for problem_id in ("t1", "t2")
        for order in (1, 2)
    ]
    folder = save_parquet(tmp_path / "d", [*four_problems(), *twins])
    lines, out = requests_of(folder, "--task_format", "mcqa", "--limit", 6)
    assert "6 problems, 0 skipped, 5 unique requests" in out
    assert lines[4]["request_key"] == lines[5]["request_key"] != lines[0]["request_key"]
    assert lines[3]["options"] == {"A": "Answer a", "B": "Answer b", "C": "Answer c"}
    assert sorted(lines[3]["shown_order"]) == ["A", "B", "C"]
    assert lines[3]["correct_option"] == "C"
    shown = "\n".join(f"{letter}. {lines[3]['options'][letter]}" for letter in lines[3]["shown_order"])
    assert shown in lines[3]["turns"][-1]["content"][1]["text"]


# The architecture.


def imported_modules(file: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or later, without `smmile.`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "smmile":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smmile."):
            found.add(str(node.module).removeprefix("smmile."))
    return found


def layer(module: str) -> int:
    """The number of the layer that a module belongs to; a longer entry outweighs a shorter one."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for number, members in enumerate(LAYERS):
            if ".".join(parts[:length]) in members:
                return number
    raise AssertionError(f"{module} belongs to no layer of smmile.LAYERS")


def test_no_module_imports_from_a_later_layer() -> None:
    package = SCRIPTS / "smmile"
    for file in package.rglob("*.py"):
        module = ".".join(file.relative_to(package).with_suffix("").parts)
        if module == "__init__":
            continue
        module = module.removesuffix(".__init__")
        for imported in imported_modules(file):
            assert layer(imported) <= layer(module), f"{module} imports {imported}"
    assert not imported_modules(package / "reporting" / "statistics.py")


def test_no_path_of_a_machine_is_committed() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=SUITE, capture_output=True, text=True, check=False)
    if files.returncode != 0:
        pytest.skip("needs a git checkout")
    home = re.compile(r"/(?:home|root|Users)/\w+")
    for name in files.stdout.splitlines():
        file = SUITE / name
        if file.suffix in (".py", ".md", ".toml", ".txt", ".tex", ".json", "") and file.is_file():
            assert not home.search(file.read_text(encoding="utf-8")), name


def test_the_environment_is_the_pinned_one() -> None:
    """What the tests ran with is what users get."""
    from importlib import metadata

    for line in (SUITE / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            package, version = line.split("==")
            assert metadata.version(package).split("+")[0] == version, package
    assert os.environ["HF_HUB_OFFLINE"] == "1"
