"""Models behind an API: Anthropic, OpenAI and compatible servers, ollama.

`client.connect` is the entry point for inference scripts and the judge. The modules in the order in which
they build on each other: `redaction`, `service` (name, credentials, address, proxy), `retries` (the one
retry policy), `service_errors` (what error responses mean), `transport` (the HTTP client), `budget`
(--max-cost), `concurrent` (requests in flight), `sent_images` (image limits), `backend` (what all back ends
share), then one module per protocol.
"""
