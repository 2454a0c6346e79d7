"""Text: which files, how they become token ids, how these are split and read, and how bytes are shown."""
