"""Perturbations: changes to a problem's examples, images and texts before its conversation is built.

They know nothing of models. `table.py` lists them in the order in which they are applied.
"""
