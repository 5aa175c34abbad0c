"""The first minutes: a Python that lacks packages or is too old, and the suite as an installed package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import SCRIPTS, SUITE, Finished, says_in_one_line

SCRIPT_NAMES = sorted(file.name for file in SCRIPTS.glob("*.py"))


def run_bare(*command: object) -> Finished:
    """Run Python in the scripts' folder without the environment's packages."""
    words = [sys.executable, "-S", *map(str, command)]
    done = subprocess.run(words, cwd=SCRIPTS, capture_output=True, text=True, timeout=60, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


# What each script needs on its command line to get as far as its imports.
ARGUMENTS = {
    "build_plusplus.py": ["--output", "new"],
    "evaluate_experts.py": [".", "ratings.json"],
    "inference_baselines.py": ["--baseline", "majority", "--dataset", "demo"],
    "inference_hf.py": ["--checkpoint", "org/name"],
    "inference_llava.py": ["--model_name", "llava_7b"],
    "inference_llava_mcqa.py": ["--model_name", "llava_7b"],
    "published_errata.py": ["--published", "."],
    "stratify.py": ["--eval_type", "em"],
    "sweep.py": ["sweep.toml"],
}


@pytest.mark.parametrize("script", SCRIPT_NAMES)
def test_a_missing_package_is_one_line_that_says_how_to_get_it(script: str) -> None:
    finished = run_bare(script, *ARGUMENTS.get(script, []))
    says_in_one_line(finished, "lacks the package ", "source ../.venv/bin/activate", "make setup")


def test_a_module_of_ours_that_is_missing_is_a_defect_and_keeps_its_traceback() -> None:
    code = "from smmile import cli\ndef main():\n    import smmile.no_such_module\ncli.run_script(main)"
    finished = run_bare("-c", code)
    assert finished.code == 1
    assert "Traceback" in finished.err
    assert "smmile.no_such_module" in finished.err


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13)])
def test_an_older_python_is_one_line(version: tuple[int, int, int]) -> None:
    code = f"import sys, runpy\nsys.version_info = {version}\nsys.argv = ['evaluate_EM.py']\n"
    finished = run_bare("-c", code + "runpy.run_path('evaluate_EM.py', run_name='__main__')")
    shown = ".".join(map(str, version))
    says_in_one_line(finished, f"this is Python {shown}; the suite needs Python 3.11 or newer")


def test_what_an_older_python_reads_first_uses_no_newer_syntax() -> None:
    """Otherwise it would end in a SyntaxError before the line above."""
    import ast

    for file in [*SCRIPTS.glob("*.py"), SCRIPTS / "smmile" / "__init__.py"]:
        ast.parse(file.read_text(), feature_version=(3, 8))


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_with_an_older_python_says_so_before_it_installs_anything(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(SUITE / name, tmp_path)
    older = tmp_path / "python3.10"
    older.write_text(
        "#!/bin/sh\n"
        f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10); exec(sys.argv[1])" "$2"\n'
    )
    older.chmod(0o755)
    for goal in ("setup", "demo"):
        words = ["make", goal, f"PYTHON={older}"]
        alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(words, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        said = [
            line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ***")
        ]
        assert len(said) == 1
        assert "is not Python 3.11 or newer" in said[0]
        assert f"make {goal} PYTHON=" in said[0]
    assert not (tmp_path / ".venv").exists()


def test_the_package_holds_all_its_files_and_names_its_dependencies(tmp_path: Path) -> None:
    """Builds the wheel's tree as pip does, and imports it from elsewhere."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(SUITE / name, source)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(SCRIPTS, source / SCRIPTS.name, ignore=ignore)
    code = f"from setuptools.build_meta import *\nprepare_metadata_for_build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True, timeout=60)
    code = "from setuptools import setup\nsetup()"
    words = [sys.executable, "-c", code, "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(words, cwd=source, capture_output=True, check=True, timeout=60)

    package = SCRIPTS / "smmile"
    files = {file.relative_to(package) for file in package.rglob("*.*") if "__pycache__" not in file.parts}
    built = tmp_path / "lib" / "smmile"
    assert {file.relative_to(built) for file in built.rglob("*.*")} == files

    [metadata] = tmp_path.glob("*.dist-info/METADATA")
    pinned = [
        line for line in (SUITE / "requirements.txt").read_text().splitlines() if line and line[0] != "#"
    ]
    listed = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(pinned)
    code = "import smmile.prompting.prompts as p, smmile; print(smmile.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(built)
