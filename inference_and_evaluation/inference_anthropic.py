"""Claude, through Anthropic's API (ANTHROPIC_API_KEY)."""

from __future__ import annotations

from collections.abc import Mapping

from smmile import cli

EXAMPLE = "python inference_anthropic.py --inference_mode ICL --task_format mcqa --dry-run"

# The paper's model, and what its results are called.
PUBLISHED = {"claude-3-7-sonnet-20250219": "claude-3-7-sonnet"}


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_inference_flags(parser)
    cli.add_api_flags(parser, model=next(iter(PUBLISHED)))
    args = parser.parse_args()

    from smmile.backends.interface import Backend
    from smmile.backends.remote import anthropic_messages as claude
    from smmile.backends.remote.budget import Budget
    from smmile.inference.api_models import ApiModel, run_api_model
    from smmile.inference.plan import Plan
    from smmile.prompting.conversation import Recipe
    from smmile.prompting.prompts import prompt

    def connect(_plan: Plan, fields: Mapping[str, object], budget: Budget | None) -> Backend:
        service, make_client = claude.connect(args.model, args.base_url, args.timeout, args.max_retries)
        return claude.AnthropicMessages(
            make_client=make_client,
            service=service,
            fields=fields,
            concurrency=args.concurrency,
            rules=claude.IMAGE_RULES,
            budget=budget,
        )

    model = ApiModel(
        name=PUBLISHED.get(args.model, args.model),
        model=args.model,
        recipe=Recipe(system=prompt("system.anthropic"), parts=("text", "image")),
        generation={"service": "Anthropic", "temperature": 0},
        fields={"max_tokens": args.max_new_tokens, "temperature": 0},
        connect=connect,
        packages=("anthropic",),
        rules=claude.IMAGE_RULES,
        image_tokens=claude.image_tokens,
    )
    return run_api_model(args, model)


if __name__ == "__main__":
    cli.run_script(main)
