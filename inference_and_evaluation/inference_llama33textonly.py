"""Llama 3.3, or another model of ollama, which is shown no image: what can be had from the text alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from smmile import cli

if TYPE_CHECKING:
    from smmile.prompting.conversation import Recipe

EXAMPLE = "python inference_llama33textonly.py --inference_mode ICL"

# The paper's model, and what its results are called.
PUBLISHED = {"llama3.3": "llama33textonly"}


def recipe() -> Recipe:
    """One user turn of text with the examples in it, which show no options in multiple choice either."""
    from smmile.prompting.conversation import Recipe, Wording
    from smmile.prompting.prompts import prompt

    return Recipe(
        parts=("text",),
        open=Wording(
            without_examples=prompt("text_only.open.zero_shot"),
            with_examples=prompt("text_only.open.icl"),
            example=prompt("text_only.open.example"),
        ),
        mcqa=Wording(
            question=prompt("mcqa.standard.text"),
            without_examples=prompt("text_only.mcqa.zero_shot"),
            with_examples=prompt("text_only.mcqa.icl"),
            example=prompt("text_only.mcqa.example"),
        ),
    )


def main(description: str = __doc__ or "", example: str = EXAMPLE, task_format: str = "open") -> int:
    parser = cli.Parser(description, example)
    cli.add_inference_flags(parser, task_format=task_format, max_new_tokens=None)
    cli.add_api_flags(parser, model=next(iter(PUBLISHED)))
    args = parser.parse_args()

    from smmile.backends.interface import Backend
    from smmile.backends.remote import ollama_chat
    from smmile.backends.remote.budget import Budget
    from smmile.inference.api_models import ApiModel, run_api_model
    from smmile.inference.plan import Plan
    from smmile.prompting.choice import read_choice
    from smmile.prompting.prompts import prompt

    def connect(plan: Plan, fields: Mapping[str, object], budget: Budget | None) -> Backend:
        options = {item.key: item.options for item in plan.problems}

        def follow_up(key: str, response: str) -> str | None:
            """In multiple choice a model that has chosen no option is asked for its letter."""
            shown = options[key]
            if shown is None or read_choice(response, shown) is not None:
                return None
            return prompt("text_only.mcqa.follow_up")

        service, make_client = ollama_chat.connect(args.model, args.base_url, args.timeout)
        return ollama_chat.OllamaChat(
            make_client=make_client,
            service=service,
            fields=fields,
            max_retries=args.max_retries,
            concurrency=args.concurrency,
            follow_up=follow_up,
            budget=budget,
        )

    model = ApiModel(
        name=PUBLISHED.get(args.model, args.model),
        model=args.model,
        recipe=recipe(),
        generation={"service": "ollama", "decoding": "the model's own in ollama"},
        fields={} if args.max_new_tokens is None else {"num_predict": args.max_new_tokens},
        connect=connect,
        packages=("ollama",),
        is_paid=False,
    )
    return run_api_model(args, model)


if __name__ == "__main__":
    cli.run_script(main)
