"""Result files: their schema, names, and how published CSV files are read into it."""
