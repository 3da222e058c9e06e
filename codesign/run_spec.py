"""Everything that determines a search, as a value and as the ``run.yaml`` of its directory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.describe import differences
from codesign.family import family, plain
from codesign.run_directory import Lock, RunDirectoryError, write_atomically
from codesign.space import AbstractSpace, Arch
from codesign.trial import LOG_NAME, load_trials
from hwmodels.config import CHIP_SUFFIXES, TABLE_SUFFIXES, from_fields, load_hardware

if TYPE_CHECKING:
    from codesign.data import Data
    from codesign.problem import Problem
    from codesign.strategies import AbstractStrategy
    from codesign.weight_training import SupernetTraining
    from hwmodels.cost import HardwareModel

SPEC_NAME, FRONT_NAME, SPEC_LOCK = "run.yaml", "front.yaml", "run.lock"
#: Folders above a run in which a supernet is still taken to move along with it.
MOST_UP = 2
#: Fields of `SupernetTraining` for the digits, of which an epoch has 8 batches.
DIGITS_TRAINING = {"float_epochs": 8, "epochs": 20}
#: What may differ between a run and its continuation: where the data lie, and how many trials are wanted.
FREE = ("data_dir", "trials")


@dataclass(frozen=True)
class RunSpec:
    """A search, in the words of ``codesign search``.

    Parameters
    ----------
    family : str
        The kind of space, one of `codesign.family.FAMILIES`.
    network, weights : str, optional
        With "bits": a network (`codesign.torch_networks.load_module`) and the safetensors file of its weights.
    network_settings : mapping
        How it is read and quantized: fields of `codesign.family_bits.NetworkSettings`.
    preset : str, optional
        Of the space; by default "tiny" for the digits and "cifar" for other images.
    space_settings : mapping
        Other fields of the space, such as ``width``.
    dataset : str
        See `codesign.data.load_data`, as for what follows.
    data_dir : str, optional
    n_train, n_search, n_test : int, optional
        Sizes of the parts, all images by default.
    search_from : str, optional
        "train" or "test": which images choices are made on. By default those of the test file where the weights come
        from elsewhere, for such a network has seen the others.
    normalize : str, optional
        How pixels become what the weights expect (`codesign.data.Normalization.parse`).
    hardware : str
        A preset, a chip's YAML file, or a table of measured costs.
    hardware_settings : mapping
        Other values for fields of the chip.
    hardware_choices : mapping
        Fields of the chip that are chosen with the network, each with its values.
    limits : tuple of str
        Such as ``energy_j=0.4x`` (of the reference network), ``latency_s=2e-3`` or ``latency_s=2ms``.
    objective : str
        The metric to minimise on the search set.
    strategy : str
        A name in `codesign.strategies.STRATEGIES`; None for the one that the family names.
    strategy_settings : mapping
        Its hyperparameters.
    trials, batch_size : int
        Candidates to evaluate, and how many at once.
    seed : int
    data_seed : int, optional
        Of the split of the images, where it is another: runs that are compared should have the same one.
    supernet : str, optional
        A run directory, or a folder or file of weights, whose supernet is taken instead of training one.
    supernet_settings : mapping
        Fields of `codesign.weight_training.SupernetTraining`.

    Raises
    ------
    ValueError
        For a value out of range.
    """

    family: str = "mobilenetv2"
    network: str | None = None
    weights: str | None = None
    network_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    preset: str | None = None
    space_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dataset: str = "digits"
    data_dir: str | None = None
    n_train: int | None = None
    n_search: int | None = None
    n_test: int | None = None
    search_from: str | None = None
    normalize: str | None = None
    hardware: str = "bitfusion"
    hardware_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    hardware_choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, hash=False)
    limits: tuple[str, ...] = ()
    objective: str = "error"
    strategy: str | None = None
    strategy_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    trials: int = 100
    batch_size: int = 10
    seed: int = 0
    data_seed: int | None = None
    supernet: str | None = None
    supernet_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        family(self.family)  # says which there are
        if self.family != "bits" and (self.network or self.weights):
            raise ValueError(
                f"a network and its weights are for --space bits, got network {self.network!r} with {self.family}."
            )
        if self.search_from not in (None, "train", "test"):
            raise ValueError(f"search_from must be train or test, got {self.search_from!r}.")
        for name, least in (("trials", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name, values in self.hardware_choices.items():
            if name in self.hardware_settings:
                raise ValueError(f"the chip's {name} must be either set or chosen, got both.")
            if len(values) < 1:
                raise ValueError(f"the chip's {name} must have values to choose from, got none.")

    # ------------------------------------------------------------------------------------------- as a file

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], whose: str = "Run") -> RunSpec:
        """A specification from values as YAML gives them.

        Raises
        ------
        ValueError
            For an unknown field, or a value that a field cannot have.
        """
        spec: RunSpec = from_fields(whose, cls, fields)
        return spec

    @classmethod
    def read(cls, path: str | Path) -> RunSpec:
        """The specification that a ``run.yaml``, or a run directory, holds.

        Raises
        ------
        ValueError
            For a file that is missing, is not YAML, or has unknown fields or bad values.
        """
        import yaml

        path = Path(path)
        path = path / SPEC_NAME if path.is_dir() else path
        whose = f"Run {str(path)!r}"
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{whose}: the file must be readable: {error.strerror}.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{whose}: the file must be valid YAML: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{whose}: it must hold lines of the form field: value, got {type(fields).__name__}.")
        hardware = fields.get("hardware")
        if isinstance(hardware, str) and _is_file(hardware) and (path.parent / hardware).exists():
            fields["hardware"] = str((path.parent / hardware).resolve())
        for name in ("supernet", "weights"):
            there = fields.get(name)
            if isinstance(there, str) and (path.parent / there).exists():
                fields[name] = str((path.parent / there).resolve())
        return cls.from_fields(fields, whose)

    def to_yaml(self) -> str:
        """The text of a ``run.yaml``."""
        import yaml

        return str(yaml.safe_dump(plain(dataclasses.asdict(self)), sort_keys=False, allow_unicode=True))

    def write(self, folder: Path, name: str = SPEC_NAME) -> None:
        """Write ``run.yaml`` and, where the chip is a file, a copy of that, so that the folder is enough to repeat it.

        Raises
        ------
        ValueError
            Where the chip's file cannot be read.
        """
        spec = self
        if _is_file(self.hardware):
            source, copy = Path(self.hardware), folder / f"chip{Path(self.hardware).suffix}"
            if source.resolve() != copy.resolve():
                try:
                    content = source.read_bytes()
                except OSError as error:
                    raise ValueError(f"Chip {self.hardware!r}: the file must be readable: {error.strerror}.") from None
                write_atomically(copy, content)
            spec = dataclasses.replace(spec, hardware=copy.name)
        if self.supernet and Path(self.supernet).exists():  # a front's, which may be moved as a whole
            near = os.path.relpath(Path(self.supernet).resolve(), folder.resolve())
            spec = dataclasses.replace(spec, supernet=near if near.count("..") <= MOST_UP else self.supernet)
        command = "search" if name == SPEC_NAME else "front"
        text = f"# Repeats this run: codesign {command} {name} --out ANOTHER_DIRECTORY\n{spec.to_yaml()}"
        write_atomically(folder / name, text.encode())

    # ---------------------------------------------------------------------------------- what it stands for

    def completed(self) -> RunSpec:
        """The same with every default that another version might have otherwise written out.

        Raises
        ------
        ValueError
            For a space, strategy or training whose fields do not fit.
        """
        spec = dataclasses.replace(self, strategy=self.strategy or family(self.family).strategy)
        strategy = spec.search_strategy()
        strategy = dataclasses.replace(strategy.lasting(self.trials), **{
            name: getattr(strategy, name) for name in self.strategy_settings if name != "preset"
        })  # fmt: skip
        if hasattr(strategy, "steps_per_offer") and "steps_per_offer" not in self.strategy_settings:
            offers = math.ceil(self.trials / self.batch_size)  # all steps are taken by the last trial
            strategy = dataclasses.replace(strategy, steps_per_offer=math.ceil(strategy.steps / offers))
        settings = plain(dataclasses.asdict(strategy))
        return family(self.family).completed(dataclasses.replace(spec, strategy_settings=settings))

    def fitted(self, data: Data) -> RunSpec:
        """The same with the network's image size, channels and classes as the data have them, where they are not set.

        Raises
        ------
        ValueError
            For images that the network cannot read.
        """
        return family(self.family).fitted(self, data)

    def space(self) -> AbstractSpace:
        """The space; with fields of the chip among its choices where there are ``hardware_choices``."""
        space = self.network_space()
        if not self.hardware_choices:
            return space
        from codesign.chip_space import ChipSpace

        return ChipSpace(space, {name: tuple(values) for name, values in self.hardware_choices.items()})

    def network_space(self) -> AbstractSpace:
        """The space of the network alone."""
        return family(self.family).space(self)

    def hardware_model(self) -> HardwareModel:
        """The chip."""
        return load_hardware(self.hardware, self.hardware_settings)

    def hardware_id(self) -> str:
        """The name of a preset, or a digest of what the chip's file says, whose path differs from run to run."""
        try:
            content = Path(self.hardware).read_bytes() if _is_file(self.hardware) else None
        except OSError:
            content = None
        return self.hardware if content is None else f"file {hashlib.blake2b(content, digest_size=8).hexdigest()}"

    def data(self) -> Data:
        """The images, split."""
        from codesign.data import Normalization, load_data

        search_from: Any = self.search_from or (
            "test" if self.family == "bits" and self.dataset != "digits" else "train"
        )
        return load_data(
            self.dataset, self.data_dir, self.n_train, self.n_search, self.n_test,
            seed=self.seed if self.data_seed is None else self.data_seed, search_from=search_from,
            normalize=None if self.normalize is None else Normalization.parse(self.normalize),
            every_class=self.family != "bits",
        )  # fmt: skip

    def search_strategy(self) -> AbstractStrategy:
        """The strategy with its hyperparameters.

        Raises
        ------
        ValueError
            For an unknown strategy or hyperparameter.
        """
        from codesign.strategies import STRATEGIES

        name = self.strategy or family(self.family).strategy
        if name not in STRATEGIES:
            raise ValueError(f"Run: strategy must be one of {', '.join(STRATEGIES)}, got {name!r}.")
        cls, settings = STRATEGIES[name], dict(self.strategy_settings)
        preset = settings.pop("preset", None)
        if preset is not None:
            if preset != "paper" or not hasattr(cls, "paper"):
                presets = "paper" if hasattr(cls, "paper") else "none"
                raise ValueError(f"Strategy {name!r}: its presets are: {presets}; got {preset!r}.")
            settings = {**plain(dataclasses.asdict(cls.paper())), **settings}
        strategy: AbstractStrategy = from_fields(f"Strategy {name!r}", cls, settings)
        return strategy

    def supernet_training(self) -> SupernetTraining:
        """How the supernet is trained.

        Raises
        ------
        ValueError
            For an unknown setting, or a value that it cannot have.
        """
        from codesign.weight_training import SupernetTraining

        usual: Mapping[str, Any] = DIGITS_TRAINING if self.dataset == "digits" else {}
        if self.family == "bits":
            from codesign.network_task import TUNING

            usual = plain(dataclasses.asdict(TUNING))
        training: SupernetTraining = from_fields("Supernet", SupernetTraining, {**usual, **self.supernet_settings})
        return training

    def problem(self, accuracy: Any = None, supernet: Any = None) -> Problem:
        """The problem, its limits as numbers; without an ``accuracy`` candidates can be priced and not evaluated.

        Raises
        ------
        ValueError
            For a limit that cannot be read.
        """
        from codesign.limits import parse_limits
        from codesign.problem import Problem

        free = Problem(
            self.space(), accuracy or _unknown, self.hardware_model(), supernet=supernet, objective=self.objective
        )
        if not self.limits:
            return free
        return dataclasses.replace(free, limits=parse_limits(self.limits, free))


