"""A tokenizer of a few hundred tokens and models of a few thousand weights, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}</s>{% endgeneration %}{% else %}{{ message['content'] "
    "}}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text survives a round trip."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["What is the capital of the country?", "### Instruction:\n", "### Response:\nIt is "],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model(kind: str = "llama", *, seed: int = 0, vocabulary: int = 307, **changes: Any) -> Any:
    """A model of a family, with logits large enough for a soft-cap or scale to show."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](**{**SIZES, "vocab_size": vocabulary, **changes})
    attention = "eager" if kind == "gemma2" else "sdpa"  # sdpa has no soft-cap
    made = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(30)
    return made


def save(folder: Path, kind: str = "llama", *, chat: bool = False, **changes: Any) -> Path:
    """A folder that `from_pretrained` and `lm_eval` load."""
    made = tokenizer(chat)
    made.save_pretrained(folder)
    model(kind, vocabulary=len(made), **changes).save_pretrained(folder)
    return folder
