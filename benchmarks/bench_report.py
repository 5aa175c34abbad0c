"""Measures the report page in Chromium: its size, how soon it opens and filters, how smoothly it scrolls.

    python benchmarks/bench_report.py [--write] [--keep DIR]

Makes SMMILE++ with images like photographs (398 distinct ones of 0.3 MB) and 30 runs, 10 of them perturbed,
and builds the page with each `--images`. --write puts the table into docs/benchmarks.md; --keep leaves data
and pages in DIR, and uses those that are there. Needs Chromium. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from document import machine, markdown_table, write_section

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession

    from smmile.task import InferenceMode

SUITE = Path(__file__).resolve().parents[1]
SCRIPTS = SUITE / "inference_and_evaluation"

IMAGES = 398
BASE_PROBLEMS = {3: 90, 4: 21}  # by number of examples: 90 x 3! + 21 x 4! orders
MODELS = ("alpha-7b", "beta-13b", "gamma-72b", "delta-api", "epsilon-api")
CONDITIONS = ("shots=1", "shots=2", *(f"noise=random,noise_count={count}" for count in (1, 2, 4)))
FLAGS = {
    "speciality": ("radiology", "dermatology", "pathology", "ophthalmology", "cardiology"),
    "flag_image_type": ("X-ray", "photograph", "histology", "fundus", "ECG"),
    "flag_difficulty": ("easy", "hard"),
}
ANSWERS = ("Pneumothorax", "Melanoma", "Adenocarcinoma", "Glaucoma", "Atrial fibrillation", "No finding")
WORDS = (
    "the",
    "image",
    "shows",
    "irregular",
    "lesion",
    "with",
    "sharp",
    "margins",
    "near",
    "upper",
    "lobe",
)

# Filters as an address; each is set, and the time until its frame is on the screen is taken.
FILTERS = (
    *("show=wrong", "show=mixed", "show=one", "speciality=radiology", "models=alpha-7b"),
    *("mode=ICL&format=open", "perturbed=yes", "q=melanoma", "q=irregular lesion", ""),
)

WATCH_TASKS = """
window.longTasks = [];
new PerformanceObserver((seen) => window.longTasks.push(...seen.getEntries().map((one) => one.duration)))
  .observe({ entryTypes: ["longtask"] });
"""
FILTER = """(place) => new Promise((done) => {
  const started = performance.now();
  window.addEventListener("hashchange", () => requestAnimationFrame(() => {
    const channel = new MessageChannel();  // after the frame's style, layout and paint
    channel.port1.onmessage = () => done(performance.now() - started);
    channel.port2.postMessage(0);
  }), { once: true });
  location.hash = place;
})"""
SCROLL = """([selector, step]) => new Promise((done) => {
  const box = document.querySelector(selector) ?? document.scrollingElement;
  const frames = [];
  let last = performance.now();
  box.scrollTop = 0;
  const next = (now) => {
    frames.push(now - last);
    last = now;
    box.scrollTop += step;
    const isEnd = box.scrollTop + box.clientHeight >= box.scrollHeight;
    if (isEnd || frames.length > 240) done(frames.slice(2));
    else requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
})"""


def photographs() -> list[bytes]:
    """JPEG files of 1000 x 800 pixels with the spectrum of photographs and the noise of a sensor."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.fft.fftfreq(800), np.fft.rfftfreq(1000), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1e-3)
    found = []
    for _ in range(IMAGES):
        phases = np.exp(2j * np.pi * generator.random(falloff.shape))
        grey = np.fft.irfft2(falloff * phases, (800, 1000))
        coloured = 128 + 45 * grey[..., None] / grey.std() * generator.uniform(0.5, 1, 3)
        noisy = coloured + 12 * generator.standard_normal((800, 1000, 1)) + generator.uniform(-30, 30, 3)
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=83)
        found.append(out.getvalue())
    return found


