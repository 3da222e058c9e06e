"""Strategies side by side on the bits of one trained network: equal budgets, the same limits, several seeds."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from codesign.accuracy import evaluate, place_of
from codesign.commands.output import one_line
from codesign.family import family, plain
from codesign.launch import Metrics, prepared, search_with, shared_weights
from codesign.network_task import NetworkTask
from codesign.problem import Problem
from codesign.run_directory import Lock, RunDirectoryBusy, RunDirectoryError, write_atomically
from codesign.run_spec import RunSpec, open_run
from codesign.space import Arch, BitwidthSpace
from codesign.stopwatch import Stopwatch
from codesign.supernet import SUPERNET_NAME
from codesign.trained import FinalTraining, train_quantized
from codesign.trial import Trial, load_trials

if TYPE_CHECKING:
    from codesign.data import Data

logger = logging.getLogger(__name__)

SHOOTOUT_NAME, FINALS_NAME, ROW_NAME, LOCKS_NAME = "shootout.json", "finals.json", "row.json", ".locks"
SPENT_NAME = "spent.json"
#: What chooses bits, in the order of tables.
STRATEGIES = ("milp", "greedy", "haq", "cursor", "dnas", "fine_grained", "reinforce", "nsga2", "random")
#: Limits that are searched under unless others are given.
LIMITS = ("energy_j=60%", "energy_j=40%", "energy_j=20%", "latency_s=40%")

Say = Callable[[str], object]


@dataclass(frozen=True)
class Shootout:
    """What is compared.

    Parameters
    ----------
    spec : RunSpec
        The network, its data and the chip; which limits, strategy, seed and number of trials it has does not matter.
    strategies : tuple of str
    limits : tuple of tuple of str
        Those of each search.
    evaluations : int
        The budget of a search: the image passes of so many evaluations, whatever they are spent on.
    seeds : int
    training_share : float
        Most of the budget that a strategy may spend on what it trains and measures by itself.
    tune_epochs : int
        Epochs that chosen networks are tuned for in the end, all alike; 0 for none.
    tune_limits : tuple of int
        Which of the limits' networks are tuned, counted from 0.

    Raises
    ------
    ValueError
        For an unknown strategy, or a number out of range.
    """

    spec: RunSpec
    strategies: tuple[str, ...] = STRATEGIES
    limits: tuple[tuple[str, ...], ...] = tuple((limit,) for limit in LIMITS)
    evaluations: int = 400
    seeds: int = 3
    training_share: float = 0.5
    tune_epochs: int = 0
    tune_limits: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or not self.strategies:
            raise ValueError(
                f"Shootout: strategies must be among {', '.join(STRATEGIES)}, or all, got "
                f"{', '.join(unknown) or 'none'}."
            )
        if self.spec.family != "bits":
            raise ValueError(
                f"Shootout: it compares searches of the bits of a trained network, got {self.spec.family}."
            )
        if self.spec.hardware_choices:
            raise ValueError(
                "Shootout: it compares searches on a chip that is given, got choices of "
                f"{', '.join(self.spec.hardware_choices)}; set such a field to one value."
            )
        for name, least in (("evaluations", 10), ("seeds", 1), ("tune_epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Shootout: {name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.training_share < 1:
            raise ValueError(f"Shootout: training_share must be between 0 and 1, got {self.training_share}.")
        bad = [i for i in self.tune_limits if not 0 <= i < len(self.limits)]
        if bad:
            raise ValueError(f"Shootout: tune_limits must be from 0 to {len(self.limits) - 1}, got {bad[0]}.")

    def record(self) -> dict[str, Any]:
        """As JSON values; the same for the same shootout."""
        record: dict[str, Any] = plain(dataclasses.asdict(self))
        return record

    def budgeted(self, problem: Problem, strategy: str, limit: Sequence[str], seed: int) -> RunSpec:
        """One search: as long a training as its share allows, and evaluations with the rest of the passes."""
        task: NetworkTask = problem.supernet
        passes = self.evaluations * task.evaluation_passes
        bare = dataclasses.replace(
            self.spec, limits=tuple(limit), strategy=strategy, strategy_settings={}, seed=seed,
            data_seed=self.spec.seed if self.spec.data_seed is None else self.spec.data_seed,
        )  # fmt: skip
        chosen = bare.search_strategy().spending(problem, int(self.training_share * passes))
        trials = max(1, (passes - chosen.training_passes(problem)) // task.evaluation_passes)
        chosen = chosen.lasting(trials)
        settings = plain(dataclasses.asdict(chosen))
        settings.pop("steps_per_offer", None)
        return dataclasses.replace(bare, strategy_settings=settings, trials=trials).completed()

    def rooms(self) -> Iterator[tuple[str, int, int]]:
        """The strategy, the number of the limit, and the seed of each search; one seed of all before the next."""
        for seed in range(self.seeds):
            for i in range(len(self.limits)):
                for strategy in self.strategies:
                    yield strategy, i, seed


class Arena:
    """A shootout in its directory: what is done is kept, and several processes may work side by side.

    A search, or a tuning, that fails is kept as failed, with the message, and does not stop the others.

    Parameters
    ----------
    shootout : Shootout
    out : Path
    resume : bool
    device : str, optional

    Raises
    ------
    RunDirectoryError
        Where ``out`` holds another shootout, or this one and ``resume`` is false.
    UnreachableLimit
        Where a limit cannot be met; before anything is written.
    """

    def __init__(self, shootout: Shootout, out: str | Path, resume: bool = False, device: str | None = None) -> None:
        self._place = place_of(device)
        spec, self.data = prepared(shootout.spec)
        for limit in shootout.limits:
            dataclasses.replace(spec, limits=limit).problem().witness  # noqa: B018  raises where it cannot be met
        self.shootout, self.folder = dataclasses.replace(shootout, spec=spec), Path(out)
        self._open(resume)

    def _open(self, resume: bool) -> None:
        path, record = self.folder / SHOOTOUT_NAME, self.shootout.record()
        if path.exists():
            held = json.loads(path.read_bytes())["shootout"]
            free = {"spec": {**record["spec"], "data_dir": None}}
            if {**held, "spec": {**held["spec"], "data_dir": None}} != {**record, **free}:
                raise RunDirectoryError(f"{self.folder}: it must hold this shootout; choose another directory.")
            if not resume:
                raise RunDirectoryError(f"{self.folder}: it holds this shootout; give --resume, or choose another.")
        (self.folder / LOCKS_NAME).mkdir(parents=True, exist_ok=True)
        problem = self.shootout.spec.problem()
        space: Any = problem.space
        uniform = [{"bits": bits, "arch": list(arch), "metrics": problem.price(arch).metrics()}
                   for bits in space.bits for arch in [space.uniform(bits)]]  # fmt: skip
        known = {"reference": problem.price(space.reference).metrics(), "uniform": uniform}
        write_atomically(path, (json.dumps({"shootout": record, **known}, indent=1) + "\n").encode())

    @cached_property
    def task(self) -> NetworkTask:
        """The trained network, shared by all searches and so measured once for each assignment."""
        with Metrics(self.folder) as metrics:
            task: NetworkTask = shared_weights(
                self.shootout.spec, self.data, self.folder / SUPERNET_NAME, False, metrics, self._place
            )
        return task

    def problem(self, i: int) -> Problem:
        """The problem under the limit of a number."""
        spec = dataclasses.replace(self.shootout.spec, limits=self.shootout.limits[i])
        return spec.problem(self.task.accuracy(), self.task)

    def place(self, strategy: str, i: int, seed: int) -> Path:
        """The run directory of a search."""
        return self.folder / strategy / "_".join(self.shootout.limits[i]).replace("%", "pc") / f"seed-{seed}"

    def before(self) -> str:
        """How good the network is to begin with, and both ends of the range of each metric under a limit."""
        from codesign.family_bits import reach_table

        free = dataclasses.replace(self.shootout.spec, limits=()).problem()
        problems = [self.problem(i) for i in range(len(self.shootout.limits))]
        said = family(self.shootout.spec.family).before(free, self.task)
        return "\n\n".join(part for part in (said, reach_table(problems)) if part)

    def run(
        self, progress: bool = False, say: Say | None = None, minutes: float = float("inf"), retry: bool = False
    ) -> bool:  # fmt: skip
        """Do what is not done, until all is or the time is up; whether all is.

        Parameters
        ----------
        progress : bool
            Show bars on stderr.
        say : callable, optional
            Called with what `before` gives, and with each search and tuning that begins or fails.
        minutes : float
            After which nothing is begun.
        retry : bool
            Do again what has failed.
        """
        end, waiting = time.monotonic() + 60 * minutes, True
        if retry:
            self._forget_failures()
        if say:
            say(f"{self.before()}\n")
        while waiting:
            waiting = False
            for strategy, i, seed in self.shootout.rooms():
                if time.monotonic() > end:
                    return False
                if not self._searched(strategy, i, seed, progress, say):
                    waiting = True
            for name, arch in self._finals():
                if time.monotonic() > end:
                    return False
                if not self._scored(name, arch, say):
                    waiting = True
            if waiting:
                time.sleep(2)
        return True

    # ---------------------------------------------------------------------------------------------- searches

    def _searched(self, strategy: str, i: int, seed: int, progress: bool, say: Say | None) -> bool:
        """Whether a search is done, or has failed, or could be done now; not while another process is at it."""
        place = self.place(strategy, i, seed)
        if (place / ROW_NAME).exists():
            return True
        name = f"{strategy}, {' '.join(self.shootout.limits[i])}, seed {seed}"
        problem = self.problem(i)
        place.mkdir(parents=True, exist_ok=True)
        watch = Stopwatch(place / SPENT_NAME)

        def keep(found: dict[str, Any]) -> None:
            took = {"search_s": watch.spent.wall_s, "processor_s": watch.spent.processor_s}
            row = {"strategy": strategy, "limit": i, "seed": seed, **found, **took}
            write_atomically(place / ROW_NAME, (json.dumps(row, indent=1) + "\n").encode())

        try:
            spec = self.shootout.budgeted(problem, strategy, self.shootout.limits[i], seed)
            with open_run(place, spec, resume=True):
                if (place / ROW_NAME).exists():  # another process was done meanwhile
                    return True
                if say:
                    say(f"{name}: {spec.trials} evaluations")
                watch = Stopwatch(place / SPENT_NAME)
                with watch:
                    found = self._found(problem, spec, place, progress)
                keep(found)
        except RunDirectoryBusy:
            return False
        except Exception as error:
            keep({"failed": _failure(name, error, say)})
        return True

    def _found(self, problem: Problem, spec: RunSpec, place: Path, progress: bool) -> dict[str, Any]:
        """Search; what came out, and what it took."""
        with Metrics(place) as metrics:
            result = search_with(spec, self.task, place, progress, metrics, draw=False)
        distinct = n_distinct(load_trials(place)[: result.n_trials])
        training = spec.search_strategy().training_passes(problem)
        return {
            "arch": list(result.trial.arch), "metrics": dict(result.metrics), "usage": dict(result.usage),
            "evaluations": result.n_trials, "distinct": distinct,
            "image_passes": training + distinct * self.task.evaluation_passes, "measured": dict(result.measured),
        }  # fmt: skip

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is known of each search that is done; of one that has failed, the message under ``failed``."""
        paths = [self.place(*room) / ROW_NAME for room in self.shootout.rooms()]
        return [json.loads(path.read_bytes()) for path in paths if path.exists()]

    def _forget_failures(self) -> None:
        for row in self.rows:
            if "failed" in row:
                (self.place(row["strategy"], row["limit"], row["seed"]) / ROW_NAME).unlink(missing_ok=True)
        if any("failed" in scores for scores in self.finals.values()):
            with self._finals_locked():
                self._write_finals({name: scores for name, scores in self.finals.items() if "failed" not in scores})

    # ------------------------------------------------------------------------------------------------ finals

    def _finals(self) -> Iterator[tuple[str, Arch]]:
        """The networks whose test error is wanted: in float, uniform and chosen ones, and those that are tuned too."""
        space: BitwidthSpace = self.task.space
        chosen = [(row["limit"], tuple(row["arch"])) for row in self.rows if "failed" not in row]
        yield "float", space.reference
        for bits in space.bits:
            yield "test", space.uniform(bits)
        for _, arch in chosen:
            yield "test", arch
        if self.shootout.tune_epochs:
            yield "tuned", space.reference
            for i in self.shootout.tune_limits:  # uniform bits within the limit, beside what was chosen
                widest = [bits for bits in space.bits if self.problem(i).feasible(space.uniform(bits))]
                if widest:
                    yield "tuned", space.uniform(max(widest))
            for i, arch in chosen:
                if i in self.shootout.tune_limits:
                    yield "tuned", arch

    @property
    def finals(self) -> dict[str, dict[str, Any]]:
        """Errors and losses on the test set, and what they took, by `final_name`; ``failed`` as in `rows`."""
        path = self.folder / FINALS_NAME
        return json.loads(path.read_bytes()) if path.exists() else {}

    def _scored(self, kind: str, arch: Arch, say: Say | None) -> bool:
        name = final_name(kind, arch)
        if name in self.finals:
            return True
        try:
            lock = Lock(self.folder / LOCKS_NAME / name.replace(" ", "-"))
        except RunDirectoryBusy:
            return False
        try:
            if name in self.finals:  # another process was done meanwhile
                return True
            if say and kind == "tuned":
                say(f"tune {' '.join(map(str, arch))}")
            watch = Stopwatch(self.folder / LOCKS_NAME / f"{name.replace(' ', '-')}-{SPENT_NAME}")
            scores: dict[str, Any]
            try:
                with watch:
                    scores = {"float": self._in_float, "test": self._tested, "tuned": self._tuned}[kind](arch)
            except Exception as error:
                scores = {"failed": _failure(name, error, say)}
            self._keep(name, {**scores, **watch.spent._asdict()})
        finally:
            lock.release()
        return True

    def _keep(self, name: str, scores: dict[str, Any]) -> None:
        with self._finals_locked():
            self._write_finals({**self.finals, name: scores})

    def _write_finals(self, finals: dict[str, dict[str, Any]]) -> None:
        write_atomically(self.folder / FINALS_NAME, (json.dumps(finals, indent=1) + "\n").encode())

    @contextlib.contextmanager
    def _finals_locked(self) -> Iterator[None]:
        while True:
            try:
                lock = Lock(self.folder / LOCKS_NAME / "finals")
                break
            except RunDirectoryBusy:
                time.sleep(0.1)
        try:
            yield
        finally:
            lock.release()

    def _in_float(self, _: Arch) -> dict[str, float]:
        """As it was given."""
        from codesign.quant import set_bits

        set_bits(network := copy.deepcopy(self.task.network), None)
        return evaluate(network, self.task.data.test)

    def _tested(self, arch: Arch) -> dict[str, float]:
        """With the weights as they were given."""
        from codesign.quantized_accuracy import QuantizedAccuracy

        task = self.task
        return dict(QuantizedAccuracy(task.network, task.space, task.statistics, task.data.test, task.renewal)(arch))

    def _tuned(self, arch: Arch) -> dict[str, float]:
        """After an equal training of weights and steps at these bits."""
        data: Data = self.task.data  # on the device of the task, where the network is brought once it has its weights
        kind = family(self.shootout.spec.family)
        network = kind.started(self.shootout.spec, self.folder, arch, self.data)
        place = next(self.task.network.parameters()).device
        training = FinalTraining.for_images(data.train, epochs=self.shootout.tune_epochs, start="weights")
        network.to(place)
        if data.train.images.dim() == 4:
            network.to(memory_format=torch.channels_last)
        bits = kind.layer_bits(self.shootout.spec, arch)
        train_quantized(network, bits, data.train, training)
        return evaluate(network, data.test)


