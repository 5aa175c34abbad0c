"""How a local model's tokens are chosen: greedily, as its checkpoint says, or by sampling.

With sampling every request has a random generator of its own, so that its response does not depend on
the other requests in its batch, nor on when or by which process it is generated.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smmile import compat
from smmile.backends.interface import Response
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, read_json
from smmile.errors import one_line

if TYPE_CHECKING:
    import torch

Decoding = Literal["greedy", "greedy-with-config", "checkpoint", "sampling"]

# Fields of a generation config that are about sampling.
_SAMPLING = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "penalty_alpha"),
}
# Fields that do not apply here: the lengths and the form of the output, which are the suite's, and what
# changes only the speed. (`generate` takes stop strings and token healing only together with a
# tokenizer, so no published run had them.)
_IGNORED = {
    *("max_length", "max_new_tokens", "max_time", "num_return_sequences", "stop_strings", "token_healing"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "use_cache", "cache_implementation", "cache_config", "max_cache_len"),
    *("compile_config", "disable_compile", "prefill_chunk_size", "low_memory", "use_mtp"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "transformers_version"),
}
# Used by transformers' sampling where a checkpoint sets no other value.
_DEFAULT_TOP_K = 50
_NO_NUMBERS = "the model's scores are not numbers; use another --dtype, or download the checkpoint again"
# With a temperature or top-p up to this, samples are practically equal.
_LOW = 0.01


@dataclass(frozen=True)
class DecodingSettings:
    """How tokens are chosen.

    `source` "checkpoint" applies the checkpoint's whole generation config, "greedy" nothing of it but its
    end tokens, and the others its fields that are not about sampling (repetition penalty, …); "sampling"
    samples at `temperature`. With "checkpoint", `temperature` and `top_p` override its own.
    `samples` is how many responses to each request will be drawn, in runs of their own.
    """

    source: Decoding
    max_new_tokens: int
    seed: int
    temperature: float | None = None
    top_p: float | None = None
    samples: int = 1

    @property
    def is_greedy(self) -> bool:
        """Whether the flags and the family ask for greedy decoding."""
        return self.source in ("greedy", "greedy-with-config")

    def as_data(self) -> dict[str, object]:
        """The settings as recorded; they are part of a run's identity."""
        given = {"temperature": self.temperature, "top_p": self.top_p}
        return {
            "decoding": self.source,
            **{name: value for name, value in given.items() if value is not None},
            "max_new_tokens": self.max_new_tokens,
        }

    def as_request_fields(self, sample: int = 1) -> dict[str, object]:
        """The settings as fields of a request to an OpenAI-compatible server; it decides the rest.

        Without a temperature, servers such as vLLM use the checkpoint's own generation config.
        """
        fields: dict[str, object] = {"max_tokens": self.max_new_tokens, "seed": self.seed}
        if sample > 1:  # 31 bits, which every server takes
            fields["seed"] = request_generator(self.seed, sample, "server").getrandbits(31)
        if self.is_greedy:
            return fields | {"temperature": 0.0}
        given = {"temperature": self.temperature, "top_p": self.top_p}
        if self.source == "sampling" and self.top_p is None:
            given["top_p"] = 1.0
        return fields | {name: value for name, value in given.items() if value is not None}


def generation_config(
    checkpoint: Checkpoint,
    settings: DecodingSettings,
    own: Any,
    tokenizer: Any,
    check: Callable[[Any], object],
) -> Any:
    """The `GenerationConfig` that `settings` make of the checkpoint's `own`.

    `check` raises anything for one that the model cannot be decoded with. Raises CheckpointError if the
    checkpoint's own cannot be read or cannot be used with `settings`.
    """
    from transformers import GenerationConfig

    file = checkpoint.folder / "generation_config.json"
    if file.is_file():
        read_json(checkpoint.name, checkpoint.folder, file.name)  # transformers ignores a broken file
    tokens = {
        "bos_token_id": own.bos_token_id,
        "eos_token_id": own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "suppress_tokens": own.suppress_tokens,
    }
    fields: dict[str, Any] = {}
    if settings.source != "greedy":
        dropped = _IGNORED if settings.source == "checkpoint" else _IGNORED | _SAMPLING
        fields = {
            name: value
            for name, value in own.to_diff_dict().items()
            if name not in dropped and not name.startswith("_")
        }
    fields |= {name: value for name, value in tokens.items() if value is not None}
    try:
        config = GenerationConfig.from_dict(fields | _sampling_fields(settings, own))
        check(config)
    except Exception as error:  # values of a wrong type make the library raise nearly anything
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: {file.name} cannot be used ({one_line(error, 160)}); "
            "correct it, or use --generation-config greedy"
        ) from error
    _check_flags(checkpoint.name, settings, config)
    return config


