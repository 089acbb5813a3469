"""gateway.toml: what is in it is understood or refused with its place, and what it names is looked at."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.errors import ConfigError, GatewayError
from lcmem_onnx.runtime.gateway.config import read_config
from lcmem_onnx.runtime.gateway.example_config import EXAMPLE, write_example
from lcmem_onnx.runtime.gateway.preflight import check_settings

GALLERY = Path(__file__).parent.parent / "examples" / "pictures" / "gallery"
TEXT = EXAMPLE.read_text(encoding="utf-8")


def written(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["gateway", *arguments])


def test_the_example_is_read(tmp_path: Path) -> None:
    settings = read_config(write_example(tmp_path / "etc"))
    assert settings.spool.folder == tmp_path / "etc" / "spool"
    assert settings.receive
    assert settings.receive.host == "127.0.0.1"
    assert settings.rule[0].forward_to == ("archive",)
    assert settings.audit_folder == settings.spool.folder / "audit"


def test_what_the_example_comments_out_is_known_too(tmp_path: Path) -> None:
    """Every commented setting, taken in, is a key that exists and a value of its type."""
    lines = [re.sub(r"^# (?=(\[|[a-z_]+ = ))", "", line) for line in TEXT.splitlines()]
    settings = read_config(written(tmp_path, "\n".join(lines)))
    assert settings.http
    assert settings.http.caller[0].token_file == tmp_path / "modality.token"
    assert settings.folder[0].name == "outgoing"
    assert settings.audit.syslog
    assert settings.receive
    assert settings.receive.tls
    assert settings.destination[0].tls


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("calling_aets =", "calling_aet =", "calling_aets =", r"'receive\.calling_aet', which .* did you mean 'calling_aets'"),
        ("[spool]", "[spol]", "[spool]", "the key 'spol', which does not exist; did you mean 'spool'"),
        ('index = "hospital', 'indx = "hospital', 'index = "hospital', r"'gallery\[0\]\.indx', which .* did you mean 'index'"),
        ("port = 4242", 'port = "4242"', "port = 4242", r"destination\[0\]\.port is '4242'; expected integer"),
        ("port = 4242", "port = true", "port = 4242", r"destination\[0\]\.port is True; expected integer"),
        ("port = 4242", "port = 70000", "port = 4242", r"destination\[0\]\.port is 70000; .* between 0 and 65535"),
        ('on_error = "quarantine"', 'on_error = "forward"', "on_error =", r"on_error is 'forward'; expected 'keep' or"),
        ('gallery = "patients"', 'gallery = "patient"', 'gallery = "patients"', "named 'patient'; did you mean 'patients'"),
        ('forward_to = ["archive"]', 'forward_to = ["archiv"]', "forward_to =", "named 'archiv'; did you mean 'archive'"),
        ('forward_to = ["archive"]', "forward_to = []", "forward_to =", "names no destination"),
        ('forward_to = ["archive"]', 'forward_to = "archive"', "forward_to =", "forward_to is 'archive'; expected array"),
        ('on_match = "quarantine"', 'on_match = "forward"', None, "goes together with on_match"),
        ('aet = "LCMEM"\nhost', 'aet = "A_TITLE_THAT_IS_TOO_LONG"\nhost', "aet =", "no AE title"),
        ('calling_aets = ["CT1", "MR1", "STORESCU"]', "calling_aets = []", "calling_aets =", "nobody may call"),
        ("attempts = 100", "attempts = 0", "attempts =", "above 0"),
        ("min_free_mb = 2048", "min_free_mb = -1", "min_free_mb =", "above 0"),
        ("first_seconds = 5.0", "first_seconds = nan", "first_seconds =", "above 0"),
        ("[retry]", 'hold_notes = ["icons"]\n[retry]', None, "there is no note 'icons'; did you mean 'icon'"),
        ("[log]", "[[log]]", "[log]", "'log' is a table of settings, not"),
        ('site_key = "site.key"', "site_key = 3", "site_key =", "site_key is 3; expected path"),
        ('folder = "spool"', "", "[spool]", r"lacks a key: 'spool\.folder'"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(old: str, new: str, line: str | None, message: str, tmp_path: Path) -> None:
    assert TEXT.count(old) >= 1
    path = written(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    if line:
        number = next(at for at, text in enumerate(TEXT.splitlines(), 1) if text.startswith(line))
        assert f"line {number}" in str(caught.value)


def test_what_does_not_go_together(tmp_path: Path) -> None:
    twice = TEXT + '\n[[rule]]\nname = "everything"\ngallery = "patients"\nforward_to = ["archive"]\n'
    with pytest.raises(ConfigError, match="'everything' is given 2 times"):
        read_config(written(tmp_path, twice))
    with pytest.raises(ConfigError, match="no way in"):
        read_config(written(tmp_path, re.sub(r"\[receive\]\n.*?\n\n", "", TEXT, flags=re.S)))
    with pytest.raises(ConfigError, match="no rule"):
        read_config(written(tmp_path, re.sub(r"\[\[rule\]\]\n.*?\n\n", "", TEXT, flags=re.S)))
    with pytest.raises(ConfigError, match="http.caller: nobody may call"):
        read_config(written(tmp_path, TEXT + "\n[http]\nport = 1\n"))
    with pytest.raises(ConfigError, match="matches must go elsewhere"):
        read_config(
            written(tmp_path, TEXT.replace('on_match = "quarantine"', 'on_match = "forward"\nforward_matches_to = ["archive"]'))
        )
    with pytest.raises(ConfigError, match="no network"):
        read_config(written(tmp_path, TEXT.replace("# addresses", "addresses").replace("10.1.0.0/16", "10.1.0.0/99")))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gateway init"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read as a TOML file"):
        read_config(written(tmp_path, "site_key = "))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "binary.toml")


def test_init_writes_what_check_accepts(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    assert run("init", str(folder)).exit_code == 0
    config = str(folder / "gateway.toml")
    text = TEXT.replace("min_free_mb = 2048", "min_free_mb = 1").replace("port = 11112", "port = 0")
    written(folder, text)
    missing = run("check", "--config", config)
    assert missing.exit_code == 2
    assert "index build" in missing.output
    built = CliRunner().invoke(main, ["index", "build", str(GALLERY), "--index", str(folder / "hospital.index"), "-q"])
    assert built.exit_code == 0
    fine = run("check", "--config", config)
    assert fine.exit_code == 0, fine.output
    assert "next  lcmem-onnx gateway run" in fine.output
    assert not (folder / "spool").exists()
    written(folder, text.replace('# groups = ["cardiology"]', 'groups = ["cardiology"]'))
    no_group = run("check", "--config", config)
    assert (no_group.exit_code, "no group 'cardiology'" in no_group.output) == (2, True)
    again = run("init", str(folder))
    assert again.exit_code == 2
    assert "exists already" in again.output


def test_check_names_every_problem(tmp_path: Path) -> None:
    text = TEXT
    for commented in ("[receive.tls]", "certificate =", "key ="):
        text = text.replace(f"# {commented}", commented, 1)
    text += '\n[[folder]]\npath = "nowhere"\nname = "in"\n'
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = written(tmp_path, text.replace("port = 11112", f"port = {taken.getsockname()[1]}"))
        found = {finding.what: finding.problem for finding in check_settings(read_config(path))}
    assert "gateway init" in str(found["site key"])
    assert "is not an index" in str(found["gallery patients"])
    assert "cannot be listened on" in str(found["receive"])
    assert "cannot be used" in str(found["receive.tls"])
    assert "no folder" in str(found["folder in"])
    assert found["destination archive"] is None
    lines = run("check", "--json", "--config", str(path))
    assert lines.exit_code == 2
    assert all(json.loads(line)["schema_version"] == 1 for line in lines.output.splitlines())


def test_commands_without_a_spool_say_so(tmp_path: Path) -> None:
    path = str(write_example(tmp_path))
    for command in (["status"], ["quarantine", "list"], ["requeue", "--all"], ["audit", "verify"]):
        outcome = run(*command, "--config", path)
        assert outcome.exit_code == 2, command
        assert "no spool" in outcome.output
    assert not (tmp_path / "spool").exists()


def test_the_configuration_may_stand_before_the_command(tmp_path: Path) -> None:
    path = str(write_example(tmp_path))
    assert "no spool" in run("--config", path, "status").output


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GatewayError, match="cannot be written"):
        write_example(tmp_path / "file" / "etc")
