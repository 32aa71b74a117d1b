"""A Llama and a BERT of random weights as GGUF files, under 1 MB: real models to llama.cpp, nonsense to read.

    tiny_gguf.py llama|bert OUT.gguf

The BERT is an encoder, for embeddings or, by its head, for ranking. Run by an interpreter that has `gguf` and `numpy`
(tests/engines/llama_cpp.py makes one).
"""

import sys

import gguf  # type: ignore[import-not-found]  # of the engine's environment, not ours
import numpy as np  # type: ignore[import-not-found]  # see above

EMBEDDING, BLOCKS, HEADS = 64, 2, 2
NORMAL, CONTROL = 1, 3
"""llama.cpp's token types."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Model:
    """A file being written; `deviation` and `kind` are those of its weights."""

    def __init__(self, out: str, architecture: str, deviation: float, kind: type) -> None:
        self.writer = writer = gguf.GGUFWriter(out, architecture)
        self.random, self.deviation, self.kind = np.random.default_rng(0), deviation, kind
        writer.add_name("tiny")
        writer.add_embedding_length(EMBEDDING)
        writer.add_block_count(BLOCKS)
        writer.add_head_count(HEADS)

    def vocabulary(self, model: str, specials: list[str], words: list[str]) -> None:
        self.writer.add_vocab_size(len(specials) + len(words))
        self.writer.add_tokenizer_model(model)
        self.writer.add_token_list([*specials, *words])
        self.writer.add_token_types([CONTROL] * len(specials) + [NORMAL] * len(words))

    def weights(self, name: str, *shape: int) -> None:
        self.writer.add_tensor(name, self.random.normal(0, self.deviation, shape).astype(self.kind))

    def matrix(self, name: str, rows: int, columns: int) -> None:
        self.weights(f"{name}.weight", rows, columns)

    def layer(self, name: str, rows: int, columns: int) -> None:
        """A matrix with a bias."""
        self.matrix(name, rows, columns)
        self.weights(f"{name}.bias", rows)

    def norm(self, name: str, *parts: str) -> None:
        for part in ("weight", *parts):
            self.writer.add_tensor(f"{name}.{part}", np.ones(EMBEDDING, np.float32))

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def byte_letters() -> list[str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + number) for number in range(len(hidden))]


def llama(out: str) -> None:
    model, feed_forward = Model(out, "llama", 0.05, np.float16), 256
    writer = model.writer
    writer.add_context_length(4096)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    merges = [f"{first} {second}" for first in "aeiou" for second in "nrstl"]
    specials = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    words = [*byte_letters(), *(merge.replace(" ", "") for merge in merges)]
    model.vocabulary("gpt2", specials, words)
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)  # noqa: FBT003 - gguf names it `value`
    writer.add_chat_template(TEMPLATE)
    for name in ("token_embd", "output"):
        model.matrix(name, len(specials) + len(words), EMBEDDING)
    model.norm("output_norm")
    for block in (f"blk.{number}" for number in range(BLOCKS)):
        model.norm(f"{block}.attn_norm")
        model.norm(f"{block}.ffn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.matrix(f"{block}.{part}", EMBEDDING, EMBEDDING)
        for part in ("ffn_gate", "ffn_up"):
            model.matrix(f"{block}.{part}", feed_forward, EMBEDDING)
        model.matrix(f"{block}.ffn_down", EMBEDDING, feed_forward)
    model.close()


def bert(out: str) -> None:
    """Its words are single letters."""
    model, context, feed_forward = Model(out, "bert", 0.5, np.float32), 512, 128
    writer = model.writer
    writer.add_context_length(context)
    writer.add_feed_forward_length(feed_forward)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)  # noqa: FBT003 - gguf names it `value`
    specials, letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], [chr(code) for code in range(0x21, 0x7F)]
    words = [*(f"\u2581{letter}" for letter in letters), *letters]
    model.vocabulary("bert", specials, words)
    writer.add_token_type_count(2)
    for number, add in enumerate((writer.add_pad_token_id, writer.add_unk_token_id, writer.add_bos_token_id)):
        add(number)
    writer.add_eos_token_id(specials.index("[SEP]"))
    writer.add_sep_token_id(specials.index("[SEP]"))
    model.matrix("token_embd", len(specials) + len(words), EMBEDDING)
    model.matrix("token_types", 2, EMBEDDING)
    model.matrix("position_embd", context, EMBEDDING)
    model.norm("token_embd_norm", "bias")
    for block in (f"blk.{number}" for number in range(BLOCKS)):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.layer(f"{block}.{part}", EMBEDDING, EMBEDDING)
        model.norm(f"{block}.attn_output_norm", "bias")
        model.layer(f"{block}.ffn_up", feed_forward, EMBEDDING)
        model.layer(f"{block}.ffn_down", EMBEDDING, feed_forward)
        model.norm(f"{block}.layer_output_norm", "bias")
    model.layer("cls", EMBEDDING, EMBEDDING)
    model.layer("cls.output", 1, EMBEDDING)
    model.close()


if __name__ == "__main__":
    {"llama": llama, "bert": bert}[sys.argv[1]](sys.argv[2])
