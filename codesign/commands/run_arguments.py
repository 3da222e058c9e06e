"""Arguments that describe a search, and the specification that they give."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments

if TYPE_CHECKING:
    from codesign.run_spec import RunSpec

GIVEN = argparse.SUPPRESS  # an option that is not given leaves what run.yaml says, or the default


def add_space_arguments(parser: argparse.ArgumentParser) -> None:
    """The space of the network."""
    group = parser.add_argument_group("space")
    group.add_argument(
        "--preset", default=GIVEN, metavar="NAME",
        help="imagenet, tiny-imagenet, cifar or tiny (default: tiny for digits, else cifar)",
    )  # fmt: skip
    group.add_argument("--width", type=float, default=GIVEN, metavar="X", help="factor on channel counts")
    group.add_argument("--depth", type=float, default=GIVEN, metavar="X", help="factor on numbers of blocks")
    group.add_argument(
        "--space-set", action="append", default=GIVEN, metavar="FIELD=VALUE",
        help="another field, such as bits=[4,8]; may be repeated",
    )  # fmt: skip


def add_chip_arguments(parser: argparse.ArgumentParser) -> None:
    """The chip, and what of it is chosen."""
    group = parser.add_argument_group("chip")
    group.add_argument("--hardware", default=GIVEN, metavar="CHIP", help="a preset or chip.yaml (default: bitfusion)")
    group.add_argument(
        "--set", action="append", default=GIVEN, dest="settings", metavar="FIELD=VALUE",
        help="another value for a field of the chip; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--objective", choices=("latency", "energy", "edp"), default=GIVEN,
        help="what the chip's mapping of a layer minimises",
    )  # fmt: skip
    group.add_argument(
        "--hardware-choice", action="append", default=GIVEN, metavar="FIELD=A,B,...",
        help="choose a field of the chip with the network; may be repeated",
    )  # fmt: skip


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The images."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", dest="dataset", default=GIVEN, metavar="NAME",
        help="digits (default), cifar10 or another of torchvision's, file.npz, or a folder",
    )  # fmt: skip
    group.add_argument("--data-dir", default=GIVEN, metavar="DIR", help="where the data lie")
    for part, use in (("train", "to train on"), ("search", "to choose by"), ("test", "to test on")):
        group.add_argument(
            f"--n-{part}", type=arguments.positive, default=GIVEN, metavar="N", help=f"images {use} (default: all)"
        )


def add_search_arguments(parser: argparse.ArgumentParser, limit: str) -> None:
    """The strategy, its limits, and the supernet."""
    group = parser.add_argument_group("search")
    group.add_argument("--limit", action="append", dest="limits", default=GIVEN, metavar="METRIC=VALUE", help=limit)
    group.add_argument(
        "--strategy", default=GIVEN, metavar="NAME", help="mpnas (default), gumbel, reinforce, random or nsga2"
    )
    group.add_argument(
        "--strategy-set", action="append", default=GIVEN, metavar="FIELD=VALUE",
        help="a hyperparameter of the strategy; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--trials", type=arguments.positive, default=GIVEN, metavar="N", help="networks to evaluate (default: 100)"
    )
    group.add_argument(
        "--batch-size", type=arguments.positive, default=GIVEN, metavar="N",
        help="networks that the strategy proposes at once (default: 10)",
    )  # fmt: skip
    group.add_argument(
        "--score", dest="score", choices=("error", "loss"), default=GIVEN,
        help="what is minimised on the search set (default: error)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=arguments.natural, default=GIVEN, metavar="N", help="same seed, same result (default: 0)"
    )
    group = parser.add_argument_group("supernet: the weights that all networks share")
    group.add_argument(
        "--supernet", default=GIVEN, metavar="PATH", help="take that of another run instead of training one"
    )
    group.add_argument(
        "--supernet-epochs", type=arguments.positive, default=GIVEN, metavar="N", help="epochs with quantizers"
    )
    group.add_argument("--sampling", default=GIVEN, metavar="RULE", help="uniform, sandwich or fair")
    group.add_argument("--precision", default=GIVEN, metavar="TYPE", help="float32, bfloat16 or float16")
    group.add_argument(
        "--supernet-set", action="append", default=GIVEN, metavar="FIELD=VALUE",
        help="another setting of its training, such as batch_size=64",
    )  # fmt: skip


def spec(args: argparse.Namespace, base: RunSpec | None = None) -> RunSpec:
    """The specification that the arguments give, on top of ``base``.

    Raises
    ------
    ValueError
        For a setting of another form, or a value that a field cannot have.
    """
    from codesign.run_spec import RunSpec

    base = base or RunSpec()
    known = {field.name for field in dataclasses.fields(RunSpec)} - {"objective"}
    fields: dict[str, Any] = {name: value for name, value in vars(args).items() if name in known}
    if hasattr(args, "score"):
        fields["objective"] = args.score
    if "dataset" in fields and "data_dir" not in fields and Path(fields["dataset"]).exists():
        fields["data_dir"] = "."  # what a path starts from
    for name in ("data_dir", "supernet"):  # a run is repeated from anywhere
        if fields.get(name):
            fields[name] = str(Path(fields[name]).expanduser().absolute())
    strategy = base.strategy_settings if fields.get("strategy", base.strategy) == base.strategy else {}
    fields["space_settings"] = {**base.space_settings, **_given(args, "space_set", width="width", depth="depth")}
    fields["hardware_settings"] = {**base.hardware_settings, **_given(args, "settings", objective="objective")}
    fields["hardware_choices"] = {**base.hardware_choices, **_choices(getattr(args, "hardware_choice", ()))}
    fields["strategy_settings"] = {**strategy, **_given(args, "strategy_set")}
    fields["supernet_settings"] = {
        **base.supernet_settings,
        **_given(args, "supernet_set", supernet_epochs="epochs", sampling="sampling"),
        **({"precision": {"dtype": args.precision}} if hasattr(args, "precision") else {}),
    }
    return RunSpec.from_fields({**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)}, **fields})


def _given(args: argparse.Namespace, settings: str, **named: str) -> dict[str, Any]:
    """Fields that were set by name, and those that have an option of their own."""
    from hwmodels.config import parse_settings

    own = {field: getattr(args, option) for option, field in named.items() if hasattr(args, option)}
    return {**parse_settings(getattr(args, settings, ())), **own}


def _choices(texts: Any) -> dict[str, tuple[Any, ...]]:
    """Values to choose from by field of the chip."""
    from hwmodels.config import parse_settings

    choices: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name.strip() and equals and all(value.strip() for value in values.split(","))):
            raise ValueError(f"Option --hardware-choice {text!r}: it must be field=value,value, such as rows=8,16,32.")
        choices[name.strip()] = tuple(parse_settings([f"{name}={value}"])[name.strip()] for value in values.split(","))
    return choices
