"""The command `pocketstill`: parses, dispatches, and imports a stage only when it is called."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketstill.errors import UserError

app = typer.Typer(
    name="pocketstill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "Distil one skill of a big language model into a small one that runs offline, and prove it on the device.\n\n"
        "The whole way is `pocketstill run RECIPE`; each arrow of it is a command of its own, and leaves what it made "
        "under runs/<recipe name>/. Every command ends with one JSON object on stdout; progress goes to stderr. "
        "A mistake of yours ends in one line and exit status 2."
    ),
)
teacher_app = typer.Typer(
    no_args_is_help=True, help="The embedded teacher, or recorded answers, behind the OpenAI protocol."
)
app.add_typer(teacher_app, name="teacher")

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/pocket.toml.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where runs are kept.", metavar="DIR")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Where the data files that the recipe names lie.", metavar="DIR")
]


def _workshop(module: str) -> Any:
    """Import a module of the workshop, whose arrow points here and not back; what it lacks is told in `_guarded`."""
    import importlib

    return importlib.import_module(module)


def _stage(name: str, recipe: Path, runs: Path, data: Path | None) -> None:
    run = _workshop("pocketstill_pipeline.run")
    _print(run.run_recipe(recipe, runs, data=data, until=name, only=True))


def _print(result: dict[str, Any]) -> None:
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))


@app.command()
def run(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    data: DataOption = None,
    until: Annotated[str, typer.Option(help="The last stage to run.", metavar="STAGE")] = "bundle",
    force: Annotated[bool, typer.Option("--force", help="Run every stage again; the ledger is kept.")] = False,
) -> None:
    """Walk the whole way: collect, curate, distill, export, verify, bundle.

    A stage that is up to date is skipped; one that was cut goes on where it was. No answered request is asked twice.
    """
    _print(_workshop("pocketstill_pipeline.run").run_recipe(recipe, runs, data=data, until=until, force=force))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One of them, with its settings.")] = None,
) -> None:
    """List the methods that an [[elicit]] entry of a recipe may name."""
    _print(_workshop("pocketstill_pipeline.elicit.listing").list_methods(name))


@app.command()
def quote(recipe: RecipeArgument, runs: RunsOption = Path("runs"), data: DataOption = None) -> None:
    """Say what a recipe will ask of its teacher: requests, tokens, money and time. Sends nothing."""
    _print(_workshop("pocketstill_pipeline.quote").quote_recipe(recipe, runs, data))


@app.command()
def collect(recipe: RecipeArgument, runs: RunsOption = Path("runs"), data: DataOption = None) -> None:
    """Ask the teacher, and write every answer to the ledger (ledger.sqlite)."""
    _stage("collect", recipe, runs, data)


@app.command()
def curate(recipe: RecipeArgument, runs: RunsOption = Path("runs"), data: DataOption = None) -> None:
    """Keep the right answers as examples, and the rejects with their reasons."""
    _stage("curate", recipe, runs, data)


@app.command()
def inspect(
    target: Annotated[Path, typer.Argument(metavar="RUN|RECIPE", help="A run's folder, or its recipe.")],
    runs: RunsOption = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="The page; inspect.html in the run.", metavar="FILE")] = None,
    show: Annotated[int, typer.Option(help="Questions to show with their samples.", min=0)] = 3,
    reason: Annotated[str | None, typer.Option(help="Show samples dropped for this reason.", metavar="NAME")] = None,
) -> None:
    """Look at what the teacher said: what came in, what was dropped and why, samples side by side.

    In the terminal and as a page; also while the collection is under way.
    """
    command = _workshop("pocketstill_pipeline.inspection").inspect_command
    _print(command(target, runs, out=out, groups=show, reason=reason))


@app.command()
def distill(recipe: RecipeArgument, runs: RunsOption = Path("runs"), data: DataOption = None) -> None:
    """Train the student on the kept examples."""
    _stage("distill", recipe, runs, data)


@app.command()
def export(
    target: Annotated[
        str,
        typer.Argument(metavar="RECIPE|CHECKPOINT", help="A recipe, a checkpoint's folder, or owner/model of the hub."),
    ],
    runs: RunsOption = Path("runs"),
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="The folder to make of a checkpoint.", metavar="DIR")] = None,
    variants: Annotated[
        str,
        typer.Option(
            help="Which, by commas, such as onnx-int4,gguf-q4_k_m; `all` for the usual ones, `help` for their names.",
            metavar="NAMES",
        ),
    ] = "",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Texts that the model is for (.txt, .jsonl, .parquet): quantized weights are rounded for them.",
            metavar="FILE",
        ),
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(help="Texts to compare over; without it, a third of those of --calibrate.", metavar="FILE"),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Most tokens of prompt and answer together.", min=2)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Default length of an answer, in tokens.", min=1)] = 256,
    name: Annotated[str | None, typer.Option(help="Name of the bundle.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Chat template to use; `plain` for a model that only continues.", metavar="FILE")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(help="GGUF type of the tensors that an expression finds; several times.", metavar="REGEX=TYPE"),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA adapter to keep apart from the base; several times.", metavar="NAME=DIR"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub's model.")] = None,
    converter: Annotated[
        Path | None,
        typer.Option(help="llama.cpp's convert_hf_to_gguf.py, for architectures not known here.", metavar="FILE"),
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Choose within this mean KL divergence, in nats a token.", min=0.0)
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Choose with at least this share of likeliest tokens kept.", min=0.0, max=1.0)
    ] = None,
    max_points: Annotated[
        float | None, typer.Option(help="Choose losing at most so many points of accuracy on --suite.", min=0.0)
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(help="Questions (suite.jsonl) for --max-points.", metavar="FILE")
    ] = None,
    max_mib: Annotated[float | None, typer.Option(help="Choose within this size, in MiB.", min=0.0)] = None,
    fastest: Annotated[bool, typer.Option("--fastest", help="Choose the fastest, not the smallest.")] = False,
    keep: Annotated[str, typer.Option(help="After a choice, keep: chosen, front or all.")] = "chosen",
    license_name: Annotated[str | None, typer.Option("--license", help="For the card: an SPDX name.")] = None,
    teacher: Annotated[str | None, typer.Option(help="For the card: who taught the model.")] = None,
    trained_on: Annotated[str | None, typer.Option(help="For the card: what it was trained on.")] = None,
) -> None:
    """Write a student as ONNX and GGUF variants, and check that each is still the same model.

    With a recipe, that of its run. With a checkpoint, any model of a known kind: the folder --out is a bundle, and
    <out>.report.html shows what was compared. With --max-kl, --min-top1 or --max-points the smallest variant (or the
    fastest) within that tolerance is chosen, GGUF types also tensor by tensor.
    """
    if target.endswith(".toml"):
        if out is not None:
            raise UserError("--out is for a checkpoint; a recipe's export goes into its run, see --runs")
        _stage("export", Path(target), runs, data)
        return
    if variants == "help":
        _print({"variants": _workshop("pocketstill_export.variants").known_names()})
        return
    if out is None:
        raise UserError(f"where shall the export of {target} go? add --out DIR")
    command = _workshop("pocketstill_export.command")
    _print(
        command.export_command(
            command.Request(
                checkpoint=target,
                out=out,
                variants=variants,
                name=name,
                context_length=context,
                max_new_tokens=max_new_tokens,
                calibrate=calibrate,
                heldout=heldout,
                tensor_types=tensor_type or (),
                template=template,
                revision=revision,
                converter=converter,
                adapters=adapter or (),
                max_kl=max_kl,
                min_top1=min_top1,
                max_points=max_points,
                suite=suite,
                max_mib=max_mib,
                fastest=fastest,
                keep=keep,
                license=license_name,
                teacher=teacher,
                data=trained_on,
            )
        )
    )


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE|RECIPE", help="A bundle's folder, or a recipe.")],
    runs: RunsOption = Path("runs"),
    data: DataOption = None,
    variant: Annotated[str | None, typer.Option(help="Which variant of the bundle.", metavar="NAME")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions of each skill.", min=1)] = None,
    cores: Annotated[int, typer.Option(help="Processor cores that the process may use.", min=1)] = 2,
    memory_mib: Annotated[int | None, typer.Option(help="Most memory it may take, in MiB.", min=64)] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result with every answer here.", metavar="FILE")] = None,
) -> None:
    """Prove a bundle on this machine: its accuracy, speed and memory, in a process without network.

    With a recipe, every variant of the run is verified, and the cheapest one that passes becomes the default.
    Exit status 1 when a gate is not met.
    """
    if path.suffix == ".toml":
        _stage("verify", path, runs, data)
        return
    from pocketstill.files import write_json
    from pocketstill.verify import verify as verify_bundle

    result = verify_bundle(path, variant=variant, limit=limit, cores=cores, memory_mib=memory_mib)
    if out is not None:
        write_json(out, result.to_dict(answers=True))
    _print(result.to_dict())
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def bundle(recipe: RecipeArgument, runs: RunsOption = Path("runs"), data: DataOption = None) -> None:
    """Put what was verified into the folder that ships, with its report."""
    _stage("bundle", recipe, runs, data)


@app.command()
def chat(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, such as runs/pocket/device.")],
    variant: Annotated[str | None, typer.Option(help="Which variant.", metavar="NAME")] = None,
    adapter: Annotated[str | None, typer.Option(help="Which LoRA adapter, where some are kept apart.")] = None,
    question: Annotated[
        str | None, typer.Option("--ask", help="Ask this one question and end.", metavar="TEXT")
    ] = None,
) -> None:
    """Talk to a bundle in the terminal; answers stream as they are made."""
    from pocketstill.chat import chat as chat_with

    chat_with(folder, variant=variant, adapter=adapter, question=question)


@app.command()
def doctor() -> None:
    """Say what this machine can run, and how to mend what it cannot."""
    from pocketstill.doctor import doctor as examine

    _print(examine())


@teacher_app.command("serve")
def teacher_serve(
    port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one.", min=0, max=65535)] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    mistakes: Annotated[float, typer.Option(help="Share of wrong answers.", min=0.0, max=1.0)] = 0.12,
    noise: Annotated[float, typer.Option(help="Share of untidy answers.", min=0.0, max=1.0)] = 0.2,
    latency_ms: Annotated[float, typer.Option(help="Time that an answer takes, in ms.", min=0.0)] = 0.0,
    replay: Annotated[
        list[Path] | None,
        typer.Option(help="Serve these recorded completions (JSONL) instead.", metavar="FILE"),
    ] = None,
    student: Annotated[Path | None, typer.Option(help="Serve this bundle instead.", metavar="BUNDLE")] = None,
    variant: Annotated[str | None, typer.Option(help="Which of the bundle's variants.")] = None,
    model: Annotated[str, typer.Option(help="Name of the model that is served.")] = "embedded",
    faults: Annotated[float, typer.Option(help="Share of the attempts that fail.", min=0.0, max=1.0)] = 0.0,
    fault_kinds: Annotated[
        list[str] | None,
        typer.Option("--fault", help="Only these faults: rate_limit, server_error, hang, cut, malformed, truncated."),
    ] = None,
    hang_s: Annotated[float, typer.Option(help="How long a hang lasts, in s.", min=0.0)] = 30.0,
    requests_per_minute: Annotated[int | None, typer.Option(help="Beyond them it answers 429.", min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Beyond them it answers 429.", min=1)] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests at once, or 429.", min=1)] = None,
    batch_latency_s: Annotated[float, typer.Option(help="Time that a batch takes, in s.", min=0.0)] = 0.0,
    batch_window_s: Annotated[float, typer.Option(help="When a batch expires, in s.", min=0.0)] = 86_400.0,
) -> None:
    """Serve chat completions, files and batches on loopback until interrupted; GET /stats counts them."""
    server = _workshop("pocketstill_pipeline.teacher.server")
    given = {"fault_kinds": tuple(fault_kinds)} if fault_kinds else {}
    config = server.TeacherConfig(
        mistakes=mistakes, noise=noise, latency_ms=latency_ms, replay=tuple(str(path) for path in replay or ()),
        student="" if student is None else str(student), variant=variant, model=model, faults=faults, hang_s=hang_s,
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute,
        max_concurrency=max_concurrency, batch_latency_s=batch_latency_s, batch_window_s=batch_window_s, **given,
    )  # fmt: skip
    server.serve(config, host=host, port=port)


def _guarded(call: Callable[[], Any]) -> int:
    try:
        call()
    except UserError as error:
        print(f"pocketstill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # Stages import late, so it may come out in the midst of a run.
        if error.name is None or error.name.startswith("pocketstill"):
            raise
        said = f"this command needs the workshop ({error.name} is not installed)"
        print(f"pocketstill: {said}; pip install 'pocketstill[workshop]'", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        print(
            f"pocketstill: {error.filename or 'disk'}: {error.strerror}; nothing that was finished is lost",
            file=sys.stderr,
        )
        return 2
    except (KeyboardInterrupt, SystemExit) as end:
        # typer makes a silent status 130 of an interrupt.
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        print("pocketstill: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


# The user's to mend, wherever they strike: a full disk, a quota, a read-only file system, a missing permission.
_USER_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES})


def main() -> None:
    """Entry point of the command; see `pocketstill --help`."""
    sys.exit(_guarded(app))
