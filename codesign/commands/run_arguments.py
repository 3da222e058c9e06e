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


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """The trained network whose bits are searched."""
    group = parser.add_argument_group("trained network: the space is the bits of its layers")
    group.add_argument("--weights", default=GIVEN, metavar="FILE", help="safetensors file of its weights")
    group.add_argument(
        "--bits", type=arguments.bit_range, default=GIVEN, metavar="BITS", help="to choose from (default: 2-8)"
    )
    group.add_argument(
        "--input-bits", type=arguments.positive, default=GIVEN, metavar="N", help="fix those of inputs at N"
    )
    group.add_argument(
        "--pin", action="append", default=GIVEN, metavar="LAYER=BITS",
        help="fix the bits of a layer, of both operands or W,A; first and last are layers too; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--float-layers", action="append", default=GIVEN, metavar="LAYER",
        help="leave a layer in float, or with auto all that cannot be quantized; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--per-channel", action="store_true", default=GIVEN, help="a step for each output channel of a weight"
    )
    group.add_argument(
        "--network-set", action="append", default=GIVEN, metavar="FIELD=VALUE",
        help="another setting, such as calibration=256 or weight_quantizer=lsq",
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
    _add_data_sources(group)


def _add_data_sources(group: Any) -> None:
    """Which images choices are made on, and how pixels become what weights expect."""
    group.add_argument(
        "--search-from", choices=("train", "test"), default=GIVEN,
        help="take the images to choose by from the training or the test file (default: train; test with --weights)",
    )  # fmt: skip
    group.add_argument(
        "--normalize", default=GIVEN, metavar="MEAN/STD",
        help="imagenet, or numbers such as 0.5,0.5,0.5/0.25,0.25,0.25 (default: those of the training images)",
    )  # fmt: skip


def add_search_arguments(parser: argparse.ArgumentParser, limit: str) -> None:
    """The strategy, its limits, and the supernet."""
    group = parser.add_argument_group("search")
    group.add_argument("--limit", action="append", dest="limits", default=GIVEN, metavar="METRIC=VALUE", help=limit)
    group.add_argument(
        "--strategy",
        default=GIVEN,
        metavar="NAME",
        help="mpnas (default), gumbel, reinforce, random, nsga2; for bits milp (default), greedy, haq, cursor, dnas, "
        "fine_grained, and the last three",
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
    group.add_argument(
        "--data-seed", type=arguments.natural, default=GIVEN, metavar="N",
        help="how images are split, where searches of several seeds share a split (default: as --seed)",
    )  # fmt: skip
    group = parser.add_argument_group("supernet: the weights that all networks share")
    group.add_argument(
        "--supernet", default=GIVEN, metavar="PATH", help="take that of another run instead of training one"
    )
    group.add_argument(
        "--supernet-epochs", type=arguments.positive, default=GIVEN, metavar="N", help="epochs with quantizers"
    )
    group.add_argument("--sampling", default=GIVEN, metavar="RULE", help="coherent, uniform, sandwich or fair")
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
    network = getattr(args, "network", None)
    if fields.get("weights") and not network and base.network is None:
        raise ValueError(
            "Option --weights: the network must be named too, such as codesign search resnet20 --weights w.safetensors."
        )
    if network and ":" not in network and "dataset" not in fields and base.network is None:
        raise ValueError(f"Option --data: the data that {network} is for must be named, such as --data cifar10.npz.")
    if network and "family" not in fields:
        fields["family"] = "bits"
    for name in ("data_dir", "supernet", "weights"):  # a run is repeated from anywhere
        if fields.get(name):
            fields[name] = str(Path(fields[name]).expanduser().absolute())
    strategy = base.strategy_settings if fields.get("strategy", base.strategy) == base.strategy else {}
    pinned = {"pinned": _pins(args.pin)} if hasattr(args, "pin") else {}
    own = _given(args, "space_set", width="width", depth="depth", bits="bits", input_bits="input_bits")
    fields["space_settings"] = {**base.space_settings, **pinned, **own}
    fields["network_settings"] = {
        **base.network_settings,
        **_given(args, "network_set", float_layers="float_layers", per_channel="per_channel"),
    }
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


def _pins(texts: Any) -> dict[str, Any]:
    """Bits by layer."""
    pins: dict[str, Any] = {}
    for text in texts:
        name, _, bits = text.rpartition("=")
        numbers = bits.split(",")
        if not name.strip() or len(numbers) > 2 or not all(number.strip().isdecimal() for number in numbers):
            raise ValueError(f"Option --pin {text!r}: it must be layer=bits or layer=weight,input, such as first=8.")
        if name.strip() in pins:
            raise ValueError(f"Option --pin {text!r}: a layer must be pinned once, but {name.strip()} is already.")
        pins[name.strip()] = [int(number) for number in numbers] if len(numbers) == 2 else int(numbers[0])
    return pins


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
