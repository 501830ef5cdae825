"""distilabel: python collect_distilabel.py URL QUESTIONS.jsonl AT_ONCE; prints one JSON object.

It sends a batch of inputs at once and waits for the whole of it, so the batch is what is asked at once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration
from peak import peak_mib


def main(url: str, questions: str, at_once: int) -> dict[str, float]:
    lines = Path(questions).read_text(encoding="utf-8").splitlines()
    rows = [{"instruction": json.loads(line)["question"]} for line in lines]
    started = time.perf_counter()
    with Pipeline(name=f"bench-{time.time_ns()}") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=at_once)
        llm = OpenAILLM(
            model="gpt-4o-mini",
            base_url=url,
            api_key="none",
            generation_kwargs={"temperature": 0.7, "max_new_tokens": 256},
        )
        load >> TextGeneration(llm=llm, input_batch_size=at_once)
    made = pipeline.run(use_cache=False)
    answers = sum(row["generation"] is not None for row in made["default"]["train"])
    return {"answers": answers, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    result = main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    # Its steps run in processes of their own: the largest of them is counted with this one.
    print(json.dumps(result | {"peak_mib": peak_mib(children=True)}))
