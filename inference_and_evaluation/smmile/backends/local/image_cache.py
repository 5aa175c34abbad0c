"""Each image prepared once: its pixels, then the features that the model makes of them, kept by its hash.

A cache belongs to one loaded model with one processor, data type and settings, so the hash of the stored
image is all that its contents depend on. Every image is prepared and encoded alone: its features are the
same in whatever conversation or batch it occurs.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smmile.data.images import StoredImage

if TYPE_CHECKING:
    import torch

# Architectures whose processor makes the same of an image alone as among others, and whose model takes
# features in place of pixels (`mm_encoder_outputs`). tests/test_image_cache.py and test_model_types.py
# compare each. Missing are those whose features are more than one tensor, such as qwen3_vl.
ENCODES_ALONE = {
    *("aya_vision", "ernie4_5_vl_moe", "exaone4_5", "gemma3", "gemma4", "glm46v", "glm4v", "glm4v_moe"),
    *("glm_ocr", "hunyuan_vl", "idefics3", "lighton_ocr", "llava", "llava_next", "llava_next_video"),
    *("llava_onevision", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "smolvlm"),
    *("video_llama_3", "vipllava"),
}
# Here pixels are kept: features would be ten times as large.
KEEPS_PIXELS = {"mllama"}

_THREADS = min(4, os.cpu_count() or 1)


@dataclass
class EncodedImage:
    """What a model needs of one image.

    `placeholder` is the text that stands for it in a prompt, and `sizes` are inputs beside its pixels, such
    as its grid of patches. `pixels` are kept until `features` are made of them.
    """

    placeholder: str
    sizes: Mapping[str, torch.Tensor]
    pixels: Mapping[str, torch.Tensor] | None
    features: tuple[torch.Tensor, ...] = ()

    @property
    def bytes(self) -> int:
        """The host memory that it takes."""
        return sum(value.nbytes for value in (*(self.pixels or {}).values(), *self.features))


class ImageCache:
    """The latest used images, in up to `limit` bytes of host memory."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, EncodedImage] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, images: Sequence[StoredImage], prepare: Callable[[StoredImage], EncodedImage]
    ) -> list[EncodedImage]:
        """One for each of `images`, the same object for equal ones.

        Those that are not kept come from `prepare`, called in several threads. Raises what it raises.
        """
        needed = {image.sha256: image for image in images}
        with self._lock:
            found = {key: self._kept.pop(key) for key in needed if key in self._kept}
            self._kept |= found  # as the latest used
        missing = [image for key, image in needed.items() if key not in found]
        with ThreadPoolExecutor(_THREADS) as pool:
            for image, made in zip(missing, pool.map(prepare, missing), strict=True):
                found[image.sha256] = made
                with self._lock:  # each at once, so that those before one that fails are kept
                    self._kept[image.sha256] = made
        return [found[image.sha256] for image in images]

    def trim(self) -> None:
        """Release the images that were not used for the longest time, where they exceed the limit.

        To be called when the features of a batch are made: its pixels may take more than these.
        """
        with self._lock:
            taken = sum(image.bytes for image in self._kept.values())
            while self._kept and taken > self._limit:
                taken -= self._kept.popitem(last=False)[1].bytes


def joined_sizes(images: Sequence[EncodedImage]) -> dict[str, torch.Tensor]:
    """The inputs of all `images` beside their pixels."""
    import torch

    names = images[0].sizes if images else ()
    return {name: torch.cat([image.sizes[name] for image in images]) for name in names}


def stacked(images: Sequence[Sequence[EncodedImage]]) -> dict[str, Any]:
    """All inputs of the images of Llama 3.2, by conversation and image; each has as many images."""
    import torch

    first = images[0][0]
    made: dict[str, Any] = {
        name: torch.cat([torch.cat([getattr(image, kind)[name] for image in each], 1) for each in images])
        for kind in ("pixels", "sizes")
        for name in getattr(first, kind)
    }
    return made | {"num_tiles": made["aspect_ratio_mask"].sum(-1).tolist()}


def encode(model: Any, images: Sequence[EncodedImage]) -> None:
    """Make the features of those `images` that have none, each alone, and release their pixels."""
    import torch

    for image in images:
        if image.pixels is None:
            continue
        names = inspect.signature(model.base_model.get_image_features).parameters
        given = {
            name: value.to(model.device)
            for name, value in {**image.pixels, **image.sizes}.items()
            if name in names
        }
        found = model.get_image_features(**given, return_dict=True).pooler_output
        parts = (found,) if isinstance(found, torch.Tensor) else tuple(found)
        image.features = tuple(part.to("cpu") for part in parts)
        image.pixels = None


def encoder_outputs(model: Any, images: Sequence[EncodedImage]) -> dict[str, Any]:
    """The features of all `images` as an argument of `generate`."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    features: Any = [part.to(model.device) for image in images for part in image.features]
    if features and features[0].ndim == 3:  # in these models the output is one tensor, a row per image
        features = torch.cat(features)
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}
