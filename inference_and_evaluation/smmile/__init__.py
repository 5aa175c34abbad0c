"""The package behind the suite's scripts: one subpackage per stage of an evaluation.

Data flows one way: data set -> problems -> conversation -> model -> record -> score -> report.
"""

# Each layer's modules may import from their own layer and from the layers before it; a test checks this.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("compat", "errors", "files", "task", "cli"),
    ("data",),
    ("prompting",),
    ("backends",),
    ("results",),
    ("inference",),
    ("scoring",),
    ("reporting",),
)
