"""What is written on a person's own pictures. Needs neither torch nor the rest of the library."""

import csv
import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

from digits.errors import UserError
from digits.images.pictures import SUFFIXES
from digits.serving import reading
from digits.serving.reading import Answer, Model

STDIN = "-"
MANY = 50  # pictures: from here on, a progress bar


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Read what is written on pictures: everything on each, line by line, or with --single the one character that it
    shows. Dark on light or light on dark, from a phone, a scanner or a drawing program.

    An answer with a character of less than 90 % is marked "unsure". The exit code is 1 if a file could not be read or
    shows nothing to read; the others are answered all the same.
    """
    parser.add_argument("files", nargs="+", metavar="FILE", help="pictures, folders of pictures, or - for one on stdin")
    parser.add_argument("--single", action="store_true", help="each picture shows exactly one character")
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text", help="default: %(default)s")
    parser.add_argument("--show", type=Path, metavar="FILE", help="draw what was found, and what the model saw of it")
    parser.add_argument(
        "--model", type=Path, help="an exported ONNX file (default: models/export/model.onnx, else the included one)"
    )
    arguments = parser.parse_args(words)
    model = Model(arguments.model or reading.default())
    sources = [source for file in arguments.files for source in _sources(file)]
    answers = []
    rows = csv.writer(sys.stdout, lineterminator="\n")
    if arguments.format == "csv":
        rows.writerow(("file", "line", "label", "probability", "left", "top", "right", "bottom", "unsure", "error"))
    for answer in _with_progress(model.read(sources, single=arguments.single), len(sources)):
        if arguments.format == "text":
            _print(answer)
        elif arguments.format == "csv":
            rows.writerows(_rows(answer))
        if arguments.format == "json" or answer.error or arguments.show:
            answers.append(answer)
    if arguments.format == "json":
        print(json.dumps([answer.as_dict() for answer in answers], indent=1, ensure_ascii=False))
    if arguments.show:
        from digits.serving import drawing  # only now: it loads fonts

        by_name = dict(sources)
        drawing.draw([(answer, by_name[answer.file]) for answer in answers], arguments.show)
    if faults := [f"{answer.file}: {answer.error}" for answer in answers if answer.error]:
        raise UserError("\n".join(faults))


def _sources(file: str) -> list[tuple[str, Path | bytes]]:
    """Return a picture, those of a folder and its folders in the order of their names, or what comes from stdin."""
    if file == STDIN:
        return [(STDIN, sys.stdin.buffer.read(reading.LARGEST + 1))]
    path = Path(file)
    if not path.is_dir():
        return [(file, path)]
    found = [
        one
        for one in path.rglob("*")
        if one.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in one.relative_to(path).parts)
    ]
    if not found:
        raise UserError(f"{file}: no pictures in this folder; looked for {', '.join(SUFFIXES)}")
    return [(str(one), one) for one in sorted(found)]


def _with_progress(answers: Iterator[Answer], count: int) -> Iterator[Answer]:
    if count < MANY or not sys.stderr.isatty():
        return answers
    from tqdm import tqdm  # only now: it takes a tenth of the time of a short answer

    return iter(tqdm(answers, total=count, unit=" pictures", leave=False))


def _print(answer: Answer) -> None:
    if answer.error:
        return  # on stderr, at the end
    weakest = min(answer.digits, key=lambda digit: digit.probability)
    doubt = f"unsure of {weakest.label}, " if answer.unsure and len(answer.digits) > 1 else ""
    doubt = doubt or ("unsure, " if answer.unsure else "")
    written = answer.text.replace("\n", " / ")
    print(f"{answer.file}: {written} ({doubt}{weakest.probability:.1%})")


def _rows(answer: Answer) -> Iterator[tuple[object, ...]]:
    if answer.error:
        yield (answer.file, *[""] * 8, answer.error)
    for digit in answer.digits:
        doubt = "yes" if answer.unsure else "no"
        yield (answer.file, digit.line, digit.label, f"{digit.probability:.4f}", *digit.box, doubt, "")
