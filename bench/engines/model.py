"""A Llama of random weights, large enough that reading a prompt takes a while: `model.py OUT`, run by the engine's interpreter.

42 million parameters, and a tokenizer trained on the standard library's sources, so that words are tokens as they are to a
real one. What it writes is nonsense.
"""

import sys
import sysconfig
from pathlib import Path

import torch  # type: ignore[import-not-found]  # of the engine's environment, not ours
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-not-found]  # see above
from transformers import (  # type: ignore[import-not-found]  # see above
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY, HIDDEN, LAYERS, HEAD, CONTEXT = 8192, 512, 8, 32, 16384
SOURCES = 120
SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> "PreTrainedTokenizerFast":
    """Byte pairs as they come in Python's own sources."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:SOURCES]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIALS, initial_alphabet=alphabet)
    words.train_from_iterator((file.read_text(errors="ignore") for file in files), trainer)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=CONTEXT, **named)
    made.chat_template = TEMPLATE
    return made


def llama(words: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """The model; vLLM's kernels for the CPU want heads of 32."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN * 4, "num_hidden_layers": LAYERS, "head_dim": HEAD}
    heads = {"num_attention_heads": HIDDEN // HEAD, "num_key_value_heads": HIDDEN // HEAD}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(
        vocab_size=len(words), max_position_embeddings=CONTEXT, tie_word_embeddings=False, **sizes, **heads, **ids
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


if __name__ == "__main__":
    torch.manual_seed(0)
    made = tokenizer()
    made.save_pretrained(sys.argv[1])
    llama(made).save_pretrained(sys.argv[1])
