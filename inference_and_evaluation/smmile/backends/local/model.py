"""The back end for models that run on this machine with transformers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smmile import compat
from smmile.backends.interface import Answered, BackendInfo, Request, Response
from smmile.backends.local import llava_original
from smmile.backends.local.batching import (
    Batches,
    BatchSizer,
    InvalidRequestError,
    OutOfMemoryError,
    SizedRequest,
)
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, read_json
from smmile.backends.local.loading import (
    USABLE,
    check_fits,
    device_list,
    find_hardware,
    load_model,
    load_processor,
    quiet,
)
from smmile.data.images import UnreadableImageError, image_size
from smmile.errors import one_line
from smmile.prompting.conversation import Conversation, ImagePart

if TYPE_CHECKING:
    import torch

Decoding = Literal["greedy", "checkpoint"]
Dtype = Literal["bfloat16", "float16", "float32"]

# Architectures in which a batch may mix conversations with different numbers of images. In others that
# changes responses (Mllama: text before an image attends to the padding of conversations with fewer).
_MIXES_IMAGE_COUNTS = {
    "gemma3",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
}

# How many prompt tokens take as long as one decoding step of a batch, which decides how much padding
# pays: measured on a CPU, else from data sheets' ratio of arithmetic to memory bandwidth.
_STEP_COST_IN_TOKENS = {"cuda": 150, "mps": 100, "cpu": 100}
# The cost of a step of the smallest model, in weights times tokens.
_MIN_STEP_COST = 1e8


@dataclass(frozen=True)
class LocalSettings:
    """How a checkpoint is run.

    `dtype` None means `family_dtype`, or float32 on a CPU; `batch_size` None means auto. `device_share` is
    (index, count) of this process among those on this machine; `verbose` reports progress on stderr.
    """

    family_dtype: Dtype
    decoding: Decoding
    max_new_tokens: int
    seed: int
    dtype: Dtype | None = None
    attention: str = "auto"
    batch_size: int | None = None
    chat_template: str | None = None
    device_share: tuple[int, int] = (0, 1)
    verbose: bool = True


class LocalModel:
    """A checkpoint in memory; a back end (`smmile.backends.interface.Backend`)."""

    def __init__(self, checkpoint: Checkpoint, settings: LocalSettings) -> None:
        """Load `checkpoint`. Raises CheckpointError if it does not fit or cannot be loaded."""
        import torch

        self._settings = settings
        self._hardware = hardware = find_hardware(settings.device_share)
        on_cpu = hardware.kind == "cpu"
        self._dtype = settings.dtype or ("float32" if on_cpu else settings.family_dtype)
        dtype: torch.dtype = getattr(torch, self._dtype)
        self._parameters = max(checkpoint.parameters, 1)
        check_fits(checkpoint.name, checkpoint.parameters * dtype.itemsize, self._dtype, hardware)
        with quiet():
            self._processor = load_processor(checkpoint)
            self._model, self._attention = load_model(checkpoint, dtype, hardware, settings.attention)
        if self._processor.tokenizer.pad_token_id is None:
            self._processor.tokenizer.pad_token = self._processor.tokenizer.eos_token
        if settings.chat_template is not None:
            self._processor.chat_template = settings.chat_template
        if not self._processor.chat_template:
            raise CheckpointError(
                f"checkpoint {checkpoint.name} has no chat template to write prompts with"
            )
        self._check_template(checkpoint.name)
        own_decoding = checkpoint.folder / "generation_config.json"
        if settings.decoding == "checkpoint" and own_decoding.is_file():
            # transformers ignores a broken file without a word.
            read_json(checkpoint.name, checkpoint.folder, own_decoding.name)
        self._text_config = self._model.config.get_text_config()
        self._context: int | None = getattr(self._text_config, "max_position_embeddings", None)
        self._mixes = checkpoint.model_type in _MIXES_IMAGE_COUNTS or llava_original.is_original_llava(
            checkpoint.config
        )
        self._model.generation_config = self._decoding()
        self._template_with_bos = "{{ bos_token }}" + self._processor.chat_template
        tokens = self._processor.tokenizer.added_tokens_decoder.values()
        self._control_tokens = [token.content for token in tokens if token.special]
        self._report(
            f"{checkpoint.name}: {self._dtype} on {device_list(hardware.names)}, "
            f"attention {self._attention}"
            + (
                f"; {settings.family_dtype} is the published dtype; a CPU uses float32 and is slow"
                if on_cpu and self._dtype != settings.family_dtype and settings.dtype is None
                else ""
            )
            + ("; no GPU is usable here" if on_cpu and os.environ.get("CUDA_VISIBLE_DEVICES") else "")
        )

    def describe(self) -> BackendInfo:
        """Devices, dtype, attention kernel and the decoding settings in effect."""
        config = self._model.generation_config.to_diff_dict()
        return BackendInfo(
            devices=self._hardware.names,
            generation={"dtype": self._dtype, "attention": self._attention}
            | {
                name: value
                for name, value in config.items()
                if isinstance(value, str | int | float | list) and name != "transformers_version"
            },
        )

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Respond in batches, the longest requests first."""
        sizer = BatchSizer(self._settings.batch_size, self._max_tokens())
        step = _STEP_COST_IN_TOKENS[self._hardware.kind] + _MIN_STEP_COST / self._parameters
        padding = step * self._settings.max_new_tokens
        batches: Batches[Mapping[str, Any]] = Batches(self, sizer, self._report, padding)
        yield from batches.answer([self._sized(request) for request in requests])

    # The interface `BatchModel`.

    def prepare(self, requests: Sequence[Request]) -> Mapping[str, Any]:
        """The model's inputs, left-padded, on the CPU. Raises InvalidRequestError."""
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
        longest = int(inputs["attention_mask"].sum(1).max())
        if self._context is not None and longest >= self._context:
            raise InvalidRequestError(
                "context_overflow",
                f"the conversation has {longest} tokens, the model's context {self._context}",
            )
        context = float("inf") if self._context is None else self._context
        if len(requests) > 1 and longest + self._settings.max_new_tokens > context:
            # A batch has one limit on new tokens, and this conversation's must not apply to the others.
            raise InvalidRequestError(
                "context_overflow",
                "the context has too little room left for this conversation to share a batch",
            )
        return inputs

    def generate(self, prepared: Mapping[str, Any]) -> list[Response]:
        """The response to each conversation. Raises batching.OutOfMemoryError."""
        import torch

        used = prepared["attention_mask"].sum(1).tolist()
        new_tokens = self._settings.max_new_tokens
        if self._context is not None:
            new_tokens = min(new_tokens, self._context - max(used))
        started = time.perf_counter()
        try:
            answers = self._new_tokens(prepared, new_tokens)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            message = one_line(error, 200)
        else:
            seconds = round((time.perf_counter() - started) / len(used), 6)
            return [
                self._response(tokens, prompt, seconds)
                for tokens, prompt in zip(answers, used, strict=True)
            ]
        # Outside the handler, where the exception no longer holds the failed batch's tensors.
        if self._hardware.kind == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemoryError(message)

    def headroom(self) -> float | None:
        """The memory beside the weights over the last batch's peak, on the GPU where that is least."""
        if self._hardware.kind != "cuda":
            return None
        import torch

        ratios = []
        for device in self._hardware.free:
            total = torch.cuda.get_device_properties(device).total_memory * USABLE
            weights = torch.cuda.memory_allocated(device)
            taken = torch.cuda.max_memory_allocated(device) - weights
            ratios.append((total - weights) / max(taken, 1))
        return min(ratios)

    # Inside.

    def _check_template(self, name: str) -> None:
        from jinja2 import TemplateError

        parts = [{"type": "image"}, {"type": "text", "text": "?"}]
        try:
            self._processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        except TemplateError as error:
            raise CheckpointError(
                f"checkpoint {name}: its chat template cannot be used ({one_line(error, 160)}); "
                "fetch it again"
            ) from error

    def _new_tokens(self, prepared: Mapping[str, Any], limit: int) -> list[list[int]]:
        import torch

        if self._hardware.kind == "cuda":
            for device in self._hardware.free:
                torch.cuda.reset_peak_memory_stats(device)
        torch.manual_seed(self._settings.seed)
        with torch.inference_mode(), quiet():
            inputs = {name: self._to_device(value) for name, value in prepared.items()}
            output = self._model.generate(**inputs, max_new_tokens=limit)
        answers: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
        return answers

    def _response(self, tokens: list[int], prompt_tokens: int, seconds: float) -> Response:
        ends = self._model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        stop = next((place for place, token in enumerate(tokens) if token in ends), None)
        kept = tokens if stop is None else tokens[:stop]
        text = self._processor.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Response(
            text,
            finish_reason="length" if stop is None else "stop",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(kept) + (stop is not None),
            seconds=seconds,
        )

    def _decoding(self) -> Any:
        """The checkpoint's own generation config, or plain greedy decoding with its end tokens."""
        from transformers import GenerationConfig

        own = self._model.generation_config
        tokenizer = self._processor.tokenizer
        ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
        tokens = {
            "bos_token_id": own.bos_token_id,
            "eos_token_id": ends,
            "pad_token_id": tokenizer.pad_token_id,
            "suppress_tokens": own.suppress_tokens,
        }
        if self._settings.decoding == "checkpoint":
            settings = own.to_diff_dict() | {
                name: value for name, value in tokens.items() if value is not None
            }
            settings.pop("max_length", None)
            return GenerationConfig.from_dict(settings)
        return GenerationConfig(do_sample=False, **tokens)

    def _sized(self, request: Request) -> SizedRequest:
        """The request with its estimated length, which decides only the order and size of batches."""
        conversation = request.conversation
        letters = sum(map(len, conversation.texts))
        sizes = [image_size(image) for image in conversation.images]
        tokens = letters // 3 + self._image_tokens(sizes) + self._settings.max_new_tokens
        return SizedRequest(request, tokens, 0 if self._mixes else len(sizes))

    def _image_tokens(self, sizes: Sequence[tuple[int, int]]) -> int:
        count = compat.image_token_counter(self._processor)
        if count is None or not sizes:
            return sum(width * height for width, height in sizes) // 784
        heights_first = [(height, width) for width, height in sizes]
        try:
            return int(sum(count(image_sizes=heights_first).num_image_tokens))
        except ValueError:  # an image that the processor will refuse
            return 0

    def _max_tokens(self) -> float:
        """On a CPU, the padded tokens that take half of the free memory: running out kills the process.

        Each token needs its keys and values in all layers, and in one layer at a time its hidden states and
        the three products of the feed-forward part.
        """
        if self._hardware.kind == "cuda":
            return float("inf")
        import psutil

        config = self._text_config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        values = 2 * config.num_hidden_layers * heads * head
        values += 8 * config.hidden_size + 3 * config.intermediate_size
        size = self._model.dtype.itemsize
        return float(0.5 * psutil.virtual_memory().available / (values * size))

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

    def _to_device(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(self._model.device)
        return value.to(self._model.dtype) if value.is_floating_point() else value

    def _report(self, line: str) -> None:
        if self._settings.verbose:
            print(line, file=sys.stderr, flush=True)


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


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)
