"""PEFT's numbers are ours, before and after five steps of SGD; folders go both ways."""

import json
import pathlib
import runpy
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from sftjax.adapters import merge_adapter, side_branch
from sftjax.core import Aux, combine, flatten
from sftjax.hub import load, load_adapter, save, save_adapter
from sftjax.models import shift_right
from sftjax.objectives import classification, sequence_cross_entropy, sequence_to_sequence
from sftjax.select import select
from sftjax.train import init, make_step

HERE = pathlib.Path(__file__).parent
peft_reference = SimpleNamespace(**runpy.run_path(str(HERE / "peft_reference.py")))
reference = peft_reference.reference
CASES = peft_reference.CASES
TOLERANCE = 2e-5


def close(case, ours, expected):
    """Whether logits that mean something are the same; 2e-4 beside the logits of words."""
    found = peft_reference.kept(case, np.asarray(ours))
    words = peft_reference.base_of(case).kind != "sequence"
    return np.abs(found - expected).max() < (2e-4 if words else TOLERANCE)


@pytest.fixture(scope="module")
def goldens():
    with np.load(HERE / "peft_goldens.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    return json.loads(str(arrays.pop("about"))), arrays


def folder_of(case, about, folder):
    """Write the drawn adapter as PEFT writes it."""
    folder.mkdir()
    shapes = {f"{name}": tuple(shape) for name, shape in about["adapter"].items()}
    save_file(peft_reference.adapter(shapes), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(about["config"]))
    return folder


def beside(case, about, tmp_path):
    """Return the base as we load it, with the adapter that PEFT's folder holds."""
    base = tmp_path / "base"
    base.mkdir()
    shapes = {name: tuple(shape) for name, shape in about["base"].items()}
    model, params = reference.ours(peft_reference.base_of(case), reference.weights(shapes), base)
    folder = folder_of(case, about, tmp_path / "theirs")
    return model, load_adapter(folder, model, params)


def batch_of(case, model):
    """Return the batch that torch reads, as ours is: what is not said has no weight."""
    batch = peft_reference.batch_of(case)
    kind, labels = peft_reference.base_of(case).kind, batch["labels"]
    if kind == "seq2seq-lm":
        start, pad = model.decoder_start_token_id, model.pad_token_id
        batch["decoder_input_ids"] = np.asarray(shift_right(labels, start, pad))
        batch["loss_weights"] = (labels >= 0).astype(np.float32)
    return batch


def next_word(apply):
    """Return the loss of the next word, of logits in whole."""

    def objective(params, state, batch, key):
        logits, labels = apply(params, batch)[:, :-1], batch["labels"][:, 1:]
        return sequence_cross_entropy(logits, labels, (labels >= 0) * 1.0), Aux({})

    return objective


OBJECTIVES = {
    "sequence": classification,
    "causal-lm": next_word,
    "seq2seq-lm": sequence_to_sequence,
}


def trained(model, loaded, batch):
    """Return the logits at first, those of an empty adapter, and the losses of five SGD steps."""
    apply = side_branch(model.apply, loaded.plan)
    rules = [("adapter", 1.0), *((f"base/{path}", 1.0) for path in loaded.trained)]
    trainable = select(loaded.params, rules).trainable
    tx = optax.sgd(peft_reference.RATE)
    step = make_step(OBJECTIVES[model.head.kind](apply), tx)

    @jax.jit
    def run(state, fixed, batch):  # one program for both: its forward pass is compiled once
        logits = apply(combine(state.trainable, fixed.frozen), batch)
        return *step(state, fixed, batch), logits

    nothing = jax.tree.map(np.zeros_like, loaded.params["adapter"])
    state, fixed = init({**loaded.params, "adapter": nothing}, trainable, tx, jax.random.key(0))
    *_, base = run(state, fixed, batch)
    state, fixed = init(loaded.params, trainable, tx, jax.random.key(0))
    losses, first = [], None
    for _ in range(peft_reference.STEPS + 1):
        state, metrics, logits = run(state, fixed, batch)
        losses.append(float(metrics["loss"]))
        first = logits if first is None else first
    return np.asarray(first), np.asarray(base), np.array(losses)


def test_the_goldens_are_small_and_complete(goldens):
    about, arrays = goldens
    assert (HERE / "peft_goldens.npz").stat().st_size < 100_000
    assert about.keys() == CASES.keys()
    assert arrays.keys() == {*CASES, *(f"{name}/losses" for name in CASES)}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_losses_of_five_steps(tmp_path, goldens, name):
    about, arrays = goldens
    case = CASES[name]
    model, loaded = beside(case, about[name], tmp_path)
    logits, base, losses = trained(model, loaded, batch_of(case, model))
    assert close(case, logits, arrays[name])
    gap = np.abs(peft_reference.kept(case, base) - arrays[name]).max()
    assert gap > (0.05 if model.head.kind == "sequence" else 0.01)  # the adapter matters
    np.testing.assert_allclose(losses, arrays[f"{name}/losses"], rtol=1e-4)
    assert losses[-1] < (0.8 if model.head.kind == "sequence" else 1) * losses[0]


@pytest.mark.parametrize("name", CASES)
def test_what_was_loaded_is_written_as_it_came(tmp_path, goldens, name):
    about, _ = goldens
    model, loaded = beside(CASES[name], about[name], tmp_path)
    ours = save_adapter(
        tmp_path / "ours", model, loaded.params, loaded.plan, trained=loaded.trained
    )
    written = load_file(ours / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert written.keys() == theirs.keys()
    for tensor, values in theirs.items():
        np.testing.assert_allclose(written[tensor], values, atol=1e-6)
    again = load_adapter(ours, model, loaded.params["base"])
    assert flatten(again.params["adapter"]).keys() == flatten(loaded.params["adapter"]).keys()
    assert [kind.config for _, kind in again.plan.sites] == [
        kind.config for _, kind in loaded.plan.sites
    ]


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "t5-lora"])
def test_merged_it_is_a_model_of_the_hubs_layout(tmp_path, goldens, name):
    about, arrays = goldens
    model, loaded = beside(CASES[name], about[name], tmp_path)
    merged = save(tmp_path / "merged", model, loaded.merged())
    again = load(merged)
    logits = jax.jit(again.model.apply)(again.params, batch_of(CASES[name], model))
    assert close(CASES[name], logits, arrays[name])


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_live(tmp_path, goldens, name):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    make = SimpleNamespace(**runpy.run_path(str(HERE / "make_peft_goldens.py")))
    about, arrays = goldens
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        *_, logits, losses = make.torch_results(case)
        np.testing.assert_allclose(arrays[name], logits, atol=1e-5)  # goldens are not stale
        np.testing.assert_allclose(arrays[f"{name}/losses"], losses, rtol=1e-4)
        # Written by PEFT, read by us.
        theirs, *_ = make.fresh(case)
        theirs.save_pretrained(tmp_path / "by-peft")
    model, loaded = beside(case, about[name], tmp_path)
    read = load_adapter(tmp_path / "by-peft", model, loaded.params["base"])
    # What the goldens were compared with, to the leaf: its logits need no second program.
    assert [planned.kind.config for planned in read.plan.sites] == [
        planned.kind.config for planned in loaded.plan.sites
    ]
    assert read.trained == loaded.trained
    theirs, ours = (flatten(one.params) for one in (read, loaded))
    assert theirs.keys() == ours.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(theirs[path], leaf, atol=1e-6, err_msg=path)
    # Written by us, read by PEFT.
    save_adapter(tmp_path / "by-us", model, loaded.params, loaded.plan, trained=loaded.trained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = peft.PeftModel.from_pretrained(make.torch_base(case)[0], tmp_path / "by-us").eval()
        inputs = peft_reference.batch_of(case)
        with torch.no_grad():
            found = again(**{k: torch.from_numpy(v).long() for k, v in inputs.items()}).logits
    assert close(case, found.numpy(), logits)
    task = json.loads((tmp_path / "by-us" / "adapter_config.json").read_text())["task_type"]
    assert task == peft_reference.TASKS[model.head.kind]


@pytest.mark.torch
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_residual_starts_are_written_as_plain_lora_for_the_untouched_base(tmp_path, goldens, start):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from sftjax.adapters import lora, plan_adapter, with_adapter

    make = SimpleNamespace(**runpy.run_path(str(HERE / "make_peft_goldens.py")))
    case = CASES["lora"]
    model, loaded = beside(case, goldens[0]["lora"], tmp_path)
    plan = plan_adapter(
        loaded.params["base"], lora(r=3, lora_alpha=5, init_lora_weights=start),
        target_modules=["query", "output.dense"],
    )  # fmt: skip
    joined = with_adapter(loaded.params["base"], plan, jax.random.key(0))
    joined["adapter"] = jax.tree.map(lambda leaf: leaf * 1.1 + 0.02, joined["adapter"])
    batch = batch_of(case, model)
    ours = np.asarray(jax.jit(side_branch(model.apply, plan))(joined, batch))
    assert np.abs(ours - np.asarray(model.apply(loaded.params["base"], batch))).max() > 0.05
    folder = save_adapter(tmp_path / "residual", model, joined, plan, trained=loaded.trained)
    read = load_adapter(folder, model, loaded.params["base"])
    again = np.asarray(jax.jit(side_branch(model.apply, read.plan))(read.params, batch))
    assert np.abs(again - ours).max() < TOLERANCE
    assert {kind.config["r"] for _, kind in read.plan.sites} == {6}
    merged = merge_adapter(joined["base"], joined["adapter"], plan)
    assert np.abs(np.asarray(model.apply(merged, batch)) - ours).max() < TOLERANCE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(make.torch_base(case)[0], folder).eval()
        inputs = reference.inputs(peft_reference.base_of(case))
        with torch.no_grad():
            found = theirs(**{k: torch.from_numpy(v).long() for k, v in inputs.items()}).logits
    assert np.abs(found.numpy() - ours).max() < TOLERANCE


@pytest.mark.torch
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_residual_start_that_peft_saved_as_it_is(tmp_path, goldens, start):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    make = SimpleNamespace(**runpy.run_path(str(HERE / "make_peft_goldens.py")))
    case = CASES["lora"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(
            task_type="SEQ_CLS", r=3, lora_alpha=6, init_lora_weights=start,
            target_modules=["query", "output.dense"],
        )  # fmt: skip
        theirs = peft.get_peft_model(make.torch_base(case)[0], settings).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02)
            inputs = reference.inputs(peft_reference.base_of(case))
            logits = theirs(**{k: torch.from_numpy(v).long() for k, v in inputs.items()}).logits
        theirs.save_pretrained(tmp_path / "by-peft")
    shapes = {name: tuple(shape) for name, shape in goldens[0]["lora"]["base"].items()}
    base = peft_reference.base_of(case)
    model, params = reference.ours(base, reference.weights(shapes), tmp_path)
    read = load_adapter(tmp_path / "by-peft", model, params)
    ours = jax.jit(side_branch(model.apply, read.plan))(read.params, batch_of(case, model))
    assert np.abs(np.asarray(ours) - logits.numpy()).max() < 10 * TOLERANCE
