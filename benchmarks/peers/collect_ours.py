"""Our whole `collect`: python collect_ours.py URL QUESTIONS.jsonl AT_ONCE; prints one JSON object."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from peak import peak_mib

from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.recipe import Recipe

url, questions, at_once = sys.argv[1:]
count = Path(questions).read_bytes().count(b"\n")
recipe = Recipe.model_validate(
    {
        "name": "bench",
        "teacher": {"base_url": url, "model": "gpt-4o-mini", "samples": 1, "concurrency": int(at_once)},
        # A command that becomes one JSON object is asked for in one request.
        "skills": [{"name": "mine", "kind": "json", "source": questions, "questions": count, "heldout": 0}],
    }
)
with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    result = collect(recipe, Path(folder))
    seconds = time.perf_counter() - started
print(json.dumps({"answers": result.requests - result.failed, "seconds": seconds, "peak_mib": peak_mib()}))
