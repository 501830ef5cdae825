"""A BPE tokenizer with byte fallback (Llama 2, Mistral, Phi-3, Gemma) as llama.cpp's SentencePiece vocabulary.

llama.cpp merges whatever two neighbours make a token, the token with the highest score first; a tokenizer.json
merges the pairs that it lists, the first in the list first. The two give the same ids when every way to make a
token of two is listed, and the ways that make one token stand together: as in lists that were derived from a
SentencePiece model. Anything else is refused.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError

SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# What llama.cpp's converter gives to added tokens and to rows without a token; neither is ever merged.
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}


def is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is a BPE over characters that falls back to bytes."""
    return tokenizer["model"].get("type") == "BPE" and bool(tokenizer["model"].get("byte_fallback"))


def adds_space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is put before each stretch of text, as llama.cpp's add_space_prefix does.

    Raises:
        ExportError: text is normalized or split in a way that llama.cpp's SentencePiece tokenizer lacks.
    """
    model = tokenizer["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise _refusal(f"it uses {key}")
    missing = [byte for byte in _BYTES if byte not in model["vocab"]]
    if missing:
        raise _refusal(f"it lacks the byte token {missing[0]}")
    normalizer = tokenizer.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    splitter = tokenizer.get("pre_tokenizer")
    if splitter and splitter.get("type") == "Metaspace" and not steps:
        if splitter.get("split", True) or splitter.get("replacement") != SPACE:
            raise _refusal("its Metaspace step splits at spaces")
        if (scheme := splitter.get("prepend_scheme")) != "never":
            raise _refusal(f"it prepends a space by the rule {scheme!r}, llama.cpp before every stretch or never")
        return False
    # Gemma splits at spaces after it has replaced them all, which does nothing.
    if splitter and (splitter.get("type"), splitter.get("pattern")) != ("Split", {"String": " "}):
        raise _refusal(f"it has a {splitter.get('type')} step")
    if steps not in ([_REPLACE], [_PREPEND, _REPLACE]):
        raise _refusal(f"it normalizes text by {', '.join(str(step.get('type')) for step in steps) or 'nothing'}")
    prefix = len(steps) == 2
    for token in tokenizer.get("added_tokens") or ():
        if token.get("single_word") or token.get("lstrip"):
            raise _refusal(f"the added token {token['content']!r} strips the text around it")
        if prefix and token.get("normalized"):
            raise _refusal(f"the added token {token['content']!r} is looked for in normalized text")
    return prefix


def sentencepiece_tokens(checkpoint: Checkpoint, added: Mapping[int, tuple[str, int]]) -> tuple[list[Any], ...]:
    """Every row of the embedding: texts, scores and types. `added` has the texts and types of added tokens.

    Raises:
        ExportError: the merges are not those of a SentencePiece model.
    """
    import gguf

    rows = int(checkpoint.config.vocab_size)
    vocab: dict[str, int] = checkpoint.tokenizer["model"]["vocab"]
    scores = _scores(checkpoint)
    tokens = [f"[PAD{i}]" for i in range(rows)]
    values, types = [_UNUSED_SCORE] * rows, [int(gguf.TokenType.UNUSED)] * rows
    for text, token_id in vocab.items():
        kind = gguf.TokenType.BYTE if _BYTE.fullmatch(text) else gguf.TokenType.NORMAL
        if text == checkpoint.tokenizer["model"].get("unk_token"):
            kind = gguf.TokenType.UNKNOWN
        tokens[token_id], values[token_id], types[token_id] = text, scores[text], int(kind)
    for token_id, (text, kind) in added.items():
        # llama.cpp looks for these in the text before it replaces the spaces there.
        text = text.replace(SPACE, " ") if kind == gguf.TokenType.USER_DEFINED else text
        tokens[token_id], values[token_id], types[token_id] = text, _ADDED_SCORE, int(kind)
    return tokens, values, types


def _scores(checkpoint: Checkpoint) -> dict[str, float]:
    """The score of each token: SentencePiece's own where tokenizer.model lies beside tokenizer.json and orders
    the merges in the same way, else one that falls with the rank of its merges.
    """
    model = checkpoint.tokenizer["model"]
    added = {token["content"] for token in checkpoint.tokenizer.get("added_tokens") or ()}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    groups = _groups(merges, model["vocab"], added)
    path = checkpoint.folder / "tokenizer.model"
    if path.is_file() and (own := _own_scores(path, model["vocab"], added, groups)) is not None:
        return own
    scores = dict.fromkeys(model["vocab"], -float(len(groups) + 1))
    scores.update(dict.fromkeys(_BYTES, 0.0))
    for rank, group in enumerate(groups):
        scores.update(dict.fromkeys(group, -float(rank + 1)))
    return scores


def _groups(merges: list[tuple[str, ...]], vocab: Mapping[str, int], added: set[str]) -> list[list[str]]:
    """The tokens that merges make, in their order; those whose merges interleave are one group."""
    last = {}
    for rank, pair in enumerate(merges):
        last["".join(pair)] = rank
    listed = set(merges)
    for token in vocab:
        for at in range(1, len(token)):
            pair = (token[:at], token[at:])
            if pair[0] in vocab and pair[1] in vocab and pair not in listed and not added.intersection((token, *pair)):
                raise _refusal(f"it has the tokens {pair[0]!r}, {pair[1]!r} and {token!r}, but no merge of the two")
    groups: list[list[str]] = []
    end = -1
    seen = set()
    for rank, pair in enumerate(merges):
        token = "".join(pair)
        if token in seen:
            continue
        seen.add(token)
        if rank > end:
            groups.append([])
        groups[-1].append(token)
        end = max(end, last[token])
    for group in groups:
        if len(group) > 1 and not _is_run(group):
            raise _refusal(f"its merges into {group[0]!r} and {group[1]!r} are not in the order of any scores")
    return groups


def _own_scores(
    path: Path, vocab: Mapping[str, int], added: set[str], groups: list[list[str]]
) -> dict[str, float] | None:
    """The scores of a tokenizer.model; None when it is of another vocabulary or would merge otherwise."""
    try:
        pieces = _pieces(path)
    except (RuntimeError, OSError):
        return None
    if any(token not in pieces and token not in added for token in vocab):
        return None
    own = {token: pieces.get(token, _ADDED_SCORE) for token in vocab}
    plain = [group for group in groups if not added.intersection(group)]
    for group, after in itertools.pairwise([*plain, []]):
        lowest, highest = min(own[token] for token in group), max(own[token] for token in group)
        following = max((own[token] for token in after), default=-math.inf)
        tied = following == lowest and _is_run([*group, *after])
        if highest != lowest or not (following < lowest or tied):
            return None
    return own


def _is_run(tokens: list[str]) -> bool:
    """Whether these are made of one character, and so come out the same when the leftmost merge goes first."""
    return len(set("".join(tokens))) == 1


def _pieces(path: Path) -> dict[str, float]:
    """The pieces of a SentencePiece model with their scores.

    Raises:
        RuntimeError: the file is none.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(path))
    ids = range(model.get_piece_size())
    return dict(zip(model.id_to_piece(list(ids)), model.get_score(list(ids)), strict=True))


def _refusal(reason: str) -> ExportError:
    return ExportError(f"this SentencePiece-like tokenizer cannot go into GGUF: {reason}; leave the gguf variants out")
