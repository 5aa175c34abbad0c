"""Data sets: rows from the hub, a folder or the demo set, validated and grouped into problems."""
