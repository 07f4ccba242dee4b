"""Human-rated sentences of four domains as a TFDS data set, and the retrieval set made of one.

Hutto and Gilbert (2014) let at least 20 people rate each of 23,703 sentences of film reviews,
product reviews, tweets and newspaper editorials between -4 and 4. Nothing here uses TensorFlow.
"""

import contextlib
import hashlib
import html
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from sftjax.data.assets import RATED_SENTENCES, cache_folder
from sftjax.data.table import Table
from sftjax.data.tfds_source import read_builder

FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}
"""The tab-separated file of each domain: id, mean rating, text."""

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
NEUTRAL = 0.5
"""A sentence whose mean rating is nearer to 0 than this is neither negative nor positive."""

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


class Sentence(NamedTuple):
    """One rated sentence."""

    id: str
    document: str
    """Its article or review (`nyt/12`, `amazon/3`); of a film sentence or tweet, itself."""
    text: str
    rating: float
    domain: str

    @property
    def label(self) -> int:
        """0 negative, 1 positive, -1 neither."""
        return -1 if abs(self.rating) < NEUTRAL else int(self.rating > 0)


class RatedSentencesConfig(tfds.core.BuilderConfig):
    """One domain, with or without the sentences that are neither negative nor positive."""

    def __init__(self, domain: str, *, neutral: bool) -> None:
        """Name the configuration `movie` (two classes) or `movie_rated` (every rating)."""
        which = "every rating" if neutral else f"negative or positive, |rating| >= {NEUTRAL}"
        super().__init__(
            name=f"{domain}_rated" if neutral else domain, description=f"{domain}: {which}"
        )
        self.domain = domain
        self.neutral = neutral


