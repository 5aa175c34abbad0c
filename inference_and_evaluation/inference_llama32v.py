"""Llama 3.2 Vision, 90B."""

from __future__ import annotations

from smmile import cli

EXAMPLE = "python inference_llama32v.py --inference_mode ICL --gpu-devices 0,1,2,3"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_inference_flags(parser)
    cli.add_local_model_flags(parser)
    args = parser.parse_args()

    from smmile.inference.local_models import Family, run_family
    from smmile.prompting.conversation import Recipe, Wording
    from smmile.prompting.prompts import prompt

    recipe = Recipe(answer_suffix="\n", mcqa=Wording(question=prompt("mcqa.stepwise_or_sentence.text")))
    family = Family(model_types=("mllama",), dtype="bfloat16", recipe=recipe)
    return run_family(args, family, {"llama32_vision_90b": "meta-llama/Llama-3.2-90B-Vision-Instruct"})


if __name__ == "__main__":
    cli.run_script(main)
