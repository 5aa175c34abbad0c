"""The page on which an expert grades responses."""
