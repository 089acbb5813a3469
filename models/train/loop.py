"""The loop of every stage: epochs, validation, the best network kept, early stopping, and going on after a kill.

Mixed precision, several accelerators and their data are accelerate's: start with `accelerate launch -m
lcmem_onnx.models.train CONFIG` to use more than one.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from lcmem_onnx.runtime.errors import TrainingError
from lcmem_onnx.runtime.machine import cpu_features, cpu_limit
from lcmem_onnx.runtime.syncing import put_whole
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..checkpoint import write_state
from .config import Config

__all__ = ["EpochSet", "Trainee", "accelerator_for", "best_file", "denormals_flushed", "finished", "log_file", "run", "vae_folder"]

LOG_COLUMNS = ("epoch", "train_loss", "val_loss", "rate", "seconds", "best")
MISSING = float("inf")
SETTINGS_SAID = 4


class EpochSet(Protocol):
    """A data set that is drawn anew each epoch, in batches of `batch`."""

    batch: int

    def start_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Trainee:
    """What the loop trains.

    `module(*batch)` gives the loss; `after_step` is called after each step of all `optimizers`; `write(path)` writes the network as
    others load it.
    """

    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    train: EpochSet
    validation: EpochSet
    after_step: Callable[[], None]
    write: Callable[[Path], None]


@dataclass(frozen=True)
class _Stepped:
    """Optimizers, each with its schedule, that take their steps together."""

    optimizers: Sequence[Any]
    schedules: Sequence[Any]

    def clear(self) -> None:
        for each in self.optimizers:
            each.zero_grad(set_to_none=True)

    def step(self) -> None:
        for each in (*self.optimizers, *self.schedules):
            each.step()

    def load_state_dicts(self, optimizers: Sequence[Any], schedules: Sequence[Any]) -> None:
        for each, content in zip((*self.optimizers, *self.schedules), (*optimizers, *schedules), strict=True):
            each.load_state_dict(content)


def accelerator_for(config: Config) -> Accelerator:
    """An accelerator, or the CPU, in the precision that the configuration asks for."""
    torch.set_num_threads(cpu_limit())
    precision = config.training.precision
    if precision == "auto":
        cuda = torch.cuda.is_available()
        in_hardware = torch.cuda.is_bf16_supported() if cuda else "amx_bf16" in (cpu_features() or [])
        precision = "bf16" if in_hardware else "no"
    AcceleratorState._reset_state()  # of a training before this one in the same process, whose precision may have been another
    return Accelerator(mixed_precision=precision)


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers next to 0, as the optimizers' moments become, count as 0: processors take a hundred times as long for them.

    Only for the training: it is a setting of the thread, and other code may mean such a number.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def run(config: Config, trainee: Trainee, accelerator: Accelerator, say: Callable[[str], None]) -> Path:
    """Train, and give the path of the best network.

    A training whose folder holds a checkpoint of the same configuration goes on after its last whole epoch.

    Raises:
        TrainingError: the loss is not finite (the last checkpoint and the best network stay), the folder holds a training of
            another configuration, or it cannot be written.
    """
    training, out = config.training, config.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out} cannot be made: {error}") from error
    loaders: list[DataLoader[Any]] = [
        DataLoader(
            each,  # type: ignore[arg-type]  # a map-style data set, as its protocol says
            batch_size=each.batch,
            drop_last=each is trainee.train,
            num_workers=config.data.workers if each is trainee.train else 0,
        )
        for each in (trainee.train, trainee.validation)
    ]
    steps = len(trainee.train) // training.pairs
    if steps < 1:
        raise TrainingError(
            f"an epoch of {len(trainee.train)} pairs is less than one batch of {training.pairs}: lower training.pairs"
        )
    module, train_loader, val_loader, *optimizers = accelerator.prepare(trainee.module, *loaders, *trainee.optimizers)
    steps = len(train_loader)
    factor = _rising_then_cosine(training.warm, training.epochs * steps)
    stepped = _Stepped(optimizers, [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in optimizers])
    state = _resumed(config, trainee, stepped)
    if state["epoch"]:
        say(f"going on after epoch {state['epoch']} of {training.epochs}")

    for epoch in range(state["epoch"], training.epochs):
        if state["waited"] >= training.patience:
            break
        set_seed(config.seed + epoch)
        trainee.train.start_epoch(epoch)
        started = time.monotonic()
        rate = float(stepped.schedules[0].get_last_lr()[0])
        train_loss = _epoch(accelerator, config, trainee, module, stepped, train_loader, epoch)
        val_loss = _validated(accelerator, module, val_loader)
        if not math.isfinite(val_loss):
            raise TrainingError(_not_finite("validation", epoch, len(train_loader)))
        better = val_loss < state["best"]
        state["best"], state["waited"] = (val_loss, 0) if better else (state["best"], state["waited"] + 1)
        seconds = time.monotonic() - started
        values = (epoch + 1, round(train_loss, 6), round(val_loss, 6), rate, round(seconds, 1), better)
        state["log"].append(dict(zip(LOG_COLUMNS, values, strict=True)))
        state["epoch"] = epoch + 1
        if accelerator.is_main_process:
            _kept(config, trainee, stepped, state, better)
        say(
            f"epoch {epoch + 1}/{training.epochs}  train {train_loss:.4f}  validation {val_loss:.4f}"
            f"{' (best)' if better else ''}  {seconds:.0f} s"
        )
    if state["waited"] >= training.patience:
        say(f"ended early: no better validation loss in {training.patience} epochs")
    return best_file(config)


def best_file(config: Config) -> Path:
    """Where the best network of a training is, once there is one."""
    return config.out / f"{config.name}_best_network.pth"


def vae_folder(config: Config) -> Path:
    """Where an autoencoder's training puts its best network besides, as diffusers reads it."""
    return config.out / "vae"


