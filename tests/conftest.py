"""Small data made on the spot, and the scripts as their users run them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import hashlib
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from smmile.data.images import StoredImage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Request

SUITE = Path(__file__).resolve().parents[1]
SCRIPTS = SUITE / "inference_and_evaluation"
SHARED = SUITE.parent / "shared"
# What git leaves in place of a file without git-lfs.
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

# Set before any library reads them. No test uses the hub (a server on loopback stands in for it) or the
# user's cache, and several test processes share the cores.
_CACHE = tempfile.mkdtemp(prefix="smmile_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
for _name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
    os.environ.pop(_name, None)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _CACHE, "OMP_NUM_THREADS": "1"}
os.environ["COLUMNS"] = "300"  # tables have all their columns


os.fsync = lambda fd: None  # no test cuts the power, and runs sync after each response

_FROZEN: set[int] = set()


def pytest_runtest_setup() -> None:
    """Take what has been imported out of garbage collection, which is half of a tiny run's time else."""
    if len(sys.modules) not in _FROZEN:
        _FROZEN.add(len(sys.modules))
        gc.collect()
        gc.freeze()


def make_image(shade: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """An encoded image of one colour, another for each `shade`."""
    out = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256 % 256, 77)).save(out, kind)
    return out.getvalue()


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    """An image as a file's bytes."""
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def stored(content: bytes) -> StoredImage:
    """An image as a data set has it."""
    return StoredImage(hashlib.sha256(content).hexdigest(), len(content), content)


def row(problem_id: str | None, order: Any, answer: str | None = "yes", **other: Any) -> dict[str, Any]:
    """One row of a data set; the image's colour follows from id and order."""
    shade = sum(map(ord, str(problem_id))) * 31 + hash_order(order)
    return {
        "question": f"What is seen in {problem_id}?",
        "answer": answer,
        "image": {"bytes": make_image(shade), "path": None},
        "image_url": f"https://images.invalid/{problem_id}/{order}.png",
        "problem_id": problem_id,
        "order": order,
        "speciality": "radiology",
        "flag_answer_format": "free response",
    } | other


def hash_order(order: Any) -> int:
    return order * 7 if isinstance(order, int) else 3