def script(name: str, *words: object) -> float:
    """Run a script of the suite and return its CPU seconds. Raises where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, name, *map(str, words)]
    subprocess.run(command, cwd=SCRIPTS, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_data_set(work: Path) -> Path:
    """SMMILE++ of the photographs."""
    from datasets import Dataset, Features, Image, Value

    images, generator = photographs(), random.Random(0)
    print(f"images: {sum(map(len, images)) / len(images) / 1e6:.2f} MB each", flush=True)
    rows: list[dict[str, Any]] = []
    sizes = [examples for examples, count in BASE_PROBLEMS.items() for _ in range(count)]
    for number, examples in enumerate(sizes):
        flags = {name: generator.choice(values) for name, values in FLAGS.items()}
        answers = generator.sample(ANSWERS, 2)
        drawn = [*answers, *(generator.choice(answers) for _ in range(examples - 1))]
        rows += [
            {
                "problem_id": f"case-{number:03d}",
                "order": order,
                "question": f"Which diagnosis does the {flags['flag_image_type']} of case {number} show?",
                "answer": answer,
                "image": {"bytes": images[(len(rows) + order - 1) % IMAGES], "path": None},
                "image_url": f"https://images.invalid/{number}/{order}.jpg",
                **flags,
            }
            for order, answer in enumerate(drawn, start=1)
        ]
    features = Features({name: Value("string") for name in rows[0]})
    features |= {"image": Image(), "order": Value("int64")}
    (work / "base" / "data").mkdir(parents=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(work / "base/data/train.parquet")
    script("build_plusplus.py", "--dataset-path", work / "base", "--output", work / "data", "--cap", 24)
    return work / "data"


def make_runs(work: Path, data: Path) -> Path:
    """30 runs with requests and a judge's verdicts: those of a baseline, answered anew by each model."""
    folder = work / "results"
    folder.mkdir()
    for number, condition in enumerate(("", "task_format=mcqa", *CONDITIONS)):
        made = work / f"made-{number}"
        words = [f"--{part}" for part in condition.split(",") if part]
        words += ["--baseline", "random", "--dataset", "augmented", "--dataset-path", str(data)]
        script("inference_baselines.py", *words, "--output-dir", made)
        [file] = made.glob("result_*.json")
        for place, model in enumerate(MODELS[:2] if condition in CONDITIONS else MODELS):
            answer_anew(file, folder, model, "ICL", 0.3 + 0.1 * place)
            if condition not in CONDITIONS:
                answer_anew(file, folder, model, "0-shot", 0.2 + 0.1 * place)
        shutil.rmtree(made)
    script("evaluate_EM.py", folder)
    return folder


def answer_anew(file: Path, folder: Path, model: str, mode: InferenceMode, share: float) -> None:
    """Save the run of `file` as one of `model`, which is correct in about this share."""
    import msgspec

    from smmile.results.reading import read_run, result_files
    from smmile.results.schema import ResultFile, encode_result_file
    from smmile.scoring.evaluation import Verdict, make_evaluation
    from smmile.scoring.judge.judged_runs import score_verdicts

    [(name, found)] = result_files(file.parent).items()
    results = read_run(name, found)
    assert results.run is not None
    generator = random.Random(f"{model} {mode} {name.stem}")
    records, verdicts = [], list[Literal[0, 1]]()
    for record in results.records:
        is_correct = generator.random() < share
        response = " ".join(generator.choices(WORDS, k=30))
        answer = record.true_answer if is_correct else response
        options = record.options
        if options is not None:
            letter = record.correct_option if is_correct else generator.choice(list(options))
            record = msgspec.structs.replace(record, selected_option=letter, is_correct=is_correct)
            answer, response = options[letter or "A"], f"{response}. The answer is {letter}."
        turns = record.turns if mode == "ICL" or not record.turns else record.turns[-1:]
        records.append(
            msgspec.structs.replace(
                record,
                generated_answer=answer,
                full_response=response if options else answer,
                turns=turns,
            )
        )
        verdicts.append(1 if is_correct or generator.random() < 0.15 else 0)
    run = dataclasses.replace(results.run, model=model, checkpoint=f"org/{model}", inference_mode=mode)
    file = folder / f"{run.name.stem}.json"
    file.write_bytes(encode_result_file(ResultFile(run, tuple(records))))
    if run.task_format == "open":
        saved = read_run(run.name, file)
        by_id = {
            record.problem_id: Verdict(verdict, f"{verdict}")
            for record, verdict in zip(records, verdicts, strict=True)
        }
        evaluation = make_evaluation(score_verdicts(saved, verdicts), saved, verdicts=by_id)
        (folder / f"{run.name.stem}_evaluationllm.json").write_bytes(msgspec.json.encode(evaluation))


