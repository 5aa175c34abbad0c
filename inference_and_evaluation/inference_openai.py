"""GPT-4o and any model that speaks OpenAI's protocol: Azure, OpenAI, or a server of your own."""

from __future__ import annotations

from collections.abc import Mapping

from smmile import cli

EXAMPLE = "python inference_openai.py --model gpt-4o --inference_mode ICL --task_format open --dry-run"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_inference_flags(parser)
    cli.add_api_flags(parser, model="gpt-4o")
    parser.add_argument(
        "--published-roles",
        action="store_true",
        help="send the examples' answers as system turns, as the paper did (default: assistant turns)",
    )
    args = parser.parse_args()

    from smmile.backends.interface import Backend
    from smmile.backends.remote import openai_services
    from smmile.backends.remote.budget import Budget
    from smmile.backends.remote.openai_chat import OpenAIChat
    from smmile.backends.remote.sent_images import ImageRules
    from smmile.inference.api_models import ApiModel, run_api_model
    from smmile.inference.plan import Plan
    from smmile.prompting.conversation import Recipe
    from smmile.prompting.prompts import prompt

    service_kind = openai_services.find_service(args.base_url)
    is_own_server = service_kind == "OpenAI-compatible"
    rules = ImageRules() if is_own_server else openai_services.IMAGE_RULES

    def connect(_plan: Plan, fields: Mapping[str, object], budget: Budget | None) -> Backend:
        service, make_client = openai_services.connect(
            args.model, args.base_url, args.timeout, args.max_retries
        )
        return OpenAIChat(
            make_client=make_client,
            service=service,
            fields=fields,
            detail="high",
            concurrency=args.concurrency,
            rules=rules,
            budget=budget,
        )

    generation = {"service": service_kind, "temperature": 0, "logprobs": True, "detail": "high"}
    model = ApiModel(
        name=args.model,
        model=args.model,
        recipe=Recipe(
            system=prompt("system.openai"),
            parts=("text", "image"),
            answer_role="system" if args.published_roles else "assistant",
        ),
        generation=generation | ({"published_roles": True} if args.published_roles else {}),
        fields={"max_tokens": args.max_new_tokens, "temperature": 0, "logprobs": True},
        connect=connect,
        packages=("openai",),
        rules=rules,
        image_tokens=openai_services.image_tokens,
        is_paid=not is_own_server,
    )
    return run_api_model(args, model)


if __name__ == "__main__":
    cli.run_script(main)
