"""Prompts: building conversations from problems, and extracting the chosen option from a response."""
