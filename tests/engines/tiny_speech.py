"""A speech recogniser (Qwen3-ASR) without weights, for `vllm serve --load-format dummy`: it hears nonsense, in real time.

    tiny_speech.py speech OUT

Run by vLLM's interpreter. By its architecture's name vLLM 0.32 serves it at `/v1/realtime`. `OUT/site` has what stands in for
torchvision, whose builds want CUDA's torch: vLLM imports it with its speech models, which see no picture.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # type: ignore[import-not-found]  # of the engine's environment, not ours
from transformers import (  # type: ignore[import-not-found]  # see above
    PreTrainedTokenizerFast,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRProcessor,
)

AUDIO, START, END = "<|audio_pad|>", "<|audio_start|>", "<|audio_end|>"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", AUDIO, START, END]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
WIDTH = 64
TEXT = {
    "model_type": "qwen3_asr_text",
    "vocab_size": len(SPECIALS) + len(LETTERS),
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
}
HEARING = {
    "model_type": "qwen3_asr_audio_encoder",
    "num_mel_bins": 128,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "d_model": WIDTH,
    "output_dim": WIDTH,
    "downsample_hidden_size": 32,
    "n_window": 50,
    "n_window_infer": 800,
}

WITHOUT_PICTURES = """
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

__version__ = "0.28.0"

class Anything(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.startswith("torchvision.") else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__getattr__ = lambda name: MagicMock(name=name)

sys.meta_path.insert(0, Anything())
"""


def main(out: Path) -> None:
    words = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(SPECIALS + LETTERS)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": SPECIALS[3:]}
    extra = {"audio_token": AUDIO, "audio_bos_token": START, "audio_eos_token": END}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=4096, **named, **extra)
    Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer).save_pretrained(out)
    places = {"audio_token_id": SPECIALS.index(AUDIO), "audio_start_token_id": SPECIALS.index(START)}
    config = {
        "architectures": ["Qwen3ASRRealtimeGeneration"],
        "model_type": "qwen3_asr",
        "thinker_config": {"audio_config": HEARING, "text_config": TEXT, **places},
    }
    (out / "config.json").write_text(json.dumps(config))
    stand_in = out / "site" / "torchvision" / "__init__.py"
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    stand_in.write_text(WITHOUT_PICTURES)


if __name__ == "__main__":
    main(Path(sys.argv[2]))
