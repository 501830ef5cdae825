"""Students: a checkpoint that someone made, or a new small model with a tokenizer made from the data."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketstill.errors import UserError

from .recipe import NewStudent, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END, USER, ASSISTANT, SYSTEM = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FINETUNE_COT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'user' %}{{ ' ###' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
)
# The pre-tokenizer of Llama 3: known to llama.cpp as "llama-bpe", the one there that honours `ignore_merges`.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LEAST_SHARE = 1 / 500


def hush_transformers() -> None:
    """Keep transformers' own bars and advice off the terminal: our progress says what there is to say."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def completion(template: str, rationale: str, answer: str) -> str:
    """What the student is to say after its prompt, without the end token.

    `finetune_cot` is the form of Ho et al. 2023 (arXiv 2212.10071, section 3): "### rationale --> answer".
    """
    if template == "finetune_cot":
        return f" {rationale} --> {answer}" if rationale else f" {answer}"
    return f"{rationale}\nAnswer: {answer}" if rationale else answer


def new_tokenizer(texts: Iterable[str], size: int, template: str) -> PreTrainedTokenizerBase:
    """Make a tokenizer whose vocabulary is the bytes and the words that many of the texts share.

    A word outside of it, such as a name never met, and every number, is seen letter by letter: `ignore_merges`
    looks a whole word up first, and with no merges to apply what is not found falls apart into its bytes. So the
    model reads the spelling of whatever it does not know, and one token a word of what it does.

    Args:
        texts: What the student reads and writes; a word counts once a text.
        size: Most tokens in the vocabulary.
        template: "chat" or "finetune_cot", the chat template that goes with it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = _split()
    counts, total = _count_words(texts, split)
    special = [END, USER, ASSISTANT, SYSTEM]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = size - len(special) - len(letters) - 1
    words = ["ĠĠ", *[word for word in _common(counts, total) if word != "ĠĠ"][:room]]
    vocabulary = {token: index for index, token in enumerate([*special, *letters, *words])}
    # One merge, of two spaces: llama.cpp refuses a vocabulary that has none.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ")], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        chat_template=FINETUNE_COT_TEMPLATE if template == "finetune_cot" else CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _split() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _count_words(texts: Iterable[str], split: Any) -> tuple[Counter[str], int]:
    """In how many texts each word occurs, and how many texts there are."""
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        counts.update({word for word, _ in split.pre_tokenize_str(text)})
    return counts, total


def _common(counts: Counter[str], total: int) -> list[str]:
    """Words that many texts share, most common first; a number is never a word."""
    least = max(2, total * _LEAST_SHARE)
    # A small letter behind a blank or a quote stays a letter, so that words are spelt alike wherever they stand.
    spelt = re.compile(r"\d|^.$|^[^a-zA-Z][a-z]$")
    chosen = [word for word, n in counts.items() if n >= least and not spelt.search(word)]
    # Ties by the word itself: the order of a set differs from process to process, and token ids must not.
    return sorted(chosen, key=lambda word: (-counts[word], word))


def add_words(model: Any, tokenizer: Any, texts: Iterable[str], most: int) -> tuple[Any, int]:
    """Teach a base student the words that many of the texts share and that it spelt letter by letter so far.

    A new word's embedding starts as the mean of its letters' embeddings. Returns the tokenizer and how many words
    were added.

    Raises:
        UserError: the tokenizer merges pieces, so that a new word would never be found whole.
    """
    import torch
    from tokenizers import Tokenizer

    made = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = made["model"].get("vocab", {})
    if not made["model"].get("ignore_merges") or len(made["model"]["merges"]) > 1:
        raise UserError("student.add_words: the base's tokenizer is none of ours; leave add_words out")
    new = [word for word in _common(*_count_words(texts, _split())) if word not in vocabulary][:most]
    letters = {word: [vocabulary[letter] for letter in word] for word in new}
    first = len(vocabulary)
    vocabulary.update({word: first + index for index, word in enumerate(new)})
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(made))
    model.resize_token_embeddings(-(-len(vocabulary) // 64) * 64, mean_resizing=False)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        for word, ids in letters.items():
            table[vocabulary[word]] = table[ids].mean(0)
    return tokenizer, len(new)


def new_student(shape: NewStudent, tokenizer: PreTrainedTokenizerBase, context_length: int) -> PreTrainedModel:
    """Make a student with random weights (of the seed that torch has now), embedding and head tied."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    # Rounded up to what quantized kernels like; the rows beyond the vocabulary are never used.
    vocabulary = -(-len(tokenizer) // 64) * 64
    config: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden_size // shape.heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": context_length,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    made = LlamaConfig(**config) if shape.architecture == "llama" else Qwen3Config(**config)
    return AutoModelForCausalLM.from_config(made)


def read_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint as it stands.

    For a local tokenizer.json not by AutoTokenizer, which silently puts the model type's own pre-tokenizer in place
    of the student's.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    reader = PreTrainedTokenizerFast if (Path(source) / "tokenizer.json").is_file() else AutoTokenizer
    return reader.from_pretrained(str(source))


def load_student(recipe: Recipe, texts: Iterable[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The recipe's student, ready to train: its checkpoint, or a new one whose vocabulary comes from the texts.

    Raises:
        UserError: the checkpoint cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    student = recipe.student
    if student.base is None:
        torch.manual_seed(recipe.seed)
        template = "chat" if student.template == "own" else student.template
        tokenizer = new_tokenizer(texts, student.new.vocabulary, template)
        return new_student(student.new, tokenizer, student.context_length), tokenizer
    try:
        model = AutoModelForCausalLM.from_pretrained(student.base, dtype=torch.float32)
        tokenizer = read_tokenizer(student.base)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"student.base {student.base!r}: {reason}; "
            "give a directory with config.json and model.safetensors, or a hub name"
        ) from None
    if student.add_words:
        tokenizer, _ = add_words(model, tokenizer, texts, student.add_words)
    if student.template != "own":
        tokenizer.chat_template = FINETUNE_COT_TEMPLATE if student.template == "finetune_cot" else CHAT_TEMPLATE
    if not tokenizer.chat_template:
        raise UserError(f"student.base {student.base!r} has no chat template; set student.template to chat")
    return model, tokenizer
