"""The top of the command: which commands there are, and how each ends.

In: the arguments of the process. Out: its exit code and, when something is wrong, one line on
standard error. 0 is done, 1 is unhealthy or declined, 2 is a mistake that the line explains, 130
is Ctrl-C. Knows no command: the package puts them in.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from memlong_agent import __version__
from memlong_agent.cli.output import fail
from memlong_agent.errors import MemLongError

INTERRUPTED = 130  # what shells give a process that Ctrl-C ended: 128 + SIGINT


class Commands(click.Group):
    """A group whose errors are one line each, never a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a user meets them, not by the alphabet."""
        return list(self.commands)

    def main(  # type: ignore[override]  # click types it by overloads on standalone_mode
        self, args: Any = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run and exit; with `standalone_mode=False` return or raise as click does."""
        extra["prog_name"] = self.name  # also under `python -m memlong_agent`
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        # A memory may hold characters that the terminal's encoding lacks.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            code = super().main(args, standalone_mode=False, **extra)
        except click.Abort:
            code = INTERRUPTED
        except click.ClickException as exc:
            code = fail(_usage(exc))
        except MemLongError as exc:
            code = fail(str(exc))
        except OSError as exc:
            code = fail(_os_sentence(exc))
        sys.exit(code or 0)


def _usage(exc: click.ClickException) -> str:
    message = exc.format_message()
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    return f"{message} Try '{context.command_path} --help'." if context else message


def _os_sentence(exc: OSError) -> str:
    if exc.filename is None or exc.strerror is None:
        return f"{exc}. Check the files that were named and the disk."
    name = click.format_filename(exc.filename)
    return f"{name}: {exc.strerror}. Check the path and its permissions."


@click.group("memlong", cls=Commands, invoke_without_command=True)
@click.version_option(__version__, prog_name="memlong")
@click.pass_context
def main(context: click.Context) -> None:
    """Long-term memory for a local language model, kept in a folder.

    \b
    Example:
      memlong chat                      talk; what you say is remembered
      memlong add notes.md              remember a file
      memlong search "where is my key"  what would be recalled
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
