"""The command line. Each command lives in its own module of ``wbcrepro.commands``."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

import wbcrepro
from wbcrepro import commands
from wbcrepro.errors import WbcreproError

EPILOG = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 data missing, 4 cells missing, 5 locked by another process."


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command registered."""
    parser = argparse.ArgumentParser(prog="wbcrepro", description=wbcrepro.__doc__, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"wbcrepro {wbcrepro.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in sorted(info.name for info in pkgutil.iter_modules(commands.__path__)):
        if not module.startswith("_"):
            importlib.import_module(f"wbcrepro.commands.{module}").register(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; errors that a user can act on are printed without a traceback."""
    parsed = build_parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except WbcreproError as error:
        print(f"wbcrepro: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nwbcrepro: stopped. What is done is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
