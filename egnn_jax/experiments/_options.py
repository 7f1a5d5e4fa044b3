"""Options of tasks, models and optimizers as plain values, checked against their type hints."""

import contextlib
import dataclasses
import difflib
import functools
import math
import operator
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import flax.linen as nn

_MAX_MODEL_INTEGER = 1_000_000  # no integer option of a model may be larger
_MAX_SHOWN = 200


@functools.cache
def plain_hints(cls: type) -> dict[str, Any]:
    """The type hint of each option that YAML can represent, by name.

    Options are the fields of a dataclass or flax module. For a union, only the members that YAML
    can represent count. A field without any, for example a layer class, can only be set in Python.
    """
    hints = get_type_hints(cls)
    plain = {name: _plain_hint(hints[name]) for name in _fields(cls)}
    return {name: hint for name, hint in plain.items() if hint is not None}


def _fields(cls: type) -> list[str]:
    """The fields of a dataclass, without those that flax adds to every module."""
    if not dataclasses.is_dataclass(cls):
        raise ValueError(
            f"{cls.__name__} is not a dataclass; expected @dataclasses.dataclass(frozen=True), "
            "whose fields are the options"
        )
    internal = ("parent", "name") if issubclass(cls, nn.Module) else ()
    return [field.name for field in dataclasses.fields(cls) if field.name not in internal]


def _plain_hint(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if _plain_hint(member) is not None]
        union = functools.reduce(operator.or_, members) if members else None
        return None if union is type(None) else union
    is_plain = hint in (bool, int, float, str, type(None)) or get_origin(hint) is Literal
    if get_origin(hint) is tuple:
        is_plain = all(arg is Ellipsis or _plain_hint(arg) is not None for arg in get_args(hint))
    return hint if is_plain else None


def to_plain(options: Any, where: str) -> dict[str, Any]:
    """The options of a dataclass or module as plain values, with tuples as lists.

    Raises:
      ValueError: an option that YAML cannot represent differs from its default.
    """
    hints = plain_hints(type(options))
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in _fields(type(options)):
        value = getattr(options, name)
        is_not_plain = callable(value) if name in hints else value != defaults[name]
        if is_not_plain:
            raise ValueError(
                f"{where}{name} is {short_repr(value)}, which YAML cannot hold; expected plain "
                "values for a run with a config: register a class of your own that sets it"
            )
    values = {name: getattr(options, name) for name in hints}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def as_dataclass(options: Any) -> Any:
    """The plain options of a task, module or optimizer as a new dataclass."""
    cls = type(options)
    hints = plain_hints(cls)
    fields = [
        (name, hint, dataclasses.field(default=getattr(options, name)))
        for name, hint in hints.items()
    ]
    new_class = dataclasses.make_dataclass(cls.__name__, fields, frozen=True)
    lines = [f"  {name}: {text}" for name, text in described(cls).items() if name in hints]
    new_class.__doc__ = "\n".join([cls.__name__, "", "Args:", *lines])
    return new_class()


def shared(options: Any, cls: type) -> dict[str, Any]:
    """The options that another class also has, as plain values, if they fit its type hints."""
    hints = plain_hints(cls)
    shared_values = {}
    for name, value in to_plain(options, "").items():
        with contextlib.suppress(ValueError, KeyError):
            convert(value, hints[name], name)
            shared_values[name] = value
    return shared_values


def described(cls: type) -> dict[str, str]:
    """The plain-text description of each option from the docstrings of a class and its bases."""
    import docstring_parser

    descriptions = {}
    for base in reversed(cls.__mro__):
        for parameter in docstring_parser.parse(base.__doc__ or "").params:
            text = re.sub(r":\w+:`([^`]*)`|``([^`]*)``", r"\1\2", parameter.description or "")
            descriptions[parameter.arg_name] = " ".join(text.split())
    return descriptions


def replace(options: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a task, module or optimizer with some plain options changed."""
    if isinstance(options, nn.Module):
        return options.clone(**changes)
    return dataclasses.replace(options, **changes)


def build(cls: Any, plain: Mapping[str, Any], where: str, **arguments: Any) -> Any:
    """Build an object of a class from plain values, and ``arguments`` as they are.

    Raises:
      ValueError: a key is unknown, a required one is missing, or a value has the wrong type.
    """
    hints = {name: hint for name, hint in plain_hints(cls).items() if name not in arguments}
    for key in plain:
        if key not in hints:
            raise ValueError(
                f"{where}{short_repr(key)[1:-1]} is unknown; expected one of {sorted(hints)}"
                f"{nearest(key, hints)}"
            )
    values = {k: convert(value, hints[k], f"{where}{k}") for k, value in plain.items()}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in hints:
        field = fields[name]
        is_required = field.default is field.default_factory is dataclasses.MISSING
        if name not in values and is_required:
            raise ValueError(f"{where}{name} is missing; expected {_hint_text(hints[name])}")
    return cls(**arguments, **values)


def convert(value: Any, hint: Any, where: str) -> Any:
    """Convert a value to its type hint.

    Raises:
      ValueError: the value has another type.
    """
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for choice in choices:
        if choice is type(None) and value is None:
            return None
        if get_origin(choice) is Literal and any(
            type(value) is type(literal) and value == literal for literal in get_args(choice)
        ):
            return value
        if choice in (bool, int, str) and type(value) is choice:
            is_model_option = where.startswith("model.")
            if is_model_option and isinstance(value, int) and abs(value) > _MAX_MODEL_INTEGER:
                raise ValueError(
                    f"{where} is {short_repr(value)}; expected at most {_MAX_MODEL_INTEGER:,}"
                )
            return value
        if get_origin(choice) is tuple and isinstance(value, list | tuple):
            item_hints = get_args(choice)
            return tuple(convert(v, item_hints[0], f"{where}[{k}]") for k, v in enumerate(value))
        is_number = isinstance(value, int | float | str) and not isinstance(value, bool)
        if choice is float and is_number:
            try:
                number = float(value)  # YAML 1.1 parses 5e-4 as text
            except (ValueError, OverflowError):
                continue
            if not math.isfinite(number):  # JSON could not hold it
                raise ValueError(f"{where} is {short_repr(value)}; expected a finite number")
            return number
    if callable(value):  # set in Python, where fields may also be functions
        return value
    raise ValueError(f"{where} is {short_repr(value)}; expected {_hint_text(hint)}")


def _hint_text(hint: Any) -> str:
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    type_names = []
    for choice in choices:
        if choice is type(None):
            type_names.append("none")
        elif get_origin(choice) is Literal:
            type_names.append(str(get_args(choice)))
        else:
            type_names.append("a list" if get_origin(choice) is tuple else choice.__name__)
    return " or ".join(type_names)


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Return the value if it is a mapping with text keys.

    Raises:
      ValueError: it is not.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{where} is {short_repr(value)}; expected a mapping of names to values")
    return value


def nearest(key: Any, names: Any) -> str:
    """A hint that suggests the name closest to an unknown one, or an empty text."""
    matches = difflib.get_close_matches(str(key)[:_MAX_SHOWN], list(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def short_repr(value: Any) -> str:
    """The repr of a value, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}… ({len(text)} characters)"
