"""Images prepared and encoded once: the same inputs and answers as with each conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import encoded, stored
from recordings.published_cases import cases, family_of
from smmile.backends.interface import Failure, Request, Response
from smmile.backends.local.checkpoints import find_checkpoint
from smmile.backends.local.decoding import DecodingSettings
from smmile.backends.local.inputs import InputSettings
from smmile.backends.local.loading import LoadSettings
from smmile.backends.local.model import LocalModel, LocalSettings
from smmile.data.images import StoredImage
from smmile.prompting.conversation import Conversation, ImagePart, TextPart, Turn
from test_local_models import FAMILIES
from test_sent_images import noise

Tiny = Callable[[str], Path]
# Images occur in several conversations.
CASES = (
    *("ICL/open/4-images-5", "ICL/mcqa/4-images-5", "0-shot/open/4-images-5", "0-shot/mcqa/4-images-5"),
    *("ICL/open/3-images-4", "ICL/mcqa/1-images-2", "ICL/open/control-tokens"),
)
TOWERS = ("visual", "vision_tower", "vision_model")
NAMES = ("command", "checkpoint")
EVERY_FAMILY = pytest.mark.parametrize(NAMES, [(command, name) for command, name, _ in FAMILIES])
QUICK = ("qwen2_5_vl", "mllama")
SOME_QUICK = pytest.mark.parametrize(
    NAMES,
    [
        pytest.param(command, name, marks=() if name in QUICK else pytest.mark.slow)
        for command, name, _ in FAMILIES
    ],
)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image has been decoded, by its hash."""
    found: Counter[str] = Counter()
    decode = StoredImage.decode

    def counted(image: StoredImage) -> Any:
        found[image.sha256] += 1
        return decode(image)

    monkeypatch.setattr(StoredImage, "decode", counted)
    return found


def requests_of(command: str) -> list[Request]:
    found = {case.name: case.conversation for case in cases(family_of(command))}
    return [Request(name, found[name]) for name in CASES]


def model_of(command: str, folder: Path, cache_bytes: float | None, size: int | None = 4) -> LocalModel:
    settings = LocalSettings(
        LoadSettings("float32"),
        DecodingSettings("greedy", 12, 42),
        family_of(command).inputs,
        batch_size=size,
        verbose=False,
        cache_bytes=cache_bytes,
    )
    return LocalModel(find_checkpoint(folder, None), settings)


def answers(model: LocalModel, requests: list[Request]) -> dict[str, Any]:
    return {
        request.key: replace(outcome, seconds=None) if isinstance(outcome, Response) else outcome
        for batch in model.answer(requests)
        for request, outcome in batch
    }


@EVERY_FAMILY
def test_an_image_alone_has_the_pixels_that_it_has_in_a_conversation(
    command: str, checkpoint: str, tiny: Tiny
) -> None:
    """Bit for bit, with images of several sizes; other inputs are the same too."""
    requests = requests_of(command)
    if checkpoint == "mllama":  # as `LocalModel` makes its batches
        requests = [item for item in requests if len(item.conversation.images) == 5]
    whole = model_of(command, tiny(checkpoint), 0).prepare(requests).inputs
    apart = model_of(command, tiny(checkpoint), None).prepare(requests)
    for name in apart.inputs:
        assert torch.equal(apart.inputs[name], whole[name]), name
    if checkpoint == "mllama":
        assert set(whole) == set(apart.inputs)
        return
    assert set(whole) - set(apart.inputs) == {"pixel_values"}
    own = [image.pixels["pixel_values"] for image in apart.images if image.pixels is not None]
    assert len(own) == len(apart.images) == sum(len(item.conversation.images) for item in requests)
    if whole["pixel_values"].ndim < 5:
        assert torch.equal(torch.cat(own), whole["pixel_values"])
        return
    assert len({len(tiles[0]) for tiles in own}) > 1
    for tiles, padded in zip(own, whole["pixel_values"], strict=True):  # to the most tiles of all
        assert torch.equal(padded[: tiles.shape[1]], tiles[0])
        assert not padded[tiles.shape[1] :].any()


@SOME_QUICK
def test_each_image_is_prepared_and_encoded_once_and_answers_stay_the_same(
    command: str, checkpoint: str, tiny: Tiny, decoded: Counter[str]
) -> None:
    requests = requests_of(command)
    expected = answers(model_of(command, tiny(checkpoint), 0, size=1), requests)
    assert len({response.text for response in expected.values()}) == len(requests)
    for limit in (None, 1):  # enough for all, and nothing is kept
        model = model_of(command, tiny(checkpoint), limit, size=3)
        passes: list[object] = []
        [tower] = (part for name, part in model._model.model.named_children() if name in TOWERS)
        tower.register_forward_hook(lambda *_, passes=passes: passes.append(None))
        decoded.clear()
        assert answers(model, requests) == expected
        assert answers(model, requests[::-1]) == expected  # as in the next run with this model
        distinct = {image.sha256 for request in requests for image in request.conversation.images}
        assert set(decoded) == distinct
        if limit is None:
            assert set(decoded.values()) == {1}
            assert len(passes) == len(distinct) or checkpoint == "mllama"
        else:
            assert min(decoded.values()) >= 2


def test_pixels_that_wait_to_be_encoded_push_out_no_features(tiny: Tiny, decoded: Counter[str]) -> None:
    command = "inference_qwen.py --models 3B"
    requests = requests_of(command)[:2]
    model = model_of(command, tiny("qwen2_5_vl"), None)
    images = model.prepare(requests).images
    expected = answers(model, requests)
    features = sum(image.bytes for image in {id(image): image for image in images}.values())
    model = model_of(command, tiny("qwen2_5_vl"), features)
    decoded.clear()
    assert answers(model, requests) == answers(model, requests) == expected
    assert set(decoded.values()) == {1}


def conversation(*contents: bytes) -> Conversation:
    images = tuple(ImagePart(stored(content)) for content in contents)
    return Conversation((Turn("user", (*images, TextPart("What is it?"))),))


def test_a_broken_image_fails_alone_and_others_are_kept(tiny: Tiny) -> None:
    """One that cannot be decoded, and one that the processor refuses."""
    good, other = (encoded(noise(size=(80, 60), seed=seed)) for seed in (1, 2))
    requests = [
        Request("good", conversation(good, other)),
        Request("refused", conversation(good, encoded(noise(size=(900, 3))))),
        Request("broken", conversation(encoded(noise(size=(80, 60)))[:400])),
    ]
    model = model_of("inference_qwen.py --models 3B", tiny("qwen2_5_vl"), None)
    found = answers(model, requests)
    assert isinstance(found["good"], Response)
    refused, broken = found["refused"], found["broken"]
    assert isinstance(refused, Failure)
    assert isinstance(broken, Failure)
    assert (refused.error.type, broken.error.type) == ("image", "image")
    assert "900x3 pixels" in refused.error.message


def test_single_tiles_of_onevision_are_prepared_with_their_conversation(tiny: Tiny) -> None:
    """How many tiles an image has depends on the others."""
    settings = LocalSettings(
        LoadSettings("float32"), DecodingSettings("greedy", 4, 42), InputSettings(), verbose=False
    )
    request = Request("key", conversation(*(encoded(noise(size=(80, 60), seed=seed)) for seed in (1, 2))))
    prepared = LocalModel(find_checkpoint(tiny("llava_onevision"), None), settings).prepare([request])
    assert "pixel_values" in prepared.inputs
    assert not prepared.images
