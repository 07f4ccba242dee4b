"""What the command line says of an error: one paragraph and a code, or a fault's traceback."""

import os
import subprocess
import sys

import pytest
from jax.errors import JaxRuntimeError

from sftjax import cli
from sftjax.recipes.explain import explained


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("could not fetch minilm-l6: no network"), "could not fetch minilm-l6"),
        (ModuleNotFoundError('pip install "sftjax[summarize]"'), "sftjax[summarize]"),
        (ValueError("raise max_length or on_long='drop'"), "(on the command line: --on-long drop)"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), "--gradient-accumulation-steps"),
    ],
)
def test_bad_input_ends_in_one_paragraph(error, said, monkeypatch, capsys):
    def fails(job):
        raise error

    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["supported"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("sftjax: ")
    assert said in told
    assert "Traceback" not in told


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fails(job):
        raise RuntimeError("a fault")

    monkeypatch.setattr(cli, "_run", fails)
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["supported"])
    assert explained(ImportError("cannot import name 'x'")) is None


def test_what_is_no_option_of_any_command_is_not_said_to_be_one():
    """A message of a function that names its own argument, or a value of `--mesh`."""
    for text in ("r=0; a rank is an integer of 1 or more", "the mesh 'data=3' has 8 devices"):
        assert explained(ValueError(text)) == text


def test_a_text_that_names_an_option_is_left_alone():
    assert (
        explained(ValueError("give --labels, as labels=['a']")) == "give --labels, as labels=['a']"
    )


def test_a_reader_who_has_had_enough_is_no_fault():
    """As in `sftjax supported | head -1`."""
    run = [
        sys.executable,
        "-c",
        "from sftjax.cli import main; raise SystemExit(main(['supported']))",
    ]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(run, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (cli.CLOSED, "")
