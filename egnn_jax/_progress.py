"""Progress bars."""

import logging
import sys
from typing import Any

from egnn_jax._extras import require


def progress_bar(items: Any = None, **options: Any) -> Any:
    """A ``tqdm`` bar on stderr, or a line every ten seconds if stderr is not a terminal."""
    require("tqdm_loggable")
    from tqdm_loggable.auto import tqdm

    logger = logging.getLogger("tqdm_loggable")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
    return tqdm(items, **options)
