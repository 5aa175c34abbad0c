"""Conversations as a local model's inputs: token ids and pixels, left-padded, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from smmile import compat
from smmile.backends.interface import Request
from smmile.backends.local import llava_original
from smmile.backends.local.batching import InvalidRequestError
from smmile.backends.local.checkpoints import CheckpointError
from smmile.backends.local.image_cache import EncodedImage, ImageCache, joined_sizes, stacked
from smmile.backends.local.templates import ChatTemplate, choose_template, shape_of, template_defect
from smmile.data.images import StoredImage, UnreadableImageError
from smmile.errors import one_line
from smmile.prompting.conversation import Conversation, ImagePart

if TYPE_CHECKING:
    import torch
    from PIL import Image

MultiImage = Literal["tiled", "single"]

# Where a stand-in for an image, in its `info`, has the stored image and the encoded one.
_STORED, _ENCODED = "smmile_stored", "smmile_encoded"


@dataclass(frozen=True)
class InputSettings:
    """How conversations become token ids and pixels; the defaults are the checkpoint's own.

    `template` replaces the checkpoint's default chat template. `multi_image` is for LLaVA-OneVision:
    whether each of several images is divided into tiles or sent as a single tile (None: single). With
    `tile_padding` "equal" images are padded for tiling as in the published runs
    (`compat.pad_tiles_equally`), and with `published_tokens` the prompt begins with two begin-of-text
    tokens. `min_pixels` and `max_pixels` limit each image, for image processors that scale images to a
    number of pixels. `published_truncation` keeps only the first positions of each conversation, as
    LLaVA-Med's published code did.
    """

    template: ChatTemplate | None = None
    multi_image: MultiImage | None = None
    tile_padding: Literal["equal"] | None = None
    published_tokens: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    published_truncation: bool = False

    def as_data(self) -> dict[str, object]:
        """The settings that differ from the defaults, as recorded; they are part of a run's identity."""
        label = None if self.template is None else self.template.label
        data = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "template"}
        data |= {"chat_template": label, "multi_image": "tiled" if self.multi_image == "tiled" else None}
        return {name: value for name, value in data.items() if value}


