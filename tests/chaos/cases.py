"""The disturbances: each is a case that checks what a user was promised; its name repeats it."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as change
from pathlib import Path

from chaos.crashes import CrashPoint
from chaos.mutations import broken, foreign
from chaos.processes import Child, Ended
from chaos.service import FAULTS, Served
from chaos.tasks import (
    API_TASKS,
    CONCURRENCY,
    KEY,
    LOCAL_TASKS,
    SCORING_TASKS,
    SPENDING_TASKS,
    Bench,
    Task,
    contents,
    keys_served,
    saved_answers,
)

# Of one command, in seconds and megabytes. A response may have 64 MB, and several are in flight.
LONGEST, MOST_MEMORY = 30.0, 1_000.0
# Requests in flight, and answers that wait for the disk.
_IN_FLIGHT = 4 * CONCURRENCY


@dataclass
class Report:
    """What a case did and found: `done` disturbances, and violations by kind."""

    case: str
    done: int = 0
    served: int = 0
    longest: float = 0.0
    most_memory: float = 0.0
    violations: list[tuple[str, str]] = field(default_factory=list)

    def violation(self, kind: str, text: str) -> None:
        self.violations.append((kind, text))


class Case:
    """One task in one folder, run again and again until it is complete."""

    def __init__(self, name: str, bench: Bench, task: Task, rng: random.Random, report: Report) -> None:
        self.bench, self.task, self.rng, self.report = bench, task, rng, report
        self.usual = bench.undisturbed(task)
        bench.service.served()
        self.folder = bench.folder(task.inputs)
        # Too little for the run, or plenty.
        self.limit = self.usual.dollars * rng.choice([rng.uniform(0.2, 1.2), 10.0])
        self.spent = 0.0
        if task.service:
            bench.service.behave(change(task.service, seed=rng.randrange(2**32)))

    def run(
        self,
        disturb: Callable[[list[Child]], bool] = lambda _: False,
        first: Callable[[], None] = lambda: None,
        more: str = "",
        folder_lost: bool = False,
    ) -> Ended:
        """Run the task once, disturbed by `disturb`, and check what it left; returns the first process."""
        before = self.saved()
        children = self.bench.start(self.task, self.folder, self.limit, first, more)
        self.report.done += disturb(children)
        for child in children:
            if not child.wait(LONGEST):
                child.kill()
                self.report.violation("time", f"more than {LONGEST:.0f} s")
        ended = [child.end() for child in children]
        served = self.bench.service.served() if self.task.service else []
        self.spent += sum(one.dollars for one in served)
        self.report.served += len(served)
        for one in ended:
            self.check_end(one)
        if not folder_lost:
            self.check_answers(before, self.saved(), served)
        if self.spent > self.limit * 1.000001:
            self.report.violation("over the limit", f"{self.spent:.4f} dollars billed of {self.limit:.4f}")
            self.limit = self.spent  # reported once
        return ended[0]

    def finish(self, exact: bool = True) -> None:
        """Run the task until it is complete, and compare what it left with an undisturbed run."""
        if self.task.service:
            self.bench.service.behave(self.task.service)
        for _ in range(40):
            ended = self.run()
            if ended.code != 2 or "--max-cost" not in ended.text:
                break
            self.limit *= 1.6
        if ended.code != self.usual.code:
            last = ended.text.strip().splitlines()[-1:]
            self.report.violation("not completed", f"exit code {ended.code}, not {self.usual.code}: {last}")
        elif exact:
            for text in differences(self.usual.files, contents(self.folder)):
                self.report.violation("result", text)

    def saved(self) -> dict[str, str]:
        try:
            return saved_answers(self.folder)
        except ValueError as error:
            self.report.violation("torn", f"a result file or journal is not whole: {error}")
            return {}

    def check_end(self, ended: Ended) -> None:
        report, lines = self.report, ended.text.strip().splitlines()
        report.longest = max(report.longest, ended.seconds)
        report.most_memory = max(report.most_memory, ended.megabytes)
        if "Traceback" in ended.text:
            where = re.findall(
                r"File \S+/([^/\"]+\", line \d+)|^(\w[\w.]+Error\b.*)", ended.text, re.MULTILINE
            )
            report.violation("traceback", " … ".join("".join(parts)[:200] for parts in where[-3:]))
        elif ended.code not in (0, 2, 3, -9):
            report.violation("exit code", f"{ended.code}: {lines[-1:]}")
        if ended.megabytes > MOST_MEMORY:
            report.violation("memory", f"{ended.megabytes:.0f} MB")
        if KEY in ended.text:
            report.violation("key shown", " … ".join(line for line in lines if KEY in line))

    def check_answers(self, before: dict[str, str], after: dict[str, str], served: list[Served]) -> None:
        """Nothing saved is lost or repeated, and what was answered and not saved was in flight."""
        report = self.report
        if lost := [key for key, text in before.items() if after.get(key) != text]:
            report.violation("lost", f"{len(lost)} saved answers, such as that to {lost[0]}")
        keys = keys_served(served, self.task)
        if again := before.keys() & set(keys):
            report.violation(
                "asked twice", f"{len(again)} questions with a saved answer, such as {min(again)}"
            )
        done = Counter(key for key, one in zip(keys, served, strict=True) if one.done and not one.refused)
        if several := [key for key, count in done.items() if count > 1]:
            report.violation("asked twice", f"{several[0]} by one process that had its answer")
        if len(unsaved := done.keys() - after.keys()) > _IN_FLIGHT:
            report.violation("lost", f"{len(unsaved)} answers to one process, of {_IN_FLIGHT} in flight")
        if any(one.elsewhere for one in served):
            report.violation("redirected", "prompts were sent to another host")


def differences(expected: Mapping[str, object], found: Mapping[str, object]) -> Iterable[str]:
    """What differs between two folders, a line each."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{re.sub('[0-9]+[.]tmp', 'N.tmp', name)} is left over"
        elif expected[name] != found[name]:
            yield f"{name} differs: {_place(expected[name], found[name])}"


