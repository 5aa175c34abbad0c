"""Data sets: rows from the hub, a folder or the demo set, checked and grouped into problems."""
