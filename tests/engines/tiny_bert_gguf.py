"""A BERT of random weights as a GGUF file, 0.6 MB: an encoder, for embeddings or, by its head, for ranking.  tiny_bert_gguf.py OUT.gguf

Run by the interpreter of tests/engines/llama_cpp.py, as tiny_gguf.py. Its words are single letters.
"""

import sys

import gguf  # type: ignore[import-not-found]  # of the engine's environment, not ours
import numpy as np  # type: ignore[import-not-found]  # see above

CONTEXT, EMBEDDING, BLOCKS, HEADS, FEED_FORWARD = 512, 64, 2, 2, 128
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(code) for code in range(0x21, 0x7F)]
NORMAL, CONTROL = 1, 3
"""llama.cpp's token types."""


def main(out: str) -> None:
    tokens = [*SPECIALS, *(f"\u2581{letter}" for letter in LETTERS), *LETTERS]
    writer = gguf.GGUFWriter(out, "bert")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)  # noqa: FBT003 - gguf names it `value`
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * len(SPECIALS) + [NORMAL] * (len(tokens) - len(SPECIALS)))
    writer.add_token_type_count(2)
    for number, add in enumerate((writer.add_pad_token_id, writer.add_unk_token_id, writer.add_bos_token_id)):
        add(number)
    writer.add_eos_token_id(SPECIALS.index("[SEP]"))
    writer.add_sep_token_id(SPECIALS.index("[SEP]"))
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.5, shape).astype(np.float32))

    def layer(name: str, rows: int, columns: int) -> None:
        tensor(f"{name}.weight", rows, columns)
        tensor(f"{name}.bias", rows)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(EMBEDDING, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(EMBEDDING, np.float32))

    tensor("token_embd.weight", len(tokens), EMBEDDING)
    tensor("token_types.weight", 2, EMBEDDING)
    tensor("position_embd.weight", CONTEXT, EMBEDDING)
    norm("token_embd_norm")
    for block in (f"blk.{number}" for number in range(BLOCKS)):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            layer(f"{block}.{part}", EMBEDDING, EMBEDDING)
        norm(f"{block}.attn_output_norm")
        layer(f"{block}.ffn_up", FEED_FORWARD, EMBEDDING)
        layer(f"{block}.ffn_down", EMBEDDING, FEED_FORWARD)
        norm(f"{block}.layer_output_norm")
    layer("cls", EMBEDDING, EMBEDDING)
    layer("cls.output", 1, EMBEDDING)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
