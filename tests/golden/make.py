"""Write the golden files of the installed version: what users of that version have on their disks.

    python tests/golden/make.py tests/golden/0.1.0

Everything is made by the installed version's command line, in /golden, so that no path of the making machine is in any file. The
images are drawn here; the site key is a test key, whose 32 bytes spell "lcmem-onnx TEST key: not secret!". Needs torch (the
bundle is exported from random weights) and the extras audit and gateway. `tests/test_golden.py` opens the files with the current
code. Run this script once per released version, never again: a golden file that is made anew proves nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, UltrasoundImageStorage

ROOT = Path("/golden")
"""Where the files are made. Keys of an index are absolute paths: these show up in it."""
KEY = b"lcmem-onnx TEST key: not secret!"
ISSUER = "GOLDEN"
STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage, "US": UltrasoundImageStorage}
UID = "1.2.826.0.1.3680043.8.498.7"
PORT = 11199
CONFIG = f"""\
site_key = "site.key"
[spool]
folder = "spool"
min_free_mb = 1
[model]
bundle = "../bundle"
variant = "fp32"
[[folder]]
path = "inbox"
name = "inbox"
settle_seconds = 0.2
poll_seconds = 0.1
[[gallery]]
name = "patients"
index = "../index"
groups = ["ward-a"]
[[destination]]
name = "archive"
host = "127.0.0.1"
port = {PORT}
aet = "ARCHIVE"
[[destination]]
name = "away"
host = "127.0.0.1"
port = 1
aet = "AWAY"
[[rule]]
name = "kept"
gallery = "patients"
modality = ["US"]
on_clear = "keep"
[[rule]]
name = "away"
gallery = "patients"
modality = ["MR"]
forward_to = ["away"]
[[rule]]
name = "everything"
gallery = "patients"
forward_to = ["archive"]
"""


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    os.chdir(ROOT)
    key = ROOT / "site.key"
    key.write_text(KEY.hex() + "\n", encoding="ascii")
    key.chmod(0o600)
    os.environ |= {"LCMEM_ONNX_SITE_KEY": str(key), "LCMEM_ONNX_BUNDLE": str(ROOT / "bundle"), "LCMEM_ONNX_VARIANT": "fp32"}
    make_bundle()
    draw_images()
    expected: dict[str, Any] = {"pseudonyms": pseudonyms()}
    expected |= make_index()
    make_report()
    expected |= make_gateway()
    (ROOT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(ROOT / "strangers")
    for log in ROOT.rglob("*.sqlite-wal"):  # readers leave it; all that counts is in the database by now
        assert not log.stat().st_size
        log.unlink()
    for shared in ROOT.rglob("*.sqlite-shm"):
        shared.unlink()
    shutil.rmtree(ROOT / "gateway" / "inbox")  # empty, which git does not keep
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT, out)


def run(*arguments: str, code: int = 0) -> str:
    """Run the installed command line, and return what it printed."""
    program = str(Path(sys.executable).with_name("lcmem-onnx"))
    finished = subprocess.run([program, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    assert finished.returncode == code, f"{arguments} ended with {finished.returncode}:\n{finished.stdout}"
    return finished.stdout


def lines(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, code=code).splitlines()]


# -- bundle, images, pseudonyms -------------------------------------------------------------------------------------------


def make_bundle() -> None:
    """A random LCMem of 64 x 64 images and 16 features, much as the tests have it; its head tells different images apart."""
    import torch
    from lcmem_onnx.models.autoencoder import AutoencoderShape
    from lcmem_onnx.models.checkpoint import save_lcmem
    from lcmem_onnx.models.convnext import ConvNeXtShape
    from lcmem_onnx.models.lcmem import LCMem

    torch.manual_seed(0)
    network = LCMem(ConvNeXtShape(4, (8, 16), (1, 1), 2, 16), AutoencoderShape(48, (8, 16), 1, 4, 4, middle_attention=False))
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if "layer_scale" in name:
                parameter.fill_(1.0)
            elif parameter.ndim > 1:
                parameter.mul_(8.0)
        network.fc_end.weight.copy_(-torch.linspace(1.25, 8.75, 16)[None])
        network.fc_end.bias.fill_(4.0)
    save_lcmem(network, Path("golden.pth"), image_size=64, card={"summary": "random weights, for tests", "demonstration": True})
    command = [sys.executable, "-m", "export", "--ckpt", "golden.pth", "--out", "bundle", "--variants", "fp32", "-q"]
    subprocess.run(command, check=True)
    Path("golden.pth").unlink()


def drawn(seed: int) -> NDArray[np.uint8]:
    """A smooth random image, uint8 (64, 64, 3): values without noise, so that JPEG hardly changes them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))


