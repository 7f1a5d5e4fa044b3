"""Progress where there is no terminal: lines in a log instead of a bar."""

import logging
import sys


def show_progress() -> None:
    """Let progress lines through to stderr; on a terminal the bar is drawn instead."""
    logger = logging.getLogger("tqdm_loggable")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
