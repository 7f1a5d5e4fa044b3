"""Atomic file writing, and strict parsers of YAML and JSON with bounded size and unique keys."""

import errno
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

MAX_YAML = 1_000_000
"""The largest YAML text that is read, in characters."""
MAX_JSON = 10_000_000
"""The largest JSON text that is read, in characters."""
MAX_DEPTH = 50
MAX_MESSAGE = 500
"""The largest number of characters of a message about a file's content."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either all of it or its previous content.

    This also holds after a power failure and with several writers. Symbolic links are followed. A
    path that is not a regular file, for example a device, is written to directly.
    """
    path = resolved(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file")
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno and not error.filename:  # the error of a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def expanded(path: Path | str) -> Path:
    """A path with ``~`` expanded to the home folder.

    Raises:
      ValueError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} has no folder ({error}); expected that of a user") from error


def resolved(path: Path) -> Path:
    """A path with its symbolic links resolved.

    Raises:
      ValueError: the links form a cycle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} leads nowhere ({error}); expected no circle of links") from error


def printable(text: str, max_length: int = MAX_MESSAGE) -> str:
    """Text of at most ``max_length`` characters, with spaces for line ends and terminal control
    characters.
    """
    prefix = text[: max_length + 1]
    clean = "".join(c if c.isprintable() else " " for c in prefix).strip()
    return clean if len(prefix) <= max_length else f"{clean[: max_length - 1]}…"


def make_folder(path: Path) -> None:
    """Make a folder and its parents if they do not exist.

    Raises:
      ValueError: it cannot be made, for example under a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be made ({error.strerror or error}); expected a folder"
        ) from error


def lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or this process ends for any reason.

    Returns False if the system, or the file system of the file, has no such locks.

    Raises:
      BlockingIOError: another process, or another open file of this one, holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise BlockingIOError(error.errno, error.strerror) from error
    return True


def yaml_text(settings: Any) -> str:
    """Settings, plain values by name, as YAML text that :func:`read_yaml` reads back.

    Raises:
      ValueError: a value is not plain or contains itself, or the text is too large.
    """
    try:
        text = yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        read_yaml(text)
        return text
    except ValueError as error:
        raise ValueError(f"settings: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"settings: {error}; expected numbers, text, lists") from error


def read_yaml(text: str) -> Any:
    """Parse YAML text into plain values.

    Raises:
      ValueError: the text is not valid YAML, is too large or nested too deeply, uses aliases or
        merge keys, repeats a key, or has a non-decimal number that looks like a decimal one.
    """
    if len(text) > MAX_YAML:
        raise ValueError(f"the text has {len(text)} characters; expected at most {MAX_YAML}")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"this is no YAML: {error}") from error


def read_json(text: str) -> Any:
    """Parse JSON text into plain values.

    Raises:
      ValueError: the text is not valid JSON, is too large or nested too deeply, repeats a key, or
        has a number that is not finite.
    """
    if len(text) > MAX_JSON:
        raise ValueError(f"the text has {len(text)} characters; expected at most {MAX_JSON}")
    try:
        values = json.loads(text, object_pairs_hook=_dict_of_unique_keys)
        _require_plain(values, MAX_DEPTH)
    except RecursionError:
        raise ValueError(f"values are nested deeper than {MAX_DEPTH} levels") from None
    return values


def finite(plain: Any) -> Any:
    """Plain values for JSON, which has no NaN: numbers that are not finite become None, and arrays
    and NumPy's numbers become lists and numbers.
    """
    if hasattr(plain, "tolist"):
        plain = plain.tolist()
    if isinstance(plain, Mapping):
        return {key: finite(value) for key, value in plain.items()}
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return [finite(value) for value in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def with_nan(plain: Any) -> Any:
    """Numbers that :func:`finite` replaced by None, as NaN."""
    if isinstance(plain, dict):
        return {key: with_nan(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [with_nan(value) for value in plain]
    return math.nan if plain is None else plain


def _dict_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {duplicate[:100]!r} appears twice; expected it once")
    return result


def _require_plain(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"values are nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number is {value}; expected finite numbers")
    if isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            _require_plain(member, depth - 1)


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, which writes out a value each time that it occurs."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also rejects values that do not mean what they look like."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("an alias (*name) is used; expected each value written out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"values are nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if duplicates := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"the key {min(duplicates)[:100]!r} appears twice; expected it once")
        if "<<" in keys:
            raise ValueError("a merge key (<<) is used; expected each value written out")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        text = str(self.construct_scalar(node))
        is_integer = node.tag.endswith("int")
        # YAML 1.1 reads 010 as 8 and 1:30 as 90.
        if ":" in text or (is_integer and re.match(r"[-+]?0[0-9_]", text)):
            raise ValueError(f"a number is {text[:100]}; expected a decimal, or text in quotes")
        return self.construct_yaml_int(node) if is_integer else self.construct_yaml_float(node)


for _number_type in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_number_type}", _Loader.construct_number)