def log_file(config: Config) -> Path:
    """Where each whole epoch has a line, of `LOG_COLUMNS`."""
    return config.out / f"{config.name}_log.csv"


def _checkpoint_file(config: Config) -> Path:
    return config.out / f"{config.name}_checkpoint.pth"


def _rising_then_cosine(warm: int, total: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        risen = min(1.0, (step + 1) / warm) if warm else 1.0
        return risen * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total))))

    return factor


def _epoch(
    accelerator: Accelerator, config: Config, trainee: Trainee, module: nn.Module, stepped: _Stepped, loader: Any, epoch: int,
) -> float:  # fmt: skip
    module.train()
    total, count = 0.0, 0
    with tqdm(loader, desc=f"{config.name} {epoch + 1}/{config.training.epochs}", disable=None, leave=False) as batches:
        for step, batch in enumerate(batches, 1):
            loss = module(*batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(_not_finite("training", epoch, step))
            stepped.clear()
            accelerator.backward(loss)
            if config.training.clip:
                accelerator.clip_grad_norm_(module.parameters(), config.training.clip)
            stepped.step()
            trainee.after_step()
            total, count = total + value, count + 1
            batches.set_postfix(loss=f"{total / count:.4f}", refresh=False)
    return total / count


def _not_finite(which: str, epoch: int, step: int) -> str:
    return (
        f"the {which} loss is not finite in epoch {epoch + 1}, step {step}: training ends here; the checkpoint of the last whole "
        "epoch and the best network stay as they are. Lower training.rate, set training.clip, or train in precision 'no'"
    )


@torch.no_grad()
def _validated(accelerator: Accelerator, module: nn.Module, loader: Any) -> float:
    module.eval()
    losses = [accelerator.gather(module(*batch).detach().float().reshape(1)).mean() for batch in loader if len(batch[0]) > 1]
    return float(torch.stack(losses).mean())


def finished(config: Config) -> bool:
    """Whether this training has nothing left to do: known from its checkpoint, before a picture is read.

    Raises:
        TrainingError: as `run`, of its checkpoint; or its best network is gone.
    """
    content = _checkpoint(config)
    return content is not None and _ended(config, content["state"])


def _ended(config: Config, state: Mapping[str, Any]) -> bool:
    return bool(state["epoch"] >= config.training.epochs or state["waited"] >= config.training.patience)


def _resumed(config: Config, trainee: Trainee, stepped: _Stepped) -> dict[str, Any]:
    """Load the last whole epoch, if there is one."""
    content = _checkpoint(config)
    if content is None:
        return {"epoch": 0, "best": MISSING, "waited": 0, "log": []}
    try:
        trainee.module.load_state_dict(content["module"])
        stepped.load_state_dicts(content["optimizers"], content["schedules"])
        return dict(content["state"])
    except Exception as error:
        raise _unreadable(config, error) from error


def _checkpoint(config: Config) -> dict[str, Any] | None:
    """What the last whole epoch left, if there was one."""
    path = _checkpoint_file(config)
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        settings = content["config"]
    except Exception as error:  # torch's loader raises whatever its parsers stumble over
        raise _unreadable(config, error) from error
    if other := _differences(settings, config):
        raise TrainingError(
            f"{path} belongs to a training with other settings: {other}. Choose another 'out', or remove {path} to start anew"
        )
    wanted = [best_file(config), *([vae_folder(config) / "config.json"] if config.stage == "autoencoder" else [])]
    if gone := [file for file in wanted if not file.exists()]:
        raise TrainingError(
            f"{path} says that epochs were trained, but {gone[0]} is gone. Put it back, or remove {path} to start anew"
        )
    return content


def _differences(before: Any, config: Config) -> str:
    """Which settings are not what they were, some by name. One that an older version did not have was at its default."""
    if not isinstance(before, dict):
        return "they cannot be read"
    now = _settings(config)
    before = {name: default for name in now if (default := _default(config, name)) is not None} | before
    names = [name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name)]
    said = [f"{name} was {before.get(name, 'not there')} and is {now.get(name, 'not there')}" for name in names[:SETTINGS_SAID]]
    return "; ".join(said) + (f"; and {len(names) - SETTINGS_SAID} more" if len(names) > SETTINGS_SAID else "")


