"""Prompts match the published responses, which echo the whole prompt without images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from conftest import run_here

# Script, result name, and the end of the published file's name.
PUBLISHED = [
    ("inference_llava.py --model_name llava_7b", "llava_7b", "open", ""),
    ("inference_llava_mcqa.py --model_name llava_7b", "llava_7b", "mcqa", "_mcqa"),
    ("inference_llava.py --model_name llavaonevision_7b", "llavaonevision_7b", "open", ""),
    ("inference_llava_mcqa.py --model_name llavaonevision_7b", "llavaonevision_7b", "mcqa", "_mcqa"),
    ("inference_qwen.py --models 72B", "qwen72B", "open", "_open"),
]


@pytest.mark.parametrize("mode", ["0-shot", "ICL"])
@pytest.mark.parametrize(("command", "name", "task_format", "ending"), PUBLISHED)
def test_prompt_texts_occur_in_order_in_the_published_response(
    command: str, name: str, task_format: str, ending: str, mode: str, shared: Path, tmp_path: Path
) -> None:
    finished = run_here(
        *command.split(),
        *("--dataset-path", shared / "data" / "smmile_recovered", "--output-dir", tmp_path),
        *("--inference_mode", mode, "--dry-run"),
    )
    assert finished.code == 0, finished.err
    published = shared / "data" / "published_results" / f"result_{name}_{mode}{ending}.csv"
    with published.open(encoding="utf-8", newline="") as stream:
        responses = {row["problem_id"]: row["full_response"] for row in csv.DictReader(stream)}
    requests = (tmp_path / f"requests_{name}_{mode}_{task_format}.jsonl").read_text().splitlines()
    assert len(requests) == len(responses) == 111
    for line in requests:
        request = json.loads(line)
        texts = [
            part["text"] for turn in request["turns"] for part in turn["content"] if part["type"] == "text"
        ]
        assert len(texts) == len(request["turns"])
        assert (len(texts) == 1) == (mode == "0-shot")
        echo, position = responses[request["problem_id"]], 0
        for text in texts:
            found = echo.find(text.strip(), position)
            assert found >= 0, (request["problem_id"], text)
            position = found + len(text.strip())


# Families without published files here: their turns as the protocol specifies them.
MARKED = {"image": "<image>"}


def turns_of(command: str, name: str, task_format: str, tmp_path: Path) -> list[tuple[str, list[str]]]:
    finished = run_here(
        *command.split(),
        *("--dataset", "demo", "--output-dir", tmp_path, "--limit", 1),
        *("--task_format", task_format, "--dry-run"),
    )
    assert finished.code == 0, finished.err
    [line] = (tmp_path / f"requests_{name}_ICL_{task_format}.jsonl").read_text().splitlines()
    return [
        (turn["role"], [MARKED.get(part["type"]) or part["text"] for part in turn["content"]])
        for turn in json.loads(line)["turns"]
    ]


def test_llama_32_ends_its_examples_answers_with_a_line_break(tmp_path: Path) -> None:
    turns = turns_of("inference_llama32v.py", "llama32_vision_90b", "open", tmp_path)
    plain = turns_of("inference_llavamed.py", "llavamed", "open", tmp_path)
    assert [role for role, _ in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    for (role, parts), (_, without) in zip(turns, plain, strict=True):
        assert parts == ([without[0] + "\n"] if role == "assistant" else without)
    text = turns_of("inference_llama32v.py", "llama32_vision_90b", "mcqa", tmp_path)[-1][1][1]
    assert text.endswith("<answer>X</answer>\nAlternatively:\nThe correct answer is X.\n")


def test_medgemma_has_a_system_turn_and_the_text_first(tmp_path: Path) -> None:
    turns = turns_of("inference_medgemma.py", "medgemma_4b", "mcqa", tmp_path)
    assert turns[0][0] == "system"
    assert turns[0][1][0].startswith("You are an expert medical professional with extensive knowledge")
    for role, parts in turns[1:]:
        assert (len(parts), parts[-1] == "<image>") == ((2, True) if role == "user" else (1, False))
    assert turns[-1][1][0].endswith("<think>This is my thought.</think>\n<answer>X</answer>\n")
    assert "step by step" in turns[-1][1][0]


def test_qwen_and_llava_share_the_standard_wording(tmp_path: Path) -> None:
    turns = turns_of("inference_qwen.py --models 32B", "qwen32B", "mcqa", tmp_path)
    assert turns == turns_of("inference_llavamed_mcqa.py", "llavamed", "mcqa", tmp_path)
    assert turns[-1][1][1].endswith("<answer>Correct letter.</answer>\n")


CLAUDE = ("inference_anthropic.py", "claude-3-7-sonnet")
GPT_4O = ("inference_openai.py", "gpt-4o")
TEXT_ONLY = ("inference_llama33textonly.py", "llama33textonly")


@pytest.mark.parametrize("task_format", ["open", "mcqa"])
@pytest.mark.parametrize("model", [CLAUDE, GPT_4O], ids=["claude", "gpt-4o"])
def test_claude_and_gpt_4o_get_a_system_turn_and_text_before_images(
    model: tuple[str, str], task_format: str, tmp_path: Path
) -> None:
    """Otherwise their conversations are those of Qwen."""
    turns = turns_of(*model, task_format, tmp_path)
    assert turns[0] == ("system", ["You are a highly skilled physician and an excellent writer."])
    others = turns_of("inference_qwen.py --models 3B", "qwen3B", task_format, tmp_path)
    assert turns[1:] == [(role, parts[::-1] if role == "user" else parts) for role, parts in others]


def test_the_text_only_model_gets_examples_as_text(tmp_path: Path) -> None:
    examples = [parts for _, parts in turns_of("inference_qwen.py --models 3B", "qwen3B", "mcqa", tmp_path)]
    questions = [parts[1] for parts in examples[:-1:2]]
    answers = [parts[0] for parts in examples[1::2]]
    query = examples[-1][1]
    start = (
        "You are an expert medical question-answering system. Here are some examples of questions and "
        "associated answers: \n"
    )
    written = "".join(
        f"Question: {question}\nAnswer: {answer}\n\n"
        for question, answer in zip(questions, answers, strict=True)
    )
    task = "Now, your task is to provide an answer to the following multiple-choice question: \n\n"
    assert turns_of(*TEXT_ONLY, "mcqa", tmp_path) == [("user", [f"{start}\n{written}{task}{query}"])]
    [(role, [text])] = turns_of(*TEXT_ONLY, "open", tmp_path)
    lines = "".join(f"{question} {answer}\n" for question, answer in zip(questions, answers, strict=True))
    last = questions[0]  # all questions of this problem are the same
    task = f'Your task is to provide an answer to the following question: "{last}".'
    assert (role, text) == ("user", f"{start}{lines}{task}")
