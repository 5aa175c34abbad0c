"""The back end for models that run on this machine with transformers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from smmile import compat
from smmile.backends.interface import Answered, BackendInfo, Request, Response
from smmile.backends.local import image_cache, llava_original
from smmile.backends.local.batching import (
    DECODED_BYTES_PER_PIXEL,
    WORKING_FACTOR,
    Batches,
    BatchSizer,
    HostMemory,
    InvalidRequestError,
    OutOfMemoryError,
    SizedRequest,
    check_context,
)
from smmile.backends.local.checkpoints import Checkpoint
from smmile.backends.local.decoding import (
    DecodingSettings,
    TokenDrawer,
    as_response,
    effective_settings,
    generate,
    generation_config,
)
from smmile.backends.local.host_memory import free_host_memory
from smmile.backends.local.image_cache import EncodedImage, ImageCache, encode, encoder_outputs
from smmile.backends.local.inputs import InputSettings, ModelInputs
from smmile.backends.local.loading import (
    USABLE,
    LoadSettings,
    check_loadable,
    device_list,
    find_hardware,
    load_model,
    quiet,
)
from smmile.backends.local.processors import load_processor
from smmile.data.images import image_size
from smmile.errors import one_line
from smmile.prompting.conversation import Conversation

if TYPE_CHECKING:
    import torch

# Architectures in which a batch may mix conversations with different numbers of images. In others that
# changes responses (Mllama: text before an image attends to the padding of conversations with fewer).
_MIXES_IMAGE_COUNTS = {"gemma3", "llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen2_vl"}

# How many prompt tokens take as long as one decoding step of a batch, which decides how much padding
# pays: measured on a CPU, else from data sheets' ratio of arithmetic to memory bandwidth.
_STEP_COST_IN_TOKENS = {"cuda": 150, "mps": 100, "cpu": 100}
# The share of the free host memory that inputs may take; a model on a CPU needs the rest itself.
_HOST_SHARE = {"cuda": 0.5, "mps": 0.25, "cpu": 0.25}
# The share that images' features may take, kept from one run to the next.
_CACHE_SHARE = {"cuda": 0.25, "mps": 0.125, "cpu": 0.125}
# The cost of a step of the smallest model, in weights times tokens.
_MIN_STEP_COST = 1e8


@dataclass(frozen=True)
class LocalSettings:
    """How a checkpoint is run.

    `batch_size` None means auto; `verbose` reports progress on stderr. `cache_bytes` limits the features
    of images that are kept: None, a share of the free host memory; 0, every conversation's images are
    prepared with it.
    """

    loading: LoadSettings
    decoding: DecodingSettings
    inputs: InputSettings = field(default_factory=InputSettings)
    batch_size: int | None = None
    verbose: bool = True
    cache_bytes: float | None = None


@dataclass(frozen=True)
class PreparedBatch:
    """The keys of a batch's requests, and the model's inputs for them.

    `images` are those whose pixels are not among the inputs, in order.
    """

    keys: tuple[str, ...]
    inputs: Mapping[str, Any]
    images: tuple[EncodedImage, ...] = ()


class LocalModel:
    """A checkpoint in memory; a back end (`smmile.backends.interface.Backend`).

    `sample` selects one of several responses to each request, where they are sampled, and `seed` the
    draws of all of them; both may be changed between runs.
    """

    sample = 1
    seed: int

    def __init__(
        self, checkpoint: Checkpoint, settings: LocalSettings, conversations: Iterable[Conversation] = ()
    ) -> None:
        """Load `checkpoint`; raises CheckpointError if it does not fit or cannot be loaded.

        Before that, its chat template must be able to write all of these `conversations`.
        """
        import torch

        self._settings = settings
        self.seed = settings.decoding.seed
        loading = settings.loading
        self._hardware = hardware = find_hardware(loading.device_share, own_gpus=loading.own_gpus)
        on_cpu = hardware.kind == "cpu"
        self._dtype = loading.dtype_on(hardware.kind)
        dtype: torch.dtype = getattr(torch, self._dtype)
        self._parameters = max(checkpoint.parameters, 1)
        check_loadable(checkpoint, dtype, hardware, loading)
        with quiet():
            processor = load_processor(checkpoint)
            self._positions = (
                llava_original.published_positions(checkpoint.config)
                if settings.inputs.published_truncation
                else None
            )
            self._inputs = ModelInputs(checkpoint.name, processor, settings.inputs, self._positions)
            self._inputs.check_template(conversations)  # before the long part
            self._model, self._loaded = load_model(checkpoint, dtype, hardware, loading)
        self._text_config = self._model.config.get_text_config()
        self._context: int | None = getattr(self._text_config, "max_position_embeddings", None)
        self._counts_image_tokens = compat.image_token_counter(processor) is not None
        self._tokenizer = processor.tokenizer
        kind = "llava" if llava_original.is_original_llava(checkpoint.config) else checkpoint.model_type
        self._mixes = kind in _MIXES_IMAGE_COUNTS
        with_pixels = kind in image_cache.KEEPS_PIXELS
        self._encodes_alone = (
            (with_pixels or kind in image_cache.ENCODES_ALONE)
            and self._inputs.encodes_alone
            and settings.cache_bytes != 0
        )
        if self._encodes_alone:
            limit = settings.cache_bytes or self._free_memory() * _CACHE_SHARE[hardware.kind]
            self._images = ImageCache(limit)
            self._inputs.encode_alone(self._images, self._model.dtype, with_pixels=with_pixels)
        self._model.generation_config = generation_config(
            checkpoint,
            settings.decoding,
            self._model.generation_config,
            self._tokenizer,
            partial(compat.check_generation_config, self._model),
        )
        self._report(
            f"{checkpoint.name}: {self._dtype} on {device_list(hardware.names)}, "
            + ", ".join(f"{name} {value}" for name, value in self._loaded.items())
            + (
                f" (on a GPU, {loading.family_dtype}); a CPU is slow"
                if on_cpu and self._dtype != loading.family_dtype and loading.dtype is None
                else ""
            )
            + ("; no GPU is usable here" if on_cpu and os.environ.get("CUDA_VISIBLE_DEVICES") else "")
        )

    def describe(self) -> BackendInfo:
        """Devices, dtype, attention kernel and the decoding settings in effect."""
        return BackendInfo(
            devices=self._hardware.names,
            generation={"dtype": self._dtype}
            | self._loaded
            | self._inputs.describe()
            | effective_settings(self._model.generation_config),
        )

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Respond in batches, the longest requests first. Raises CheckpointError as for `conversations`."""
        self._inputs.check_template(request.conversation for request in requests)  # those of a later run
        yield from self._batches.answer([self._sized(request) for request in requests])

    @cached_property
    def _batches(self) -> Batches[PreparedBatch]:
        """Kept from call to call, with the batch sizes that were learned."""
        sizer = BatchSizer(self._settings.batch_size, self._max_tokens())
        step = _STEP_COST_IN_TOKENS[self._hardware.kind] + _MIN_STEP_COST / self._parameters
        padding = step * self._settings.decoding.max_new_tokens
        # Processors work in float32, and what they make is kept in the model's type.
        factor = WORKING_FACTOR * 4 / self._model.dtype.itemsize
        host = HostMemory(self._host_limit(), factor, padded=self._inputs.pads_tiles)
        return Batches(self, sizer, self._report, padding, host)

    # The interface `BatchModel`.

    def prepare(self, requests: Sequence[Request]) -> PreparedBatch:
        """The model's inputs, left-padded, on the CPU, in its type. Raises InvalidRequestError."""
        images: tuple[EncodedImage, ...] = ()
        if self._encodes_alone:
            made, images = self._inputs.make_with_images(requests)
        else:
            made = self._inputs.make(requests)
        self._check_length(made, len(requests))
        inputs = {name: self._in_model_type(value) for name, value in made.items()}
        return PreparedBatch(tuple(request.key for request in requests), inputs, images)

    def prepared_bytes(self, prepared: PreparedBatch) -> int:
        """The host memory that the inputs' tensors take."""
        tensors = sum(getattr(value, "nbytes", 0) for value in prepared.inputs.values())
        return tensors + sum(image.bytes for image in {id(each): each for each in prepared.images}.values())

    def generate(self, prepared: PreparedBatch) -> list[Response]:
        """The response to each conversation. Raises batching.OutOfMemoryError."""
        import torch

        used = prepared.inputs["attention_mask"].sum(1).tolist()
        new_tokens = self._settings.decoding.max_new_tokens
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
                as_response(self._model.generation_config, self._tokenizer, tokens, prompt, seconds)
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

    def _check_length(self, inputs: Mapping[str, Any], count: int) -> None:
        longest = int(inputs["attention_mask"].sum(1).max())
        if self._context is None:
            return
        check_context(longest, self._context)
        if count > 1 and longest + self._settings.decoding.max_new_tokens > self._context:
            # A batch has one limit on new tokens, and this conversation's must not apply to the others.
            raise InvalidRequestError(
                "context_overflow",
                "the context has too little room left for this conversation to share a batch",
            )

    def _new_tokens(self, prepared: PreparedBatch, limit: int) -> list[list[int]]:
        import torch

        if self._hardware.kind == "cuda":
            for device in self._hardware.free:
                torch.cuda.reset_peak_memory_stats(device)
        drawer = TokenDrawer(prepared.keys, self.seed, self.sample)
        with torch.inference_mode(), quiet():
            inputs = {name: self._to_device(value) for name, value in prepared.inputs.items()}
            if self._positions is not None:
                inputs = llava_original.image_features(self._model, inputs)
            try:
                if prepared.images:
                    encode(self._model, prepared.images)
                    inputs |= encoder_outputs(self._model, prepared.images)
            finally:  # also where memory runs out
                if self._encodes_alone:
                    self._images.trim()
            output = generate(self._model, inputs, limit, drawer)
        length = inputs["input_ids"].shape[1]
        if not torch.equal(output[:, :length], inputs["input_ids"]):
            raise ValueError(
                "the model's output does not begin with its prompt; this type is not supported"
            )
        answers: list[list[int]] = output[:, length:].tolist()
        return answers

    def _sized(self, request: Request) -> SizedRequest:
        """The request with its estimated length, which decides only the order and size of batches."""
        conversation = request.conversation
        letters = sum(map(len, conversation.texts))
        sizes = [image_size(image) for image in conversation.images]
        image_tokens = self._inputs.image_tokens(sizes)
        largest = 0
        if self._inputs.pads_tiles:
            largest = max((self._inputs.image_tokens([size]) for size in sizes), default=0)
        prompt = letters // 3 + image_tokens
        if self._positions is not None:
            prompt = min(prompt, self._positions)
        tokens = prompt + self._settings.decoding.max_new_tokens
        return SizedRequest(
            request,
            tokens,
            0 if self._mixes else len(sizes),
            decoded_bytes=DECODED_BYTES_PER_PIXEL * sum(width * height for width, height in sizes),
            image_units=image_tokens if self._counts_image_tokens else len(sizes),
            images=len(sizes),
            largest_image=largest,
        )

    def _host_limit(self) -> float:
        """The bytes that the inputs of the batch at work and of the next one may take together."""
        return _HOST_SHARE[self._hardware.kind] * self._free_memory()

    def _free_memory(self) -> float:
        """The bytes of host memory that are free for this process."""
        _, processes = self._settings.loading.device_share
        return free_host_memory() / processes

    def _max_tokens(self) -> float:
        """On a CPU, the padded tokens that take half of the free memory: running out kills the process.

        Each token needs its keys and values in all layers, and in one layer at a time its hidden states and
        the three products of the feed-forward part.
        """
        if self._hardware.kind == "cuda":
            return float("inf")
        from transformers.configuration_utils import get_head_shapes

        config = self._text_config
        heads, head = map(_largest, get_head_shapes(config))
        values = 2 * config.num_hidden_layers * heads * head
        values += 8 * config.hidden_size + 3 * _largest(config.intermediate_size)
        return float(0.5 * self._free_memory() / (values * self._model.dtype.itemsize))

    def _to_device(self, value: Any) -> Any:
        import torch

        return value.to(self._model.device) if isinstance(value, torch.Tensor) else value

    def _in_model_type(self, value: Any) -> Any:
        import torch

        is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self._model.dtype) if is_floating else value

    def _report(self, line: str) -> None:
        if self._settings.verbose:
            print(line, file=sys.stderr, flush=True)


def _largest(value: int | Sequence[int]) -> int:
    """A setting of all layers, or the largest where each layer has its own."""
    return value if isinstance(value, int) else max(value)


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)
