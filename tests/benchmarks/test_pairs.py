"""The benchmarks' clock: turns alternate, ratios are what they say, peers answer or are heard."""

import ast
import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if "def main()" in p.read_text("utf8"))


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    """The benchmarks are scripts, not a package: their folder is where they find each other."""
    monkeypatch.syspath_prepend(str(FOLDER))


def test_rounds_take_turns_and_warmup_does_not_count():
    import pairs

    order = []

    def timed(name):
        def run():
            order.append(name)
            return pairs.Timing(float(len(order)), 1.0)

        return run

    timings = pairs.alternate({"a": timed("a"), "b": timed("b")}, 3, warmup=2)
    assert order == ["a", "b"] * 5
    assert [one.wall for one in timings["a"]] == [5.0, 7.0, 9.0]
    assert [one.wall for one in timings["b"]] == [6.0, 8.0, 10.0]
    with pytest.raises(ValueError, match="at least one"):
        pairs.alternate({}, 0)


def test_a_drift_that_both_share_leaves_the_ratio_within_a_turn_alone():
    import pairs

    drift = (1.0, 5.0, 2.0, 9.0)
    ours = [pairs.Timing(3.0 * d, 1.0) for d in drift]
    theirs = [pairs.Timing(2.0 * d, 4.0) for d in drift]
    found = pairs.ratio(ours, theirs)
    assert found == (1.5, 1.5, 1.5, 0.25)
    assert str(found) == "1.500 (1.500..1.500)"
    with pytest.raises(ValueError, match="shorter"):
        pairs.ratio(ours, theirs[:1])


def test_the_ratio_is_that_of_medians_with_the_extremes_of_the_turns():
    import pairs

    ours = [pairs.Timing(wall, 1.0) for wall in (1.0, 2.0, 30.0)]
    theirs = [pairs.Timing(wall, 1.0) for wall in (1.0, 4.0, 3.0)]
    assert pairs.ratio(ours, theirs) == (2.0 / 3.0, 0.5, 10.0, 1.0)


def test_a_round_waits_for_the_arrays_and_divides_by_its_steps():
    import pairs

    calls = []

    def step():
        calls.append(time.sleep(0.01))
        return ()

    timing = pairs.rounds_of(step, 5)()
    assert len(calls) == 5
    assert timing.wall >= 0.01
    assert timing.cpu < timing.wall


def test_what_is_published_holds_the_facts_and_no_folder_of_this_machine(tmp_path, monkeypatch):
    import pairs

    page = tmp_path / "README.md"
    page.write_text("before <!-- any --> old <!-- /any --> after")
    monkeypatch.setattr(pairs, "README", page)
    monkeypatch.setattr(pairs, "RESULTS", tmp_path / "results")
    python = "/opt/elsewhere/bin/python"
    monkeypatch.setattr(sys, "argv", [str(FOLDER / "hf_flax.py"), "--peer-python", python])
    pairs.publish("any", pairs.Watch().facts(), [[{"ms": 1}], [{"s": 2}]], {"results": [3]})

    found = json.loads((tmp_path / "results" / "any.json").read_text())
    machine = found["machine"]
    assert found["results"] == [3]
    assert machine["command"] == "python benchmarks/hf_flax.py --peer-python .../python"
    assert machine["versions"]["jax"]
    assert machine["cpu"]
    assert machine["cores"] >= 1
    text = page.read_text()
    assert text.startswith("before <!-- any -->\n")
    assert text.endswith("| ms |\n|---|\n| 1 |\n\n| s |\n|---|\n| 2 |\n<!-- /any --> after")
    assert machine["command"] in text
    assert "old" not in text

    pairs.publish("any", machine, [[{"ms": 5}]], {}, tmp_path / "elsewhere.json")
    assert page.read_text() == text
    with pytest.raises(ValueError, match="has not one <!-- other -->"):
        pairs.into(text, "other", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_a_row_and_published_numbers(script):
    page = (FOLDER / "README.md").read_text("utf8")
    assert f"| `{script}.py` |" in page
    waiting = f"<!-- {script} -->\nNot run yet.\n" in page
    assert waiting != bool(re.search(rf"`python benchmarks/{script}\.py\b", page))


def test_every_table_was_filled_by_the_command_above_it():
    page = (FOLDER / "README.md").read_text("utf8")
    names = re.findall(r"<!-- (\w+) -->", page)
    assert len(names) == len(set(names)) > len(SCRIPTS) // 2
    for name in names:
        first = page.partition(f"<!-- {name} -->\n")[2].partition("\n")[0]
        result = FOLDER / "results" / f"{name}.json"
        if result.exists():
            assert f"`{json.loads(result.read_text())['machine']['command']}`" in first
        else:
            assert first == "Not run yet."


def test_no_result_names_a_folder_of_the_machine_it_was_made_on():
    for path in (FOLDER / "results").glob("*.json*"):
        assert not re.search(r'"/\w+/', path.read_text("utf8")), path.name


def test_a_watch_sees_its_own_work_as_its_own():
    import pairs

    watch = pairs.Watch()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    elsewhere = watch.facts()["cores_busy_elsewhere"]
    assert elsewhere is None or elsewhere < (watch.facts()["cores"] or 1)


def test_a_table_is_markdown():
    import pairs

    assert pairs.table([{"a": 1, "b": 2}, {"a": 3, "b": 4}]) == (
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"
    )


ECHO = """
import peer
def prepare():
    print("a library talks")
    return {"ready": True}, lambda request: request["x"] * 2
peer.serve(prepare)
"""


def test_a_peer_answers_request_by_request_whatever_it_prints():
    import peer

    with peer.Peer([sys.executable, "-c", ECHO], {"PYTHONPATH": str(FOLDER)}) as one:
        assert one.facts == {"ready": True}
        assert [one.ask({"x": x}) for x in (1, 2.5, "ab")] == [2, 5.0, "abab"]


def test_a_peer_that_fails_is_heard():
    import peer

    with (
        peer.Peer([sys.executable, "-c", ECHO], {"PYTHONPATH": str(FOLDER)}) as one,
        pytest.raises(RuntimeError, match=r"ended with code 1(.|\n)*KeyError: 'x'"),
    ):
        one.ask({})


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_opens_with_its_question_its_command_and_the_number_to_expect(script):
    module = ast.parse((FOLDER / f"{script}.py").read_text("utf8"))
    opening = ast.get_docstring(module)
    assert "?" in opening.splitlines()[0]
    assert f"python benchmarks/{script}.py" in opening
    assert "Expect:" in opening
    names = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
    assert "__doc__" in names, "its help is to say so too"


def test_help_is_the_opening():
    run = subprocess.run(
        [sys.executable, str(FOLDER / "freezing.py"), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "python benchmarks/freezing.py" in run.stdout
    assert "Expect:" in run.stdout
    assert "--turns" in run.stdout
