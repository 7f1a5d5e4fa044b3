"""Data sets of graphs: the paper's, and your own molecules and structures."""
