"""Network families: one file each, with its table and its space."""
