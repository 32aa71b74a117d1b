"""A Llama of random weights as a GGUF file, 0.3 MB: a real model to llama.cpp, nonsense to read.  tiny_gguf.py OUT.gguf

Run by an interpreter that has `gguf` and `numpy` (tests/engines/llama_cpp.py makes one).
"""

import sys

import gguf  # type: ignore[import-not-found]  # of the engine's environment, not ours
import numpy as np  # type: ignore[import-not-found]  # see above

CONTEXT, EMBEDDING, BLOCKS, HEADS, FEED_FORWARD = 4096, 64, 2, 2, 256
SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
NORMAL, CONTROL = 1, 3
"""llama.cpp's token types."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_letters() -> list[str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + number) for number in range(len(hidden))]


def main(out: str) -> None:
    letters = byte_letters()
    merges = [f"{first} {second}" for first in "aeiou" for second in "nrstl"]
    tokens = [*SPECIALS, *letters, *(merge.replace(" ", "") for merge in merges)]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * len(SPECIALS) + [NORMAL] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)  # noqa: FBT003 - gguf names it `value`
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.05, (rows, columns)).astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(EMBEDDING, np.float32))

    matrix("token_embd", len(tokens), EMBEDDING)
    matrix("output", len(tokens), EMBEDDING)
    norm("output_norm")
    for block in (f"blk.{number}" for number in range(BLOCKS)):
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{part}", EMBEDDING, EMBEDDING)
        matrix(f"{block}.ffn_gate", FEED_FORWARD, EMBEDDING)
        matrix(f"{block}.ffn_up", FEED_FORWARD, EMBEDDING)
        matrix(f"{block}.ffn_down", EMBEDDING, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
