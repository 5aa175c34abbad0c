"""An LLM as a judge: what it is asked, and the verdicts that it gives."""
