"""Models, one architecture per file: those of the paper's Tables 1 to 3, PaiNN and TensorNet."""
