"""bespokelabs-curator: python collect_curator.py URL QUESTIONS.jsonl AT_ONCE; prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import litellm
from peak import peak_mib

os.environ |= {
    "TELEMETRY_ENABLED": "false",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "OPENAI_API_KEY": "none",
    # It fetches a tokenizer when it starts. Its own dependency brings the same one: no network is needed so.
    "TIKTOKEN_CACHE_DIR": str(Path(litellm.__file__).parent / "litellm_core_utils" / "tokenizers"),
}

# Reads the environment when it is imported.
from bespokelabs import curator

url, questions, at_once = sys.argv[1:]


class Asked(curator.LLM):  # type: ignore[misc]
    """One question, one answer."""

    def prompt(self, row: dict[str, str]) -> str:
        return row["question"]

    def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
        return {"question": row["question"], "answer": response}


if __name__ == "__main__":
    rows = [json.loads(line) for line in Path(questions).read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        llm = Asked(
            model_name="gpt-4o-mini",
            backend="openai",
            generation_params={"temperature": 0.7, "max_tokens": 256},
            backend_params={
                "base_url": url,
                "api_key": "none",
                "max_concurrent_requests": int(at_once),
                # Limits that it must be given, or it takes low ones of its own: far above what is measured.
                "max_requests_per_minute": 10_000_000,
                "max_tokens_per_minute": 1_000_000_000_000,
            },
        )
        answers = len(llm(rows, working_dir=folder).dataset)
        seconds = time.perf_counter() - started
    print(json.dumps({"answers": answers, "seconds": seconds, "peak_mib": peak_mib()}))