def _default(config: Config, name: str) -> str | None:
    """What a setting is where nobody sets it, as `_settings` writes it; None if it must be set."""
    table, _, key = name.rpartition(".")
    field = next(each for each in dataclasses.fields(getattr(config, table) if table else config) if each.name == key)
    return None if field.default is dataclasses.MISSING else repr(field.default)


def _unreadable(config: Config, error: Exception) -> TrainingError:
    return TrainingError(f"{_checkpoint_file(config)} cannot be read: {error}. Remove it to start this stage anew")


def _settings(config: Config) -> dict[str, str]:
    """What must be equal for a training to be the same one: everything but where it is written and how it is loaded."""
    content = asdict(config)
    content.pop("out")
    content["data"].pop("workers")
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": repr(its) for name, its in value.items()}
        else:
            flat[key] = repr(value)
    return flat


def _kept(config: Config, trainee: Trainee, stepped: _Stepped, state: dict[str, Any], better: bool) -> None:
    """Write the best network, the log and the checkpoint, each whole or not at all; the checkpoint last, since it counts."""
    content = {
        "config": _settings(config),
        "module": trainee.module.state_dict(),
        "optimizers": [each.state_dict() for each in stepped.optimizers],
        "schedules": [each.state_dict() for each in stepped.schedules],
        "state": state,
    }
    try:
        if better:
            put_whole(best_file(config), trainee.write, alone=True)
        with log_file(config).open("w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, LOG_COLUMNS)
            writer.writeheader()
            writer.writerows(state["log"])
        put_whole(_checkpoint_file(config), lambda path: write_state(content, path), alone=True)
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"{config.out} cannot be written: {error}. The files of the epoch before stand") from error
