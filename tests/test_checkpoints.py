"""Checkpoints of the hub, from a hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Finished, run_command, says_in_one_line, script_command, scripted_command
from fake_hub import SHA, FakeHub, running
from smmile.backends.local.checkpoints import find_checkpoint, is_hub_id, revision_of

Tiny = Callable[[str], Path]
MODEL = "google/medgemma-4b-it"


def run(
    hub: FakeHub,
    tmp_path: Path,
    *words: str,
    make_command: Callable[..., list[str]] = scripted_command,
    **environment: str,
) -> Finished:
    """Fetch the model and run it, or a scripted one in its place."""
    command = make_command(
        "inference_medgemma.py",
        *("--dataset", "demo", "--limit", "1", "--max_new_tokens", "4"),
        *("--output-dir", tmp_path / "out", *words),
    )
    return run_command(
        command,
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"} | environment,
    )


@pytest.mark.slow
def test_a_gated_model_is_fetched_with_a_token_once_and_named(tiny: Tiny, tmp_path: Path) -> None:
    with running(FakeHub(MODEL, tiny("gemma3"), gated=True, kind="models")) as hub:
        says_in_one_line(run(hub, tmp_path), MODEL, "is gated and HF_TOKEN is not set")
        refused = run(hub, tmp_path, HF_TOKEN="hf_wrong")
        says_in_one_line(refused, MODEL, "is gated and the account of this HF_TOKEN has no access")
        assert "hf_wrong" not in refused.err
        finished = run(hub, tmp_path, HF_TOKEN="hf_right", make_command=script_command)
        assert finished.code == 0, finished.err
    result = json.loads((tmp_path / "out" / "result_medgemma_4b_ICL_open.json").read_text())
    assert result["run"]["checkpoint"] == MODEL
    assert result["run"]["checkpoint_revision"] == SHA
    assert "hf_right" not in json.dumps(result) + finished.out + finished.err

    offline = run(hub, tmp_path, "--overwrite", HF_HUB_OFFLINE="1")
    assert offline.code == 0, offline.err
    # A finished run needs neither the hub nor the cache.
    elsewhere = run(hub, tmp_path, "--csv", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert elsewhere.code == 0, elsewhere.err


def test_the_hubs_other_refusals_each_have_their_line(tiny: Tiny, tmp_path: Path) -> None:
    with running(FakeHub("someone/else", tiny("gemma3"), kind="models")) as hub:
        says_in_one_line(run(hub, tmp_path), f"there is no model {MODEL}", "HF_TOKEN is not set")
    offline = run(hub, tmp_path, HF_HUB_OFFLINE="1")
    says_in_one_line(offline, MODEL, "the hub cannot be reached", "--model-path")
    gone = run(hub, tmp_path)  # its server has stopped
    says_in_one_line(gone, MODEL, "the hub cannot be reached", "--model-path")
    no_proxy = run(hub, tmp_path, ALL_PROXY="socks5://127.0.0.1:9")
    says_in_one_line(no_proxy, MODEL, "the hub cannot be reached", "socksio")


def test_a_download_without_room_is_not_begun(tiny: Tiny, tmp_path: Path) -> None:
    claimed = {"model-00001-of-00002.safetensors": 5 << 50, "original/consolidated.safetensors": 9 << 50}
    with running(FakeHub(MODEL, tiny("gemma3"), kind="models", claimed=claimed)) as hub:
        finished = run(hub, tmp_path, "--hf_cache_dir", str(tmp_path / "cache"))
        needed = f"{5 << 20}.0 GiB of disk"
        says_in_one_line(finished, MODEL, needed, str(tmp_path / "cache"), "--hf_cache_dir")
        assert not [line for line in hub.asked if "/resolve/" in line]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("org/model-7B.v1", True),
        ("gpt2", True),
        ("a/b/c", False),
        ("../up", False),
        ("org/..", False),
        ("/abs", False),
        ("", False),
        ("org/model name", False),
    ],
)
def test_what_can_be_a_hub_id(text: str, answer: bool) -> None:
    assert is_hub_id(text) is answer


def test_a_folders_revision_follows_its_weights(tiny: Tiny, tmp_path: Path) -> None:
    """Of large files too, of which only samples are read."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny("gemma3"), folder)
    first = revision_of(folder)
    assert first == revision_of(tiny("gemma3"))
    large = folder / "more.safetensors"
    large.write_bytes(bytes(4 << 20))
    second = revision_of(folder)
    large.write_bytes(bytes((4 << 20) - 1) + b"1")
    assert len({first, second, revision_of(folder)}) == 3
    assert revision_of(tmp_path / "none") is None


def fetched(hub: FakeHub, tmp_path: Path, find: str) -> list[str]:
    """The words that Python code prints that fetches from `hub`; printed again without it."""
    import sys

    code = f"from smmile.backends.local import adapters, checkpoints\n{find}"
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    online = run_command([sys.executable, "-c", code], **settings)
    assert online.code == 0, online.err
    offline = run_command([sys.executable, "-c", code], **settings | {"HF_HUB_OFFLINE": "1"})
    assert offline.out == online.out, offline.err
    return online.out.split()


def test_what_is_downloaded_of_a_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """Its named chat templates too, which the hub keeps in a folder; nothing that can run code."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny("gemma3"), folder)
    needed = {file.name for file in folder.iterdir()}
    extra = ["additional_chat_templates/rag.jinja", "video_preprocessor_config.json", "tekken.json"]
    for name in [*extra, "original/params.json", "modeling_own.py", "a.bin", "README.md"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    with running(FakeHub(MODEL, folder, kind="models")) as hub:
        find = f"""
folder = checkpoints.find_checkpoint({MODEL!r}, {SHA!r}).folder
print(*(file.relative_to(folder) for file in folder.rglob("*") if file.is_file()))"""
        assert set(fetched(hub, tmp_path, find)) == needed | set(extra)


def test_an_adapter_of_the_hub_is_downloaded_alone(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "optimizer.pt").write_bytes(b"x")
    with running(FakeHub("me/lora", folder, kind="models")) as hub:
        find = """
revision = checkpoints.revision_of("me/lora")
print(revision, *sorted(file.name for file in adapters.find_adapter("me/lora", revision).iterdir()))"""
        words = fetched(hub, tmp_path, find)
    assert words == [SHA, "adapter_config.json", "adapter_model.safetensors"]


def test_the_number_of_weights_is_the_files(tiny: Tiny) -> None:
    from safetensors.torch import load_file

    tensors = load_file(tiny("gemma3") / "model.safetensors")
    found = find_checkpoint(tiny("gemma3"), None)
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.model_type == "gemma3"


def test_a_folders_own_code_counts_only_where_it_may_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    versions = [[revision_of(tmp_path, with_code=trusted)] for trusted in (False, True)]
    for file in ("modeling_own.py", "own.tiktoken"):
        (tmp_path / file).write_text("x")
        for known, trusted in zip(versions, (False, True), strict=True):
            known.append(revision_of(tmp_path, with_code=trusted))
    assert [len(set(known)) for known in versions] == [1, 3]
