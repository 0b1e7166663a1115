"""The command line: `python -m digits`, or `digits` once installed. A command is imported only when it runs."""

import gc
import os
import shutil
import sys
import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib import import_module
from inspect import getdoc
from io import TextIOWrapper
from typing import NoReturn

from digits.errors import UserError, run

# Each command: the function in digits.tools, what it does, an example of its arguments.
COMMANDS = {
    "summary": ("summary:main", "how good the model in this folder is, and what to do next", ""),
    "data": ("data:main", "what a folder or file of your own images holds", "pictures/ --picture samples.png"),
    "compare": ("compare:main", "is B better than A, by how much, and how sure is that", "main slower"),
    "seeds": ("seeds:main", "run one recipe over several seeds", "quick --count 5 -S recipe=quick"),
    "tune": ("tune:main", "search for better params", "--trials 30 -S train.epochs=3"),
    "plots": ("plots:main", "curves, mistakes and figures as a page", "main slower"),
    "predict": ("predict:main", "read the digits on your own pictures", "photo.png scan.jpg"),
    "serve": ("serve:main", "the same over HTTP, and a page to draw on", "--port 8000"),
    "ui": ("ui:main", "browse all runs in MLflow's pages", "--port 5001"),
    "of": ("provenance:of", "what made a model file", "models/export/model.onnx"),
    "reproduce": ("provenance:reproduce", "make a result again and compare every bit", "slower"),
    "diff": ("provenance:diff", "what differs between two results, causes before effects", "main slower"),
    "verify": ("integrity:verify", "check every output here and in DVC's cache", ""),
    "repair": ("integrity:repair", "restore what a killed DVC left half-written", ""),
    "sync": ("sync:main", "log the results in this folder to MLflow", ""),
}


class Parser(ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def dispatch(words: list[str]) -> None:
    """Run the command that `words` begin with, or list the commands."""
    program = "python -m digits" if sys.argv[0].endswith("__main__.py") else "digits"
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help"):
        print(f"usage: {program} COMMAND …\n")
        print("\n".join(f"  {command:10} {summary}" for command, (_, summary, _) in COMMANDS.items()))
        print(f"\n`{program} COMMAND --help` explains one of them.")
        return
    if name not in COMMANDS:
        raise UserError(f"{program}: unknown command {name!r}; known are {', '.join(COMMANDS)}")
    if name in ("predict", "serve"):  # numpy's threads, which they never use, take 0.2 of 0.5 s of CPU to start
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    else:  # torch and mlflow: to look for garbage in every 700 new objects is a tenth of their start
        gc.set_threshold(100_000, 20, 100)
    os.environ.pop("MPLBACKEND", None)  # figures are files; a notebook hands on a backend that is not installed here
    target, _, example = COMMANDS[name]
    module, function = target.split(":")
    try:
        command = getattr(import_module(f"digits.tools.{module}"), function)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("digits"):
            raise
        needed = "pip install 'reproducible-mnist[train]', or `make setup` in a clone"
        raise UserError(f"{program} {name}: needs {error.name}, which is not installed; {needed}") from None
    parser = Parser(prog=f"{program} {name}", formatter_class=RawDescriptionHelpFormatter)
    width = shutil.get_terminal_size().columns - 2  # as argparse wraps the rest
    parser.description = "\n\n".join(textwrap.fill(part, width) for part in (getdoc(command) or "").split("\n\n"))
    parser.epilog = f"example:\n  {program} {name} {example}".rstrip()
    command(parser, rest)


def main() -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a result is seen when it comes, also through a pipe
    run(lambda: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
