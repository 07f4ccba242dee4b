"""Build the documentation: pages from docs/*.md, references from docstrings, tables from the code.

    pip install -e ".[docs]"
    python docs/build.py              # build/docs/index.html, about half a minute
    python docs/build.py --write      # put the generated tables into README.md and docs/*.md
    python docs/build.py --check      # exit 1 if one of them is stale, or a link leads nowhere

A generated table stands between `<!-- generated: WHAT -->` and `<!-- end -->`. WHAT is `supported`,
or `names ROOM NAME NAME ...`: names of a room with the first sentence of each docstring. Warnings
are errors, so is a link that leads nowhere.

Why pdoc: it reads the docstrings as they are (Markdown with Google's sections), needs no file of
settings and no network, and is 3 small packages; mkdocs-material with mkdocstrings is about 30.
Formulas become MathML here, which browsers draw without a script.
"""

import argparse
import html
import importlib
import inspect
import json
import pathlib
import re
import statistics
import sys
import warnings
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "docs"
ROOMS = (
    "core", "select", "anchor", "adapters", "objectives", "models", "train", "hub", "data",
    "evaluate",
)  # fmt: skip
MARK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def pages() -> list[pathlib.Path]:
    """Return every page of ours in Markdown, but for what is built or fetched."""
    kept = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    folders = [ROOT / "docs", ROOT / "benchmarks", ROOT / "notebooks"]
    found = [page for page in kept if page.is_file()]
    return found + [page for folder in folders for page in sorted(folder.glob("*.md"))]


def first_sentence(doc: str) -> str:
    """Return what a docstring says in its first sentence, on one line."""
    text = " ".join(doc.split("\n\n", 1)[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z$])", text, maxsplit=1)[0].rstrip(":")


