"""Where graphs come from: one file per data set of the paper."""
