"""Result files: schema, names, and reading of published CSV files."""
