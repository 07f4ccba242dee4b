"""A name with settings is the kind that the call with the same arguments makes."""

import pytest

from sftjax.adapters import ADAPTERS, lora, parse_adapter, plan_of_words


def test_settings_are_the_arguments(tiny):
    kind, where = parse_adapter("rslora:r=4,alpha=16,dropout=0.1,targets=query|output.dense")
    same = lora(r=4, lora_alpha=16, lora_dropout=0.1, use_rslora=True)
    assert kind.config == same.config
    assert where == {"target_modules": ["query", "output.dense"]}


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_name_finds_its_places_in_a_bert(tiny, name):
    plan = plan_of_words([name], tiny.params, new=["classifier/kernel", "classifier/bias"])
    assert plan.sites
    assert all(not site.path.startswith("classifier") for site, _ in plan.sites)


def test_several_add_up_and_collide(tiny):
    plan = plan_of_words(["lora:r=2,targets=query", "ia3:targets=value,layers=1"], tiny.params)
    assert [kind.name for _, kind in plan.sites] == ["lora", "lora", "ia3"]
    with pytest.raises(ValueError, match="would get two adapters"):
        plan_of_words(["lora:r=2,targets=query", "dora:r=2,targets=query"], tiny.params)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lore:r=8", "adapter 'lore' is unknown; there are: lora"),
        ("lora:rank=8", "cannot read 'rank=8'; .* settings r, lora_alpha"),
        ("lora:r", "cannot read 'r'"),
        ("lora:r=eight", "r='eight'; a rank is an integer"),
        ("lora:alpha=much", "lora_alpha=.much.; it is a number"),
        ("rslora:use_rslora=false", "cannot read 'use_rslora=false'"),
        ("lora:layers=last", "layers_to_transform='last'; write numbers"),
    ],
)
def test_what_cannot_be_read_is_quoted(text, words):
    with pytest.raises(ValueError, match=words):
        parse_adapter(text)
