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

    from smmile.api_models import ApiModel, run_api_model
    from smmile.backends import anthropic_messages as claude
    from smmile.backends.budget import Budget
    from smmile.conversation import Recipe
    from smmile.prompts import prompt
    from smmile.requests import Backend

    def connect(fields: Mapping[str, object], budget: Budget | None) -> Backend:
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
        picture_tokens=claude.picture_tokens,
    )
    return run_api_model(args, model)


if __name__ == "__main__":
    cli.run_script(main)
