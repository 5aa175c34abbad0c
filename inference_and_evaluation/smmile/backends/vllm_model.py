"""The back end for models that run on this machine with vLLM.

Prompts are written, and images prepared, by the same code as for transformers (`backends/local`). vLLM
gets token ids with a placeholder for each image, and puts the image's own tokens there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from smmile import compat
from smmile.backends.interface import Answered, BackendInfo, Request
from smmile.backends.local.batching import LARGEST_SIZE, InvalidRequestError, check_context, failed
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, loading_errors
from smmile.backends.local.decoding import as_response, end_tokens, generation_config, request_generator
from smmile.backends.local.inputs import ModelInputs
from smmile.backends.local.loading import check_loadable, device_list, find_hardware, quiet
from smmile.backends.local.model import LocalSettings
from smmile.backends.local.processors import load_processor
from smmile.data.images import UnreadableImageError
from smmile.errors import UsageError, one_line
from smmile.prompting.conversation import Conversation

# The architectures for which tests/test_vllm.py compares prompts and responses with transformers'.
TYPES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen2_vl")
VERSION = "0.32.0"

# The fields of a generation config that vLLM has, or that need nothing of it.
_FIELDS = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"),
}
# vLLM raises lower temperatures to this; transformers' samples are greedy there.
_LOWEST_TEMPERATURE = 0.01
# The share of a CPU's free memory that keys and values take, unless VLLM_CPU_KVCACHE_SPACE says otherwise.
_CPU_SHARE = 8
_LEVEL = "VLLM_LOGGING_LEVEL"


class VllmModel:
    """A checkpoint in a vLLM engine; a back end as `LocalModel` is.

    `sample` selects one of several responses to each request, where they are sampled, and `seed` the
    draws of all of them; both may be changed between runs.
    """

    sample = 1
    seed: int

    def __init__(
        self, checkpoint: Checkpoint, settings: LocalSettings, conversations: Iterable[Conversation] = ()
    ) -> None:
        """Load `checkpoint`, whose chat template must be able to write all of these `conversations`.

        Raises UsageError without vLLM, and CheckpointError if the checkpoint does not fit or cannot be
        loaded.
        """
        self._shows_log = _LEVEL in os.environ
        _check(checkpoint)
        import torch
        from transformers import AutoConfig, GenerationConfig

        with self._output_to_file():
            from vllm import SamplingParams
        self._settings = settings
        self.seed = settings.decoding.seed
        loading = settings.loading
        self._hardware = hardware = find_hardware(loading.device_share, own_gpus=loading.own_gpus)
        self._dtype = loading.dtype_on(hardware.kind)
        check_loadable(checkpoint, getattr(torch, self._dtype), hardware, loading)
        with quiet():
            self._processor = load_processor(checkpoint)
            self._inputs = ModelInputs(checkpoint.name, self._processor, settings.inputs)
            if self._inputs.describe().get("multi_image") == "single":
                raise CheckpointError(
                    f"checkpoint {checkpoint.name}: vLLM tiles every image; add --multi-image tiled, or "
                    "use --engine transformers"
                )
            self._inputs.check_template(conversations)
            self._inputs.keep_placeholders()
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
            own = GenerationConfig.from_model_config(config)  # as transformers' models have it
            if (checkpoint.folder / "generation_config.json").is_file():
                own = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
            self._config = generation_config(
                checkpoint,
                settings.decoding,
                own,
                self._processor.tokenizer,
                lambda config: SamplingParams(**sampling_fields(config)),
            )
        self._engine = self._start(checkpoint)
        self._context: int = self._engine.model_config.max_model_len
        compat.use_processor(self._engine, self._processor)
        if settings.verbose:
            devices = device_list(hardware.names)
            print(f"{checkpoint.name}: {self._dtype} on {devices} with vLLM", file=sys.stderr, flush=True)

    def describe(self) -> BackendInfo:
        """Devices, dtype and the settings in effect, by vLLM's names."""
        return BackendInfo(
            devices=self._hardware.names,
            generation={"dtype": self._dtype, "tensor_parallel_size": len(self._hardware.names)}
            | self._inputs.describe()
            | sampling_fields(self._config),
        )

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Respond as responses are finished. Raises CheckpointError as for `conversations`."""
        self._inputs.check_template(request.conversation for request in requests)  # those of a later run
        waiting, running = deque(requests), dict[str, Request]()
        limit = self._settings.batch_size or LARGEST_SIZE
        since = time.perf_counter()
        try:
            while waiting or running:
                answered: list[Answered] = []
                if waiting and len(running) < limit:
                    request = waiting.popleft()
                    try:
                        self._add(request)
                        running[request.key] = request
                    # Whatever an image or a text causes is one problem's error and must not end the run.
                    except Exception as error:
                        answered.append(failed(request, error))
                finished = [one for one in self._step() if one.finished] if running else []
                now = time.perf_counter()
                for output in finished:
                    tokens = output.outputs[0].token_ids
                    seconds = round((now - since) / len(finished), 6)
                    used = len(output.prompt_token_ids)
                    response = as_response(self._config, self._processor.tokenizer, tokens, used, seconds)
                    answered.append((running.pop(output.request_id), response))
                since = now if finished else since
                if answered:
                    yield answered
        finally:
            self._engine.abort_request(list(running))

    def _step(self) -> Any:
        try:
            return self._engine.step()
        except Exception as error:  # a process of another GPU may have ended, and nothing works any more
            raise UsageError(
                f"vLLM has stopped ({type(error).__name__}: {one_line(error, 200)}); {_LEVEL}=INFO shows "
                "its log; repeat the command to continue"
            ) from error

    def _add(self, request: Request) -> None:
        """Give a request to the engine. Raises InvalidRequestError and what vLLM raises."""
        from vllm import SamplingParams

        images = request.conversation.images
        ids = self._inputs.prompt_ids(request.conversation)
        check_context(len(ids), self._context)
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if images:
            try:
                prompt["multi_modal_data"] = {"image": [image.decode() for image in images]}
            except UnreadableImageError as error:
                raise InvalidRequestError("image", str(error)) from error
            prompt["multi_modal_uuids"] = {"image": [image.sha256 for image in images]}
        try:
            [rendered] = self._engine.renderer.render_cmpl([prompt])
        except ValueError as error:
            self._inputs.check_images([request], error)
            raise
        used = len(rendered["prompt_token_ids"])
        check_context(used, self._context)
        draws = request_generator(self.seed, self.sample, request.key)
        params = SamplingParams(
            max_tokens=min(self._settings.decoding.max_new_tokens, self._context - used),
            seed=draws.getrandbits(31),
            detokenize=False,
            ignore_eos=True,  # the tokens that end a response are among `stop_token_ids`
            **sampling_fields(self._config),
        )
        self._engine.add_request(request.key, rendered, params)

    def _start(self, checkpoint: Checkpoint) -> Any:
        """An engine for conversations as long as the checkpoint and the memory allow."""
        from vllm import LLM

        settings = self._settings
        how: dict[str, Any] = {}
        if settings.inputs.min_pixels or settings.inputs.max_pixels:
            how["mm_processor_kwargs"] = {"size": dict(self._processor.image_processor.size)}
        if self._hardware.kind == "cpu":
            free = sum(self._hardware.free.values())
            how |= {"enforce_eager": True, "kv_cache_memory_bytes": free // _CPU_SHARE}
        try:
            with self._output_to_file():
                return LLM(
                    str(checkpoint.folder),
                    dtype=self._dtype,
                    max_model_len=-1,
                    max_num_seqs=settings.batch_size or LARGEST_SIZE,
                    limit_mm_per_prompt={"video": 0},
                    tensor_parallel_size=len(self._hardware.names),
                    enable_prefix_caching=True,
                    generation_config="vllm",  # nothing that `sampling_fields` does not say
                    use_tqdm_on_load=False,
                    **how,
                ).llm_engine
        except loading_errors() as error:
            raise CheckpointError(
                f"checkpoint {checkpoint.name} cannot be loaded with vLLM ({type(error).__name__}: "
                f"{one_line(error, 250)}); {_LEVEL}=INFO shows its log; or use --engine transformers"
            ) from error

    @contextmanager
    def _output_to_file(self) -> Iterator[None]:
        """Keep what is written meanwhile, and what processes started here ever write, off the terminal."""
        if self._shows_log:
            yield
            return
        with tempfile.TemporaryFile() as log:
            kept = {number: os.dup(number) for number in (1, 2)}
            try:
                for number in kept:
                    os.dup2(log.fileno(), number)
                yield
            finally:
                for number, copy in kept.items():
                    os.dup2(copy, number)
                    os.close(copy)


def sampling_fields(config: Any) -> dict[str, Any]:
    """The fields of vLLM's `SamplingParams` that choose tokens as a transformers `GenerationConfig` does.

    Raises ValueError if the config has a field that vLLM does not have.
    """
    given = {name for name in config.to_diff_dict() if not name.startswith("_")}
    if unknown := sorted(given - _FIELDS - ({"num_beams"} if config.num_beams == 1 else set())):
        raise ValueError(f"vLLM has no {', '.join(unknown)}: use --engine transformers")
    fields: dict[str, Any] = {"temperature": 0.0}
    if config.do_sample and config.temperature >= _LOWEST_TEMPERATURE:
        fields = {name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    fields["repetition_penalty"] = config.repetition_penalty
    fields["stop_token_ids"] = end_tokens(config)
    return {name: value for name, value in fields.items() if value is not None}


def _check(checkpoint: Checkpoint) -> None:
    """Raise if the package is missing or the checkpoint is of another type; set vLLM's environment."""
    if checkpoint.model_type not in TYPES:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of type {one_line(checkpoint.model_type)}; the suite runs "
            f"{', '.join(TYPES)} with vLLM; use --engine transformers, or vllm serve and --server"
        )
    if find_spec("vllm") is None:
        raise UsageError(
            f"--engine vllm needs the package vllm: pip install vllm=={VERSION} in an environment of its "
            "own, as docs/local-models.md says"
        )
    os.environ.setdefault(_LEVEL, "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # With the engine in a process of its own, an interruption while it starts was seen to wait for ever.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # A forked process inherits the state of threads that it does not have.
    os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
