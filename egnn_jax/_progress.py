"""Progress bars."""

import logging
import sys
from typing import Any

from egnn_jax._extras import require


def progress_bar(items: Any = None, **options: Any) -> Any:
    """A ``tqdm`` bar in a notebook or on a terminal, or a line every ten seconds on stderr."""
    require("tqdm", "tqdm_loggable")
    if "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty()):
        from tqdm.auto import tqdm

        return tqdm(items, **options)
    from tqdm_loggable.tqdm_logging import tqdm_logging

    logger = logging.getLogger("tqdm_loggable")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(getattr(handler, "stream", None) is sys.stderr for handler in logger.handlers):
        other_handlers = [
            handler for handler in logger.handlers if type(handler) is not logging.StreamHandler
        ]
        logger.handlers = [*other_handlers, logging.StreamHandler(sys.stderr)]
    return tqdm_logging(items, **options)
