"""Experts as judges: which answers they grade, and the ratings that they give."""
