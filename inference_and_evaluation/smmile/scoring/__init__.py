"""Scores: exact match, multiple choice, and an LLM as a judge."""
