"""Conversations as a local model's inputs: token ids and pixels, left-padded, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinja2 import TemplateError

from smmile import compat
from smmile.backends.interface import Request
from smmile.backends.local import llava_original
from smmile.backends.local.batching import InvalidRequestError
from smmile.backends.local.checkpoints import CheckpointError
from smmile.backends.local.templates import ChatTemplate, choose_template, shape_of, template_defect
from smmile.data.images import UnreadableImageError
from smmile.errors import one_line
from smmile.prompting.conversation import Conversation, ImagePart

MultiImage = Literal["tiled", "single"]


@dataclass(frozen=True)
class InputSettings:
    """How conversations become token ids and pixels; the defaults are the checkpoint's own.

    `template` replaces the checkpoint's default chat template. `multi_image` is for LLaVA-OneVision:
    whether each of several images is divided into tiles or sent as a single tile (None: single). With
    `equal_padding` images are padded for tiling as in the published runs (`compat.pad_tiles_equally`), and
    with `first_token_twice` the prompt begins with two begin-of-text tokens. `min_pixels` and `max_pixels`
    limit each image, for image processors that scale images to a number of pixels. `published_truncation`
    keeps only the first positions of each conversation, as LLaVA-Med's published code did.
    """

    template: ChatTemplate | None = None
    multi_image: MultiImage | None = None
    equal_padding: bool = False
    first_token_twice: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    published_truncation: bool = False

    def as_data(self) -> dict[str, object]:
        """The settings that differ from the defaults, as recorded; they are part of a run's identity."""
        data: dict[str, object] = {}
        if self.template is not None:
            data["chat_template"] = self.template.label
        if self.multi_image == "tiled":
            data["multi_image"] = self.multi_image
        if self.equal_padding:
            data["tile_padding"] = "equal"
        if self.first_token_twice:
            data["published_tokens"] = True
        if self.min_pixels is not None:
            data["min_pixels"] = self.min_pixels
        if self.max_pixels is not None:
            data["max_pixels"] = self.max_pixels
        if self.published_truncation:
            data["published_truncation"] = True
        return data


def check_settings(name: str, processor: Any, settings: InputSettings) -> None:
    """Raise CheckpointError if the processor of the checkpoint `name` cannot follow `settings`."""
    if settings.multi_image is not None and not _is_onevision(processor):
        raise CheckpointError(
            f"--multi-image is for LLaVA-OneVision, and checkpoint {name} is another model"
        )
    if settings.min_pixels is None and settings.max_pixels is None:
        return
    unit = compat.pixels_per_unit_of_budget(processor.image_processor)
    flag = "--max-pixels" if settings.min_pixels is None else "--min-pixels"
    if unit is None:
        raise CheckpointError(
            f"{flag}: the image processor of checkpoint {name} has no budget of pixels; leave out the flag"
        )
    size = _within_budget(processor.image_processor.size, settings, unit)
    if size.shortest_edge > size.longest_edge:
        least, most = size.shortest_edge // unit, size.longest_edge // unit
        raise CheckpointError(
            f"{flag}: images of checkpoint {name} would have at least {least} and at most {most} pixels; "
            "give both --min-pixels and --max-pixels"
        )


