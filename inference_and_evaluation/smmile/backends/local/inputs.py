"""Conversations as a local model's inputs: token ids and pixels, left-padded, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from smmile import compat
from smmile.backends.interface import Request
from smmile.backends.local.batching import InvalidRequestError
from smmile.backends.local.chat_templates import defect, shape_of
from smmile.backends.local.checkpoints import CheckpointError
from smmile.data.images import UnreadableImageError
from smmile.errors import one_line
from smmile.prompting.conversation import Conversation, ImagePart


@dataclass(frozen=True)
class InputSettings:
    """How conversations become token ids and pixels; the defaults are the checkpoint's own.

    `chat_template` replaces the checkpoint's.
    """

    chat_template: str | None = None

    def as_data(self) -> dict[str, object]:
        """The settings that differ from the defaults, as recorded; they are part of a run's identity."""
        return {}


class ModelInputs:
    """Makes a model's inputs with its processor.

    `context` is the most tokens that the model takes (None: unknown), `new_tokens` how many it generates.
    """

    def __init__(
        self, name: str, processor: Any, settings: InputSettings, context: int | None, new_tokens: int
    ) -> None:
        """Raises CheckpointError if the processor of the checkpoint `name` has no usable chat template."""
        self._name = name
        self._processor, self._context, self._new_tokens = processor, context, new_tokens
        if processor.tokenizer.pad_token_id is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        if settings.chat_template is not None:
            processor.chat_template = settings.chat_template
        if not processor.chat_template:
            raise CheckpointError(f"checkpoint {name} has no chat template to write prompts with")
        self._check_template(name)
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
        self._check_length(inputs, len(requests))
        return inputs

    def check_templates(self, requests: Sequence[Request]) -> None:
        """Raise CheckpointError if the chat template does not write all of each of these conversations."""
        for shape in sorted({shape_of(request.conversation) for request in requests}):
            try:
                problem = defect(
                    shape, lambda turns: str(self._processor.apply_chat_template(turns, tokenize=False))
                )
            except (TemplateError, TypeError) as error:
                problem = f"refuses a conversation ({one_line(error, 160)})"
            if problem is not None:
                raise CheckpointError(
                    f"checkpoint {self._name}: its chat template {problem}; choose a checkpoint whose "
                    "template takes conversations with system turns, examples and several images"
                )

    @property
    def image_backend(self) -> str:
        """What processes images: pil, torchvision, or the name of a class."""
        part = self._processor.image_processor
        return str(getattr(part, "backend", type(part).__name__))

    def image_tokens(self, sizes: Sequence[tuple[int, int]]) -> int:
        """The tokens of images of these sizes (width, height): estimated where not known exactly."""
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
