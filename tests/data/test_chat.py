"""Chat data: formats, masks and their audit, and ids and trained tokens equal to TRL's."""

import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sftjax.data import (
    ChatTemplate,
    Table,
    check_vocabulary,
    conversations,
    encode_chat,
    show,
)

GOLDENS = pathlib.Path(__file__).parents[1] / "parity" / "chat"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|im_start|>", "<|im_end|>"]


def letters():
    """Return a tokenizer of which each byte is a token, after two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    return SimpleNamespace(backend=backend, pad_id=0)


def encoded(rows, template=CHATML, **options):
    settings = {
        "max_length": 200, "learn": "assistant", "end_of_turn": "turn", "on_long": "refuse",
        "on_problem": "refuse", **options,
    }  # fmt: skip
    names = {name for row in rows for name in row}
    table = Table({name: [row.get(name) for row in rows] for name in names}, "chat.jsonl")
    return encode_chat(table, letters(), ChatTemplate(template, eos_token="<|im_end|>"), **settings)


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return {"messages": [{"role": roles[who], "content": text} for who, text in turns]}


def learned(chat, row=0):
    return "|".join(piece for piece, yes in show(chat, row).pieces if yes)


def test_every_format_reads_as_the_same_conversation():
    question, answer = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}
    turns = [("human", "Hi?"), ("gpt", "Yes.")]
    rows = [
        {"messages": [question, answer]},
        {"conversations": [{"from": who, "value": text} for who, text in turns]},
        {"prompt": [question], "completion": [answer]},
        {"instruction": "Hi?", "input": "", "output": "Yes."},
    ]
    found = [conversations(Table({k: [v] for k, v in row.items()}, "x"))[0] for row in rows]
    assert all(list(one.messages) == [question, answer] for one in found)
    assert [one.given for one in found] == [0, 0, 1, 0]
    text = conversations(Table({"prompt": ["a "], "completion": ["b"]}, "x"))[0]
    assert (text.text, text.prompt) == ("a b", "a ")


def test_a_row_of_another_format_is_named():
    table = Table(
        {"messages": [said(("u", "a"))["messages"], None], "text": [None, "b"]}, "mixed.jsonl"
    )
    with pytest.raises(ValueError, match=r"mixed.jsonl row 2: the format is 'text' and that of"):
        conversations(table)
    with pytest.raises(ValueError, match=r"row 1: no chat format there \(columns with a value: q"):
        conversations(Table({"q": ["a"]}, "odd"))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"messages": [{"role": "wizard", "content": "a"}]}, "message 1 of .* role 'wizard'"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "turn 1 is from 'alien'"),
        (said(("u", "a"), ("a", " ")), r"message 2 of messages \(assistant\) has no content"),
        ({"messages": [{"role": "user", "content": 3}]}, "content that is not text"),
        ({"messages": []}, "holds no messages"),
        ({"messages": "hello"}, "not a list of messages"),
        ({"prompt": "a", "completion": [{"role": "user", "content": "b"}]}, "make both the same"),
        ({"prompt": "a", "completion": ""}, "nothing to learn"),
        ({"text": " "}, "holds no text"),
    ],
)
def test_bad_rows_are_refused_by_number(row, error):
    with pytest.raises(ValueError, match=rf"chat.jsonl row 2: .*{error}"):
        encoded([_good(row), row])


def _good(row):
    if "messages" in row:
        return said(("u", "a"), ("a", "b"))
    if "conversations" in row:
        return {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    return {"text": "a"} if "text" in row else {"prompt": "a", "completion": "b"}


def test_a_template_that_fails_and_roles_that_must_alternate_name_the_row():
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    fine, wrong = said(("u", "a"), ("a", "b")), said(("u", "a"), ("u", "b"), ("a", "c"))
    assert learned(encoded([fine], strict)) == "b<|im_end|>"
    with pytest.raises(ValueError, match=r"row 2: .*\(user, user, assistant\): roles must alter"):
        encoded([fine, wrong], strict)
    with pytest.raises(ValueError, match=r"row 1: .*not valid Jinja"):
        encoded([fine], "{% for %}")
    with pytest.raises(ValueError, match=r"row 1: the chat template fails .* no attribute 'name'"):
        encoded([fine], "{{ messages[0].name.first }}")
    with pytest.raises(ValueError, match="has no chat template"):
        encoded([fine], "")
    # A sandbox: a template is data of strangers.
    with pytest.raises(ValueError, match="the chat template fails"):
        encoded([fine], "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}")


def test_spans_are_proven_by_prefixes_or_refused():
    row = said(("s", "Be."), ("u", "a"), ("a", "one"), ("u", "b"), ("a", "two"))
    assert learned(encoded([row])) == "one<|im_end|>\n|two<|im_end|>\n"
    assert learned(encoded([row], end_of_turn="token")) == "one<|im_end|>|two<|im_end|>"
    assert learned(encoded([row], end_of_turn="none")) == "one|two"
    forgetful = CHATML.replace("{{ m.content }}", "{% if loop.last %}{{ m.content }}{% endif %}")
    with pytest.raises(ValueError, match=r"row 1: where message 3 \(assistant\) .* no prefix"):
        encoded([row], forgetful)


def test_generation_tags_say_it_and_change_no_text():
    tagged = CHATML.replace(
        "{{ m.content }}<|im_end|>\n",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}",
    )
    row = said(("u", "a"), ("a", "one"), ("u", "b"), ("a", "two"))
    plain, marked = encoded([row], end_of_turn="token"), encoded([row], tagged)
    np.testing.assert_array_equal(plain.ids, marked.ids)
    np.testing.assert_array_equal(plain.weights, marked.weights)
    untagged = tagged.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    with pytest.raises(ValueError, match=r"row 1: an answer is learned and the stop token"):
        encoded([row], untagged)
    assert encoded([row], untagged, on_problem="count").audit.no_stop == (0,)


def test_messages_say_themselves_whether_they_are_learned():
    row = said(("u", "a"), ("a", "one"), ("u", "b"), ("a", "two"))
    row["messages"][1]["train"] = False
    assert learned(encoded([row])) == "two<|im_end|>\n"
    del row["messages"][1]["train"]
    row["messages"][1]["train"] = True
    assert learned(encoded([row])) == "one<|im_end|>\n"
    with pytest.raises(ValueError, match="does not go by messages"):
        encoded([row], learn="all")


def test_tools_and_their_results_are_kept_and_not_learned():
    template = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML
    row = said(("u", "a"), ("a", "call"), ("t", "42"), ("a", "It is 42."))
    row["tools"] = json.dumps([{"name": "add", "ä": 1}])
    chat = encoded([row], template)
    whole = "".join(piece for piece, _ in show(chat).pieces)
    assert whole.startswith('[{"name": "add", "ä": 1}]\n<|im_start|>user')
    assert "<|im_start|>tool\n42<|im_end|>" in whole
    assert learned(chat) == "call<|im_end|>\n|It is 42.<|im_end|>\n"


def test_the_audit_refuses_or_counts():
    rows = [said(("u", "a"), ("a", "b")), said(("u", "c" * 150), ("a", "d" * 40))]
    size = len(encoded(rows[:1]).ids)
    with pytest.raises(ValueError, match=r"row 2: up to \d+ tokens, and at most 100"):
        encoded(rows, max_length=100)
    with pytest.raises(ValueError, match=r"row 2: nothing to learn.*row 2: cut to 100 tokens"):
        encoded(rows, max_length=100, on_long="truncate")
    counted = encoded(rows, max_length=100, on_long="truncate", on_problem="count")
    assert (len(counted), counted.audit.nothing, counted.audit.truncated) == (1, (1,), (1,))
    assert counted.audit.eaten == (1,)
    assert counted.audit.lost == 42  # 40 letters, the stop token and the line's end
    assert "1 row with nothing to learn, left out" in str(counted)
    dropped = encoded(rows, max_length=100, on_long="drop")
    assert (dropped.audit.dropped, list(dropped.rows), len(dropped.ids)) == ((1,), [0], size)
    with pytest.raises(ValueError, match="row 1: nothing to learn"):
        encoded([said(("u", "a"))])
    with pytest.raises(ValueError, match="the mask is all ones"):
        encoded(
            [said(("u", "a"), ("a", "b"))],
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
            "<|im_end|>{% endgeneration %}{% endif %}{% endfor %}",
        )
    with pytest.raises(ValueError, match="on_long is 'cut'; it is one of refuse, truncate, drop"):
        encoded(rows, on_long="cut")


def test_plain_text_gets_its_stop_token():
    pair = encoded([{"prompt": "1+1=", "completion": "2"}], learn="completion")
    assert learned(pair) == "2<|im_end|>"
    assert learned(encoded([{"text": "so"}], learn="all")) == "so<|im_end|>"
    with pytest.raises(ValueError, match="row 1: plain text has no assistant part"):
        encoded([{"text": "so"}])


def test_ids_beyond_the_vocabulary_are_named():
    chat = encoded([said(("u", "a"), ("a", "b"))] * 2)
    table = Table({"messages": [[], []]}, "chat.jsonl")
    check_vocabulary(chat, table, int(chat.ids.max()) + 1)
    with pytest.raises(
        ValueError,
        match=r"rows 1, 2: the tokenizer gives token id \d+, and the model's vocabulary has 5",
    ):
        check_vocabulary(chat, table, 5)


def test_show_colours_what_is_learned():
    shown = show(encoded([said(("u", "1 < 2?"), ("a", "Yes & no."))]))
    assert (shown.learned, shown.tokens) == (11, 36)
    assert ">Yes &amp; no.&lt;|im_end|&gt;" in shown._repr_html_()
    assert "1 &lt; 2?" in shown._repr_html_()
    assert "\x1b[" in str(shown)
    assert "(11 of 36 tokens are learned)" in str(shown)
    with pytest.raises(IndexError, match="no row 1"):
        show(encoded([said(("u", "a"), ("a", "b"))]), 1)


def trl_case(name):
    goldens = json.loads((GOLDENS / "goldens.json").read_text())
    rows = json.loads((GOLDENS / "rows.json").read_text())
    return goldens, rows, goldens[name]


def our_ids(backend, rows, kind, setting, template):
    names = {name for row in rows for name in row}
    table = Table({name: [row.get(name) for row in rows] for name in names}, kind)
    if kind == "alpaca" and setting == "completion":
        setting = "assistant"  # TRL was given it as prompt and completion: the same tokens
    return encode_chat(
        table,
        SimpleNamespace(backend=backend, pad_id=2),
        ChatTemplate(template, "<|im_start|>", "<|im_end|>"),
        max_length=1024,
        learn=setting,
        end_of_turn="turn",
        on_long="refuse",
        on_problem="refuse",
    )


def check_against_trl(name, backend):
    goldens, rows, cases = trl_case(name)
    compared = 0
    for case, golden in cases.items():
        kind, setting = case.split("/")
        templates = [goldens["marked"], goldens["template"]]  # told by tags, and proven
        for template in templates:
            chat = our_ids(backend, rows[kind], kind, setting, template)
            for row, wanted in enumerate(golden["rows"]):
                ids, weights = chat[row]
                assert ids.tolist() == wanted["ids"], (case, row)
                assert "".join("01"[int(w)] for w in weights) == wanted["learned"], (case, row)
            compared += len(golden["rows"])
    return compared


def test_ids_and_trained_tokens_are_those_of_trl():
    backend = Tokenizer.from_file(str(GOLDENS / "tokenizer.json"))
    # 64 rows; Alpaca and prompt/completion with both settings; each by tags and by prefixes.
    assert check_against_trl("small", backend) == 2 * (64 + 16 + 8)
