"""Compute what torch transformers 5 gives for every encoder-decoder: `seq2seq_goldens.npz`.

    python tests/parity/make_seq2seq_goldens.py    # 20 seconds; needs torch and transformers 5

Logits of every case, its loss with smoothing on a ragged batch, and the tokens it writes.
"""

import json
import pathlib
import runpy
from types import SimpleNamespace

import numpy as np

HERE = pathlib.Path(__file__).parent
seq2seq = SimpleNamespace(**runpy.run_path(str(HERE / "seq2seq_reference.py")))
reference = seq2seq.reference


def torch_model(case):
    """Return torch's model with the weights of the seed, and the shapes of its state dict."""
    import torch
    import transformers

    fields = dict(reference.config_of(case))
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = getattr(transformers, case.torch_class)(config).eval()
    tied = dict(model.all_tied_weights_keys)
    if case.config.get("tie_word_embeddings") is False:
        # Version 5 ties a T5's head in memory, whatever its config says.
        model.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
        tied.pop("lm_head.weight", None)
    buffers = {k for k, _ in model.named_buffers()} | {
        # Sinusoidal places are parameters that nobody trains.
        k for k, v in model.named_parameters() if not v.requires_grad
    }  # fmt: skip
    state = model.state_dict()
    shapes = {
        k: tuple(v.shape)
        for k, v in state.items()
        if k not in tied and (k not in buffers or k == "final_logits_bias")
    }
    drawn = {k: torch.from_numpy(v) for k, v in reference.weights(shapes).items()}
    whole = state | drawn | {name: drawn[source] for name, source in tied.items()}
    model.load_state_dict(whole, strict=True)
    return model, shapes


def tensors(arrays):
    """Return arrays of integers as torch has them."""
    import torch

    return {name: torch.from_numpy(np.array(array)).long() for name, array in arrays.items()}


def logits_of(model, arrays):
    """Return a model's logits."""
    import torch

    with torch.no_grad():
        return model(**tensors(arrays)).logits.numpy()


def torch_results(case):
    """Return the shapes of torch's state dict, the logits, and the loss with smoothing."""
    import torch

    model, shapes = torch_model(case)
    batch, labels = seq2seq.inputs(case), seq2seq.labels(case)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if model.config.model_type == "mbart":
        # Given labels alone, torch would put their last token, a language by its convention, first.
        taught = np.where(labels < 0, model.config.pad_token_id, labels)
        start = np.full((len(labels), 1), model.config.decoder_start_token_id)
        source["decoder_input_ids"] = np.concatenate([start, taught[:, :-1]], 1)
    with torch.no_grad():
        logits = model(**tensors(batch)).logits.numpy()
        target = torch.from_numpy(labels).long()
        loss = torch.nn.functional.cross_entropy(
            model(**tensors(source), labels=target).logits.flatten(0, 1),
            target.flatten(),
            label_smoothing=0.1,
        )
    return shapes, logits, np.asarray(loss)


def written(name):
    """Return what transformers' `generate` writes, (3, at most 12) int32, without the start."""
    import torch

    about, asked = seq2seq.WRITTEN[name]
    case = seq2seq.CASES[about]
    model, _ = torch_model(case)
    with torch.no_grad():
        tokens = model.generate(
            **tensors(seq2seq.sources(case)), do_sample=False, max_new_tokens=seq2seq.ROOM, **asked
        )
    return tokens[:, 1:].numpy().astype(np.int32), model.generation_config.to_dict()


def main() -> None:
    """Compute and write."""
    arrays, shapes, settings = {}, {}, {}
    for name in seq2seq.WRITTEN:
        arrays[f"written/{name}"], fields = written(name)
        settings[name] = {k: v for k, v in fields.items() if k.endswith("_id") and v is not None}
        print(name, arrays[f"written/{name}"].tolist())
    for name, case in seq2seq.CASES.items():
        shapes[name], arrays[name], arrays[f"{name}/loss"] = torch_results(case)
        print(name, float(arrays[f"{name}/loss"]), np.abs(arrays[name]).max())
    arrays["settings"] = np.array(json.dumps(settings))
    arrays["shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(HERE / "seq2seq_goldens.npz", **arrays)
    print(f"{(HERE / 'seq2seq_goldens.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
