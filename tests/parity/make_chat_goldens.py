"""Make the golden files of chat preprocessing: what TRL's SFTTrainer makes of 64 rows.

    pip install torch==2.13.0 trl==1.16.0 datasets gguf   # in an environment of its own
    python tests/parity/make_chat_goldens.py [SmolLM2-135M-Instruct.gguf]

Takes about a minute. Writes tests/parity/chat/: the rows, a small tokenizer, a tiny
random Llama, and ids, trained tokens and losses by TRL; with the GGUF file also ids by
SmolLM2's tokenizer.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

HERE = pathlib.Path(__file__).parent / "chat"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "GENERATION{{ message['content'] + '<|im_end|>' + '\n' }}ENDGENERATION"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = TEMPLATE.replace("ENDGENERATION", "").replace("GENERATION", "")
MARKED = TEMPLATE.replace("ENDGENERATION", "{% endgeneration %}").replace(
    "GENERATION", "{% generation %}"
)

QUESTIONS = [
    "What is a prime number?",
    "  Why is the sky blue?\n\nAnswer in one line. ",
    "Übersetze: «Guten Tag» 😀",
    "def f(x):\n    return x ** 2\n\nWhat does f(3) give?",
    "日本の首都はどこですか。",
    "Write a haiku about rain.",
    "2+2=?",
    "List three colours:\n- \n- \n- ",
]
ANSWERS = [
    "A number above 1 that only 1 and itself divide.",
    "Short waves scatter more.\n",
    "Good day 😀!",
    "It gives 9, since 3 ** 2 == 9.",
    "東京です。",
    " Soft rain on the roof\n a cat listens, half asleep\n the gutter keeps time",
    "4",
    "- red\n- green\n- blue 1234567",
]


def rows() -> dict[str, list[dict]]:
    """Return 64 rows, 16 of a format, all texts different combinations of those above."""

    def pair(i: int) -> tuple[str, str]:
        return QUESTIONS[i % 8] + (f" ({i})" if i > 7 else ""), ANSWERS[(3 * i) % 8]

    def turns(i: int) -> list[dict]:
        found = [{"role": "system", "content": f"You are number {i}."}] if i % 2 else []
        for j in range(1 + i % 4):
            question, answer = pair(5 * i + j)
            found += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        return found

    sharegpt, alpaca, completion, text_pairs, multi = [], [], [], [], []
    for i in range(16):
        question, answer = pair(i)
        sharegpt.append(
            {
                "conversations": [
                    {"from": "human", "value": question},
                    {"from": "gpt", "value": answer},
                ]
            }
        )
        alpaca.append(
            {"instruction": question, "input": QUESTIONS[i % 5] if i % 2 else "", "output": answer}
        )
        multi.append({"messages": turns(i)})
        if i % 2:
            completion.append(
                {
                    "prompt": turns(i)[:-1],
                    "completion": [{"role": "assistant", "content": answer}],
                }
            )
        else:
            text_pairs.append({"prompt": question + " ->", "completion": " " + answer.strip()})
    return {
        "sharegpt": sharegpt,
        "alpaca": alpaca,
        "completion": completion,
        "text": text_pairs,
        "multi": multi,
    }


def for_trl(kind: str, given: list[dict]) -> list[dict]:
    """Alpaca is a format that TRL leaves to its user; ShareGPT's names of speakers, too."""
    if kind == "alpaca":
        return [
            {
                "prompt": [
                    {
                        "role": "user",
                        "content": row["instruction"]
                        + (f"\n\n{row['input']}" if row["input"] else ""),
                    }
                ],
                "completion": [{"role": "assistant", "content": row["output"]}],
            }
            for row in given
        ]
    if kind == "sharegpt":
        roles = {"human": "user", "gpt": "assistant"}
        return [
            {
                "messages": [
                    {"role": roles[turn["from"]], "content": turn["value"]}
                    for turn in row["conversations"]
                ]
            }
            for row in given
        ]
    return given


def small_tokenizer() -> Tokenizer:
    """Train a byte-level BPE of 512 words on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(QUESTIONS + ANSWERS, trainer)
    return tokenizer


def smollm2_tokenizer(path: str) -> Tokenizer:
    """Read SmolLM2's tokenizer out of its GGUF file."""
    import gguf

    reader = gguf.GGUFReader(path)
    vocab = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    tokenizer.add_special_tokens([t for t, k in zip(vocab, types, strict=True) if k == 3])
    return tokenizer


def prepared(tokenizer: Tokenizer, model: LlamaForCausalLM, data: list[dict], assistant: bool):
    """Return what SFTTrainer prepares of rows, and its loss of them in one batch."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        chat_template=MARKED if assistant else PLAIN,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            assistant_only_loss=assistant,
            completion_only_loss=None if assistant else "prompt" in data[0],
            max_length=None,
            use_cpu=True,
            report_to=[],
            bf16=False,
            gradient_checkpointing=False,
            loss_type="nll",
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(data),
            processing_class=wrapped,
        )
        found = [dict(row) for row in trainer.train_dataset]
        loss = None
        if model.config.vocab_size == tokenizer.get_vocab_size():
            batch = trainer.data_collator(
                [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in found]
            )
            trainer.model.eval()
            with torch.no_grad():
                loss = float(trainer.compute_loss(trainer.model, dict(batch)))
    return [
        {
            "ids": list(row["input_ids"]),
            "learned": "".join("01"[label != -100] for label in row["labels"]),
        }
        for row in found
    ], loss


def main(gguf_path: str | None) -> None:
    """Write the files."""
    HERE.mkdir(exist_ok=True)
    torch.manual_seed(0)
    data, small = rows(), small_tokenizer()
    config = LlamaConfig(
        vocab_size=small.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    tokenizers = {"small": small}
    if gguf_path:
        tokenizers["smollm2"] = smollm2_tokenizer(gguf_path)
    goldens: dict = {"template": PLAIN, "marked": MARKED, "small": {}, "smollm2": {}}
    for name, tokenizer in tokenizers.items():
        for kind, given in data.items():
            for setting in ("assistant", "completion"):
                if setting == "assistant" and kind == "text":
                    continue  # TRL refuses plain text there
                if setting == "completion" and kind in ("sharegpt", "multi"):
                    continue  # a whole conversation has no completion
                found, loss = prepared(
                    tokenizer, model, for_trl(kind, given), setting == "assistant"
                )
                goldens[name][f"{kind}/{setting}"] = {"rows": found, "loss": loss}
    compact = {"ensure_ascii": True, "separators": (",", ":")}
    (HERE / "rows.json").write_text(json.dumps(data, **compact) + "\n")
    (HERE / "goldens.json").write_text(json.dumps(goldens, **compact) + "\n")
    (HERE / "tokenizer.json").write_text(json.dumps(json.loads(small.to_str()), **compact) + "\n")
    (HERE / "config.json").write_text(json.dumps(config.to_dict(), default=str, indent=1) + "\n")
    np.savez_compressed(HERE / "llama.npz", **weights)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
