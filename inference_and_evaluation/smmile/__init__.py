"""The rooms behind the suite's scripts.

Data flows one way: data set -> problems -> conversation -> model -> record -> score -> table.
A module knows what stands before it in that line, never what comes after.
"""
