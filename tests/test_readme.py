"""What the README shows of the command line is what the command line prints; its Python runs as doctests."""

import re
from pathlib import Path

from codesign.cli import main, parser

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def code_blocks():
    return [block.strip("\n").splitlines() for block in README.split("```")[1::2]]


def test_the_output_shown_is_the_output_printed(capsys):
    shown = [lines for lines in code_blocks() if lines[0].startswith("$ codesign estimate")]
    assert shown
    for line, *expected in shown:
        assert main(line.split()[2:]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert [text for text in expected if text != "..." and text not in printed] == []


def test_the_commands_shown_are_lines_that_the_parser_takes():
    lines = [re.split("[#>]", line)[0].removeprefix("$ ") for lines in code_blocks() for line in lines]
    commands = [line.split() for line in lines if line.startswith("codesign ")]
    assert len(commands) >= 5
    for _, *arguments in commands:
        parser().parse_args(arguments)