class _FiniteScores:
    """A logits processor that refuses a model whose first scores are not numbers."""

    def __init__(self) -> None:
        self._checked = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores, unchanged. Raises FloatingPointError."""
        if not self._checked and bool(scores.isnan().any()):
            raise FloatingPointError(_NO_NUMBERS)
        self._checked = True
        return scores


def _sampling_fields(settings: DecodingSettings, own: Any) -> dict[str, Any]:
    """The fields about sampling, transformers' defaults included, so that all are recorded.

    Raises ValueError or TypeError for values that cannot be used.
    """
    if settings.is_greedy:
        return {"do_sample": False}
    given = {"temperature": settings.temperature, "top_p": settings.top_p}
    given = {name: value for name, value in given.items() if value is not None}
    if settings.source == "sampling":
        return {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_beams": 1} | given
    if not own.do_sample and settings.temperature is None:
        return {}
    fields: dict[str, Any] = {"temperature": 1.0, "top_k": _DEFAULT_TOP_K, "top_p": 1.0}
    fields |= {name: getattr(own, name) for name in fields if getattr(own, name) is not None}
    fields |= given
    if not 0 < float(fields["temperature"]) < math.inf:
        raise ValueError(f"temperature is {fields['temperature']!r}")
    if not 0 < float(fields["top_p"]) <= 1:
        raise ValueError(f"top_p is {fields['top_p']!r}")
    if own.num_beams not in (None, 1):
        raise ValueError("sampling with several beams is not supported")
    return {"do_sample": True} | fields | {"temperature": float(fields["temperature"])}


def _check_flags(name: str, settings: DecodingSettings, config: Any) -> None:
    """Raise CheckpointError if flags have no effect with what the checkpoint's own config says."""
    if settings.top_p is not None and not config.do_sample:
        raise CheckpointError(
            f"checkpoint {name} is decoded greedily by its own generation config, so --top-p has no "
            "effect; add --temperature T"
        )
    if settings.samples == 1:
        return
    shown = {"do_sample": False}
    if config.do_sample:
        shown = {field: getattr(config, field) for field in ("temperature", "top_k", "top_p")}
        if config.temperature > _LOW and config.top_p > _LOW and config.top_k != 1:
            return
    raise CheckpointError(
        f"checkpoint {name}: with {one_line(json.dumps(shown))} all {settings.samples} samples would be "
        "equal; give a higher --temperature or --top-p, or leave out --num-samples"
    )


class TokenDrawer:
    """Draws the next token of each request of a batch, each with its own generator.

    It is called as transformers' logits processors are, after all of them, and leaves only the token that
    it drew. A token costs one random number of its request's generator.
    """

    def __init__(self, keys: Sequence[str], seed: int, sample: int) -> None:
        """`keys` are those of the batch's requests; `seed` and `sample` select among their responses."""
        self._generators = [request_generator(seed, sample, key) for key in keys]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores (requests x vocabulary), all -inf but for the drawn tokens.

        Inverts the cumulative distribution in float64. Raises FloatingPointError if scores are not numbers.
        """
        import torch

        # An Apple GPU has no float64.
        device = torch.device("cpu") if scores.device.type == "mps" else scores.device
        cumulative = scores.to(device=device, dtype=torch.float64).softmax(-1).cumsum(-1)
        if not bool(cumulative[:, -1].isfinite().all()):
            raise FloatingPointError(_NO_NUMBERS)
        # 32 bits, so that the product is below the total and no token of probability 0 is drawn.
        uniform = [[generator.getrandbits(32) / 2**32] for generator in self._generators]
        target = torch.tensor(uniform, dtype=torch.float64, device=device) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, target, right=True).to(scores.device)
        return torch.full_like(scores, -math.inf).scatter_(1, drawn, 0.0)


def request_generator(seed: int, sample: int, key: str) -> random.Random:
    """The random generator of one of several responses to a request."""
    digest = hashlib.sha256(json.dumps([seed, sample, key]).encode()).digest()
    return random.Random(int.from_bytes(digest))


def generate(model: Any, inputs: Mapping[str, Any], limit: int, drawer: TokenDrawer) -> Any:
    """The prompts with up to `limit` new tokens each, as ids; `drawer` draws them if the model samples."""
    how = {"logits_processor": [_FiniteScores()], "max_new_tokens": limit}
    if model.generation_config.do_sample:
        return compat.generate_with_last_processor(model, drawer, **inputs, **how)
    return model.generate(**inputs, **how)


def as_response(
    config: Any, tokenizer: Any, tokens: Sequence[int], prompt_tokens: int, seconds: float
) -> Response:
    """The response of these new `tokens`, up to the first end token of a `GenerationConfig`."""
    ends = end_tokens(config)
    stop = next((place for place, token in enumerate(tokens) if token in ends), None)
    kept = tokens if stop is None else tokens[:stop]
    return Response(
        tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        finish_reason="length" if stop is None else "stop",
        prompt_tokens=prompt_tokens,
        completion_tokens=len(kept) + (stop is not None),
        seconds=seconds,
    )


def end_tokens(config: Any) -> list[int]:
    """The tokens that end a response."""
    ends = config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def effective_settings(config: Any) -> dict[str, object]:
    """The settings of a `GenerationConfig` that differ from transformers' defaults, as plain data."""
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if isinstance(value, str | int | float | list) and name != "transformers_version"
    }
