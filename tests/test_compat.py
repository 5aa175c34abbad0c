"""What `smmile.compat` builds on is still there; these tests fail when a library changes it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from conftest import SCRIPTS, four_problems, save_parquet
from smmile import compat

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("library", compat.SEEN_WITH)
def test_the_libraries_are_those_that_compat_was_written_against(library: str) -> None:
    assert metadata.version(library) == compat.SEEN_WITH[library], (
        f"{library} has changed: read what smmile/compat.py uses of it again, then update SEEN_WITH"
    )


def test_no_other_module_touches_a_librarys_internals() -> None:
    """Two exceptions: `_replace` of named tuples is public, and `argparse` groups have no public name."""
    for file in (SCRIPTS / "smmile").rglob("*.py"):
        if file.name == "compat.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names] + (node.module or "").split(".")
                assert not [name for name in names if re.match("_[^_]", name)], (file, names)
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and node.attr != "_replace":
                owner = ast.unparse(node.value)
                assert owner in ("self", "cls", "super()", "argparse"), f"{file}: {owner}.{node.attr}"


def test_parquet_converted_in_small_batches_is_what_the_library_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from datasets.builder import Key
    from datasets.packaged_modules.parquet.parquet import Parquet

    assert list(inspect.signature(Parquet._generate_tables).parameters) == [
        "self",
        "files",
        "row_groups_list",
    ]
    assert list(inspect.signature(Key).parameters)[:2] == ["original_shard_id", "item_or_batch_id"]
    folder = save_parquet(tmp_path / "data_set", four_problems() * 4)  # three batches of 16 rows
    [file] = map(str, (folder / "data").iterdir())
    builder = datasets.load_dataset_builder(str(folder))
    assert isinstance(builder, Parquet)
    [(_, expected)] = builder._generate_tables([file], [None])
    compat.convert_parquet_in_small_batches(builder)
    [(_, together)] = builder._generate_tables([file], [None])
    assert together.to_pylist() == expected.to_pylist()
    monkeypatch.setattr(compat, "_BYTES_STORED_TOGETHER", 1)
    batches = [table for _, table in builder._generate_tables([file], [None])]
    assert [table.num_rows for table in batches] == [16, 16, 16]
    assert [row for table in batches for row in table.to_pylist()] == expected.to_pylist()

    called = []
    generate = builder._generate_tables

    def watched(**given: Any) -> Any:
        called.append(given)
        return generate(**given)

    builder._generate_tables = watched
    builder.download_and_prepare()
    assert called, "`datasets` no longer reads parquet through _generate_tables"


def test_builders_of_other_formats_are_left_alone(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "rows.csv").write_text("a\n1\n")
    builder = datasets.load_dataset_builder("csv", data_files=str(tmp_path / "rows.csv"))
    compat.convert_parquet_in_small_batches(builder)
    assert "_generate_tables" not in vars(builder)


def test_a_checkpoint_has_the_processor_that_it_names_or_that_of_its_type() -> None:
    def name(*of: str) -> str | None:
        kind = compat.processor_class(*of)
        return None if kind is None else kind.__name__

    assert name("qwen2_5_vl") == "Qwen2_5_VLProcessor"
    assert name("gemma3") == "Gemma3Processor"
    assert name("llava") == "LlavaProcessor"
    assert name("llava", "PixtralProcessor") == "PixtralProcessor"
    assert name("llava", "AutoModel") == "LlavaProcessor"  # names no processor
    assert name("no_such_model", "LlavaProcessor") == "LlavaProcessor"
    assert compat.is_known_type("llava")
    assert not compat.is_known_type("no_such_model")
    assert name("voxtral") is None  # has no images
    assert name("phi4_multimodal") == "Phi4MultimodalProcessor"


def test_pixtrals_processor_needs_no_torchvision() -> None:
    """Its module imports from the other image processor only a function that both have."""
    import transformers
    from transformers.models.pixtral import image_processing_pil_pixtral

    file = Path(transformers.__path__[0], "models", "pixtral", "processing_pixtral.py")
    [imported] = re.findall("from .image_processing_pixtral import (.+)", file.read_text())
    assert hasattr(image_processing_pil_pixtral, imported)
    kind = compat.processor_class("mistral3")
    assert kind is not None
    assert kind.get_attributes() == ["image_processor", "tokenizer"]


def test_a_processor_is_loaded_without_its_video_part(tiny: Tiny) -> None:
    import transformers

    whole = transformers.Qwen2VLProcessor
    assert "video_processor" in whole.get_attributes()
    loaded = compat.without_video(whole).from_pretrained(tiny("qwen2_vl"), backend="pil")
    assert isinstance(loaded.video_processor, compat.AbsentPart)
    assert loaded.image_processor.backend == "pil"
    assert loaded.video_processor.num_frames is None  # a setting
    assert compat.without_video(transformers.LlavaProcessor) is transformers.LlavaProcessor


def test_the_tokens_of_images_are_counted_before_processing(tiny: Tiny) -> None:
    import transformers
    from PIL import Image

    bare = compat.without_video(transformers.Qwen2VLProcessor)
    processor = bare.from_pretrained(tiny("qwen2_vl"), backend="pil")
    count = compat.image_token_counter(processor)
    assert count is not None
    sizes = [(56, 84), (112, 56)]
    images = [Image.new("RGB", (width, height)) for height, width in sizes]
    text = "<|vision_start|><|image_pad|><|vision_end|>" * 2
    ids = processor(text=[text], images=images)["input_ids"][0]
    token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert sum(count(image_sizes=sizes).num_image_tokens) == list(ids).count(token) > 0


def test_image_processors_with_a_budget_of_pixels() -> None:
    import dataclasses

    import numpy as np
    import transformers

    image = np.zeros((400, 600, 3), dtype=np.uint8)
    for name, unit in (("Qwen2VL", 1), ("PaddleOCRVL", 1), ("Glm4v", 2)):
        images = getattr(transformers, f"{name}ImageProcessorPil")()
        assert compat.pixels_per_unit_of_budget(images) == unit, name
        most = unit * 100_000
        images.size = dataclasses.replace(images.size, shortest_edge=most // 2, longest_edge=most)
        _, height, width = images(image, return_tensors="pt")["image_grid_thw"][0].tolist()
        assert 50_000 <= height * width * images.patch_size**2 <= 100_000, name
    for name in ("CLIP", "Gemma3", "Idefics3", "LlavaOnevision", "Pixtral"):
        images = getattr(transformers, f"{name}ImageProcessorPil")()
        assert compat.pixels_per_unit_of_budget(images) is None, name


def test_architectures_with_masks_that_flash_attention_drops_are_those_listed() -> None:
    """Read from the modeling code: whatever adds to the causal mask, in a model or in its parts."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    from smmile.backends.local.attention import MASKED

    def adds_to_the_mask(name: object) -> bool:
        module = inspect.getmodule(getattr(transformers, str(name)))
        code = inspect.getsource(module) if module else ""
        return re.search(r"\b(or_mask_function|and_mask_function|block_sequence_ids)\b", code) is not None

    def parts(model: str) -> set[object]:
        config = getattr(transformers, model).config_class
        default = config() if config.sub_configs else None
        found = [getattr(default, name, None) for name in config.sub_configs]
        return {MODEL_MAPPING_NAMES.get(part.model_type) for part in found if part is not None}

    masked = {
        model_type
        for model_type, model in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()
        if any(map(adds_to_the_mask, {model, *parts(model)} - {None}))
    }
    assert masked == set(MASKED), "update MASKED in smmile/backends/local/attention.py"


def test_what_transformers_states_about_flash_attention() -> None:
    assert compat.flash_support("llava") == compat.FlashSupport(True, ())
    assert compat.flash_support("mllama") == compat.FlashSupport(False, ())
    gpt_oss = compat.flash_support("gpt_oss")
    assert gpt_oss is not None
    assert gpt_oss.only
    assert "flash_attention_2" not in gpt_oss.only
    assert compat.flash_support("no_such_model") is None
    assert not compat.is_flash_installed("flash_attention_2")
    assert not compat.is_flash_installed("flash_attention_3")
    assert re.fullmatch(r"kernels>=[\d.]+,<[\d.]+", compat.missing_kernels_package() or "")


def test_transformers_itself_knows_no_more_quantizations() -> None:
    """One that it does not know is ignored, with a warning."""
    from transformers.quantizers.auto import AutoHfQuantizer

    for config in ({"quant_method": "fp8"}, {"quant_method": "modelopt"}, {"load_in_4bit": True}):
        assert compat.knows_quantization(config) is AutoHfQuantizer.supports_quant_method(config)
    assert not compat.knows_quantization({})
