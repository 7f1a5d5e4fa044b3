"""One file an architecture of the paper's Tables 1 to 3, and the registry that names them."""