def _unknown(arch: Arch) -> Mapping[str, float]:
    raise ValueError("Run: this problem has no accuracy; candidates can be priced but not evaluated.")


def _is_file(hardware: str) -> bool:
    return Path(hardware).suffix in (*CHIP_SUFFIXES, *TABLE_SUFFIXES)


@contextlib.contextmanager
def open_run(out: str | Path, spec: RunSpec, resume: bool, name: str = SPEC_NAME) -> Iterator[Path]:
    """A run directory that holds ``spec``, made or gone on with, and kept from other processes.

    Where bad input ends a run that was begun here before it has anything to keep, nothing of it is left.

    Raises
    ------
    RunDirectoryError
        Where another process writes it, where it holds another specification, or where it holds this one and is not
        to be resumed.
    """
    folder = Path(out)
    made, new = not folder.exists(), not (folder / name).exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / SPEC_LOCK)
    try:
        if (folder / name).exists():
            _check_same(folder, RunSpec.read(folder / name), spec, resume)
        for other in (LOG_NAME, SPEC_NAME, FRONT_NAME):
            if (folder / other).exists() and not (folder / name).exists():
                raise RunDirectoryError(f"{folder}: it holds {other} but no {name}; choose another directory.")
        spec.write(folder, name)
        yield folder
    except ValueError:
        if new and all(_is_no_loss(path) for path in folder.iterdir()):
            for path in folder.iterdir():
                path.unlink()
            if made:
                folder.rmdir()
        raise
    finally:
        lock.release()


