"""A Llama and two BERTs of random weights as Hugging Face folders, 1 MB each, and LoRA adapters: real models to vLLM, nonsense to read.

    tiny_models.py llama|bert|reranker|lora-SEED OUT

Run by an interpreter that has `torch` and `transformers` (tests/engines/vllm.py makes one). Their tokens are bytes, so a
prompt has as many tokens as letters, and any text can be counted.
"""

import json
import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]  # of the engine's environment, not ours
from safetensors.torch import save_file  # type: ignore[import-not-found]  # see above
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # type: ignore[import-not-found]  # see above
from transformers import (  # type: ignore[import-not-found]  # see above
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CONTEXT, BERT_CONTEXT = 4096, 512
SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(context: int) -> "PreTrainedTokenizerFast":
    """One token per byte, and the specials."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(SPECIALS + letters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=context, **named)
    made.chat_template = TEMPLATE
    return made


def llama(words: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """Two layers; vLLM's kernels for the CPU want heads of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    config = LlamaConfig(vocab_size=len(words), bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes, **heads)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def bert(words: "PreTrainedTokenizerFast", make: type = BertModel) -> "BertModel":
    """Two layers, and with the head that `make` has."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_labels": 1,
    }
    return make(BertConfig(vocab_size=len(words), max_position_embeddings=BERT_CONTEXT, pad_token_id=1, **sizes))


def reranker(words: "PreTrainedTokenizerFast") -> "BertModel":
    """A cross-encoder: one number for a pair of texts."""
    return bert(words, BertForSequenceClassification)


def lora(out: Path, seed: int) -> None:
    """An adapter of the llama that changes what it says."""
    torch.manual_seed(seed)
    modules, rank, width = ("q_proj", "v_proj"), 8, 64
    weights = {}
    for layer in range(2):
        for module in modules:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(rank, width).to(torch.bfloat16)
            weights[f"{name}.lora_B.weight"] = torch.randn(width, rank).to(torch.bfloat16)
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 64, "bias": "none"}
    named = {"target_modules": list(modules), "base_model_name_or_path": "tiny", "lora_dropout": 0.0}
    (out / "adapter_config.json").write_text(json.dumps({**config, **named}))


def main(kind: str, out: Path) -> None:
    if kind.startswith("lora-"):
        lora(out, int(kind.removeprefix("lora-")))
        return
    torch.manual_seed(0)
    make, context = {"llama": (llama, CONTEXT), "bert": (bert, BERT_CONTEXT), "reranker": (reranker, BERT_CONTEXT)}[
        kind
    ]
    words = tokenizer(context)
    words.save_pretrained(out)
    make(words).save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
