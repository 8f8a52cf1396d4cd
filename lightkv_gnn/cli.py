"""The command line: ``lightkv-gnn``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

import transformers

from lightkv_gnn import __version__, demo_command, view_command
from lightkv_gnn.bench import command as bench_command
from lightkv_gnn.bench import every as bench_all_command
from lightkv_gnn.evaluation import eval_command, report_command

COMMANDS = (
    demo_command,
    view_command,
    eval_command,
    report_command,
    bench_command,
    bench_all_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    options.command = shlex.join(["lightkv-gnn", *arguments])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        options.run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"lightkv-gnn: {str(error).strip()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lightkv-gnn: interrupted; what was written is kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightkv-gnn", description="Lighter vision KV caches by message passing."
    )
    parser.add_argument("--version", action="version", version=f"lightkv-gnn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