def _check_settings(name: str, processor: Any, settings: InputSettings) -> None:
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

    Conversations are cut to their first `positions` (None: they are not).
    """

    def __init__(
        self, name: str, processor: Any, settings: InputSettings, positions: int | None = None
    ) -> None:
        """Raises CheckpointError if the processor of the checkpoint `name` cannot follow `settings`.

        Nor can it without a padding token or a usable chat template. It is changed as the settings say.
        """
        _check_settings(name, processor, settings)
        self._name = name
        is_file = settings.template is not None and settings.template.text is not None
        self._template_name = "the given chat template" if is_file else "its chat template"
        self._processor = processor
        self._positions = positions
        self._one_tile_each = _is_onevision(processor) and settings.multi_image != "tiled"
        if processor.tokenizer.pad_token_id is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        if processor.tokenizer.pad_token_id is None:
            raise CheckpointError(
                f"checkpoint {name}: its tokenizer has neither a padding nor an end token"
            )
        processor.chat_template = choose_template(name, processor.chat_template, settings.template)
        if settings.published_tokens:
            processor.chat_template = "{{ bos_token }}" + processor.chat_template
        _adapt_images(processor, settings)
        self._template_with_bos = "{{ bos_token }}" + processor.chat_template
        tokens = processor.tokenizer.added_tokens_decoder.values()
        self._control_tokens = [token.content for token in tokens if token.special]
        self._cache: ImageCache | None = None

    def encode_alone(self, cache: ImageCache, dtype: torch.dtype, *, with_pixels: bool) -> None:
        """Let `make_with_images` prepare each image once, in the model's type, and keep it in `cache`."""
        self._cache, self._dtype, self._with_pixels = cache, dtype, with_pixels
        self._process_images = compat.replace_image_processing(self._processor, self._encode_images)

    @property
    def encodes_alone(self) -> bool:
        """Whether `make_with_images` can be used: the processor makes the same of an image alone."""
        return self._positions is None and not self._one_tile_each

    def make(self, requests: Sequence[Request]) -> Mapping[str, Any]:
        """The inputs for one batch of requests, pixels included. Raises InvalidRequestError."""
        try:
            return self._make(requests, StoredImage.decode)
        except UnreadableImageError as error:
            raise InvalidRequestError("image", str(error)) from error
        except ValueError as error:
            self.check_images(requests, error)
            raise

    def make_with_images(
        self, requests: Sequence[Request]
    ) -> tuple[Mapping[str, Any], tuple[EncodedImage, ...]]:
        """The inputs for one batch, and each of its images whose pixels are not among them, in order.

        Raises InvalidRequestError.
        """
        shown: list[Image.Image] = []

        def stand_in(image: StoredImage) -> Image.Image:
            shown.append(_stand_in(image))
            return shown[-1]

        inputs = self._make(requests, stand_in)
        return inputs, () if self._with_pixels else tuple(one.info[_ENCODED] for one in shown)

    def keep_placeholders(self) -> None:
        """Let `prompt_ids` write the placeholder of an image as the chat template does."""
        self._process_images = compat.replace_image_processing(self._processor, self._placeholders)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """The token ids of a conversation, one for each image, where an engine puts the image's own."""
        ids: list[int] = self._make([Request("", conversation)], _stand_in)["input_ids"][0].tolist()
        return ids

    def _placeholders(self, images: Any, **how: Any) -> tuple[Mapping[str, Any], list[str]]:
        flat = [one for each in images for one in (each if isinstance(each, list) else [each])]
        if all(_STORED in one.info for one in flat):
            return {}, [self._processor.image_token] * len(flat)
        made: tuple[Mapping[str, Any], list[str]] = self._process_images(images, **how)
        return made

    def _encode_images(self, images: Any, **how: Any) -> tuple[Mapping[str, Any], list[str]]:
        """What the processor is to make of `images`, lists of lists: inputs and placeholders."""
        assert self._cache is not None
        flat = [one for each in images for one in each]
        if not all(_STORED in one.info for one in flat):  # from `make`
            whole: tuple[Mapping[str, Any], list[str]] = self._process_images(images, **how)
            return whole
        encoded = self._cache.get(
            [one.info[_STORED] for one in flat], lambda image: self._encoded(image, how)
        )
        for one, found in zip(flat, encoded, strict=True):
            one.info[_ENCODED] = found
        made = joined_sizes(encoded)
        if self._with_pixels:
            made = stacked([[one.info[_ENCODED] for one in each] for each in images])
        return made, [found.placeholder for found in encoded]

    def _encoded(self, image: StoredImage, how: Mapping[str, Any]) -> EncodedImage:
        import torch

        try:
            decoded = image.decode()
        except UnreadableImageError as error:
            raise InvalidRequestError("image", str(error)) from error
        try:
            made, [placeholder] = self._process_images([[decoded]], **how)
        except ValueError as error:
            raise _refused(decoded, error) from error
        tensors = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
        pixels = {name: value for name, value in tensors.items() if name.startswith("pixel_")}
        sizes = {name: value for name, value in tensors.items() if name not in pixels}
        return EncodedImage(placeholder, sizes, {name: pixels[name].to(self._dtype) for name in pixels})

    def _make(
        self, requests: Sequence[Request], shown: Callable[[StoredImage], Image.Image]
    ) -> Mapping[str, Any]:
        messages = [_messages(request.conversation, shown) for request in requests]
        how: dict[str, Any] = {}
        if any(self._holds_control_token(request.conversation) for request in requests):
            # Send such text as plain text. That needs a template which writes the first token itself.
            how["sanitize_control_tokens"] = True
            if self._adds_first_token():
                how["chat_template"] = self._template_with_bos
        inputs: Mapping[str, Any] = self._processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, "padding_side": "left"},
            **how,
        )
        if self._positions is not None:
            inputs = llava_original.first_positions(inputs, self._positions, self._processor.image_token_id)
        return inputs

    def check_template(self, conversations: Iterable[Conversation]) -> None:
        """Raise CheckpointError if the chat template does not write all of each of these conversations."""
        for shape in sorted({shape_of(conversation) for conversation in conversations}):
            try:
                problem = template_defect(
                    shape, lambda turns: str(self._processor.apply_chat_template(turns, tokenize=False))
                )
            except Exception as error:  # a template may raise anything
                problem = f"cannot be used ({type(error).__name__}: {one_line(error, 160)})"
            if problem is not None:
                raise CheckpointError(
                    f"checkpoint {self._name}: {self._template_name} {problem}; choose another with "
                    "--chat-template, or a checkpoint whose template takes system turns, examples and "
                    "several images"
                )

    @property
    def pads_tiles(self) -> bool:
        """Whether each image of a batch takes as much memory as the one with the most tiles."""
        return self._cache is None and hasattr(self._processor.image_processor, "image_grid_pinpoints")

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

    def check_images(self, requests: Sequence[Request], error: ValueError) -> None:
        """Raise InvalidRequestError if the processor refuses an image."""
        for image in (image for request in requests for image in request.conversation.images):
            decoded = image.decode()
            try:
                self._processor.image_processor(decoded, return_tensors="pt")
            except ValueError as refusal:
                raise _refused(decoded, refusal) from error


def _refused(image: Image.Image, refusal: ValueError) -> InvalidRequestError:
    return InvalidRequestError("image", f"an image of {image.width}x{image.height} pixels: {refusal}")


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
    if settings.tile_padding == "equal":
        compat.pad_tiles_equally(processor)
    if settings.min_pixels is not None or settings.max_pixels is not None:
        images = processor.image_processor
        unit = compat.pixels_per_unit_of_budget(images)
        assert unit is not None, "_check_settings has refused other image processors"
        images.size = _within_budget(images.size, settings, unit)


def _stand_in(image: StoredImage) -> Image.Image:
    """An image that only says which stored image it stands for."""
    from PIL import Image

    made = Image.new("RGB", (1, 1))
    made.info[_STORED] = image
    return made


def _messages(
    conversation: Conversation, shown: Callable[[StoredImage], Image.Image]
) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": shown(part.image)}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": part.text}
                for part in turn.content
            ],
        }
        for turn in conversation.turns
    ]
