"""Runs: which requests a run sends, how its answers are kept, and the result file."""
