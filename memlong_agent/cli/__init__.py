"""The command `memlong`: a skin over :class:`memlong_agent.MemLong`.

In: arguments, files, standard input. Out: tables and text, or JSON, on standard output; progress
and errors on standard error. Each command makes one library call and imports what it needs when it
runs, so that `memlong --help` loads neither torch nor pydantic.
"""

from memlong_agent.cli.archive import export, import_
from memlong_agent.cli.bank import doctor, stats
from memlong_agent.cli.chat import chat
from memlong_agent.cli.command import main
from memlong_agent.cli.forgetting import forget
from memlong_agent.cli.reading import add, list_, search
from memlong_agent.cli.training import train
from memlong_agent.cli.upkeep import encrypt, rebuild, upgrade

__all__ = ["main"]

for _command in (
    chat,
    add,
    search,
    list_,
    forget,
    stats,
    doctor,
    export,
    import_,
    upgrade,
    rebuild,
    encrypt,
    train,
):
    main.add_command(_command)
