"""Exports that are read back, and pushed to a stand-in for the Hugging Face Hub."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import wganlab
from tests.conftest import TINY, in_process
from tests.conftest import wganlab as command
from wganlab.schema import ConfigError

SMALL = ["dataset=digits", "dataset.size=8", "model.generator.hidden=[16]", "model.critic.hidden=[8]", "logger=csv"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, one of them conditional, and their exports in both formats."""
    folder = tmp_path_factory.mktemp("user")
    for name, extra in (("plain", ["model=mlp"]), ("labelled", ["model=conditional_mlp"])):
        done = command("train", *extra, *SMALL, *TINY, f"hydra.run.dir={name}", cwd=folder)
        assert done.returncode == 0, done.stderr
        for form in ("safetensors", "onnx"):
            done = in_process("export", f"run={name}", f"format={form}", f"output={name}_{form}", cwd=folder)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_an_export_makes_what_the_run_makes(form: str, user: Path) -> None:
    run, loaded = wganlab.load_run(user / "plain"), wganlab.load_export(user / f"plain_{form}")
    torch.testing.assert_close(loaded.sample(5, seed=3), run.sample(5, seed=3))
    assert loaded.classes is None
    assert loaded.config["model"]["latent_dim"] == run.config.model.latent_dim


@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_an_export_takes_labels(form: str, user: Path) -> None:
    run, loaded = wganlab.load_run(user / "labelled"), wganlab.load_export(user / f"labelled_{form}")
    assert loaded.classes == list(range(10))
    torch.testing.assert_close(loaded.sample(4, labels=[3]), run.sample(4, labels=[3]))
    assert not torch.equal(loaded.sample(4, labels=[3]), loaded.sample(4, labels=[7]))
    several = torch.tensor([3, 7])
    torch.testing.assert_close(loaded.sample(4, labels=several), run.sample(4, labels=several))
    assert loaded.sample(4).shape == (4, 1, 8, 8), "of four of the ten"
    for one in (run, loaded):
        with pytest.raises(ConfigError, match=r"labels=\[\]: must name one or more; allowed are 0 to 9"):
            one.sample(4, labels=[])
        with pytest.raises(ConfigError, match="n=1: must be at least one for each of 2 labels"):
            one.sample(1, labels=[3, 7])
    for one in (wganlab.load_run(user / "plain"), wganlab.load_export(user / f"plain_{form}")):
        with pytest.raises(ConfigError, match=r"labels=\[3\]: .* takes none"):
            one.sample(4, labels=[3])


def test_what_is_no_export_is_refused_and_no_code_is_run(user: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no export"):
        wganlab.load_export(user / "plain")
    with pytest.raises(ConfigError, match="nowhere: no such folder; of the Hub, USER/NAME"):
        wganlab.load_export("nowhere")
    with pytest.raises(ConfigError, match=r"plian: no such folder$"):
        wganlab.load_export(user / "plian")
    for name in ("config.json", "generator.safetensors"):
        (tmp_path / name).write_bytes((user / "plain_safetensors" / name).read_bytes())
    (tmp_path / "generator.py").write_text("raise SystemExit('run')")
    assert wganlab.load_export(tmp_path).sample(2).shape == (2, 1, 8, 8)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["generator"]["_target_"] = "os.system"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"os\.system"):
        wganlab.load_export(tmp_path)
    (tmp_path / "generator.safetensors").write_bytes(b"torn")
    (tmp_path / "config.json").write_bytes((user / "plain_safetensors" / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="cannot be read"):
        wganlab.load_export(tmp_path)
    (tmp_path / "generator.safetensors").write_bytes(
        (user / "plain_safetensors" / "generator.safetensors").read_bytes()
    )
    for model in ({}, None, {"latent_dim": 4}, {"latent_dim": 4, "generator": {}}):
        (tmp_path / "config.json").write_text(json.dumps({"model": model}))
        with pytest.raises(ConfigError, match="cannot be read"):
            wganlab.load_export(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files asks for; what was committed is in ``files``."""

    files: dict[str, bytes]
    refuses = False

    def answer(self, content: object, code: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.answer({"id": "me/digits", "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        there = f"http://{self.headers['Host']}/me/digits"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.refuses:
            self.answer({"error": "quota exceeded"}, 403)
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/digits/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "pullRequestUrl": None,
                }
            )
        else:
            self.answer({"url": there, "id": "me/digits", "name": "me/digits"})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a command that meets the stand-in in the place of the Hub."""
    Hub.files, Hub.refuses = {}, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {"HF_ENDPOINT": address, "HF_TOKEN": "hf_mine", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()


def test_an_export_is_pushed_whole(hub: dict[str, str], user: Path, tmp_path: Path) -> None:
    done = command("export", "run=plain", f"output={tmp_path}/out", "push=me/digits", cwd=user, **hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("pushed: ")
    assert Hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {"README.md", "config.json", "generator.py", "generator.safetensors"} <= Hub.files.keys()
    Hub.refuses = True
    done = command("export", "run=plain", f"output={tmp_path}/out", "push=me/digits", cwd=user, **hub)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"push=me/digits: {tmp_path}/out is written, and could not be pushed (" in done.stderr


def test_what_could_not_be_pushed_is_refused_before_any_work(user: Path, tmp_path: Path) -> None:
    for repository, expected in (("me", "must be USER/NAME"), ("me/digits", "no token of the Hugging Face Hub")):
        done = command("export", "run=plain", f"push={repository}", "output=new", cwd=user, HF_HOME=str(tmp_path))
        assert done.returncode == 2
        assert f"push={repository}: " in done.stderr
        assert expected in done.stderr
        assert not (user / "new").exists()
