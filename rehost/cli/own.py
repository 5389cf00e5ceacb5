"""The programs of the command line that need no API (`key`, `db`, `store`): their commands, and what ends them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from rehost.cli.output import print_error
from rehost.errors import RehostError
from rehost.settings import Settings, settings

Opened = TypeVar("Opened")


class Commands(Generic[Opened]):
    """The commands of one such program. Each works on what `opened` gives for the settings, and has `--json`."""

    def __init__(self, program: str, text: str | None, opened: Callable[[Settings], AbstractContextManager[Opened]]):
        self._parser = argparse.ArgumentParser(prog=f"rehost {program}", description=text)
        self._commands = self._parser.add_subparsers(required=True, metavar="COMMAND")
        self._opened = opened

    def add(self, name: str, do: Callable[[Opened, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        """A command; its parser, for arguments of its own."""
        made: argparse.ArgumentParser = self._commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=do)
        made.add_argument("--json", action="store_true", help="one JSON document instead of text")
        return made

    def run(self, argv: list[str]) -> int:
        """Do what the arguments say; the exit code."""
        arguments = self._parser.parse_args(argv)
        do: Callable[[Opened, argparse.Namespace], int] = arguments.command
        try:
            with self._opened(settings()) as opened:
                return do(opened, arguments)
        except RehostError as error:
            print_error(error.code, error.message, error.remedy)
            return error.exit_code
