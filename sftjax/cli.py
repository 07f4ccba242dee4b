"""The command line: `sftjax classify`, `images`, `summarize`, `chat`, `predict` and more."""

import sys
from typing import Annotated

import tyro

from sftjax.recipes.anomaly import anomaly
from sftjax.recipes.anomaly_job import Anomaly
from sftjax.recipes.chat import chat
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.classify import Classify, classify
from sftjax.recipes.compare import Compare, compare
from sftjax.recipes.demo import Demo, demo
from sftjax.recipes.diagnose import diagnose
from sftjax.recipes.diagnose_job import Diagnose
from sftjax.recipes.generate import Generate, generate_text
from sftjax.recipes.images import images
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.inspect import Inspect, inspect
from sftjax.recipes.merge import Merge, merge
from sftjax.recipes.plan import Plan, plan
from sftjax.recipes.predict import predict_rows
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.segment import segment
from sftjax.recipes.segment_job import Segment
from sftjax.recipes.summarize import summarize
from sftjax.recipes.summarize_job import Summarize
from sftjax.recipes.talk import Talk, talk
from sftjax.train import keep_freed_memory

Command = (
    Annotated[Classify, tyro.conf.subcommand("classify")]
    | Annotated[TuneImages, tyro.conf.subcommand("images")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Anomaly, tyro.conf.subcommand("anomaly")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[TuneChat, tyro.conf.subcommand("chat")]
    | Annotated[Talk, tyro.conf.subcommand("talk")]
    | Annotated[Summarize, tyro.conf.subcommand("summarize")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends with one paragraph on stderr and exit code 2."""
    job = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="sftjax",
        description=__doc__,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    keep_freed_memory()
    try:
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
            case Inspect():
                print(inspect(job))
            case Demo():
                demo(job)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"sftjax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
