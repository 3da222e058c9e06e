"""A chip from a preset's name or a YAML file, and back."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hwmodels import HARDWARE
from hwmodels.cost import HardwareModel
from hwmodels.lookup import LookupTable

CHIP_SUFFIXES = (".yaml", ".yml")
TABLE_SUFFIXES = (".csv", ".json", ".npz")


def load_hardware(source: str, settings: Mapping[str, Any] | None = None) -> HardwareModel:
    """The chip that a name or a file stands for.

    Parameters
    ----------
    source : str
        A name in `hwmodels.HARDWARE`; the path of a YAML file that has either ``type:``, the class, or
        ``preset:``, the chip to start from, and then fields of the class; or that of a table of measured costs
        (``.csv``, ``.json``, ``.npz``; see `hwmodels.lookup.LookupTable.from_file`).
    settings : mapping, optional
        Other values for some fields. Those of a nested value are named with a dot, ``energies.dram_pj_per_bit``. A
        table of measured costs has ``free_ops`` alone.

    Returns
    -------
    HardwareModel

    Raises
    ------
    ValueError
        For an unknown preset, type or field, or a value that a field cannot have.

    Notes
    -----
    Where only some of the ``energies`` are given, the others are those that the chip would have looked up.

    Examples
    --------
    >>> load_hardware("bitfusion", {"rows": 32}).rows
    32
    """
    whose = f"Chip {source!r}"
    chip: Any
    changes: dict[str, Any]
    if source in HARDWARE:
        chip, changes = HARDWARE[source](), {}
    elif Path(source).suffix in TABLE_SUFFIXES:
        return _measured(whose, source, settings or {})
    elif Path(source).suffix in CHIP_SUFFIXES:
        chip, changes = _from_mapping(whose, _read_yaml(whose, Path(source)))
    else:
        raise ValueError(
            f"{whose}: it must be a preset, chip.yaml or a table of measured costs; "
            f"{_known('preset', source, HARDWARE)}"
        )
    changes = _merge(changes, settings or {})
    return chip if source in HARDWARE and not changes else _replace(whose, chip, changes)


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """``field=value`` texts as a mapping; values are read as YAML.

    Examples
    --------
    >>> parse_settings(["rows=32", "energies.dram_pj_per_bit=4.0"])
    {'rows': 32, 'energies.dram_pj_per_bit': 4.0}
    """
    pairs: dict[str, Any] = {}
    for text in settings:
        import yaml  # an empty list, the usual one, need not wait for it

        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise ValueError(f"Setting {text!r}: it must have the form field=value, such as rows=32.")
        try:
            pairs[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"Setting {text!r}: the value must be a number or a name, got {value!r}.") from None
    return pairs


def to_yaml(hardware: Any) -> str:
    """A chip as a YAML file that `load_hardware` reads back, each field with its unit and source.

    Parameters
    ----------
    hardware : dataclass instance
        A chip whose class stands behind one of the presets.

    Raises
    ------
    ValueError
        For a table of measured costs, which is a file of its own.
    """
    if isinstance(hardware, LookupTable):
        raise ValueError(f"Chip {hardware.name!r}: a table of measured costs has no fields to show; open its file.")
    lines = [f"type: {type(hardware).__name__}"]
    for field in dataclasses.fields(hardware):
        value = getattr(hardware, field.name)
        lines += ["", *_comment(field)]
        if dataclasses.is_dataclass(value):
            lines += [f"{field.name}:", *_nested(value)]
            continue
        lines.append(f"{field.name}: {_scalar(value)}")
        if field.name == "energies" and value is None:
            found = _nested(hardware.unit_energies)
            lines += ["# These are those of the tables; to change some, put their lines in place of null:"]
            lines += [f"# {line}" for line in found if not line.lstrip().startswith("#")]
    return "\n".join(lines) + "\n"


def _comment(field: Any, indent: str = "") -> list[str]:
    """What a field is, its unit and its source, as YAML comments."""
    about = field.metadata
    unit, source = about.get("unit"), about.get("source")
    text = about.get("doc", "") + (f" [{unit}]" if unit else "") + (f"; source: {source}" if source else "")
    return textwrap.wrap(text, 78, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ") if text else []


def _nested(value: Any) -> list[str]:
    lines = []
    for field in dataclasses.fields(value):
        lines += [*_comment(field, "  "), f"  {field.name}: {_scalar(getattr(value, field.name))}"]
    return lines


def _scalar(value: Any) -> str:
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True)).removesuffix("...\n").strip()


def _read_yaml(whose: str, path: Path) -> dict[str, Any]:
    import yaml

    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{whose}: the file must be readable: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{whose}: the file must be valid YAML: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{whose}: the file must hold lines of the form field: value, got {type(table).__name__}.")
    return {str(name): value for name, value in table.items()}


def _measured(whose: str, source: str, settings: Mapping[str, Any]) -> LookupTable:
    unknown = sorted(set(settings) - {"free_ops"})
    if unknown:
        raise ValueError(f"{whose}: a table of measured costs has no field but free_ops, got {', '.join(unknown)}.")
    free_ops = settings.get("free_ops", ())
    try:
        return LookupTable.from_file(source, (free_ops,) if isinstance(free_ops, str) else free_ops)
    except ValueError as error:
        raise ValueError(f"{whose}: {error}") from None


def _from_mapping(whose: str, table: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The chip to start from, or its class, and the fields to change."""
    if ("type" in table) == ("preset" in table):
        raise ValueError(
            f"{whose}: the file must have either preset: ({', '.join(HARDWARE)}) or type: ({', '.join(_types())})."
        )
    fields = {name: value for name, value in table.items() if name not in ("type", "preset")}
    if "preset" in table:
        preset = str(table["preset"])
        if preset not in HARDWARE:
            raise ValueError(f"{whose}: preset must be a known one; {_known('preset', preset, HARDWARE)}")
        return HARDWARE[preset](), fields
    name = str(table["type"])
    if name not in _types():
        raise ValueError(f"{whose}: type must be a known one; {_known('type', name, _types())}")
    return _types()[name], fields


