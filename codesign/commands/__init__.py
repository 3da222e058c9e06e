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
    space,
    table,
    train,
)

COMMANDS = (quickstart, estimate, compare, table, hardware, space, search, front, train, evaluate, pareto, export)
