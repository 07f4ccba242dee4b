"""The first ten minutes of a newcomer, from a built wheel in an empty environment.

    python tests/first_ten_minutes.py                      # this Python; 10 minutes on 2 cores
    python tests/first_ten_minutes.py --python python3.13  # another one
    python tests/first_ten_minutes.py --whole-demo         # the demo as README has it
    python tests/first_ten_minutes.py --only csv predict   # some steps, after the first three

It builds wheel and sdist and looks into them, makes an environment with nothing in it, installs the
wheel, and then does what docs/getting_started.md says: the demo, a CSV of one's own, a folder of
pictures, conversations, predictions, and opening the result in torch, where a Python has it. The
number to expect: every step ends with "ok". Models are fetched once into the cache folder.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent

PICTURES = """
import pathlib, numpy as np
from PIL import Image
rng = np.random.default_rng(0)
for label, colour in (("cat", (180, 120, 60)), ("dog", (60, 110, 190))):
    folder = pathlib.Path("photos", label); folder.mkdir(parents=True, exist_ok=True)
    for number in range(12):
        pixels = rng.normal(colour, 60, (64, 64, 3)).clip(0, 255).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{number}.png")
"""

IN_TORCH = """
import csv, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
rows = list(csv.DictReader(open(sys.argv[2])))
names = [model.config.id2label[i] for i in range(model.config.num_labels)]
far = 0.0
for row in rows:
    with torch.no_grad():
        p = model(**tokenizer(row["text"], return_tensors="pt")).logits.softmax(-1)[0]
    far = max(far, *(abs(float(row[f"probability_{n}"]) - float(q)) for n, q in zip(names, p)))