def _place(expected: object, found: object, place: str = "") -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        pairs = [(name, expected.get(name), found.get(name)) for name in {**expected, **found}]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(index, *both) for index, both in enumerate(zip(expected, found, strict=True))]
    else:
        return f"{place} is {str(found)[:80]}, not {str(expected)[:80]}"
    return next(
        (_place(one, other, f"{place}.{name}") for name, one, other in pairs if one != other), place
    )


def kill(name: str, bench: Bench, rng: random.Random, report: Report) -> None:
    """A run of inference or of the judge, killed one to six times."""
    case = Case(name, bench, rng.choice([*SPENDING_TASKS, *SPENDING_TASKS, *LOCAL_TASKS]), rng, report)

    def kill_at_random(children: list[Child]) -> bool:
        if case.task.service and rng.random() < 0.7:  # among the answers
            target = bench.service.arrived + rng.randint(1, 12)
            while bench.service.arrived < target and not children[0].wait(0.001):
                pass
            children[0].wait(rng.random() * 0.03)
        else:  # at any moment
            children[0].wait(rng.random() * case.usual.seconds * 1.1)
        alive = [child for child in children if not child.wait(0)]
        for child in alive:
            child.kill()
        return bool(alive)

    for _ in range(rng.randint(1, 6)):
        case.run(kill_at_random)
    case.finish()


def crash(name: str, bench: Bench, rng: random.Random, report: Report) -> None:
    """A command that ends at one of the calls by which it changes files, up to three times."""
    tasks = [
        task for task in (*SPENDING_TASKS, *LOCAL_TASKS, *SCORING_TASKS) if "--visual" not in task.command
    ]
    case = Case(name, bench, change(rng.choice(tasks), processes=1), rng, report)
    for _ in range(rng.randint(1, 3)):
        number = rng.randint(1, case.usual.steps)
        point = CrashPoint(case.folder, number, rng.choice(["before", "half", "after"]))
        ended = case.run(first=point.install)
        report.done += ended.code == -9
    case.finish()