def names_table(room: str, names: list[str]) -> str:
    """Return a table of a room's names, each linked to its module, with what it does."""
    module = importlib.import_module(room)
    rows = []
    for name in names or module.__all__:
        value = getattr(module, name)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            raise ValueError(f"{room}.{name} has no docstring of its own; leave it out")
        source = inspect.unwrap(value).__module__.replace(".", "/") + ".py"
        rows.append(f"| [`{name}`](../{source}) | {_cell(first_sentence(value.__doc__ or ''))} |")
    return "\n".join([f"| `{room}` | |", "|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def generated(what: str) -> str:
    """Return the text that belongs between two marks."""
    if what == "supported":
        from sftjax.recipes.supported import markdown

        return markdown()
    if what == "ways":
        return ways_table(ROOT / "benchmarks" / "results")
    kind, room, *names = what.split()
    if kind != "names":
        raise ValueError(f"unknown mark {what!r}; there are: supported, ways, names ROOM NAME ...")
    return names_table(room, names)


JOBS = {
    "sentences": "sentences: accuracy, retrieval kept",
    "photos": "photos: accuracy, features kept (CKA)",
    "reports": "reports: ROUGE-L, old answers kept",
    "chat": "chat: perplexity of answers, of other text",
}
"""The jobs of `benchmarks/method_table.py`, and what a cell says of them."""


def ways_table(results: pathlib.Path) -> str:
    """Return the means over seeds of what each way of fine-tuning learned and kept."""
    means: dict[str, dict[str, str]] = {}
    for job in JOBS:
        runs = json.loads((results / f"method_table_{job}.json").read_text("utf8"))["runs"]
        for way in dict.fromkeys(run["way"] for run in runs):
            mine = [run for run in runs if run["way"] == way]
            learned, kept = (statistics.mean(run[n] for run in mine) for n in ("quality", "kept"))
            digits = 2 if learned <= 1 else 1
            means.setdefault(way, {})[job] = f"{learned:.{digits}f}, {kept:.{digits}f}"
    lines = [f"| way | {' | '.join(JOBS.values())} |", "|---" * (1 + len(JOBS)) + "|"]
    for way, cells in means.items():
        lines.append(f"| {way} | {' | '.join(cells.get(job, '-') for job in JOBS)} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """Return a page with its generated tables as they should be."""
    return MARK.sub(lambda found: f"{found[1]}{generated(found[2])}\n{found[3]}", text)


def stale() -> list[str]:
    """Return the pages whose generated tables are not what the code says."""
    return [
        str(p.relative_to(ROOT))
        for p in pages()
        if filled(p.read_text("utf-8")) != p.read_text("utf-8")
    ]


def slug(title: str) -> str:
    """Return the anchor that a heading gets, as code forges make it.

    >>> slug("What moves, and `how far`")
    'what-moves-and-how-far'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page; a title that comes again gets a number."""
    seen: dict[str, int] = {}
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        name = slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title))
        seen[name] = seen.get(name, -1) + 1
    return {f"{n}-{i}" if i else n for n, most in seen.items() for i in range(most + 1)}


def dead_links() -> list[str]:
    """Return `page: link` for each relative link or anchor that leads nowhere."""
    return [f"{p.relative_to(ROOT)}: {link}" for p in pages() for link in _dead(p)]


def _dead(page: pathlib.Path) -> Iterator[str]:
    text = page.read_text("utf-8")
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        there = (page.parent / place).resolve() if place else page
        known = (
            anchors(there.read_text("utf-8")) if there.suffix == ".md" and there.exists() else ()
        )
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in known):
            yield link


def with_mathml(convert: Any) -> Any:
    """Wrap a Markdown converter so that `$...$` and `$$...$$` outside code become MathML."""
    from latex2mathml.converter import convert as mathml

    pattern = re.compile(
        r"(```.*?```|`[^`\n]+`)|\$\$(.+?)\$\$|(?<![\w\\$])\$([^$\n]+?(?:\n[^$\n]+?)?)\$(?!\w)",
        re.DOTALL,
    )

    def run(text: str) -> str:
        kept: list[str] = []

        def keep(found: re.Match[str]) -> str:
            if found[1]:
                return found[0]
            block = found[2] is not None
            latex = " ".join((found[2] or found[3]).split())
            kept.append(mathml(latex, display="block" if block else "inline"))
            return f"MATHML{len(kept) - 1}LMHTAM"

        out = str(convert(pattern.sub(keep, text)))
        return re.sub(r"MATHML(\d+)LMHTAM", lambda found: kept[int(found[1])], out)

    return run


def build_references(out: pathlib.Path) -> None:
    """Write a page for each room from its docstrings."""
    import pdoc.doc
    import pdoc.render
    import pdoc.render_helpers

    pdoc.render.configure(docformat="google", show_source=False, search=False)
    pdoc.render.env.filters["to_html"] = with_mathml(pdoc.render_helpers.to_html)
    # A NamedTuple whose field is of its own type: pdoc looks for the name before there is one.
    warnings.filterwarnings("ignore", "Error parsing type annotation ForwardRef")
    modules = {
        name: pdoc.doc.Module(_whole(name))
        for name in ("sftjax", *(f"sftjax.{room}" for room in ROOMS))
    }
    for name, module in modules.items():
        if missing := [n for n in module.obj.__all__ if not _documented(module.obj, n)]:
            raise ValueError(f"{name}: no docstring: {', '.join(missing)}")
        path = out / (name.replace(".", "/") + ".html")
        path.parent.mkdir(parents=True, exist_ok=True)
        page = pdoc.render.html_module(module, modules)
        page = re.sub(
            r"<p>Create new instance of .*?</p>", "", page
        )  # of NamedTuples; says nothing
        page = re.sub(r"<h2>Submodules</h2>\s*(?!<ul)", "", page)
        back = f'<p><a href="{"../" * name.count(".")}index.html">The pages</a></p>'
        path.write_text(page.replace("<h2>API Documentation</h2>", back), "utf-8")


def _whole(name: str) -> Any:
    """Import a module with the names that it would import when they are first asked for."""
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are not ours
        vars(module).update({each: getattr(module, each) for each in module.__all__})
    return module


def _documented(module: Any, name: str) -> bool:
    value = getattr(module, name)
    return bool(value.__doc__) if inspect.isfunction(value) or inspect.isclass(value) else True


STYLE = """
body{font:16px/1.55 system-ui,sans-serif;color:#1b1f24;margin:0;display:flex}
nav{width:15rem;padding:1.5rem;background:#f6f8fa;min-height:100vh;box-sizing:border-box;flex:none}
nav a{display:block;padding:.12rem 0;color:#24527a;text-decoration:none}nav a.here{font-weight:600}
nav b{display:block;margin:1rem 0 .2rem}
main{max-width:66rem;padding:1.5rem 2.5rem;min-width:0}
pre{background:#f6f8fa;padding:.8rem 1rem;overflow:auto;border-radius:6px;font-size:14px}
code{font:14px ui-monospace,monospace}
pre code{font-size:13px}
:not(pre)>code{background:#f0f2f4;padding:.1em .3em;border-radius:4px}
table{border-collapse:collapse;display:block;overflow:auto;margin:1rem 0;font-size:14px}
td,th{border:1px solid #d0d7de;padding:.3rem .6rem;text-align:left;vertical-align:top}
@media(max-width:50rem){body{display:block}nav{width:auto;min-height:0}main{padding:1rem}}
"""


def build_pages(out: pathlib.Path) -> None:
    """Write each page of docs/ as HTML, with the links between them."""
    from markdown_it import MarkdownIt
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    def coloured(code: str, language: str, _: str) -> str:
        lexer = get_lexer_by_name("pycon" if ">>>" in code else language or "text")
        return highlight(code, lexer, HtmlFormatter(nowrap=True))

    reader = MarkdownIt("commonmark", {"html": True, "highlight": coloured}).enable("table")
    render = with_mathml(reader.render)
    style = STYLE + HtmlFormatter().get_style_defs("pre")
    titles = {p: re.match(r"# (.+)", p.read_text("utf-8"))[1] for p in _in_order()}  # type: ignore[index]
    for page in titles:
        body = render(_relinked(filled(page.read_text("utf-8"))))
        body = _with_anchors(body)
        (out / f"{page.stem}.html").write_text(
            f"<!doctype html><html lang=en><meta charset=utf-8>"
            f"<meta name=viewport content='width=device-width'>"
            f"<title>{html.escape(titles[page])} - sftjax</title><style>{style}</style>"
            f"<nav>{_menu(titles, page)}</nav><main>{body}</main></html>\n",
            "utf-8",
        )


def _in_order() -> list[pathlib.Path]:
    """The pages in the order of docs/index.md, which must name each of them."""
    index = ROOT / "docs" / "index.md"
    named = [
        ROOT / "docs" / name for name in re.findall(r"\]\((\w+\.md)\)", index.read_text("utf-8"))
    ]
    if left := {*(ROOT / "docs").glob("*.md")} - {index, *named}:
        raise ValueError(f"docs/index.md does not name {', '.join(p.name for p in left)}")
    return [index, *dict.fromkeys(named)]


def _with_anchors(body: str) -> str:
    seen: dict[str, int] = {}

    def named(found: re.Match[str]) -> str:
        name = slug(html.unescape(re.sub(r"<[^>]+>", "", found[2])))
        seen[name] = seen.get(name, -1) + 1
        anchor = f"{name}-{seen[name]}" if seen[name] else name
        return f'<{found[1]} id="{anchor}">{found[2]}</{found[1]}>'

    return re.sub(r"<(h[1-4])>(.*?)</\1>", named, body)


def _menu(titles: dict[pathlib.Path, str], here: pathlib.Path) -> str:
    links = [
        f'<a href="{p.stem}.html"{" class=here" if p == here else ""}>{html.escape(title)}</a>'
        for p, title in titles.items()
    ]
    rooms = ["sftjax", *(f"sftjax.{room}" for room in ROOMS)]
    references = [f'<a href="{r.replace(".", "/")}.html">{r}</a>' for r in rooms]
    return "".join([*links, "<b>Reference</b>", *references])


def _relinked(text: str) -> str:
    """Point links at what is built: pages at pages, modules at references, the rest at nothing."""

    def turn(found: re.Match[str]) -> str:
        label, link = found[1], found[2]
        place, hash_, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or not place:
            return found[0]
        if re.fullmatch(r"[\w-]+\.md", place):
            return f"[{label}]({place.removesuffix('.md')}.html{hash_}{anchor})"
        module = re.match(r"\.\./(sftjax)/(\w+)/", place)
        if module and module[2] in ROOMS:
            return f"[{label}](sftjax/{module[2]}.html#{label.strip('`')})"
        return f"{label} (`{place.removeprefix('../')}`)" if "`" not in label else label

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", turn, text)


def main() -> int:
    """Do what was asked; say what is wrong and return 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="fill in the generated tables")
    parser.add_argument(
        "--check", action="store_true", help="check tables and links, build nothing"
    )
    parser.add_argument("--output", type=pathlib.Path, default=OUT, help="where the pages go")
    asked = parser.parse_args()
    warnings.simplefilter("error")
    if asked.write:
        for page in pages():
            text = page.read_text("utf-8")
            if (new := filled(text)) != text:
                page.write_text(new, "utf-8")
                print(f"wrote {page.relative_to(ROOT)}")
        return 0
    faults = [f"stale: {page}; run python docs/build.py --write" for page in stale()]
    faults += [f"dead link: {link}" for link in dead_links()]
    if faults:
        print("\n".join(faults), file=sys.stderr)
        return 1
    if not asked.check:
        asked.output.mkdir(parents=True, exist_ok=True)
        build_references(asked.output)
        build_pages(asked.output)
        print(f"{asked.output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
