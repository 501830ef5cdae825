"""The student's own tokenizer as GGUF metadata: tokens, types, merges or scores, special ids, chat template."""

from __future__ import annotations

import re
from typing import Any

from pocketstill_export.checkpoint import Checkpoint, token_string, vocabulary
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.pretokenizer import pretokenizer_name
from pocketstill_export.gguf.spm import adds_space_prefix, is_sentencepiece, sentencepiece_tokens

# Tokens that llama.cpp's converter takes for control tokens whatever the tokenizer says of them.
_CONTROL = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)
# Tokens that end an answer in llama.cpp by their text alone (src/llama-vocab.cpp).
_KNOWN_STOPS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<\uff5cend\u2581of\u2581sentence\uff5c> [e~[".split()
)
# llama.cpp skips white space after special tokens in models of these names, and after none of these tokens.
_STRIPPING_NAME = re.compile(r"(phi|modern)-?(3|bert)", re.IGNORECASE)
_NEVER_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")


def add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """Adds the tokenizer to a `gguf.GGUFWriter`.

    Raises:
        ExportError: when llama.cpp would not give the same ids.
    """
    if is_sentencepiece(checkpoint.tokenizer):
        _add_sentencepiece(writer, checkpoint)
    else:
        writer.add_tokenizer_model("gpt2")
        clean = checkpoint.tokenizer_config.get("clean_up_tokenization_spaces")
        writer.add_tokenizer_pre(pretokenizer_name(checkpoint.tokenizer, clean=clean))
        tokens, types = _tokens(checkpoint)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(_merges(checkpoint))
        # As llama.cpp's converter: of no effect on a byte-level tokenizer.
        prefix = checkpoint.tokenizer_config.get("add_prefix_space")
        if prefix is not None and checkpoint.architecture in ("LlamaForCausalLM", "MistralForCausalLM"):
            writer.add_add_space_prefix(bool(prefix))
    _add_special_ids(writer, checkpoint)
    writer.add_chat_template(checkpoint.template)


def model_name(checkpoint: Checkpoint, name: str) -> str:
    """The name for the file. By it alone llama.cpp decides whether white space after special tokens is dropped.

    Raises:
        ExportError: the tokenizer drops it after other tokens than llama.cpp can.
    """
    added = checkpoint.tokenizer.get("added_tokens") or ()
    stripping = {token["content"] for token in added if token.get("rstrip")}
    if not stripping:
        return _STRIPPING_NAME.sub(r"\1 \2", name)
    possible = {token["content"] for token in added if token["content"] not in _NEVER_STRIPPING}
    if stripping != possible or "</s>" not in vocabulary(checkpoint.tokenizer):
        odd = sorted(stripping ^ possible)
        raise ExportError(
            f"{checkpoint.folder / 'tokenizer.json'}: llama.cpp strips white space after all special tokens or after "
            f"none, and {odd[0] if odd else '</s>'!r} is an exception; leave the gguf variants out"
        )
    return name if re.search(r"phi-?3", name, re.IGNORECASE) else f"{name} (phi-3 tokens)"


def _add_sentencepiece(writer: Any, checkpoint: Checkpoint) -> None:
    prefix = adds_space_prefix(checkpoint.tokenizer)
    tokens, scores, types = sentencepiece_tokens(checkpoint, _added(checkpoint))
    _check_distinct(checkpoint, tokens)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    # True is what llama.cpp takes when nothing is said.
    if not prefix or checkpoint.tokenizer_config.get("add_prefix_space") is not None:
        writer.add_add_space_prefix(prefix)


def _added(checkpoint: Checkpoint) -> dict[int, tuple[str, int]]:
    """Added tokens by id: their texts and types."""
    import gguf

    found = {}
    for token in checkpoint.tokenizer.get("added_tokens") or ():
        control = token.get("special") or _CONTROL.fullmatch(token["content"])
        kind = gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
        found[token["id"]] = (token["content"], int(kind))
    return found


def _tokens(checkpoint: Checkpoint) -> tuple[list[str], list[int]]:
    """Every row of the embedding as (text, type); rows that no token has become unused ones."""
    import gguf

    rows = int(checkpoint.config.vocab_size)
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    for text, token_id in checkpoint.tokenizer["model"]["vocab"].items():
        tokens[token_id], types[token_id] = text, int(gguf.TokenType.NORMAL)
    for token_id, (text, kind) in _added(checkpoint).items():
        tokens[token_id], types[token_id] = text, kind
    _check_distinct(checkpoint, tokens)
    return tokens, types


def _check_distinct(checkpoint: Checkpoint, tokens: list[str]) -> None:
    """llama.cpp aborts the process at the second token of the same text."""
    if len(set(tokens)) != len(tokens):
        twice = next(text for number, text in enumerate(tokens) if text in tokens[:number])
        raise ExportError(
            f"{checkpoint.folder / 'tokenizer.json'}: two ids are {twice!r}, which llama.cpp cannot load; "
            "leave the gguf variants out"
        )


def _merges(checkpoint: Checkpoint) -> list[str]:
    merges = checkpoint.tokenizer["model"].get("merges") or []
    if not merges:
        # llama.cpp refuses a file without merges. Symbols start as single characters, so a merge of two
        # longer ones never fires.
        return ["<no merges> <no merges>"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _add_special_ids(writer: Any, checkpoint: Checkpoint) -> None:
    add_bos, add_eos = _added_around(checkpoint)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)
    vocab = vocabulary(checkpoint.tokenizer)
    for kind in ("bos", "unk", "sep", "pad", "cls", "mask"):
        own = vocab.get(token_string(checkpoint.tokenizer_config.get(f"{kind}_token")) or "")
        token_id = checkpoint.raw_config.get(f"{kind}_token_id") if own is None else own
        if isinstance(token_id, int) and 0 <= token_id < int(checkpoint.config.vocab_size):
            getattr(writer, f"add_{kind}_token_id")(token_id)
    first, *others = _stops_in_order(checkpoint)
    writer.add_eos_token_id(first)
    # GGUF has a key each for end of text, of turn and of message, and llama.cpp ends at those of code infilling too.
    slots = ("eot", "eom", "fim_sep", "fim_rep", "fim_pad")
    if len(others) > len(slots):
        raise ExportError(
            f"{checkpoint.folder} has {len(others) + 1} stop ids that llama.cpp does not know by their text, and GGUF "
            f"has room for {len(slots) + 1}; leave some out of generation_config.json"
        )
    for slot, token_id in zip(slots, others, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{slot}_token_id", token_id)


def _stops_in_order(checkpoint: Checkpoint) -> list[int]:
    """All stop ids, the tokenizer's own end-of-text token first; of the others those that llama.cpp does not
    know by their text, for there is little room.
    """
    vocab = vocabulary(checkpoint.tokenizer)
    eos = token_string(checkpoint.tokenizer_config.get("eos_token"))
    own = vocab.get(eos, -1) if eos is not None else -1
    first, *others = sorted(checkpoint.stop_ids, key=lambda token_id: token_id != own)
    known = {token_id for text, token_id in vocab.items() if text in _KNOWN_STOPS}
    return [first, *(token_id for token_id in others if token_id not in known)]


def _added_around(checkpoint: Checkpoint) -> tuple[bool, bool]:
    """Whether the tokenizer puts a begin token before a text, and an end token after it."""
    tokenizer = checkpoint.load_tokenizer()
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    vocab = vocabulary(checkpoint.tokenizer)
    bos = vocab.get(token_string(checkpoint.tokenizer_config.get("bos_token")) or "", -1)
    eos = _stops_in_order(checkpoint)[0]
    for add_bos, add_eos in ((False, False), (True, False), (False, True), (True, True)):
        if full == [bos] * add_bos + bare + [eos] * add_eos:
            return add_bos, add_eos
    raise ExportError(
        f"{checkpoint.folder / 'tokenizer.json'}: its post-processor makes {full} of {bare}, "
        "which GGUF cannot say; leave the gguf variants out"
    )
