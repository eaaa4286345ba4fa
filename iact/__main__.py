"""The command line, `iact train | evaluate | predict | check-dataset | info`, and how every program ends."""

import sys
from collections.abc import Callable

import tyro

from iact.errors import InputError, TrainingStopped


def run(program: Callable | dict[str, Callable], prog: str | None = None) -> None:
    """Runs `program`, or one of several by name, with arguments from the command line.

    Input that cannot be used ends in one sentence and exit code 2, a run that cannot go on in one sentence and exit
    code 1, Ctrl-C in exit code 130."""
    parse = tyro.extras.subcommand_cli_from_dict if isinstance(program, dict) else tyro.cli
    try:
        code = parse(program, prog=prog)
    except InputError as error:
        code = _say(error, 2)
    except TrainingStopped as error:
        code = _say(error, 1)
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _say(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def main() -> None:
    """The `iact` command."""
    from iact import commands

    programs = {
        "train": commands.train,
        "evaluate": commands.evaluate,
        "predict": commands.predict,
        "check-dataset": commands.check,
        "info": commands.info,
    }
    run(programs, prog="iact")


if __name__ == "__main__":
    main()
