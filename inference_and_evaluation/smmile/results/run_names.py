"""Names of runs and models in file names, evaluations and the paper's tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from smmile.task import MODES, InferenceMode, TaskFormat

# These come first in every table, in this order; all others follow, sorted by file name.
BASELINES = ("majority", "random", "nearest", "llama33textonly")

# Names of models in the published evaluation files, where they differ.
_EVALUATION_NAMES = {
    "llava_7b": "llava_7B",
    "llava_13b": "llava_13B",
    "llavanext_7b": "llavanext_7B",
    "llavaonevision_7b": "llavaonevision_7B",
    "llavaonevision_0.5b": "llavaonevision_0.5B",
    "llavamed": "llavamed_7B",
} | {name: f"{name} (baseline)" for name in BASELINES}

# Names of models in the paper's LaTeX tables.
_LATEX_NAMES = {
    "majority": "Majority",
    "random": "Random",
    "nearest": "Nearest image",
    "llama33textonly": "Text only$^*$",
    "MedVLM-R1": "MedVLM-R1",
    "claude-3-7-sonnet": "Claude 3.7 Sonnet",
    "gpt-4o": "GPT-4o",
    "llama32_vision_90b": "Llama-3.2-Vision-90B",
    "llava_13b": "LLaVA-v1.5-13B",
    "llava_7b": "LLaVA-v1.5-7B",
    "llavanext_7b": "LLaVa-v1.6-Mistral-7B",
    "llavaonevision_0.5b": "LLaVA-Onevision-0.5B",
    "llavaonevision_7b": "LLaVA-Onevision-7B",
    "llavamed": "LLaVA-Med$^{**}$",
    "qwen3B": "Qwen2.5-VL-3B",
    "qwen7B": "Qwen2.5-VL-7B",
    "qwen32B": "Qwen2.5-VL-32B",
    "qwen72B": "Qwen2.5-VL-72B",
    "medgemma_4b": "MedGemma 4B Multimodal",
}

_STEM = re.compile(
    r"result_(?P<model>.+)_(?P<mode>ICL|0-shot)"
    r"(?:_(?P<format>open|mcqa)(?:_(?P<perturbation>[^_].*))?)?",
    re.DOTALL,
)
_EVALUATION = re.compile(r"_evaluation[a-z]*\Z")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def file_safe(name: str) -> str:
    """`name` with every character outside A-Za-z0-9._- replaced by a dash, for use in a file name."""
    return _UNSAFE.sub("-", name)


def is_evaluation(stem: str) -> bool:
    """Whether a file name (without suffix) is that of an evaluation."""
    return _EVALUATION.search(stem) is not None


@dataclass(frozen=True, order=True)
class RunName:
    """What distinguishes a run from the others in its folder."""

    model: str
    mode: InferenceMode
    task_format: TaskFormat
    perturbation: str = ""

    @classmethod
    def of(
        cls, model: str, mode: InferenceMode, task_format: TaskFormat, perturbations: Iterable[str]
    ) -> RunName:
        """The name of a run of `model` with the named perturbations, safe in file names."""
        return cls(file_safe(model), mode, task_format, "+".join(map(file_safe, perturbations)))

    @property
    def perturbations(self) -> list[str]:
        """The names of its perturbations."""
        return self.perturbation.split("+") if self.perturbation else []

    @property
    def stem(self) -> str:
        """The name of the run's result file, without its suffix."""
        tail = f"_{self.perturbation}" if self.perturbation else ""
        return f"result_{self.model}_{self.mode}_{self.task_format}{tail}"

    @classmethod
    def parse(cls, stem: str) -> RunName | None:
        """The run that a file name (without suffix) belongs to; None if it is not a result file's.

        The published open files of some models end with the mode.
        """
        match = _STEM.fullmatch(stem)
        if match is None or is_evaluation(stem):
            return None
        return cls(
            match["model"],
            "ICL" if match["mode"] == "ICL" else "0-shot",
            "mcqa" if match["format"] == "mcqa" else "open",
            match["perturbation"] or "",
        )

    @property
    def sort_key(self) -> tuple[int, str, str, int]:
        """Baselines first, then by file name; 0-shot before ICL for each model."""
        rank = BASELINES.index(self.model) if self.model in BASELINES else len(BASELINES)
        return (rank, f"{self.model}_", self.perturbation, MODES.index(self.mode) * -1)

    @property
    def label(self) -> str:
        """Model and perturbations for a text table."""
        return f"{self.model} [{self.perturbation}]" if self.perturbation else self.model


def evaluation_name(model: str) -> str:
    """The model's name inside evaluation files."""
    return _EVALUATION_NAMES.get(model, model)


def paper_name(model: str) -> str:
    """The model as the paper calls it, without the marks of its notes; another by its name in files."""
    return re.sub(r"\$.*?\$", "", latex_name(model) or "") or model


def latex_name(model: str) -> str | None:
    """The model's name in the paper's tables, as LaTeX; None if the paper does not include it."""
    return _LATEX_NAMES.get(model)
