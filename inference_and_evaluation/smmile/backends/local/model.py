"""Models that run on this machine, by transformers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smmile.backends.interface import Answered, BackendInfo, Request, Response
from smmile.backends.local import llava_original
from smmile.backends.local.batching import BadRequestError, Batches, BatchSizer, OutOfMemoryError, Sized
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, read_json
from smmile.backends.local.loading import (
    USABLE,
    check_room,
    find_hardware,
    listed,
    load_model,
    load_processor,
    quiet,
)
from smmile.data.images import UnreadableImageError, image_size
from smmile.errors import one_line
from smmile.inference.ranks import ONLY_PROCESS, Rank
from smmile.prompting.conversation import Conversation, ImagePart

if TYPE_CHECKING:
    import torch

Decoding = Literal["greedy", "checkpoint"]
Dtype = Literal["bfloat16", "float16", "float32"]

# Architectures in which a batch may mix conversations with different numbers of images. In others
# (Mllama: text before an image attends to what pads the shorter ones) that changes answers.
_MIXES_IMAGE_COUNTS = {
    "gemma3",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
}

# How many tokens of a prompt cost as much as one step of decoding a batch, which decides what padding is
# worth: as measured on a CPU, else by data sheets' ratio of arithmetic to memory.
_TOKENS_FOR_A_STEP = {"cuda": 150, "mps": 100, "cpu": 100}
# What a step costs however small the model is, in weights times tokens.
_LEAST_COST_OF_A_STEP = 1e8


@dataclass(frozen=True)
class LocalSettings:
    """How a checkpoint is run.

    `dtype` None stands for `family_dtype`, or float32 on a CPU; `batch_size` None for auto.
    """

    family_dtype: Dtype
    decoding: Decoding
    max_new_tokens: int
    seed: int
    dtype: Dtype | None = None
    attention: str = "auto"
    batch_size: int | None = None
    chat_template: str | None = None
    rank: Rank = ONLY_PROCESS


class LocalModel:
    """A checkpoint loaded into memory: a back end."""

    def __init__(self, checkpoint: Checkpoint, settings: LocalSettings) -> None:
        """Load `checkpoint`. Raises CheckpointError where it does not fit or cannot be loaded."""
        import torch

        self._settings = settings
        self._hardware = hardware = find_hardware(settings.rank)
        on_cpu = hardware.kind == "cpu"
        self._dtype = settings.dtype or ("float32" if on_cpu else settings.family_dtype)
        dtype: torch.dtype = getattr(torch, self._dtype)
        self._parameters = max(checkpoint.parameters, 1)
        check_room(checkpoint.name, checkpoint.parameters * dtype.itemsize, self._dtype, hardware)
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
        self._try_template(checkpoint.name)
        own_decoding = checkpoint.folder / "generation_config.json"
        if settings.decoding == "checkpoint" and own_decoding.is_file():
            # The library passes over a broken one in silence.
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
        self._tell(
            f"{checkpoint.name}: {self._dtype} on {listed(hardware.names)}, attention {self._attention}"
            + (
                f"; {settings.family_dtype} is the published type, a CPU takes float32 and is slow"
                if on_cpu and self._dtype != settings.family_dtype and settings.dtype is None
                else ""
            )
            + ("; no GPU can be used here" if on_cpu and os.environ.get("CUDA_VISIBLE_DEVICES") else "")
        )

    def describe(self) -> BackendInfo:
        """Device, types and the decoding in effect."""
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
        """Answer in batches, the largest first."""
        sizer = BatchSizer(self._settings.batch_size, self._most_tokens())
        step = _TOKENS_FOR_A_STEP[self._hardware.kind] + _LEAST_COST_OF_A_STEP / self._parameters
        padding = step * self._settings.max_new_tokens
        batches: Batches[Mapping[str, Any]] = Batches(self, sizer, self._tell, padding)
        yield from batches.answer([self._sized(request) for request in requests])

    # What Batches asks for.

    def prepare(self, requests: Sequence[Request]) -> Mapping[str, Any]:
        """The model's inputs, left-padded, on the CPU. Raises BadRequestError for what cannot be asked."""
        try:
            messages = [_messages(request.conversation) for request in requests]
        except UnreadableImageError as error:
            raise BadRequestError("image", str(error)) from error
        how: dict[str, Any] = {}
        if any(self._holds_control_token(request.conversation) for request in requests):
            # Such text is sent as text. That needs a template which writes the first token itself.
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
            self._blame_images(messages, error)
            raise
        longest = int(inputs["attention_mask"].sum(1).max())
        if self._context is not None and longest >= self._context:
            raise BadRequestError(
                "context_overflow",
                f"the conversation has {longest} tokens, the model's context {self._context}",
            )
        context = float("inf") if self._context is None else self._context
        if len(requests) > 1 and longest + self._settings.max_new_tokens > context:
            # The limit on new tokens is the batch's, so this one's must not be the others'.
            raise BadRequestError(
                "context_overflow", "too little room in the context to be asked with others"
            )
        return inputs

    def generate(self, prepared: Mapping[str, Any]) -> list[Response]:
        """The decoded new tokens of each conversation. Raises batching.OutOfMemoryError."""
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
                self._reply(tokens, prompt, seconds) for tokens, prompt in zip(answers, used, strict=True)
            ]
        # Out of the handler: only now nothing holds the failed batch's tensors.
        if self._hardware.kind == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemoryError(message)

    def room(self) -> float | None:
        """By the last batch's peak on each GPU: its memory over what the batch took."""
        if self._hardware.kind != "cuda":
            return None
        import torch

        rooms = []
        for device in self._hardware.free:
            total = torch.cuda.get_device_properties(device).total_memory * USABLE
            weights = torch.cuda.memory_allocated(device)
            taken = torch.cuda.max_memory_allocated(device) - weights
            rooms.append((total - weights) / max(taken, 1))
        return min(rooms)

    # Inside.

    def _try_template(self, name: str) -> None:
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

    def _reply(self, tokens: list[int], prompt_tokens: int, seconds: float) -> Response:
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

    def _sized(self, request: Request) -> Sized:
        """The request with an estimate of its length; only the order and the size of batches follow it."""
        conversation = request.conversation
        letters = sum(map(len, conversation.texts))
        sizes = [image_size(image) for image in conversation.images]
        tokens = letters // 3 + self._image_tokens(sizes) + self._settings.max_new_tokens
        return Sized(request, tokens, 0 if self._mixes else len(sizes))

    def _image_tokens(self, sizes: Sequence[tuple[int, int]]) -> int:
        count = getattr(self._processor, "_get_num_multimodal_tokens", None)
        if count is None or not sizes:
            return sum(width * height for width, height in sizes) // 784
        heights_first = [(height, width) for width, height in sizes]
        try:
            return int(sum(count(image_sizes=heights_first).num_image_tokens))
        except ValueError:  # an image that the processor will refuse
            return 0

    def _most_tokens(self) -> float:
        """On a CPU nobody says that memory ran out, so a batch ends where half of it might be taken.

        A token takes its keys and values, and in one layer at a time its hidden states and the three
        products of the feed-forward part.
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

    def _blame_images(self, messages: list[list[dict[str, Any]]], error: ValueError) -> None:
        """Raise BadRequestError if it is an image that the processor does not take."""
        for turns in messages:
            for part in (part for turn in turns for part in turn["content"] if part["type"] == "image"):
                try:
                    self._processor.image_processor(part["image"], return_tensors="pt")
                except ValueError as refusal:
                    width, height = part["image"].size
                    raise BadRequestError(
                        "image", f"an image of {width}x{height} pixels: {refusal}"
                    ) from error

    def _to_device(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(self._model.device)
        return value.to(self._model.dtype) if value.is_floating_point() else value

    def _tell(self, line: str) -> None:
        if self._settings.rank.is_first:
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
