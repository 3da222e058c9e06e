"""One file a command: its arguments, and what it calls and prints."""

from codesign.commands import (
    compare,
    estimate,
    evaluate,
    export,
    front,
    hardware,
    pareto,
    quickstart,
    search,
    sensitivity,
    shootout,
    space,
    table,
    train,
)

COMMANDS = (
    quickstart, estimate, compare, table, hardware, space, search, front, sensitivity, shootout, train, evaluate,
    pareto, export,
)  # fmt: skip