class ModelInputs:
    """Makes a model's inputs with its processor.

    `context` is the most tokens that the model takes (None: unknown), `new_tokens` how many it generates.
    Conversations are cut to their first `positions` (None: they are not).
    """

    def __init__(
        self,
        name: str,
        processor: Any,
        settings: InputSettings,
        context: int | None,
        new_tokens: int,
        positions: int | None = None,
    ) -> None:
        """Raises CheckpointError if the processor of the checkpoint `name` has no usable chat template.

        It is changed as the settings say.
        """
        check_settings(name, processor, settings)
        self._name = name
        self._processor, self._context, self._new_tokens = processor, context, new_tokens
        self._positions = positions
        self._one_tile_each = _is_onevision(processor) and settings.multi_image != "tiled"
        if processor.tokenizer.pad_token_id is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        processor.chat_template = choose_template(name, processor.chat_template, settings.template)
        self._check_template(name)
        if settings.first_token_twice:
            processor.chat_template = "{{ bos_token }}" + processor.chat_template
        _adapt_images(processor, settings)
        self._template_with_bos = "{{ bos_token }}" + processor.chat_template
        tokens = processor.tokenizer.added_tokens_decoder.values()
        self._control_tokens = [token.content for token in tokens if token.special]

    def make(self, requests: Sequence[Request]) -> Mapping[str, Any]:
        """The inputs for one batch of requests. Raises InvalidRequestError."""
        try:
            messages = [_messages(request.conversation) for request in requests]
        except UnreadableImageError as error:
            raise InvalidRequestError("image", str(error)) from error
        how: dict[str, Any] = {}
        if any(self._holds_control_token(request.conversation) for request in requests):
            # Send such text as plain text. That needs a template which writes the first token itself.
            how["sanitize_control_tokens"] = True
            if self._adds_first_token():
                how["chat_template"] = self._template_with_bos
        try:
            inputs: Mapping[str, Any] = self._processor.apply_chat_template(
                messages,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                processor_kwargs={"padding": True, "padding_side": "left"},
                **how,
            )
        except ValueError as error:
            self._check_images(messages, error)
            raise
        if self._positions is not None:
            inputs = llava_original.first_positions(inputs, self._positions, self._processor.image_token_id)
        self._check_length(inputs, len(requests))
        return inputs

    def check_templates(self, requests: Sequence[Request]) -> None:
        """Raise CheckpointError if the chat template does not write all of each of these conversations."""
        for shape in sorted({shape_of(request.conversation) for request in requests}):
            try:
                problem = template_defect(
                    shape, lambda turns: str(self._processor.apply_chat_template(turns, tokenize=False))
                )
            except (TemplateError, TypeError) as error:
                problem = f"refuses a conversation ({one_line(error, 160)})"
            if problem is not None:
                raise CheckpointError(
                    f"checkpoint {self._name}: its chat template {problem}; choose a checkpoint whose "
                    "template takes conversations with system turns, examples and several images"
                )

    def describe(self) -> dict[str, object]:
        """What is in effect beyond the settings.

        What processes images (pil, torchvision, or the name of a class), how LLaVA-OneVision tiles, and
        where conversations are cut.
        """
        part = self._processor.image_processor
        data: dict[str, object] = {"image_processor": str(getattr(part, "backend", type(part).__name__))}
        if _is_onevision(self._processor):
            data["multi_image"] = "single" if self._one_tile_each else "tiled"
        if self._positions is not None:
            data["max_positions"] = self._positions
        return data

    def image_tokens(self, sizes: Sequence[tuple[int, int]]) -> int:
        """The tokens of one conversation's images of these sizes (width, height).

        Estimated where not known exactly.
        """
        if self._one_tile_each and len(sizes) > 1:
            newline = 0 if self._processor.vision_feature_select_strategy == "default" else 1
            return int(len(sizes) * (self._processor.num_image_tokens + newline))
        count = compat.image_token_counter(self._processor)
        if count is None or not sizes:
            return sum(width * height for width, height in sizes) // 784
        heights_first = [(height, width) for width, height in sizes]
        try:
            return int(sum(count(image_sizes=heights_first).num_image_tokens))
        except ValueError:  # an image that the processor will refuse
            return 0

    def _check_template(self, name: str) -> None:
        parts = [{"type": "image"}, {"type": "text", "text": "?"}]
        try:
            self._processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        except (TemplateError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint {name}: its chat template cannot be used ({one_line(error, 160)}); "
                "fetch it again"
            ) from error

    def _check_length(self, inputs: Mapping[str, Any], count: int) -> None:
        longest = int(inputs["attention_mask"].sum(1).max())
        if self._context is None:
            return
        if longest >= self._context:
            raise InvalidRequestError(
                "context_overflow",
                f"the conversation has {longest} tokens, the model's context {self._context}",
            )
        if count > 1 and longest + self._new_tokens > self._context:
            # A batch has one limit on new tokens, and this conversation's must not apply to the others.
            raise InvalidRequestError(
                "context_overflow",
                "the context has too little room left for this conversation to share a batch",
            )

    def _holds_control_token(self, conversation: Conversation) -> bool:
        return any(token in text for text in conversation.texts for token in self._control_tokens)

    def _adds_first_token(self) -> bool:
        """Whether the tokenizer, and not the chat template, writes the first token."""
        tokenizer = self._processor.tokenizer
        if tokenizer.bos_token_id is None or tokenizer("")["input_ids"] != [tokenizer.bos_token_id]:
            return False
        turn = {"role": "user", "content": [{"type": "text", "text": "a"}]}
        rendered = self._processor.apply_chat_template([turn], tokenize=False)
        return not str(rendered).startswith(tokenizer.bos_token)

    def _check_images(self, messages: list[list[dict[str, Any]]], error: ValueError) -> None:
        """Raise InvalidRequestError if the processor refuses an image."""
        for turns in messages:
            for part in (part for turn in turns for part in turn["content"] if part["type"] == "image"):
                try:
                    self._processor.image_processor(part["image"], return_tensors="pt")
                except ValueError as refusal:
                    width, height = part["image"].size
                    raise InvalidRequestError(
                        "image", f"an image of {width}x{height} pixels: {refusal}"
                    ) from error


def _is_onevision(processor: Any) -> bool:
    from transformers import LlavaOnevisionProcessor

    return isinstance(processor, LlavaOnevisionProcessor)


def _within_budget(size: Any, settings: InputSettings, unit: int) -> Any:
    """The `size` of an image processor with the settings' limits, in its own unit."""
    limits = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    return replace(size, **{edge: unit * pixels for edge, pixels in limits.items() if pixels is not None})


def _adapt_images(processor: Any, settings: InputSettings) -> None:
    """Change the processor's image part as the settings say."""
    if settings.multi_image == "tiled":
        compat.tile_every_image(processor)
    if settings.equal_padding:
        compat.pad_tiles_equally(processor)
    if settings.min_pixels is not None or settings.max_pixels is not None:
        images = processor.image_processor
        unit = compat.pixels_per_unit_of_budget(images)
        assert unit is not None, "check_settings has refused other image processors"
        images.size = _within_budget(images.size, settings, unit)


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": part.image.decode()}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": part.text}
                for part in turn.content
            ],
        }
        for turn in conversation.turns
    ]
