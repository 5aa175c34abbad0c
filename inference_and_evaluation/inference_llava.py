"""LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from smmile import cli

EXAMPLE = "python inference_llava.py --model_name llava_7b --inference_mode ICL"

# Name: checkpoint, architecture.
MODELS = {
    "llava_7b": ("llava-hf/llava-1.5-7b-hf", "llava"),
    "llava_13b": ("llava-hf/llava-1.5-13b-hf", "llava"),
    "llavanext_7b": ("llava-hf/llava-v1.6-mistral-7b-hf", "llava_next"),
    "llavaonevision_7b": ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision"),
    "llavaonevision_0.5b": ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision"),
}


def main(
    description: str = __doc__ or "",
    example: str = EXAMPLE,
    task_format: str = "open",
    make_parser: cli.ParserMaker = cli.Parser,
) -> int:
    parser = make_parser(description, example)
    parser.add_argument("--model_name", **cli.any_case(*MODELS), required=True, help="which model to run")
    cli.add_multi_image_flag(parser, "tiled")
    cli.add_inference_flags(parser, task_format=task_format)
    cli.add_local_model_flags(parser)
    args = parser.parse_args()

    from smmile.backends.local.inputs import InputSettings
    from smmile.inference.local_models import Family, run_family

    checkpoint, model_type = MODELS[args.model_name]
    if args.multi_image is not None and model_type != "llava_onevision":
        parser.error(f"--multi-image is for LLaVA-OneVision; leave it out for {args.model_name}")
    inputs = {
        "llava": InputSettings(),
        "llava_next": InputSettings(tile_padding="equal"),
        "llava_onevision": InputSettings(multi_image="tiled", tile_padding="equal"),
    }[model_type]
    if args.multi_image == "single":
        inputs = InputSettings(multi_image="single")
    family = Family(model_types=(model_type,), dtype="float16", inputs=inputs)
    return run_family(args, family, {args.model_name: checkpoint})


if __name__ == "__main__":
    cli.run_script(main)
