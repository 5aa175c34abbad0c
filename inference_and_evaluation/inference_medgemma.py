"""MedGemma 4B; gated on the hub: set HF_TOKEN."""

from __future__ import annotations

from smmile import cli

EXAMPLE = "python inference_medgemma.py --inference_mode ICL --task_format open"


def main(make_parser: cli.ParserMaker = cli.Parser) -> int:
    parser = make_parser(__doc__ or "", EXAMPLE)
    cli.add_inference_flags(parser)
    cli.add_local_model_flags(parser)
    args = parser.parse_args()

    from smmile.inference.local_models import Family, run_family
    from smmile.prompting.conversation import Recipe, Wording
    from smmile.prompting.prompts import prompt

    recipe = Recipe(
        system=prompt("system.medgemma"),
        parts=("text", "image"),
        mcqa=Wording(question=prompt("mcqa.stepwise.text")),
    )
    family = Family(model_types=("gemma3",), dtype="bfloat16", recipe=recipe)
    return run_family(args, family, {"medgemma_4b": "google/medgemma-4b-it"})


if __name__ == "__main__":
    cli.run_script(main)