def _is_no_loss(path: Path) -> bool:
    """Whether a file in the directory of a run holds nothing that took time."""
    if path.name in (LOG_NAME, "metrics.jsonl"):
        return not path.stat().st_size
    return path.is_file() and (path.name in (SPEC_NAME, FRONT_NAME, SPEC_LOCK, "lock", "config.json") or
                               path.stem == "chip")  # fmt: skip


def _check_same(folder: Path, there: RunSpec, here: RunSpec, resume: bool) -> None:
    held, asked = ({**plain(dataclasses.asdict(spec)), "hardware": spec.hardware_id()} for spec in (there, here))
    changed = [line for name in held if name not in FREE for line in differences(held[name], asked[name], name)]
    if changed:
        raise RunDirectoryError(
            f"{folder}: it must hold this run to be gone on with, but it differs in {'; '.join(changed)}. Choose "
            "another directory."
        )
    if not resume:
        raise RunDirectoryError(f"{folder}: it already holds this run; give --resume, or choose another directory.")
    n_trials = len(load_trials(folder)) if (folder / LOG_NAME).exists() else 0
    if n_trials > here.trials:
        raise RunDirectoryError(
            f"{folder}: it holds {n_trials} trials, so at least as many must be asked for, got --trials {here.trials}."
        )