def fault(name: str, bench: Bench, rng: random.Random, report: Report) -> None:
    """A service that misbehaves in one way, and then recovers."""
    number = int(name.rpartition("/")[2])
    task = API_TASKS[number // len(FAULTS) % len(API_TASKS)]
    case = Case(name, bench, task, rng, report)
    kind = FAULTS[number % len(FAULTS)]
    rate = 0.05 if kind in ("huge", "bomb") else rng.choice([0.2, 1.0])
    assert task.service is not None
    bench.service.behave(change(task.service, fault=kind, rate=rate, seed=rng.randrange(2**32)))
    report.case += f" {kind}"
    case.run(lambda _: True, more=f"--limit 8 --timeout 1 --max-retries {rng.randint(0, 1)}")
    case.finish(exact=False)


def full_disk(name: str, bench: Bench, rng: random.Random, report: Report) -> None:
    """A full or failing disk, a limit on the size of files, or a folder that is deleted in mid-run."""
    number = int(name.rpartition("/")[2])
    how = ("limit", "full", "fails", "deleted")[number % 4]
    if how == "full" and not _can_mount():
        how = "limit"
    tasks = API_TASKS if how == "deleted" else (*API_TASKS, *LOCAL_TASKS, *SCORING_TASKS[:7])
    case = Case(name, bench, change(rng.choice(tasks), processes=1), rng, report)
    report.case += f" {how}"
    if how == "deleted":
        _deleted_folder(case)
    elif how == "full":
        _full_disk(case)
    else:
        size = rng.randrange(int(case.usual.largest * 1.1))
        point = CrashPoint(case.folder, rng.randint(1, case.usual.steps), "fail")

        def limit_files() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        ended = case.run(first=point.install if how == "fails" else limit_files)
        report.done += ended.code == 2
    case.finish(exact=how != "deleted")


def _full_disk(case: Case) -> None:
    """Runs in a file system of its own; the rest of the case has more space."""
    kilobytes = 4 * case.rng.randint(1, 40) + sum(
        file.stat().st_size // 1024 + 4 for file in case.folder.rglob("*")
    )
    copy = case.folder.with_name("copy")
    case.folder.rename(copy)
    case.folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(case.folder)]
    subprocess.run(mount, check=True)
    try:
        shutil.copytree(copy, case.folder, dirs_exist_ok=True)
        case.report.done += case.run().code == 2
        shutil.rmtree(copy)
        shutil.copytree(case.folder, copy)
    finally:
        subprocess.run(["umount", str(case.folder)], check=True)
    case.folder.rmdir()
    copy.rename(case.folder)


def _can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _deleted_folder(case: Case) -> None:
    service, gone, before = case.bench.service, 0, 0

    def delete(children: list[Child]) -> bool:
        nonlocal gone, before
        target = service.arrived + case.rng.randint(2, 6)
        while service.arrived < target and not children[0].wait(0.001):
            pass
        if children[0].wait(0):
            return False
        before = len(case.saved())
        shutil.rmtree(case.folder)
        gone = service.arrived
        return True

    deleted = case.report.done
    ended = case.run(delete, folder_lost=True)
    if case.report.done > deleted:
        if (more := service.arrived - gone) > _IN_FLIGHT:
            case.report.violation("asked on", f"{more} requests after the output folder was deleted")
        if ended.code != 2:
            case.report.violation("exit code", f"{ended.code} with the output folder deleted")
        case.folder.mkdir(exist_ok=True)
        if case.task.inputs:
            shutil.copytree(case.bench.inputs(case.task.inputs), case.folder, dirs_exist_ok=True)
        for file in map(Path, re.findall(r"/[^\s,;:]+[.]jsonl", ended.text)):
            if file.exists() and not file.is_relative_to(case.folder):
                file.replace(case.folder / file.name)
        if (lost := before - len(case.saved())) > _IN_FLIGHT:
            case.report.violation("lost", f"{lost} answers with the output folder")


