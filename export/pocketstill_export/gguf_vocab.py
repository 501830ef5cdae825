"""The student's own byte-level BPE tokenizer as GGUF metadata."""

from __future__ import annotations

from typing import Any

from pocketstill_export.checkpoint import Checkpoint, token_string, vocabulary
from pocketstill_export.errors import ExportError
from pocketstill_export.pretokenizer import pretokenizer_name


def add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """Adds tokens, types, merges, special ids and the chat template to a `gguf.GGUFWriter`.

    Raises:
        ExportError: when llama.cpp would not give the same ids.
    """
    tokenizer = checkpoint.tokenizer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pretokenizer_name(tokenizer))
    tokens, types = _tokens(checkpoint)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(checkpoint))
    add_bos, add_eos = _added_around(checkpoint)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)

    vocab = vocabulary(tokenizer)
    for key, setter in (
        ("bos_token", writer.add_bos_token_id),
        ("unk_token", writer.add_unk_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        token = token_string(checkpoint.tokenizer_config.get(key))
        if token in vocab:
            setter(vocab[token])
    first, *others = _stops_in_order(checkpoint)
    writer.add_eos_token_id(first)
    # GGUF has a key each for end of text, of turn and of message; all three stop llama.cpp.
    for setter, token_id in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        setter(token_id)
    writer.add_chat_template(checkpoint.template)


def _stops_in_order(checkpoint: Checkpoint) -> list[int]:
    """All stop ids, the tokenizer's own end-of-text token first."""
    eos = token_string(checkpoint.tokenizer_config.get("eos_token"))
    own = vocabulary(checkpoint.tokenizer).get(eos, -1) if eos is not None else -1
    return sorted(checkpoint.stop_ids, key=lambda token_id: token_id != own)


def _tokens(checkpoint: Checkpoint) -> tuple[list[str], list[int]]:
    """Every row of the embedding as (text, type); rows that no token has become unused ones."""
    import gguf

    rows = int(checkpoint.config.vocab_size)
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    for text, token_id in checkpoint.tokenizer["model"]["vocab"].items():
        tokens[token_id], types[token_id] = text, int(gguf.TokenType.NORMAL)
    for added in checkpoint.tokenizer.get("added_tokens") or ():
        kind = gguf.TokenType.CONTROL if added.get("special") else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    return tokens, types


def _merges(checkpoint: Checkpoint) -> list[str]:
    merges = checkpoint.tokenizer["model"].get("merges") or []
    if not merges:
        # llama.cpp refuses a file without merges. Symbols start as single characters, so a merge of two
        # longer ones never fires.
        return ["<no merges> <no merges>"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _added_around(checkpoint: Checkpoint) -> tuple[bool, bool]:
    """Whether the tokenizer puts a begin token before a text, and an end token after it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
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
