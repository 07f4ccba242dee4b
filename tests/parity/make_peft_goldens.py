"""Compute what PEFT gives for every adapter, and write `peft_goldens.npz`.

    python tests/parity/make_peft_goldens.py       # a minute; needs torch, transformers 5, peft

Logits with the drawn adapter, the loss before each of five steps of plain SGD over what is trained
(adapter and head), and the loss after the last.
"""

import json
import pathlib
import runpy
import warnings
from types import SimpleNamespace

import numpy as np

HERE = pathlib.Path(__file__).parent
peft_reference = SimpleNamespace(**runpy.run_path(str(HERE / "peft_reference.py")))
reference = peft_reference.reference
makers = {
    kind: runpy.run_path(str(HERE / f"make_{name}_goldens.py"))["torch_model"]
    for kind, name in (("causal-lm", "causal"), ("seq2seq-lm", "seq2seq"))
}


def torch_base(case):
    """Return torch's model with the weights of the seed."""
    import torch
    import transformers

    base = peft_reference.base_of(case)
    if base.kind in makers:
        return makers[base.kind](base)
    family = base.torch_class.removesuffix("ForSequenceClassification")
    fields = {k: v for k, v in reference.config_of(base).items() if k != "model_type"}
    model = getattr(transformers, base.torch_class)(
        getattr(transformers, f"{family}Config")(**fields)
    )
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    drawn = {k: torch.from_numpy(v) for k, v in reference.weights(shapes).items()}
    model.load_state_dict(drawn, strict=True)
    return model.eval(), shapes


def fresh(case):
    """Return PEFT's model with the drawn adapter, the shapes of both, and the config it writes."""
    import peft
    import torch

    model, shapes = torch_base(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = peft_reference.TASKS[peft_reference.base_of(case).kind]
        settings = getattr(peft, case.config)(task_type=task, **case.settings)
        model = peft.get_peft_model(model, settings)
        own = {k: tuple(v.shape) for k, v in peft.get_peft_model_state_dict(model).items()}
        drawn = {k: torch.from_numpy(v) for k, v in peft_reference.adapter(own).items()}
        peft.set_peft_model_state_dict(model, drawn)
    config = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=_plain))
    return model.eval(), shapes, own, config


def _plain(value):
    return sorted(value) if isinstance(value, set) else str(getattr(value, "value", value))


def torch_results(case):
    """Return the shapes, the config, the logits and the losses."""
    import torch

    model, shapes, own, config = fresh(case)
    batch = {k: torch.from_numpy(v).long() for k, v in peft_reference.batch_of(case).items()}
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=peft_reference.RATE)
    with torch.no_grad():
        logits = peft_reference.kept(case, model(**batch).logits.numpy())
    losses = []
    for step in range(peft_reference.STEPS + 1):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        if step < peft_reference.STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return shapes, own, config, logits, np.array(losses)


def main() -> None:
    """Compute and write."""
    arrays, about = {}, {}
    for name, case in peft_reference.CASES.items():
        shapes, own, config, arrays[name], arrays[f"{name}/losses"] = torch_results(case)
        about[name] = {"base": shapes, "adapter": own, "config": config}
        print(name, arrays[f"{name}/losses"].round(4))
    arrays["about"] = np.array(json.dumps(about))
    np.savez_compressed(HERE / "peft_goldens.npz", **arrays)
    print(f"{(HERE / 'peft_goldens.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
