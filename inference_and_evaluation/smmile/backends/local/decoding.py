"""How a local model's tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from smmile.backends.local.checkpoints import Checkpoint, read_json

Decoding = Literal["greedy", "checkpoint"]


@dataclass(frozen=True)
class DecodingSettings:
    """How tokens are chosen: greedily, or as the checkpoint's own generation config says."""

    source: Decoding
    max_new_tokens: int
    seed: int

    def as_data(self) -> dict[str, object]:
        """The settings as recorded; they are part of a run's identity."""
        return {"decoding": self.source, "max_new_tokens": self.max_new_tokens}


def generation_config(
    checkpoint: Checkpoint, settings: DecodingSettings, model: Any, tokenizer: Any
) -> Any:
    """The `GenerationConfig` for `model`.

    Raises CheckpointError if the checkpoint's own is needed and cannot be read.
    """
    from transformers import GenerationConfig

    file = checkpoint.folder / "generation_config.json"
    if settings.source == "checkpoint" and file.is_file():
        # transformers ignores a broken file without a word.
        read_json(checkpoint.name, checkpoint.folder, file.name)
    own = model.generation_config
    tokens = {
        "bos_token_id": own.bos_token_id,
        "eos_token_id": own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "suppress_tokens": own.suppress_tokens,
    }
    if settings.source == "checkpoint":
        known = {name: value for name, value in tokens.items() if value is not None}
        fields = own.to_diff_dict() | known
        fields.pop("max_length", None)
        return GenerationConfig.from_dict(fields)
    return GenerationConfig(do_sample=False, **tokens)


def effective_settings(config: Any) -> dict[str, object]:
    """The settings of a `GenerationConfig` that differ from transformers' defaults, as plain data."""
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if isinstance(value, str | int | float | list) and name != "transformers_version"
    }
