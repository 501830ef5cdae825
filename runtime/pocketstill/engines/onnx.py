"""onnxruntime-genai behind the engine interface."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill.bundle import Variant
from pocketstill.engines.prompt import room_for
from pocketstill.errors import EngineError

_ADAPTER = "adapter"  # genai wants a name; one engine has one adapter


def _import_genai() -> Any:
    # Official builds send telemetry unless this is set before the import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise EngineError(f"onnxruntime-genai cannot be imported ({error}): pip install pocketstill") from error
    return onnxruntime_genai


class OnnxEngine:
    """An ONNX variant of a bundle; see `pocketstill.engines.Engine`."""

    def __init__(
        self,
        folder: Path,
        variant: Variant,
        *,
        threads: int | None = None,
        context_length: int | None = None,
        adapter: Path | None = None,
    ) -> None:
        og = _import_genai()
        session: dict[str, Any] = {} if threads is None else {"intra_op_num_threads": threads}
        overlay = {
            "model": {
                # genai drops padding from a prompt's end, and students pad with their end token: nothing is padding.
                # It then pads with this once it has met an end token of its own.
                "pad_token_id": -1,
                "decoder": {"filename": variant.file, "session_options": session},
            }
        }
        try:
            own_length = int(json.loads((folder / "genai_config.json").read_text())["model"]["context_length"])
            config = og.Config(str(folder))
            config.overlay(json.dumps(overlay))
            self._model: Any = og.Model(config)
            self._adapters: Any = None
            if adapter:
                self._adapters = og.Adapters(self._model)
                self._adapters.load(str(adapter), _ADAPTER)
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise EngineError(
                f"onnxruntime-genai cannot load {folder / variant.file}: {reason}; export it again"
            ) from error
        self.context_length = min(own_length, context_length or own_length)
        self._og = og
        self._tokenizer: Any = None

    def _generator(self, ids: Sequence[int], length: int, **search: Any) -> Any:
        if self._model is None:
            raise EngineError("this engine was closed; load the bundle again")
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=length, **search)
        generator = self._og.Generator(self._model, parameters)
        if self._adapters is not None:
            generator.set_active_adapter(self._adapters, _ADAPTER)
        generator.append_tokens(np.asarray(ids, dtype=np.int32))
        return generator

    def generate(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """See `pocketstill.engines.Engine.generate`."""
        room = room_for(ids, max_new_tokens, self.context_length)
        search: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            # top_k 0 switches off the builder's default of 50, which llama.cpp's chain does not have either.
            search = {
                "do_sample": True,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": 0,
                "random_seed": seed,
            }
        return self._steps(ids, room, frozenset(stop_ids), search)

    def _steps(self, ids: Sequence[int], room: int, stops: frozenset[int], search: dict[str, Any]) -> Iterator[int]:
        if room < 1:
            return
        generator = self._generator(ids, len(ids) + room, **search)
        step, last = generator.generate_next_token, generator.get_next_tokens
        for _ in range(room):
            step()
            token = int(last()[0])
            if token in stops or token < 0:
                return
            yield token

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `pocketstill.engines.Engine.logits`."""
        room_for(ids, 1, self.context_length)
        generator = self._generator(ids, len(ids) + 1, do_sample=False)
        output = np.asarray(generator.get_output("logits"), dtype=np.float32)
        if output.shape[1] != len(ids):
            raise EngineError("this ONNX file gives the last token's logits only; export it without that option")
        return np.array(output[0])

    def native_encode(self, text: str) -> list[int]:
        """See `pocketstill.engines.Engine.native_encode`."""
        if self._tokenizer is None:
            self._tokenizer = self._og.Tokenizer(self._model)
        return [int(i) for i in self._tokenizer.encode(text)]

    def close(self) -> None:
        """See `pocketstill.engines.Engine.close`."""
        self._tokenizer = self._adapters = self._model = None
