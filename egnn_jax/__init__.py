"""E(n)-equivariant graph neural networks (Satorras, Hoogeboom and Welling, ICML 2021) for JAX.

The public names are listed in ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader as _lazy

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
