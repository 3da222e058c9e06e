"""One file a command: its arguments, and what it calls and prints."""

from codesign.commands import estimate, hardware, pareto, table

COMMANDS = (estimate, table, hardware, pareto)
