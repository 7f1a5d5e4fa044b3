"""Optional packages and plugin modules."""

import importlib.util
import sys

from egnn_jax._files import expanded

_EXTRAS = {
    "ase": "chem",
    "rdkit": "chem",
    "jax_md": "md",
    "qm9pack": "qm9",
    "tblite": "xtb",
    "tensorboardX": "tensorboard",
    "torch": "bench",
    "egnn_pytorch": "bench",
    "pytest": "test",
    "hypothesis": "test",
}
"""The extra of pyproject.toml that installs a package; all others are required dependencies."""


def require(*packages: str) -> None:
    """Raise ImportError, with the command to install it, if a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(missing(package), name=package)


def advice(error: ImportError) -> str:
    """A sentence that says how to fix a failed import."""
    package = (error.name or "").partition(".")[0]
    if not package or importlib.util.find_spec(package) is not None:
        return str(error)
    return missing(package)


def missing(package: str) -> str:
    """A sentence that says that a package is not installed, and what installs it."""
    extra = _EXTRAS.get(package)
    if extra is None:
        provider = "pip install egnn-jax brings, or a module beside the plugin"
    else:
        provider = f"pip install 'egnn-jax[{extra}]' brings"
    return f"{package} is not installed; expected what {provider}"


def import_plugin(plugin: str) -> None:
    """Import a module by its name, or a ``.py`` file by its path.

    Raises:
      ValueError: there is no such module or file.
    """
    if not plugin.endswith(".py"):
        try:
            importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            if error.name != plugin:
                raise
            raise ValueError(
                f"--plugin {plugin} is not a module; expected a module or a .py file"
            ) from error
        return
    path = expanded(plugin)
    if not path.is_file():
        raise ValueError(f"--plugin {plugin} is not a file; expected a .py file or a module")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    if (folder := str(path.parent.resolve())) not in sys.path:
        sys.path.append(folder)  # for modules beside it
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
