"""The report: one page with all problems, responses, scores and runs of a folder."""
