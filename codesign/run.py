"""A search on the disk, read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from codesign.run_spec import SPEC_NAME, RunSpec
from codesign.trial import LOG_NAME, Trial, best_trial, load_trials


@dataclass(frozen=True)
class Run:
    """A search on the disk, read back.

    Parameters
    ----------
    spec : RunSpec
    path : Path
    trials : tuple of Trial
        In order; none where the search has not come so far.
    """

    spec: RunSpec
    path: Path
    trials: Sequence[Trial]

    @cached_property
    def limits(self) -> dict[str, float]:
        """The limits as numbers."""
        return dict(self.spec.problem().limits)

    def trial(self, which: str | int = "best") -> Trial:
        """A trial by its number, or the feasible one with the lowest objective.

        Raises
        ------
        ValueError
            Where there is no such trial.
        """
        if which == "best":
            best = best_trial(self.trials, self.spec.objective)
            if best is None:
                raise ValueError(
                    f"Run {str(self.path)!r}: some trial must meet the limits and have its {self.spec.objective}, "
                    f"but none of {len(self.trials)} does."
                )
            return best
        text = str(which)
        if not text.isdecimal() or int(text) >= len(self.trials):
            last = f"a number from 0 to {len(self.trials) - 1}" if self.trials else "best, and there are no trials yet"
            raise ValueError(f"Run {str(self.path)!r}: the trial must be best or {last}, got {which!r}.")
        return self.trials[int(text)]


def load_run(path: str | Path) -> Run:
    """The run that a directory holds.

    Raises
    ------
    ValueError
        Where there is no ``run.yaml``; runs in the folders below are named.
    """
    folder = Path(path)
    if not (folder / SPEC_NAME).exists():
        inside = [str(found.parent) for found in sorted(folder.glob(f"*/{SPEC_NAME}"))]
        hint = f"; there are runs in {', '.join(inside)}" if inside else ""
        raise ValueError(f"Run {str(path)!r}: it must be a directory that holds {SPEC_NAME}, got none{hint}.")
    trials = load_trials(folder) if (folder / LOG_NAME).exists() else []
    return Run(RunSpec.read(folder), folder, tuple(trials))
