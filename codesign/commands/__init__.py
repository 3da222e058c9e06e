"""One file a command: its arguments, and what it calls and prints."""

from codesign.commands import (
    compare,
    estimate,
    evaluate,
    export,
    hardware,
    pareto,
    quickstart,
    search,
    space,
    table,
    train,
)

COMMANDS = (quickstart, estimate, compare, table, hardware, space, search, train, evaluate, pareto, export)