# The files of a folder that are broken, and what reads them.
_READ_BY = tuple(
    (pattern, tuple(task for task in SCORING_TASKS if re.match(scripts, task.command)))
    for pattern, scripts in (
        (r"result_\w+_(open|mcqa)[.](json|csv)", "."),
        (
            r"result_\w+_evaluation(llm|mcqa)?[.]json",
            "variance|compare|stratify|evaluate_LLM|build_|export|evaluate_ex",
        ),
        (r"judge_.*[.]jsonl", "evaluate_LLM"),
        (r"(review_key|ratings)[.]json", "evaluate_experts|build_review"),
        (r"model_\w+[.]json|comparison[.]json", "stratify|compare|build_report"),
    )
)
_TOML = """inference_mode = ["ICL", "0-shot"]
task_format = "open"
conditions = [{}, { images = "none" }, { labels = "random" }]
models = [{ script = "inference_baselines.py", baseline = ["majority", "nearest"], inference_mode = "ICL" }]
"""
_SWEEP = Task("sweep.py {folder}/sweep.toml --dry-run --dataset-path {data} --output-dir {folder}")
_PRICED = Task(API_TASKS[0].command.replace("{prices}", "{folder}/prices.json") + " --dry-run")
_CONTINUED = change(API_TASKS[0], inputs="partial")
_JUDGED = change(API_TASKS[4], inputs="scored")


def mutate(name: str, bench: Bench, rng: random.Random, report: Report) -> None:
    """A broken file, and a command that reads it."""
    inputs = rng.choice(["scored"] * 6 + ["partial", "answers", "sweep", "prices"])
    folder = bench.folder("" if inputs in ("sweep", "prices") else inputs)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if inputs == "scored":
        pattern, tasks = rng.choice(_READ_BY)
        file = rng.choice([file for file in files if re.fullmatch(pattern, file.name)])
        task = rng.choice(
            [*tasks, _JUDGED] if file.name.startswith(("judge", "result_m_ICL_open")) else tasks
        )
    elif inputs in ("partial", "answers"):
        file, task = files[0], _CONTINUED
    elif inputs == "sweep":
        file, task = folder / "sweep.toml", _SWEEP
        file.write_text(_TOML)
    else:
        file, task = folder / "prices.json", _PRICED
        shutil.copy(bench.prices, file)
    is_foreign = inputs == "partial" and rng.random() < 0.3
    content = foreign(file.read_bytes()) if is_foreign else broken(file.read_bytes(), file.name, rng)
    file.write_bytes(content)
    report.case += f" {file.name} {task.command.split()[0]}"
    report.done += 1
    case = Case.__new__(Case)
    case.bench, case.task, case.rng, case.report, case.folder = bench, task, rng, report, folder
    if task.service:
        bench.service.behave(task.service)
    [child] = bench.start(task, folder)
    if not child.wait(LONGEST):
        child.kill()
        report.violation("time", f"more than {LONGEST:.0f} s")
    ended = child.end()
    case.check_end(ended)
    bench.service.served()
    said = ended.text.replace("\n", " ")
    run = re.sub(r"_evaluation\w*$|[.]partial$", "", file.stem)
    named = {file.name, run, run.removeprefix("result_")}
    if not run.startswith("result_"):  # it may name runs, and be contradicted by them
        named |= {other.name for other in files}
    if ended.code in (2, 3) and not any(name in said for name in named):
        report.violation("not named", f"{ended.code}: {said[-200:]}")
    if is_foreign and ended.code != 2:
        report.violation("mixed", f"exit code {ended.code} with a journal of another run and version")
    is_input = inputs == "scored" and re.fullmatch(_READ_BY[0][0], file.name)
    if (is_input or ended.code == 2) and (not file.exists() or file.read_bytes() != content):
        report.violation("changed", f"the broken file, with exit code {ended.code}")


CASES: dict[str, Callable[[str, Bench, random.Random, Report], None]] = {
    "kills": kill,
    "crash-points": crash,
    "faults": fault,
    "disks": full_disk,
    "mutations": mutate,
}


def run_case(name: str, seed: int, bench: Bench) -> Report:
    """Run the case `name` (KIND/NUMBER); the same name and seed make the same choices."""
    report = Report(name)
    rng = random.Random(f"{seed} {name}")
    CASES[name.partition("/")[0]](name, bench, rng, report)
    for folder in bench.root.glob("run*"):
        shutil.rmtree(folder, ignore_errors=True)
    return report