def save_dicom(path: Path, seed: int, modality: str, patient: str, number: int) -> None:
    """A gray object of a patient that does not exist."""
    pixels = drawn(seed)[..., 0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = STORAGE[modality]
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"{UID}.1.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{UID}.2.{patient[-1]}", f"{UID}.3.{number}"
    dataset.Modality, dataset.PatientID, dataset.IssuerOfPatientID, dataset.PatientName = modality, patient, ISSUER, "Golden^Test"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def draw_images() -> None:
    """Two wards of images, queries of which some are copies, and strangers for the calibration."""
    for number in range(4):
        save_dicom(Path(f"images/ward-a/{number}.dcm"), number, "CT", f"GOLDEN-{1 + number // 2}", number)
    for folder, seeds in (("ward-a", (4, 5)), ("ward-b", (6, 7, 8)), ("holdout", range(20, 26)), ("strangers", range(100, 140))):
        place = Path("strangers" if folder == "strangers" else f"images/{folder}")
        place.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            Image.fromarray(drawn(seed)).save(place / f"{seed}.png")
    queries = Path("images/queries")
    save_dicom(queries / "copy-of-0.dcm", 0, "CT", "GOLDEN-9", 90)
    Image.fromarray(drawn(4)).save(queries / "copy-of-4.jpg", quality=95)
    Image.fromarray(drawn(7)).resize((100, 100), Image.Resampling.BICUBIC).save(queries / "copy-of-7.png")
    Image.fromarray(drawn(53)).save(queries / "other-53.png")
    Image.fromarray(drawn(51)).save(queries / "other-51.jpg", quality=90)


def pseudonyms() -> dict[str, Any]:
    """What this version makes of some identifiers under the test key, in each place that has pseudonyms."""
    from lcmem_onnx.runtime.privacy import SiteKey

    key = SiteKey.open(ROOT / "site.key")
    patients = [("GOLDEN-1", ISSUER), ("GOLDEN-1", None), (" 4711 ", ""), ("Größe^\u5c71", "St. Mary"), ("", None)]
    uids = [f"{UID}.1.0", f"{UID}.2.1", "1.2.3", ""]
    return {
        "site_key": key.name,
        "patients": [[patient, issuer, key.patient(patient, issuer)] for patient, issuer in patients],
        "studies": [[uid, key.study(uid)] for uid in uids],
        "gateway": [[kind, uid, key.short(kind, uid)] for kind in ("uid", "study", "picture") for uid in uids],
        "archive": [[uid, key.object_name(uid)] for uid in uids],
    }


# -- index, report ----------------------------------------------------------------------------------------------------------


def make_index() -> dict[str, Any]:
    run("index", "build", "images/ward-a", "--index", "index", "--gallery", "ward-a", "--graph", "-q")
    run("index", "add", "images/ward-b", "--index", "index", "--gallery", "ward-b", "--graph", "-q")
    calibrated = lines("calibrate", "--index", "index", "--negatives", "strangers", "--fpir", "0.05", "--json", "-q")
    run("index", "export", "--index", "index", "--out", "export.npz", "-q")
    return {
        "calibrate": calibrated[0],
        "info": lines("index", "info", "--index", "index", "--json")[0],
        "scan": lines("scan", "images/queries", "--index", "index", "--json", "-q", code=1),
        "scan_ward_b": lines("scan", "images/queries", "--index", "index", "--gallery", "ward-b", "--json", "-q", code=1),
    }


def make_report() -> None:
    folders = ("--released", "images/queries", "--reference", "images/ward-a", "--holdout", "images/holdout", "--out", "report")
    Path("labels.csv").write_text("path,class\ncopy-of-4.jpg,copy\nother-53.png,other\n", encoding="ascii")
    run("audit", *folders, "--labels", "labels.csv", "--images", "4", "--pdf", "-q", code=1)
    Path("labels.csv").unlink()


# -- gateway ------------------------------------------------------------------------------------------------------------------


def make_gateway() -> dict[str, Any]:
    """Objects in every state. The service is killed with two objects received and not yet screened, as a power cut does it."""
    from pynetdicom import AE, evt
    from pynetdicom.presentation import StoragePresentationContexts

    folder = ROOT / "gateway"
    inbox = folder / "inbox"
    inbox.mkdir(parents=True)
    (folder / "gateway.toml").write_text(CONFIG, encoding="ascii")
    shutil.copy2(ROOT / "site.key", folder / "site.key")
    # (name, seed of the image, modality): seeds below 6 are in the gallery.
    objects = [("match", 1, "CT"), ("released", 2, "CT"), ("discarded", 3, "CT"), ("clear", 60, "CT"), ("kept", 61, "US")]
    objects += [("away", 65, "MR"), ("refused", 63, "CT")]
    sop = {name: f"{UID}.1.{200 + at}" for at, (name, _, _) in enumerate(objects)}
    entity = AE(ae_title="ARCHIVE")
    entity.supported_contexts = StoragePresentationContexts
    answers = {sop["refused"]: 0xA900}
    handler = (evt.EVT_C_STORE, lambda event: answers.get(str(event.request.AffectedSOPInstanceUID), 0x0000))
    archive = entity.start_server(("127.0.0.1", PORT), block=False, evt_handlers=[handler])
    service, log = start(folder)
    try:
        for at, (name, seed, modality) in enumerate(objects):
            save_dicom(inbox / f"{name}.dcm", seed, modality, "GOLDEN-3", 200 + at)
        await_states(folder, quarantined=3, forwarded=1, kept=1, dead=1, screened=1)
        held = {item["nearest"][0]["key"][-5]: item["id"] for item in quarantine(folder)}
        gateway(folder, "quarantine", "release", held["2"])
        gateway(folder, "quarantine", "discard", held["3"])
        await_states(folder, quarantined=1, forwarded=2, kept=1, dead=1, screened=1, discarded=1)
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        (screening,) = (line["pid"] for line in events if line["event"] == "part-started" and line["name"] == "screen")
        os.kill(screening, signal.SIGSTOP)
        for number, seed in ((300, 4), (301, 64)):
            save_dicom(inbox / f"{number}.dcm", seed, "CT", "GOLDEN-3", number)
        await_states(folder, received=2, quarantined=1, forwarded=2, kept=1, dead=1, screened=1, discarded=1)
        time.sleep(1.0)  # the lines of the trail are written
    finally:
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()
        archive.shutdown()
    return {
        "states": states(folder),
        "quarantine": quarantine(folder),
        "trail": gateway(folder, "audit", "verify", "--json"),
    }


def start(folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    log = ROOT.parent / "golden.log"
    with open(log, "wb") as stream:
        command = [sys.executable, "-m", "lcmem_onnx.cli", "gateway", "--config", str(folder / "gateway.toml")]
        service = subprocess.Popen(command, stderr=stream, start_new_session=True)
    return service, log


def gateway(folder: Path, *arguments: str) -> Any:
    said = run("gateway", *arguments, "--config", str(folder / "gateway.toml"))
    with contextlib.suppress(ValueError):
        return json.loads(said)
    return said


def quarantine(folder: Path) -> list[dict[str, Any]]:
    return lines("gateway", "quarantine", "list", "--kept", "--json", "--config", str(folder / "gateway.toml"))


def await_states(folder: Path, **wanted: int) -> None:
    found: dict[str, int] = {}

    def met() -> bool:
        nonlocal found
        with contextlib.suppress(AssertionError):  # there is no spool until the service has made one
            found = states(folder)
        return found == wanted

    eventually(met, lambda: f"wanted {wanted}, found {found}")


def states(folder: Path) -> dict[str, int]:
    """How many objects are in each state, states without objects left out."""
    names = ("received", "screened", "forwarded", "kept", "quarantined", "discarded", "dead", "answered")
    return {name: count for name, count in gateway(folder, "status", "--json").items() if name in names and count}


def eventually(met: Callable[[], bool], what: Callable[[], str], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


if __name__ == "__main__":
    main()
