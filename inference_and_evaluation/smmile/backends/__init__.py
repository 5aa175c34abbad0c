"""What answers a conversation: local models, models behind an API, and baselines."""
