"""Inference runs: planning requests, saving responses, and writing the result file."""
