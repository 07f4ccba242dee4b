"""The command line: `sftjax classify`, `images`, `summarize`, `chat`, `predict` and more."""

import contextlib
import os
import signal
import sys
import threading
import typing
from collections.abc import Generator
from importlib.metadata import version
from types import FrameType
from typing import Annotated, NoReturn

import tyro

from sftjax.core import redact
from sftjax.recipes import startup
from sftjax.recipes.anomaly import anomaly
from sftjax.recipes.anomaly_job import Anomaly
from sftjax.recipes.chat import chat
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.classify import Classify, classify
from sftjax.recipes.compare import Compare, compare
from sftjax.recipes.demo import Demo, demo
from sftjax.recipes.diagnose import diagnose
from sftjax.recipes.diagnose_job import Diagnose
from sftjax.recipes.explain import explained
from sftjax.recipes.generate import Generate, generate_text
from sftjax.recipes.help_text import as_paragraphs
from sftjax.recipes.images import images
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.inspect import Inspect, inspect
from sftjax.recipes.merge import Merge, merge
from sftjax.recipes.plan import Plan, plan
from sftjax.recipes.predict import predict_rows
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.replaying import Replay, replay_run
from sftjax.recipes.segment import segment
from sftjax.recipes.segment_job import Segment
from sftjax.recipes.several import one_of_several
from sftjax.recipes.summarize import summarize
from sftjax.recipes.summarize_job import Summarize
from sftjax.recipes.supported import Supported, supported
from sftjax.recipes.talk import Talk, talk
from sftjax.train import RESUME, Interrupted, keep_freed_memory

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Classify, tyro.conf.subcommand("classify")]
    | Annotated[Summarize, tyro.conf.subcommand("summarize")]
    | Annotated[TuneChat, tyro.conf.subcommand("chat")]
    | Annotated[TuneImages, tyro.conf.subcommand("images")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Anomaly, tyro.conf.subcommand("anomaly")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Talk, tyro.conf.subcommand("talk")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Supported, tyro.conf.subcommand("supported")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
)
"""The commands as --help lists them: first try, tune, use, compare, look."""

Joined = Classify | Summarize | TuneChat | TuneImages | Diagnose | Segment
"""Those that several processes can do together."""

DESCRIPTION = """\
Supervised fine-tuning in JAX: move part of a pretrained model, hold it near where it was, and see
what was kept.

To begin, `sftjax demo`; with rows of your own (columns text and label), `sftjax classify --model
asset:minilm-l6 --data reviews.csv --train last:2 --dose 1 --output-dir runs/a`. Each command says
more with --help."""

DISK = 74
"""The exit code when the disk refuses (full, read-only): EX_IOERR of sysexits.h."""
CLOSED = 141
"""The exit code when the output was closed, as a shell has it: 128 and the number of SIGPIPE."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; what goes wrong ends with one paragraph on stderr and an exit code.

    2 is bad input, a loss that is not finite, an extra that is not installed or a device without
    room; 74 a disk that refuses; 75 that the run was asked to stop (SIGTERM, Ctrl-C) and the same
    command goes on; 141 that whoever read the output has closed it. Anything else is a fault of
    ours and keeps its traceback.
    """
    startup.begin()
    try:
        return _main(arguments)
    except BrokenPipeError:
        # Whoever reads what is printed, such as `head`, has had enough; nor may the flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED


def _main(arguments: list[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        print(f"sftjax {version('sftjax')}")
        return 0
    if {"-h", "--help"} & set(words):
        for command in typing.get_args(Command):
            as_paragraphs(typing.get_args(command)[0])
    if twice := _said_twice(words):
        return _ends(f"{twice} is given twice; give it once, with all its values after it", 2)
    job = tyro.cli(
        Command,
        prog="sftjax",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    keep_freed_memory()
    startup.keep_compiled()
    try:
        with _terminated():
            _alone_or_joined(job)
    except Interrupted as stopped:
        return _ends(stopped, RESUME)
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, RuntimeError) as error:
        if (told := explained(error)) is None:
            raise  # a fault of ours, with its traceback
        return _ends(told, 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _ends(error, DISK)
    return 0


def _said_twice(words: list[str]) -> str | None:
    """Return an option that is given twice, whose first values would be lost; None if none is.

    >>> _said_twice(["predict", "m", "--text", "a", "--text", "b"])
    '--text'
    """
    options = [word.partition("=")[0].replace("_", "-") for word in words if word[:2] == "--"]
    return next((option for option in options if options.count(option) > 1), None)


def _ends(error: Exception | str, code: int) -> int:
    print(f"sftjax: {redact(str(error))}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _terminated() -> Generator[None, None, None]:
    """Answer SIGTERM outside of a loop too: nothing is lost that was not lost anyway."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(None, saved=True)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _alone_or_joined(job: Command) -> None:
    training = getattr(job, "training", None)
    if training is None or not training.distributed:
        _run(job)
        return
    if not isinstance(job, typing.get_args(Joined)):
        names = ", ".join(one.command for one in typing.get_args(Joined))
        raise ValueError(f"--distributed is for {names}; leave it out, for this is one process's")
    with one_of_several(job) as own:
        _run(own)


def _run(job: Command) -> None:
    match job:
        case Classify():
            classify(job)
        case Anomaly():
            anomaly(job)
        case Diagnose():
            diagnose(job)
        case TuneImages():
            images(job)
        case Segment():
            segment(job)
        case TuneChat():
            chat(job)
        case Talk():
            talk(job)
        case Summarize():
            summarize(job)
        case Generate():
            generate_text(job)
        case Compare():
            compare(job)
        case Merge():
            merge(job)
        case Predict():
            predict_rows(job)
        case Plan():
            plan(job)
        case Replay():
            replay_run(job)
        case Inspect():
            print(inspect(job))
        case Supported():
            supported(job)
        case Demo():
            demo(job)


if __name__ == "__main__":
    sys.exit(main())