def _types() -> dict[str, type]:
    """The classes behind the presets."""
    return {type(chip).__name__: type(chip) for chip in (make() for make in HARDWARE.values())}


def _merge(fields: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with settings put over them; a dotted name reaches into a nested value."""
    merged = dict(fields)
    for name, value in settings.items():
        outer, dot, inner = name.partition(".")
        if dot:
            held = merged.get(outer)
            merged[outer] = {**(held if isinstance(held, Mapping) else {}), inner: value}
        else:
            merged[name] = value
    return merged


def _replace(whose: str, chip: Any, changes: dict[str, Any]) -> HardwareModel:
    """The chip with other values for some of its fields; a class is filled from its defaults."""
    cls = chip if isinstance(chip, type) else type(chip)
    held = {} if isinstance(chip, type) else {f.name: getattr(chip, f.name) for f in dataclasses.fields(chip)}
    _check_names(whose, cls, changes)
    energies = changes.get("energies")
    if isinstance(energies, Mapping):
        _check_names(whose, _nested_class(cls, "energies"), energies)
        looked_up = _validated(whose, cls, {**held, **changes, "energies": held.get("energies")}).unit_energies
        changes = {**changes, "energies": {**dataclasses.asdict(looked_up), **energies}}
    made: HardwareModel = _validated(whose, cls, {**held, **changes})
    return made


def from_fields(whose: str, cls: type, fields: Mapping[str, Any]) -> Any:
    """A dataclass filled from values as YAML or a command line gives them, names and types checked.

    Parameters
    ----------
    whose : str
        What errors begin with.
    cls : type
        A dataclass.
    fields : mapping
        Values by field; the others have their defaults.

    Raises
    ------
    ValueError
        For an unknown field, or a value that a field cannot have.
    """
    _check_names(whose, cls, fields)
    return _validated(whose, cls, fields)


def _validated(whose: str, cls: type, fields: Mapping[str, Any]) -> Any:
    """An instance of a dataclass from values as YAML gives them."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python({name: _plain(value) for name, value in fields.items()})
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, ValueError):  # raised by the class itself, in its own words
            raise ValueError(f"{cause}" if str(cause).startswith(f"{whose}: ") else f"{whose}: {cause}") from None
        name = ".".join(str(part) for part in error["loc"])
        raise ValueError(
            f"{whose}: {name}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}."
        ) from None


def _plain(value: Any) -> Any:
    """A nested dataclass as a mapping, so that all of a chip is validated in one way."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _check_names(whose: str, cls: type, fields: Mapping[str, Any]) -> None:
    known = {field.name: field.metadata.get("unit") for field in dataclasses.fields(cls)}
    for name, value in fields.items():
        if name not in known:
            raise ValueError(f"{whose}: {cls.__name__} has no such field; {_known('field', name, known)}")
        if isinstance(value, bool) and get_type_hints(cls)[name] is not bool:
            raise ValueError(f"{whose}: {name} must be a number or a name, got {value!r}.")


def _nested_class(cls: type, name: str) -> type:
    """The dataclass that a field may hold."""
    hint = get_type_hints(cls)[name]
    return next(part for part in (hint, *get_args(hint)) if isinstance(part, type) and dataclasses.is_dataclass(part))


def _known(what: str, name: str, known: Iterable[str]) -> str:
    """What was given, what is near it, and all that is known."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"got {what} {name!r}{f', near {near[0]!r}' if near else ''}; known are {', '.join(names)}."