def n_distinct(trials: Sequence[Trial]) -> int:
    """How many evaluations trials stand for: one that is asked for again is known, unless weights have changed since.

    Those over a limit are not evaluated at all.
    """
    return len({(trial.arch, tuple(trial.metrics.items())) for trial in trials if trial.feasible})


def _failure(name: str, error: Exception, say: Say | None) -> str:
    """The message of an error that a search, test or tuning ends with; raised on where the machine is its cause."""
    if isinstance(error, (OSError, MemoryError)):
        raise error
    message = one_line(error)
    if not isinstance(error, (ValueError, FloatingPointError)):
        message = f"{type(error).__name__}: {message}"
        logger.error("Shootout: %s failed.", name, exc_info=error)
    if say:
        say(f"{name} failed: {message}")
    return message


def final_name(kind: str, arch: Sequence[int]) -> str:
    """The name under which the test score of a network is kept."""
    return f"{kind} {' '.join(map(str, arch))}"


def load_rows(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The record, the rows and the finals of a shootout's directory.

    Raises
    ------
    ValueError
        Where the directory holds none.
    """
    folder = Path(folder)
    try:
        held = json.loads((folder / SHOOTOUT_NAME).read_bytes())
        record = {**held.pop("shootout"), **held}
        rows = [json.loads(path.read_bytes()) for path in sorted(folder.glob(f"*/*/*/{ROW_NAME}"))]
        path = folder / FINALS_NAME
        return record, rows, json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: it must be the directory of a shootout, but {error}.") from None
