from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Finished, run_here, run_script, says_in_one_line
from fake_hub import SHA, FakeHub, running


def run(hub: FakeHub, tmp_path: Path, *words: str, **environment: str) -> Finished:
    return run_script(
        "inference_baselines.py",
        *("--baseline", "majority", "--inference_mode", "ICL", "--task_format", "open"),
        *("--output-dir", tmp_path / "out", *words),
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"} | environment,
    )


@pytest.mark.parametrize(
    ("words", "dataset_id"),
    [
        ((), "smmile/SMMILE"),
        (("--dataset", "augmented"), "smmile/SMMILE-plusplus"),
        (("--dataset-id", "someone/else", "--dataset-revision", SHA), "someone/else"),
    ],
)
def test_a_hub_data_set_is_downloaded_once_and_recorded(
    words: tuple[str, ...], dataset_id: str, data: Path, tmp_path: Path
) -> None:
    with running(FakeHub(dataset_id, data, gated=True)) as hub:
        finished = run(hub, tmp_path, *words, HF_TOKEN="hf_right")
        assert finished.code == 0, finished.err
        assert "hf_right" in hub.tokens
    result = json.loads((tmp_path / "out" / "result_majority_ICL_open.json").read_text())
    assert result["run"]["dataset"]["id"] == dataset_id
    assert result["run"]["dataset"]["revision"] == SHA
    assert len(result["records"]) == 4
    assert "hf_right" not in json.dumps(result) + finished.out + finished.err

    offline = run(hub, tmp_path, *words, HF_HUB_OFFLINE="1")
    assert offline.code == 0, offline.err
    assert "no requests were left to send" in offline.out


def test_hf_cache_dir_holds_all_cached_files(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with running(FakeHub("smmile/SMMILE", data)) as hub:
        assert run(hub, tmp_path, "--hf_cache_dir", str(cache)).code == 0
    assert list(cache.glob("datasets--smmile--SMMILE/snapshots/*/data/*.parquet"))
    assert list(cache.glob("datasets/**/*.arrow"))
    assert not list((tmp_path / "home").glob("**/*.parquet"))
    assert not list((tmp_path / "home").glob("**/*.arrow"))


def test_hub_errors_have_specific_messages(data: Path, tmp_path: Path) -> None:
    with running(FakeHub("smmile/SMMILE", data, gated=True)) as hub:
        says_in_one_line(run(hub, tmp_path), "smmile/SMMILE is gated: set HF_TOKEN")
        wrong = run(hub, tmp_path, HF_TOKEN="hf_wrong")
        says_in_one_line(wrong, "smmile/SMMILE is gated", "has no access")
        assert "hf_wrong" not in wrong.err
        unknown = run(hub, tmp_path, "--dataset-id", "smmile/NO", HF_TOKEN="hf_right")
        says_in_one_line(unknown, "has no data set smmile/NO", "--dataset-id")
        says_in_one_line(run(hub, tmp_path, "--dataset-id", "smmile/NO"), "or set HF_TOKEN")
        revision = run(hub, tmp_path, "--dataset-revision", "v9", HF_TOKEN="hf_right")
        says_in_one_line(revision, "has no revision v9", "--dataset-revision")
    offline = run(hub, tmp_path, HF_HUB_OFFLINE="1")
    says_in_one_line(offline, "the hub cannot be reached", "--dataset-path")
    says_in_one_line(run(hub, tmp_path, ALL_PROXY="socks5://127.0.0.1:9"), "smmile/SMMILE", "socksio")


@pytest.mark.parametrize("hub_id", ["a/b/c", "/etc", "../x", "smmile"])
def test_an_id_that_is_a_path_is_rejected(hub_id: str, tmp_path: Path) -> None:
    words = ("--baseline", "majority", "--output-dir", tmp_path, "--dataset-id", hub_id)
    says_in_one_line(run_here("inference_baselines.py", *words), "not a hub id")
