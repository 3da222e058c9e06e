"""One file a command: its arguments, and what it calls and prints."""

from codesign.commands import compare, estimate, hardware, pareto, quickstart, space, table

COMMANDS = (quickstart, estimate, compare, table, hardware, space, pareto)