print(f"{len(rows)} rows, probabilities differ by at most {far:.1e}")
assert far < 1e-4
"""


class Place(NamedTuple):
    """Where it happens."""

    folder: pathlib.Path
    python: str
    torch: str
    whole: bool

    @property
    def bin(self) -> pathlib.Path:
        """Where the environment's commands are."""
        return self.folder / "env" / ("Scripts" if os.name == "nt" else "bin")

    def run(self, *command: str | pathlib.Path, quiet: bool = True) -> str:
        """Run a command in the folder as a newcomer's shell would; stop with what it said."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment["PATH"] = f"{self.bin}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout.strip()

    def sftjax(self, *words: str) -> str:
        """Run the command."""
        return self.run(self.bin / "sftjax", *words)


def build(at: Place) -> str:
    """Build wheel and sdist, and look into them."""
    at.run(at.python, "-m", "venv", "build-env")
    python = at.folder / "build-env" / at.bin.name / "python"
    at.run(python, "-m", "pip", "install", "--quiet", "build")
    at.run(python, "-m", "build", "--outdir", at.folder / "dist", ROOT)
    (wheel,) = (at.folder / "dist").glob("*.whl")
    (sdist,) = (at.folder / "dist").glob("*.tar.gz")
    in_wheel = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        in_sdist = [name.partition("/")[2] for name in archive.getnames()]
    assert "sftjax/py.typed" in in_wheel
    assert any(name.endswith("licenses/LICENSE") for name in in_wheel)
    assert {name.split("/")[0] for name in in_wheel} <= {"sftjax", "sftjax-0.1.0.dist-info"}
    assert {"LICENSE", "README.md", "pyproject.toml", "sftjax/py.typed"} <= {*in_sdist}
    assert not [n for n in in_sdist if n.split("/")[0] in ("tests", "benchmarks", "notebooks")]
    return f"{len(in_wheel)} files, {wheel.stat().st_size / 1e3:.0f} kB"


def environment(at: Place) -> str:
    """Make an environment with nothing in it."""
    at.run(at.python, "-m", "venv", "env")
    return at.run(at.bin / "python", "--version")


def install(at: Place) -> str:
    """Install the wheel with what it needs, and ask for help."""
    (wheel,) = (at.folder / "dist").glob("*.whl")
    at.run(at.bin / "python", "-m", "pip", "install", "--quiet", wheel)
    assert "classify" in at.sftjax("--help")
    heavy = "import sys, sftjax; print({'torch', 'tensorflow'} & set(sys.modules) or 'light')"
    assert at.run(at.bin / "python", "-c", heavy) == "light"
    return at.run(at.bin / "python", "-c", "import jax; print('jax', jax.__version__)")


def demo(at: Place) -> str:
    """The demo: as README has it, or small."""
    small = ["--train-rows", "96", "--eval-rows", "60", "--retrieval-rows", "80"]
    at.sftjax("demo", *([] if at.whole else small))
    return _files(at, "runs/demo", "report.md", "metrics.json", "model/model.safetensors")


def own_csv(at: Place) -> str:
    """A table of one's own."""
    draw = random.Random(0)
    good, bad = ("quiet triumph", "joy to watch", "great cast"), ("mess", "waste", "dull story")
    with (at.folder / "reviews.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(60):
            label = ("positive", "negative")[number % 2]
            word = draw.choice(bad if number % 2 else good)
            rows.writerow([f"Film {number}, seen twice: a {word}.", label])
    at.sftjax(
        "classify", "--model", "asset:minilm-l6", "--data", "reviews.csv", "--train", "last:1",
        "--dose", "1", "--max-steps", "6", "--batch", "8", "--output-dir", "runs/text",
    )  # fmt: skip
    return _files(at, "runs/text", "report.md", "log.jsonl", "model/model.safetensors")


def own_pictures(at: Place) -> str:
    """A folder of pictures of one's own."""
    at.run(at.bin / "python", "-c", PICTURES)
    at.sftjax(
        "images", "--model", "asset:efficientnet-lite0", "--data", "photos", "--train", "last:1",
        "--image-size", "64", "--max-steps", "3", "--batch", "8", "--output-dir", "runs/pictures",
    )  # fmt: skip
    said = at.sftjax("predict", "runs/pictures/model", "--data", "photos/cat/0.png")
    assert "cat" in said or "dog" in said, said
    return _files(at, "runs/pictures", "report.md", "model/preprocessor_config.json")


def own_chat(at: Place) -> str:
    """Conversations of one's own."""
    with (at.folder / "chat.jsonl").open("w") as file:
        for number in range(24):
            asked = {"role": "user", "content": f"Add {number} and 2."}
            said = {"role": "assistant", "content": str(number + 2)}
            file.write(json.dumps({"messages": [asked, said]}) + "\n")
    at.sftjax(
        "chat", "--model", "asset:smollm2-135m-instruct", "--data", "chat.jsonl", "--adapter",
        "lora:r=4", "--max-steps", "2", "--batch", "2", "--max-length", "128", "--output-dir",
        "runs/chat",
    )  # fmt: skip
    return _files(at, "runs/chat", "report.md", "adapter/adapter_model.safetensors")


def predict(at: Place) -> str:
    """Predict with what was saved: a text on the screen, a file to a file."""
    said = at.sftjax("predict", "runs/text/model", "--text", "I would see it again.")
    assert "positive" in said or "negative" in said, said
    at.sftjax("predict", "runs/text/model", "--data", "reviews.csv", "--output", "out.csv")
    return f"{len((at.folder / 'out.csv').read_text().splitlines()) - 1} rows"


def reopen(at: Place) -> str:
    """Open the tuned encoder in torch, and compare."""
    has = subprocess.run(
        [at.torch, "-c", "import torch, transformers"], capture_output=True, check=False
    )
    if has.returncode:
        return f"left out: {at.torch} has no torch"
    return at.run(at.torch, "-c", IN_TORCH, "runs/text/model", "out.csv").splitlines()[-1]


def _files(at: Place, home: str, *names: str) -> str:
    absent = [name for name in names if not (at.folder / home / name).is_file()]
    assert not absent, f"{home} lacks {', '.join(absent)}"
    return f"{home}: {', '.join(names)}"


STEPS: dict[str, Callable[[Place], str]] = {
    "build": build, "environment": environment, "install": install, "demo": demo, "csv": own_csv,
    "pictures": own_pictures, "chat": own_chat, "predict": predict, "torch": reopen,
}  # fmt: skip


def main() -> None:
    """Do each step, and say what was seen and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="makes the empty environment")
    parser.add_argument("--torch-python", default=sys.executable, help="opens the result in torch")
    parser.add_argument("--whole-demo", action="store_true", help="the demo in its full size")
    parser.add_argument("--only", nargs="+", choices=[*STEPS][3:], default=[*STEPS][3:])
    parser.add_argument("--keep", type=pathlib.Path, help="work in this folder, and keep it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.keep or pathlib.Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        at = Place(folder, asked.python, asked.torch_python, asked.whole_demo)
        for name in [*[*STEPS][:3], *asked.only]:
            began = time.monotonic()
            seen = STEPS[name](at)
            print(f"{name:<12} ok  {time.monotonic() - began:6.1f} s  {seen}", flush=True)


if __name__ == "__main__":
    main()
