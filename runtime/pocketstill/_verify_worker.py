"""The process in which a bundle is verified: no network, few cores. Started by `pocketstill.verify`.

It reads its job from a JSON file, tells its progress as JSON lines on stdout, and leaves its result in
a file. Nothing that starts a thread may be imported before the network is denied.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketstill import isolate
from pocketstill.errors import EngineError, UserError
from pocketstill.files import read_json, write_json

if TYPE_CHECKING:
    from pocketstill.bundle import SuiteItem
    from pocketstill.model import Model


def main(job_path: str) -> int:
    job = read_json(job_path)
    try:
        result = _work(job)
    except UserError as error:
        result = {"error": str(error), "error_type": type(error).__name__}
    except MemoryError:
        result = {"error": f"out of memory: {job['allocation_mib']} MiB were allowed; raise the memory budget"}
    write_json(job["result"], result)
    return 0


def _tell(**progress: Any) -> None:
    print(json.dumps(progress), flush=True)


def _work(job: dict[str, Any]) -> dict[str, Any]:
    host, port = job["listener"]
    before = isolate.network_reachable(host, port)
    means = isolate.deny_network()
    after = isolate.network_reachable(host, port)
    if after:
        raise EngineError(f"the network could not be denied ({means} did not hold); verify in a container without one")
    cores = isolate.limit_cores(job["cores"])
    if job["allocation_mib"]:
        isolate.limit_memory(job["allocation_mib"])

    from pocketstill.bundle import Bundle
    from pocketstill.measure import best_threads, measure
    from pocketstill.model import load

    bundle = Bundle.load(job["folder"], check=False)
    variant = bundle.variant(job["variant"])
    items = [item for item in bundle.suite() if item.id in set(job["ids"])]

    _tell(stage="loading")
    start = time.perf_counter()
    model = load(job["folder"], variant.name, threads=job["threads"] or 1, check=False)
    load_s = time.perf_counter() - start
    prompt = model.prompt_ids(items[0].messages)
    rates: dict[int, float] = {}
    threads = job["threads"]
    if threads is None:
        _tell(stage="trying threads")
        model.close()
        threads, rates = best_threads(bundle, variant, prompt, cores)
        model = load(job["folder"], variant.name, threads=threads, check=False)

    with model:
        _tell(stage="measuring")
        speed = measure(model.engine, prompt, repetitions=job["repetitions"])
        answers = _answer_all(model, items)
    return {
        "answers": answers,
        "load_s": load_s,
        "speed": asdict(speed),
        "threads": threads,
        "thread_rates": {str(n): rate for n, rate in rates.items()},
        "cores": cores,
        "peak_rss_mib": isolate.peak_rss_mib(),
        "network": f"denied by {means}",
        "network_before": before,
    }


def _answer_all(model: Model, items: list[SuiteItem]) -> list[dict[str, Any]]:
    from pocketstill.verify import graded_answer

    answers = []
    for number, item in enumerate(items, 1):
        said = model.answer(item.messages, temperature=0.0)
        timing = {"completion_tokens": said.completion_tokens, "seconds": round(said.seconds, 6)}
        answers.append(graded_answer(item, said.text) | timing)
        _tell(stage="answering", done=number, of=len(items))
    return answers


if __name__ == "__main__":
    # So that a native crash says on stderr where it was.
    import faulthandler

    faulthandler.enable()
    Path(sys.argv[1]).resolve(strict=True)
    sys.exit(main(sys.argv[1]))