class RatedSentences(tfds.core.GeneratorBasedBuilder):
    """Sentences with the mean of at least 20 human ratings.

    Configurations `movie`, `amazon`, `tweets`, `nyt` hold the sentences with `|rating| >= 0.5`,
    labelled by the sign; `movie_rated` and so on hold every sentence, and the label of the neutral
    ones is -1. `info.metadata` says how many were left out, and why.

    A sentence whose words (whatever the case and the punctuation) occurred before, in any domain,
    is left out. The splits (70 % train, 10 % validation, 20 % test) are drawn by hash from groups:
    sentences of one document, and documents that shared a sentence, are on one side. The films'
    file does not say which review a sentence is from, so two different sentences of one film
    review can be on two sides.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012 (TFDS' own convention)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "sftjax.data.prepare_sentences(sftjax.data.fetch('rated-sentences')) prepares it; the "
        "folder that fetch returns is the manual_dir."
    )
    BUILDER_CONFIGS = [  # noqa: RUF012
        RatedSentencesConfig(domain, neutral=neutral)
        for neutral in (False, True)
        for domain in FILES
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sentences with the mean of at least 20 human ratings in [-4, 4].",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "document": tfds.features.Text(),
                    "text": tfds.features.Text(),
                    "rating": np.float32,
                    "label": tfds.features.ClassLabel(names=["negative", "positive"]),
                    "domain": tfds.features.Text(),
                }
            ),
            supervised_keys=("text", "label"),
            homepage=RATED_SENTENCES.upstream,
            citation=RATED_SENTENCES.citation,
            license=RATED_SENTENCES.licence,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        config = self.builder_config
        assert isinstance(config, RatedSentencesConfig)
        sentences = read_archive(Path(dl_manager.manual_dir) / ARCHIVE)
        splits, repeated = split_sentences(sentences)
        kept: dict[str, list[Sentence]] = {split: [] for split in SHARES}
        neutral = 0
        for sentence, split in splits:
            if sentence.domain != config.domain:
                continue
            if sentence.label == -1 and not config.neutral:
                neutral += 1
            else:
                kept[split].append(sentence)
        assert self.info.metadata is not None
        self.info.metadata.update(
            sentences_in_archive=sum(one.domain == config.domain for one in sentences),
            left_out_as_repeated=repeated[config.domain],
            left_out_as_neutral=neutral,
            labels={
                split: {str(k): n for k, n in sorted(Counter(s.label for s in rows).items())}
                for split, rows in kept.items()
            },
        )
        return {split: self._generate_examples(rows) for split, rows in kept.items()}

    def _generate_examples(
        self, sentences: Sequence[Sentence]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for sentence in sentences:
            yield sentence.id, {**sentence._asdict(), "label": sentence.label}


def prepare_sentences(
    archive: str | Path,
    data_dir: str | Path | None = None,
    configs: Sequence[str] | None = None,
    *,
    progress: bool = False,
) -> dict[str, tfds.core.DatasetBuilder]:
    """Write the rated sentences as array_record files, once, and return their builders.

    Args:
      archive: the folder that `fetch("rated-sentences")` returned.
      data_dir: where TFDS keeps them; default `cache_folder() / "tfds"`.
      configs: which; default the four domains and the four with every rating.
      progress: let TFDS show its bars and messages.

    Returns:
      `{config: builder}`; `read(builder, "train")` gives the table, `builder.info.metadata` counts.

    Raises:
      FileNotFoundError: if the archive is not in that folder.
    """
    data_dir = Path(data_dir) if data_dir else cache_folder() / "tfds"
    builders = {}
    for config in configs or [config.name for config in RatedSentences.BUILDER_CONFIGS]:
        builder = RatedSentences(data_dir=str(data_dir), config=config)
        if not builder.info.splits:
            if not (Path(archive) / ARCHIVE).is_file():
                raise FileNotFoundError(
                    f"{Path(archive) / ARCHIVE} is missing; `sftjax.data.fetch('rated-sentences')` "
                    "downloads it and returns its folder"
                )
            with contextlib.ExitStack() as stack:
                if not progress:
                    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(manual_dir=str(archive)),
                    file_format="array_record",
                )
        builders[config] = builder
    return builders


def retrieval_set(archive: str | Path, data_dir: str | Path | None = None) -> Table:
    """Return the sentences of newspaper editorials with their article, to test an embedding.

    An embedding retrieves when the sentences nearest to one are of the same article; what an
    encoder loses of that in fine-tuning, it has forgotten.

    Args:
      archive: the folder that `fetch("rated-sentences")` returned.
      data_dir: as in `prepare_sentences`.

    Returns:
      A table with the columns `text` and `document`; every document has two sentences or more.
    """
    builder = prepare_sentences(archive, data_dir, ["nyt_rated"])["nyt_rated"]
    table = read_builder(builder, "train+validation+test").only("text", "document")
    counts = Counter(table["document"])
    order = np.argsort(np.asarray(table["document"]), kind="stable")
    return table.take([i for i in order if counts[table["document"][i]] > 1])


def read_archive(archive: Path) -> list[Sentence]:
    """Read the four files of the archive, in their order.

    Their encoding is UTF-8. HTML entities (`&amp;`) are undone, twice: the editorials' file has
    `&amp;amp;`.

    Raises:
      ValueError: if a line is not `id<TAB>rating<TAB>text` with a rating in [-4, 4].
    """
    sentences = []
    with tarfile.open(archive) as content:
        for domain, name in FILES.items():
            file = content.extractfile(f"hutto_ICWSM_2014/{name}")
            if file is None:
                raise ValueError(f"{archive}: {name} is no plain file")
            for number, line in enumerate(file.read().decode().splitlines(), start=1):
                match = re.fullmatch(r"(\d+)(?:_\d+)?\t(-?\d\.?\d*)\t(.+)", line)
                if match is None or not -4 <= float(match[2]) <= 4:
                    raise ValueError(f"{archive}, {name}, line {number}: not id, rating, text")
                sentences.append(
                    Sentence(
                        id=f"{domain}/{line.split(chr(9), 1)[0]}",
                        document=f"{domain}/{match[1]}",
                        text=html.unescape(html.unescape(match[3])).strip(),
                        rating=float(match[2]),
                        domain=domain,
                    )
                )
    return sentences


def split_sentences(
    sentences: Sequence[Sentence],
) -> tuple[list[tuple[Sentence, str]], Counter[str]]:
    """Leave out repeated sentences and give every other one its split.

    Returns:
      `([(sentence, split), ...], left_out)`; `left_out` counts the repeated ones by domain.

    >>> one = Sentence("nyt/1_1", "nyt/1", "So do I.", 0.1, "nyt")
    >>> two = Sentence("nyt/9_4", "nyt/9", "so do i!", 0.2, "nyt")
    >>> split_sentences([one, two])[1]
    Counter({'nyt': 1})
    """
    group: dict[str, str] = {}
    first: dict[str, Sentence] = {}
    repeated: Counter[str] = Counter()
    for sentence in sentences:
        group.setdefault(sentence.document, sentence.document)
        earlier = first.setdefault(words_of(sentence.text), sentence)
        if earlier is not sentence:
            repeated[sentence.domain] += 1
            group[_root(group, sentence.document)] = _root(group, earlier.document)
    return [(one, _split(_root(group, one.document))) for one in first.values()], repeated


def words_of(text: str) -> str:
    """Return the words alone, in lower case; of a text without words, the text.

    >>> words_of("Yay!! ANOTHER good interview :)"), words_of(":)")
    ('yay another good interview', ':)')
    """
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def _root(group: dict[str, str], document: str) -> str:
    while group[document] != document:
        document = group[document]
    return document


def _split(document: str) -> str:
    draw = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        if draw < share:
            return split
        draw -= share
    return "test"
