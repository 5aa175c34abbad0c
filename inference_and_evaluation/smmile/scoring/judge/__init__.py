"""An LLM as a judge: its prompts, responses, verdicts and costs."""
