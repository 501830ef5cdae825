"""The least that a client can do: `AsyncOpenAI` over aiohttp in so many tasks, nothing kept.

    python collect_bare.py URL QUESTIONS.jsonl AT_ONCE

Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import httpx2
import openai
from peak import peak_mib


async def main(url: str, questions: list[str], at_once: int) -> dict[str, float]:
    limits = httpx2.Limits(max_connections=at_once)
    http = openai.DefaultAioHttpClient(trust_env=False, limits=limits)
    answers, todo = 0, iter(questions)

    async def work(api: openai.AsyncOpenAI) -> None:
        nonlocal answers
        for question in todo:
            completion = await api.chat.completions.create(
                model="gpt-4o-mini",
                messages=[{"role": "user", "content": question}],
                temperature=0.7,
                max_tokens=256,
            )
            answers += bool(completion.choices[0].message.content)

    started = time.perf_counter()
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http) as api:
        await asyncio.gather(*(work(api) for _ in range(at_once)))
    return {"answers": answers, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    rows = [json.loads(line)["question"] for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()]
    result = asyncio.run(main(sys.argv[1], rows, int(sys.argv[3])))
    print(json.dumps(result | {"peak_mib": peak_mib()}))
