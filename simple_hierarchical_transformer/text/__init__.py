"""Text: which files, how they are split and read, and how their bytes are shown."""
