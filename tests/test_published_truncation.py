"""`--published-truncation`: LLaVA-Med sees the first positions of a conversation only, as published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Finished, make_image, row, run_here, save_parquet, says_in_one_line, stored
from smmile.backends.interface import Request, Response
from smmile.backends.local.checkpoints import CheckpointError, find_checkpoint
from smmile.backends.local.decoding import DecodingSettings
from smmile.backends.local.inputs import InputSettings
from smmile.backends.local.llava_original import (
    MISTRAL_INSTRUCT,
    first_positions,
    load_original_llava_model,
    load_original_llava_processor,
    published_positions,
)
from smmile.backends.local.loading import LoadSettings
from smmile.backends.local.model import LocalModel, LocalSettings
from smmile.backends.local.templates import ChatTemplate
from smmile.prompting.conversation import Conversation, ImagePart, TextPart, Turn
from tiny_checkpoints import change_json

Tiny = Callable[[str], Path]

PER_IMAGE, NEW_TOKENS = 16, 6


def conversation(images: int, question: str = "What is shown?") -> Conversation:
    """A conversation with an image in each of its user turns."""
    turns = []
    for number in range(images):
        image = ImagePart(stored(make_image(number * 90 + images * 5000, (40, 20 + number))))
        turns.append(Turn("user", (image, TextPart(f"{number} {question}"))))
        turns.append(Turn("assistant", (TextPart("A"),)))
    return Conversation(tuple(turns[:-1]))


def requests(*conversations: Conversation) -> list[Request]:
    return [Request(str(number), one) for number, one in enumerate(conversations)]


def answers(folder: Path, batch_size: int, asked: Sequence[Request], **inputs: Any) -> dict[str, Response]:
    settings = LocalSettings(
        LoadSettings("float32"),
        DecodingSettings("greedy", NEW_TOKENS, 42),
        InputSettings(template=ChatTemplate(text=MISTRAL_INSTRUCT), **inputs),
        batch_size=batch_size,
        verbose=False,
    )
    model = LocalModel(find_checkpoint(folder, None), settings)
    found = {}
    for batch in model.answer(asked):
        for request, response in batch:
            assert isinstance(response, Response), response
            found[request.key] = response
    return found


@pytest.fixture
def short(tiny: Tiny, tmp_path: Path) -> Callable[[int], Path]:
    """Returns a checkpoint that was published with this number of positions."""

    def checkpoint(positions: int) -> Path:
        folder = tmp_path / f"positions_{positions}"
        shutil.copytree(tiny("original_llava"), folder)
        change_json(folder / "config.json", tokenizer_model_max_length=positions)
        return folder

    return checkpoint


def by_definition(folder: Path, one: Conversation, limit: int) -> tuple[str, int, bool]:
    """The answer to the first `limit` merged embeddings, their number, and whether an image was cut."""
    processor, model = load_original_llava_processor(folder), load_original_llava_model(folder)
    turns = [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": part.image.decode()}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": part.text}
                for part in turn.content
            ],
        }
        for turn in one.turns
    ]
    inputs = processor.apply_chat_template([turns], tokenize=True, return_dict=True, return_tensors="pt")
    ids: list[int] = []
    with torch.inference_mode():
        table = model.get_input_embeddings()
        features = torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
        merged = table(inputs["input_ids"])
        is_image = inputs["input_ids"] == model.config.image_token_id
        merged[is_image] = features
        shown = merged[:, :limit]
        for _ in range(NEW_TOKENS):
            embedded = torch.cat([shown, table(torch.tensor([ids], dtype=torch.long))], 1)
            logits = model(inputs_embeds=embedded).logits[0, -1]
            logits[model.config.image_token_id] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == 2:
                break
    text = processor.tokenizer.decode(ids, skip_special_tokens=True)
    return text, shown.shape[1], int(is_image[:, :limit].sum()) % PER_IMAGE > 0


def test_the_first_positions_alone_are_answered_in_batches_as_one_by_one(
    short: Callable[[int], Path],
) -> None:
    """50 positions end within an image or a text; some conversations are shorter."""
    folder = short(50)
    long_text = conversation(1, "Which of these is shown? " * 12)
    asked = requests(*(conversation(count) for count in (3, 1, 2, 5)), long_text)
    alone = answers(folder, 1, asked, published_truncation=True)
    batched = answers(folder, 8, asked, published_truncation=True)
    whole = answers(folder, 8, asked)
    within_an_image = set()
    for request in asked:
        text, positions, cut = by_definition(folder, request.conversation, 50)
        for found in (alone[request.key], batched[request.key]):
            assert (found.text, found.prompt_tokens) == (text, positions)
        within_an_image.add(cut)
    assert within_an_image == {True, False}
    lengths = {key: response.prompt_tokens for key, response in alone.items()}
    assert lengths == dict.fromkeys("0234", 50) | {"1": whole["1"].prompt_tokens}
    assert len({response.text for response in alone.values()}) > 3
    assert all(alone[key].text != whole[key].text for key in "034")
    assert alone["1"].text == whole["1"].text


@pytest.mark.parametrize("limit", [1, 5, 6, 7, 21, 22, 23, 40, 1000])
def test_a_cut_at_any_place_leaves_matching_images(limit: int) -> None:
    """Two conversations, of 40 and 22 positions: text, an image of 16, and in the first more of both."""
    first = [5] * 6 + [9] * PER_IMAGE + [6] + [9] * PER_IMAGE + [7]
    second = [4] * 5 + [9] * PER_IMAGE + [3]
    padding = [0] * (len(first) - len(second))
    ids = torch.tensor([first, padding + second])
    mask = torch.tensor([[1] * len(first), padding + [1] * len(second)])
    pixels = torch.arange(3.0)
    cut = first_positions({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, limit, 9)
    kept = [
        row[used == 1].tolist() for row, used in zip(cut["input_ids"], cut["attention_mask"], strict=True)
    ]
    assert kept == [first[:limit], second[:limit]]
    assert cut["attention_mask"].tolist() == [
        [0] * (len(kept[0]) - len(row)) + [1] * len(row) for row in kept
    ]
    seen = [0.0] * (9 in kept[0]) + [1.0] * (kept[0].count(9) > PER_IMAGE) + [2.0] * (9 in kept[1])
    assert cut.get("pixel_values", torch.tensor([])).tolist() == seen


def test_the_checkpoint_states_the_number_of_positions() -> None:
    assert published_positions({"tokenizer_model_max_length": 100}) == 100
    assert published_positions({}) == 2048
    for wrong in (0, -5, True, "2048\n", None, 1.5):
        with pytest.raises(CheckpointError, match="tokenizer_model_max_length") as caught:
            published_positions({"tokenizer_model_max_length": wrong})
        assert str(caught.value).isprintable()


def test_the_context_check_counts_what_is_sent(short: Callable[[int], Path]) -> None:
    folder = short(60)
    change_json(folder / "config.json", max_position_embeddings=60 + NEW_TOKENS)
    found = answers(folder, 4, requests(conversation(5), conversation(6)), published_truncation=True)
    assert [response.prompt_tokens for response in found.values()] == [60, 60]
    with pytest.raises(AssertionError, match="context_overflow"):
        answers(folder, 4, requests(conversation(5)))


def run(checkpoint: Path, folder: Path, *words: object) -> Finished:
    base = ["--model-path", checkpoint, "--output-dir", folder, "--max_new_tokens", NEW_TOKENS]
    return run_here("inference_llavamed.py", *base, *words)


def test_a_converted_checkpoint_is_cut_at_the_published_length(tiny: Tiny, tmp_path: Path) -> None:
    """Its config has no `tokenizer_model_max_length`: 2,048 it is, which the original here states."""
    converted = tmp_path / "converted"
    load_original_llava_model(tiny("original_llava")).save_pretrained(converted)
    load_original_llava_processor(tiny("original_llava")).save_pretrained(converted)
    assert "tokenizer_model_max_length" not in json.loads((converted / "config.json").read_text())
    rows = [row("p1", order, question="What? " * 200) for order in range(1, 6)]
    rows += [row("p2", order) for order in (1, 2)]
    data = save_parquet(tmp_path / "data", rows)
    words = ["--dataset-path", data, "--published-truncation"]
    runs = []
    for name, checkpoint in (("original", tiny("original_llava")), ("converted", converted)):
        finished = run(checkpoint, tmp_path / name, *words)
        assert finished.code == 0, finished.err
        runs.append(json.loads((tmp_path / name / "result_llavamed_ICL_open.json").read_text()))
    kept = [[(item["full_response"], item["prompt_tokens"]) for item in one["records"]] for one in runs]
    assert kept[0] == kept[1]
    assert kept[0][0][1] == 2048 > kept[0][1][1]
    for one in runs:
        assert one["run"]["generation"]["published_truncation"] is True
        assert one["run"]["generation"]["effective"]["max_positions"] == 2048

    # Without the flag it is another run, in which nothing is recorded of it.
    says_in_one_line(run(converted, tmp_path / "converted", "--dataset-path", data), "published_truncation")
    assert run(converted, tmp_path / "whole", "--dataset-path", data).code == 0
    whole = json.loads((tmp_path / "whole" / "result_llavamed_ICL_open.json").read_text())
    assert "published_truncation" not in json.dumps(whole["run"])
    assert whole["records"][0]["prompt_tokens"] > 2048


def test_a_server_cannot_truncate(tmp_path: Path) -> None:
    words = ["--output-dir", tmp_path, "--server", "http://127.0.0.1:1", "--published-truncation"]
    says_in_one_line(run_here("inference_llavamed_mcqa.py", *words), "--published-truncation", "--server")