def save_parquet(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Save rows as a data set folder in the hub's layout."""
    from datasets import Dataset, Features, Image, Value

    features = Features({name: Value("string") for name in rows[0]})
    if "image" in features:
        features["image"] = Image()
    if "order" in features and all(isinstance(item["order"], int) for item in rows):
        features["order"] = Value("int64")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset = Dataset.from_list([dict(item) for item in rows], features=features)
    dataset.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    return folder


def four_problems() -> list[dict[str, Any]]:
    """Four plain problems of three rows."""
    answers = {"p1": "aba", "p2": "bab", "p3": "aab", "p4": "abc"}
    return [
        row(problem_id, order, f"Answer {letter}")
        for problem_id, letters in answers.items()
        for order, letter in enumerate(letters, start=1)
    ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a tiny checkpoint, which is made at the first call."""
    from original_llava import save_original_llava
    from tiny_checkpoints import save_tiny

    folder = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def checkpoint(name: str) -> Path:
        if name == "original_llava":
            return save_original_llava(folder / name)
        return save_tiny(name, folder / name)

    return checkpoint


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The four problems as a data set folder."""
    return save_parquet(tmp_path / "data_set", four_problems())


@pytest.fixture(scope="session")
def shared() -> Path:
    """The published data beside the project; tests that need it are skipped where it is not."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the published data in ../shared, which is not here")
    return SHARED


@pytest.fixture
def published(shared: Path, tmp_path: Path) -> Path:
    """A copy of the published results, for scripts to write into."""
    folder = tmp_path / "published"
    shutil.copytree(shared / "data" / "published_results", folder)
    folder.chmod(0o755)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures hold the text of their plan, for tests of which there are: drawing takes half a second."""
    monkeypatch.setattr("smmile.reporting.figures.draw", lambda *what: repr(what).encode())


@dataclass(frozen=True)
class Finished:
    """What a script left behind."""

    code: int
    out: str
    err: str


def script_command(name: str, *words: object) -> list[str]:
    return [sys.executable, name, *map(str, words)]


def scripted_command(name: str, *words: object) -> list[str]:
    """A script with a scripted model in place of a real one, which needs no torch."""
    return script_command(str(SUITE / "tests" / "scripted_model.py"), name, *words)


def run_script(name: str, *words: object, **environment: str) -> Finished:
    """Run a script as its users do, from its own folder."""
    return run_command(script_command(name, *words), **environment)


def run_command(command: Sequence[str], **environment: str) -> Finished:
    """Run a command in the scripts' folder."""
    done = subprocess.run(
        command,
        cwd=SCRIPTS,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def run_here(name: str, *words: object, **environment: str) -> Finished:
    """Run a script in this process, which has the heavy libraries in memory already.

    Libraries have read their part of the environment: `environment` is for what the suite reads.
    """
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, Path.cwd(), signal.getsignal(signal.SIGTERM), dict(os.environ)
    sys.argv = [name, *map(str, words)]
    os.environ.update(environment)
    os.chdir(SCRIPTS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
        signal.signal(signal.SIGTERM, before[2])
        os.environ.clear()
        os.environ.update(before[3])
    return Finished(code, out.getvalue(), err.getvalue())


def says_in_one_line(finished: Finished, *parts: str) -> None:
    """Wrong usage: exit code 2 and one line that has `parts` in it."""
    assert finished.code == 2, finished
    lines = finished.err.strip().splitlines()
    assert len(lines) == 1, finished.err
    for part in parts:
        assert part in lines[0], finished.err


# The first two are for containers; the others keep Chromium itself from the network.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Chromium:
    """Opens pages in the system's Chromium, and collects what no page of ours may do in `complaints`."""

    browser: Browser
    program: str
    complaints: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    def open(self, file: Path, profile: Path | None = None, **options: Any) -> Page:
        """The page of a local file; `options` are those of Playwright's contexts, such as `viewport`.

        A browser of its own with this `profile`, a folder, remembers what earlier ones stored; close the
        page's context before the next. Without, the page starts with nothing stored.
        """
        if profile is None:
            context = self.browser.new_context(**options)
        else:
            kind = self.browser.browser_type
            context = kind.launch_persistent_context(
                profile, executable_path=self.program, args=CHROMIUM_FLAGS, **options
            )
        self.contexts.append(context)
        page = context.new_page()
        page.on("dialog", self._on_dialog)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        page.on("request", self._on_request)
        page.goto(file.resolve().as_uri())
        return page

    def _on_dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Request) -> None:
        if not request.is_navigation_request() and not request.url.startswith(("data:", "blob:")):
            self.complaints.append(f"request: {request.url}")


@pytest.fixture(scope="module")
def _browser() -> Iterator[tuple[Browser, str]]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs Chromium or Chrome, which is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield browser, program
        browser.close()


@pytest.fixture
def chromium(_browser: tuple[Browser, str]) -> Iterator[Chromium]:
    """The system's Chromium; a test fails if its pages send requests, raise errors or open dialogs."""
    chromium = Chromium(*_browser)
    yield chromium
    for context in chromium.contexts:
        context.close()
    assert not chromium.complaints


def compile_latex(folder: Path, tables: str, size: str = "10pt") -> Path:
    """The PDF of a page with these tables, which have to compile and to fit; skips without LaTeX."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex with booktabs")
    (folder / "document.tex").write_text(
        f"\\documentclass[{size},letterpaper]{{article}}\\usepackage[margin=1in]{{geometry}}"
        f"\\usepackage{{booktabs}}\\begin{{document}}{tables}\\end{{document}}"
    )
    done = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "document.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "Float too large" not in done.stdout
    return folder / "document.pdf"
