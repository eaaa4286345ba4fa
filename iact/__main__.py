"""The command line, `iact train | evaluate | predict | export | demo | check-dataset | info`, and how programs end."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from functools import partial

import tyro

from iact.errors import InputError, TrainingPaused, TrainingStopped


def run(program: Callable | dict[str, Callable], prog: str | None = None) -> None:
    """Runs `program`, or one of several by name, with arguments from the command line, and ends as `end` does."""

    def chosen() -> int | None:
        if isinstance(program, dict):
            programs = {name: _with_recipe(function) for name, function in program.items()}
            return tyro.extras.subcommand_cli_from_dict(programs, prog=prog)
        return tyro.cli(_with_recipe(program), prog=prog)

    end(chosen)


def end(program: Callable[[], int | None]) -> None:
    """Runs the program and ends with the exit code that it returns, 0 for none.

    Input that cannot be used, or may not be read, ends in one sentence and exit code 2, a run that cannot go on in one
    sentence and exit code 1, Ctrl-C in exit code 130, or 0 where a training has left a checkpoint."""
    try:
        code = program()
    except InputError as error:
        code = _say(error, 2)
    except OSError as error:
        if error.filename is None:
            raise
        code = _say(f"{os.fspath(error.filename)}: {error.strerror}", 2)
    except TrainingStopped as error:
        code = _say(error, 1)
    except TrainingPaused as pause:
        print(pause)
        code = 0
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _with_recipe(program: Callable) -> Callable:
    """The program with the defaults of the recipe that the command line names, where it takes one: flags that are
    given then win over the recipe, and --help shows its values."""
    from iact.config import RECIPES

    if "recipe" not in inspect.signature(program).parameters:
        return program
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?")
    recipe = parser.parse_known_args()[0].recipe
    return partial(program, config=RECIPES.get(recipe, RECIPES["default"]))


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
        "export": commands.export,
        "demo": commands.demo,
        "check-dataset": commands.check,
        "info": commands.info,
    }
    run(programs, prog="iact")


if __name__ == "__main__":
    main()
