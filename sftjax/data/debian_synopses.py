"""Package descriptions of Debian and their one-line synopses: short summaries written by people.

apt itself is the registry: it fetches and verifies the package index and the descriptions. They
come into a folder of their own, so that the machine's own lists stay as they are.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sftjax.data.assets import cache_folder
from sftjax.data.holdout import permutation

NAME = "debian-synopses"
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
"""Share of the source packages in each split."""
LEAST, MOST = 20, 250
"""Words of a long description that is kept."""

_HELPER = pathlib.Path("/usr/lib/apt/apt-helper")
_FORMAT = 1


class Described(NamedTuple):
    """A package's description."""

    package: str
    source: str
    """The source package, from which several binary packages can be built."""
    document: str
    """The long description, paragraphs apart by an empty line."""
    summary: str
    """The synopsis."""


def debian_synopses(cache: str | pathlib.Path | None = None) -> pathlib.Path:
    """Return a folder of `train.jsonl`, `validation.jsonl`, `test.jsonl`, made on the first call.

    Rows have `package`, `source`, `document` and `summary`. Of descriptions with the same first
    paragraph (siblings of one program) only the first is kept. A source package and all that is
    built from it is in one split, drawn by a hash of its name: a later index moves no package to
    another side. `SOURCE.json` says what was counted.

    Args:
      cache: where to keep it; default `cache_folder()`.

    Raises:
      RuntimeError: where there is no apt (not a Debian or a kin of it), or it fails.
    """
    folder = pathlib.Path(cache).expanduser() if cache else cache_folder()
    folder = folder.absolute() / f"{NAME}-{_FORMAT}"
    if (folder / "SOURCE.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-", dir=folder.parent) as work:
        packages, descriptions = fetch_index(pathlib.Path(work))
        made = pathlib.Path(work) / "made"
        write_splits(made, read_index(packages, descriptions))
        if not (folder / "SOURCE.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)
    return folder


def fetch_index(work: pathlib.Path) -> tuple[str, str]:
    """Return the package index and the English descriptions, fetched by apt into a folder.

    Raises:
      RuntimeError: without apt, or with what it said.
    """
    if shutil.which("apt-get") is None or not _HELPER.is_file():
        raise RuntimeError(
            f"could not fetch {NAME}: it is read from Debian's package index by apt, and this "
            "machine has none. Run it on Debian or Ubuntu (a container will do), or copy the "
            f"folder {NAME}-{_FORMAT} from such a machine's cache into {cache_folder()}."
        )
    lists, archives = work / "lists", work / "cache"
    (lists / "partial").mkdir(parents=True)
    archives.mkdir()
    options = ("Acquire::Languages=en", f"Dir::State::Lists={lists}", f"Dir::Cache={archives}")
    _run(["apt-get", "update", *(word for option in options for word in ("-o", option))])
    found = [sorted(map(str, lists.glob(name))) for name in ("*Packages*", "*Translation-en*")]
    if not all(found):
        raise RuntimeError(
            f"could not fetch {NAME}: apt brought no package index or no English descriptions. "
            "Look at /etc/apt/sources.list; `apt-get update -o Acquire::Languages=en` must fetch "
            "both"
        )
    packages, descriptions = (_run([str(_HELPER), "cat-file", *files]) for files in found)
    return packages, descriptions


def read_index(packages: str, descriptions: str) -> Iterator[Described]:
    """Yield the described packages, in the order of the names.

    >>> index = "Package: b-bin\\nSource: b (1.0)\\nDescription-md5: 1\\n"
    >>> text = "Package: b-bin\\nDescription-en: a tool\\n It cuts\\n wood.\\n .\\n  * x\\n"
    >>> next(read_index(index, text))
    Described(package='b-bin', source='b', document='It cuts wood.\\n\\n* x', summary='a tool')
    """
    source_of = {
        fields["Package"]: fields.get("Source", fields["Package"]).split(" ")[0]
        for fields in _stanzas(packages)
    }
    seen = {}
    for fields in _stanzas(descriptions):
        synopsis, _, long = fields.get("Description-en", "").partition("\n")
        if fields["Package"] in source_of and synopsis.strip() and long.strip():
            seen.setdefault(fields["Package"], (synopsis.strip(), _paragraphs(long)))
    for package in sorted(seen):
        summary, paragraphs = seen[package]
        yield Described(package, source_of[package], "\n\n".join(paragraphs), summary)


def write_splits(folder: pathlib.Path, rows: Iterable[Described]) -> None:
    """Write the three files and `SOURCE.json` of the rows that are kept."""
    counts: Counter[str] = Counter()
    kept, first = [], set()
    for row in rows:
        counts["described"] += 1
        paragraph = " ".join(re.findall(r"\w+", row.document.split("\n\n")[0].casefold()))
        size = len(row.document.split())
        if paragraph in first:
            counts["left out: same first paragraph"] += 1
        elif not LEAST <= size <= MOST:
            counts[f"left out: not {LEAST} to {MOST} words"] += 1
        else:
            kept.append(row)
        first.add(paragraph)
    splits: dict[str, list[Described]] = {split: [] for split in SHARES}
    for row in kept:
        splits[split_of(row.source)].append(row)
    folder.mkdir(parents=True)
    digest = hashlib.sha256()
    for split, members in splits.items():
        # Mixed once, so that the first rows of a split are a fair sample of it.
        order = permutation(len(members), 0)
        lines = [json.dumps(members[i]._asdict(), ensure_ascii=False) for i in order]
        content = "".join(line + "\n" for line in lines).encode()
        digest.update(content)
        (folder / f"{split}.jsonl").write_bytes(content)
        counts[split] = len(members)
        counts[f"{split} source packages"] = len({row.source for row in members})
    facts = {
        "name": NAME, "from": "the package index of this machine's Debian, through apt",
        "licence": "package metadata of Debian; the descriptions are under the packages' licences",
        "counts": dict(counts), "sha256": digest.hexdigest(),
    }  # fmt: skip
    (folder / "SOURCE.json").write_text(json.dumps(facts, indent=2) + "\n", "utf8")


def split_of(source: str) -> str:
    """Return the split of a source package, by a hash of its name.

    >>> split_of("hello") in SHARES
    True
    """
    draw = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        if draw < share:
            return split
        draw -= share
    return "train"


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Yield the stanzas of a Debian control file, continuation lines as they are."""
    for stanza in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.strip("\n").split("\n"):
            if line.startswith((" ", "\t")):
                fields[name] = f"{fields.get(name, '')}\n{line}"
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "Package" in fields:
            yield fields


def _paragraphs(long: str) -> list[str]:
    """Return the paragraphs of a long description, lines joined but those of lists (two spaces)."""
    paragraphs: list[list[str]] = [[]]
    for line in long.split("\n"):
        if line.strip() == ".":
            paragraphs.append([])
        elif line.startswith("  "):
            paragraphs[-1].append("\n" + line.strip())
        elif line.strip():
            paragraphs[-1].append(line.strip())
    joined = (" ".join(lines).replace(" \n", "\n").strip() for lines in paragraphs)
    return [paragraph for paragraph in joined if paragraph]


def _run(command: Sequence[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.decode("utf8", "replace").strip().splitlines() or ["nothing"]
        raise RuntimeError(
            f"could not fetch {NAME}: {' '.join(command[:2])} failed and said {said[0]!r}. Is "
            "there a network, and does /etc/apt/sources.list name a mirror?"
        )
    return done.stdout.decode("utf8", "replace")
