"""Models behind an API: Anthropic, OpenAI and compatible servers, ollama."""
