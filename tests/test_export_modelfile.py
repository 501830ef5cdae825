"""The Modelfile's Go template gives the text of the Jinja template, by transformers' rendering and Go's own."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from conftest import TEMPLATE
from export_students import SHARED_TOKENIZERS, make_student

from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.modelfile import Turns, read_turns, write_modelfile

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] }}<|end|>\n<|assistant|>"
    "{% elif m['role'] == 'assistant' %}\n{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start|>{{ m['role'] }}<|stop|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% else %}{{ eos_token }}{% endif %}"
)
TEMPLATES = {"ours": TEMPLATE, "chatml": CHATML, "phi3": PHI3, "llama3": LLAMA3}
TALKS = [
    [("user", 'Say "hi" \\n & {{ .Messages }} <b>é🙂</b>')],
    [("user", "one"), ("assistant", "two\nlines"), ("user", "three")],
    [("system", "Be kind."), ("user", "one"), ("assistant", "two"), ("user", "three")],
]
PROGRAM = """package main
import ("encoding/json"; "fmt"; "os"; "text/template")
type M struct{ Role, Content string }
func main() {
  var talks [][]M
  json.NewDecoder(os.Stdin).Decode(&talks)
  t := template.Must(template.New("t").Parse(os.Args[1]))
  for _, talk := range talks {
    if err := t.Execute(os.Stdout, map[string]any{"Messages": talk}); err != nil { panic(err) }
    fmt.Print("\\x00")
  }
}
"""


def talks_for(template: str) -> list[list[dict[str, str]]]:
    # Phi-3's own template drops system messages without a word.
    return [[{"role": r, "content": c} for r, c in talk] for talk in TALKS[: 2 if template == PHI3 else 3]]


def by_transformers(template: str, messages: list[dict[str, str]]) -> str:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token="<bos>", eos_token="<eos>", chat_template=template
    )
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("kind", TEMPLATES)
def test_turns_are_the_template(kind: str) -> None:
    turns = read_turns(TEMPLATES[kind], bos_token="<bos>", eos_token="<eos>")
    assert isinstance(turns, Turns)
    for messages in talks_for(TEMPLATES[kind]):
        assert turns.render(messages) == by_transformers(TEMPLATES[kind], messages)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}\n{% endfor %}>",
        "{{ messages[-1]['content'] }}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_is_no_sequence_of_turns_is_not_guessed(template: str) -> None:
    assert read_turns(template, bos_token="", eos_token="") is None


def written(checkpoint: Checkpoint, folder: Path, generation: dict[str, Any], license_name: str | None) -> str:
    write_modelfile(
        checkpoint,
        folder,
        "m.gguf",
        context_length=128,
        generation=generation,
        license_name=license_name,
    )
    return (folder / "Modelfile").read_text(encoding="utf-8")


def test_modelfile(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", eos_token_id=[0, 3]))
    generation = {"max_new_tokens": 16, "temperature": 0.0}
    text = written(checkpoint, tmp_path, generation, "apache-2.0")
    stops = ["<|end|>", "<|system|>"]
    assert text.splitlines()[0] == "FROM ./m.gguf"
    assert [line for line in text.splitlines() if " stop " in line] == [f'PARAMETER stop "{s}"' for s in stops]
    for line in ("PARAMETER num_ctx 128", "PARAMETER num_predict 16", "PARAMETER temperature 0", "apache-2.0"):
        assert line in text
    assert '{{ "<|user|>" }}{{ .Content }}{{ "<|end|>" }}' in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
@pytest.mark.parametrize("kind", TEMPLATES)
def test_go_renders_the_same(kind: str, tmp_path: Path) -> None:
    checkpoint = replace(read_checkpoint(make_student(tmp_path / "student")), template=TEMPLATES[kind])
    checkpoint.tokenizer_config.update(bos_token="<bos>", eos_token="<eos>")
    text = written(checkpoint, tmp_path, {}, None)
    (tmp_path / "main.go").write_text(PROGRAM)
    talks = talks_for(TEMPLATES[kind])
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go"), text.split('"""')[1]],
        input=json.dumps([[{"Role": m["role"], "Content": m["content"]} for m in talk] for talk in talks]),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin:/usr/local/go/bin", "HOME": str(tmp_path), "GOCACHE": str(tmp_path / "cache")},
    )
    assert done.stdout.split("\x00")[:-1] == [by_transformers(TEMPLATES[kind], talk) for talk in talks]


@pytest.mark.parametrize("name", ["qwen2", "phi-3"])
def test_real_templates(name: str) -> None:
    path = SHARED_TOKENIZERS / name / "chat_template.jinja"
    if not path.is_file():
        pytest.skip(f"the real template of {name} is not on this machine")
    turns = read_turns(path.read_text(), bos_token="<bos>", eos_token="<eos>")
    assert isinstance(turns, Turns)
    talk = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, TALK_END]
    assert turns.render(talk) == by_transformers(path.read_text(), talk)


TALK_END = {"role": "user", "content": "three"}