def frame_times(frames: Sequence[float]) -> str:
    """Median, 95th percentile and maximum of frame times in ms."""
    ordered = sorted(frames)
    return f"{statistics.median(ordered):.0f} / {ordered[int(0.95 * len(ordered))]:.0f} / {ordered[-1]:.0f}"


def busy_seconds(session: CDPSession) -> float:
    """CPU seconds of the page's main thread."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def measure(browser: Browser, file: Path) -> tuple[str, ...]:
    """Seconds until the list is there and until all is, the filters, and frames while the views scroll.

    Times are the best of three; frames are of the last.
    """
    opened, loaded, rounds = [], [], []
    for _ in range(3):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.add_init_script(WATCH_TASKS)
        started = time.perf_counter()
        page.goto(f"{file.as_uri()}#problems", timeout=120_000, wait_until="commit")
        page.wait_for_selector("#list li")
        opened.append(time.perf_counter() - started)
        page.wait_for_load_state("load", timeout=120_000)
        loaded.append(time.perf_counter() - started)
        page.wait_for_timeout(2000)
        session = context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        rounds.append([page.evaluate(FILTER, f"problems?{place}") for place in FILTERS])
        cells = []
        for place, selector in (("problems", "#list"), ("problems?id=case-100", "html")):
            page.evaluate(FILTER, place)
            page.wait_for_timeout(500)
            page.evaluate("window.longTasks.length = 0")
            before = busy_seconds(session)
            frames = page.evaluate(SCROLL, [selector, 80])
            busy = 1000 * (busy_seconds(session) - before) / len(frames)
            tasks = page.evaluate("window.longTasks.length")
            cells.append(f"{frame_times(frames)}; {tasks} long tasks; {busy:.0f} ms CPU a frame")
        context.close()
    filters = list(map(min, *rounds))
    times = f"{min(opened):.1f} s", f"{min(loaded):.1f} s"
    return *times, f"{statistics.median(filters):.0f} / {max(filters):.0f} ms", *cells


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for data and pages")
    args = parser.parse_args()
    sys.path.insert(0, str(SCRIPTS))
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        work = (args.keep or Path(temporary)).resolve()
        data, folder = work / "data", work / "results"
        if not folder.is_dir():
            make_runs(work, data if data.is_dir() else make_data_set(work))
        lines = []
        for images in ("thumb", "full", "link", "none"):
            file = work / f"{images}.html"
            words = ("--images", images, "--perturbed", "--dataset-path", data)
            seconds = script("build_report.py", folder, "--output", file, *words)
            browser = playwright.chromium.launch(
                executable_path=program, args=["--no-sandbox", "--disable-gpu"]
            )
            measured = measure(browser, file)
            browser.close()
            size = f"{file.stat().st_size / 1e6:.0f} MB"
            lines.append((images, f"{seconds:.0f} s", size, *measured))
            print(lines[-1], flush=True)
    head = (
        *("`--images`", "build, CPU", "page", "opens in", "all loaded in"),
        *("a filter takes (median / most)", "the list scrolls", "a problem scrolls"),
    )
    text = f"Measured on {machine()}.\n\n{markdown_table(head, lines)}"
    print(text)
    if args.write:
        write_section("benchmarks/bench_report.py", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
