"""The loop of every stage: epochs, validation, the best network kept, early stopping, and going on after a kill.

Mixed precision, several accelerators and their data are accelerate's: start with `accelerate launch -m
lcmem_onnx.models.train CONFIG` to use more than one.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, gather_object, set_seed
from lcmem_onnx.runtime.errors import FileListError, TrainingError
from lcmem_onnx.runtime.system.atomic_write import put_whole
from lcmem_onnx.runtime.system.cpu import cpu_features, cpu_limit
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from ..checkpoint import write_state
from .config import Config

__all__ = ["EpochSet", "Trainee", "accelerator_for", "best_file", "denormals_flushed", "finished", "log_file", "run", "vae_folder"]

LOG_COLUMNS = ("epoch", "train_loss", "val_loss", "rate", "seconds", "best")
MISSING = float("inf")
SETTINGS_SAID = 4


class EpochSet(Protocol):
    """A data set that is drawn anew each epoch: `batch` items make a batch, or (`whole_batches`) each item is one already."""

    batch: int
    whole_batches: bool

    def start_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class Trainee:
    """What the loop trains.

    `module(*batch)` gives the loss; `after_step`, if there is one, is called after each step of all `optimizers`; `write(path)`
    writes the network as others load it. `averaged` is validated in place of `module`, if there is one; `after_step` keeps it up to
    date.
    """

    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    train: EpochSet
    validation: EpochSet
    write: Callable[[Path], None]
    after_step: Callable[[], None] | None = None
    averaged: nn.Module | None = None


@dataclass(frozen=True)
class _Failure:
    """An item that could not be read. It travels as an item: an error that a loading process raises arrives as its traceback."""

    message: str


class _Guarded(Dataset[Any]):
    """A data set whose unreadable items are `_Failure`s."""

    def __init__(self, items: EpochSet) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> Any:
        try:
            return self._items[number]
        except FileListError as error:
            return _Failure(str(error))


def _batch_of(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, _Failure)), None) or default_collate(items)


def _only(items: list[Any]) -> Any:
    return items[0]


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
    torch.set_num_threads(max(1, cpu_limit() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
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
    """Train, and return the path of the best network.

    A training whose folder holds a checkpoint of the same configuration goes on from there.

    Raises:
        TrainingError: the loss is not finite (the last checkpoint and the best network stay), the folder holds a training of
            another configuration, or it cannot be written.
        FileListError: an image cannot be read; the steps before it are in the checkpoint.
    """
    training, out = config.training, config.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out} cannot be made: {error}") from error
    steps = len(trainee.train) // (trainee.train.batch * training.accumulate)
    if steps < 1:
        raise TrainingError(
            f"an epoch of {len(trainee.train) * (training.pairs if trainee.train.whole_batches else 1)} pairs is less than one "
            f"step of {training.accumulate} x {training.pairs}: lower training.pairs"
        )
    loaders = [_loader(config, trainee, each) for each in (trainee.train, trainee.validation)]
    module, train_loader, val_loader, *optimizers = accelerator.prepare(trainee.module, *loaders, *trainee.optimizers)
    steps = len(train_loader) // training.accumulate
    factor = _schedule(config, training.epochs * steps)
    stepped = _Stepped(optimizers, [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in optimizers])
    if trainee.averaged is not None:
        trainee.averaged.to(accelerator.device)
    progress = _resumed(config, trainee, stepped, accelerator)
    state = progress.state
    if state["epoch"] or state["step"]:
        within = f" and {state['step']} steps of the next" if state["step"] else ""
        say(f"going on after epoch {state['epoch']} of {training.epochs}{within}")

    for epoch in range(state["epoch"], training.epochs):
        if state["waited"] >= training.patience:
            break
        set_seed(config.seed + epoch)
        trainee.train.start_epoch(epoch)
        if not state["step"]:
            state["rate"] = float(stepped.schedules[0].get_last_lr()[0])
        _epoch(accelerator, config, trainee, module, stepped, train_loader, epoch, progress)
        try:
            val_loss = _validated(accelerator, module if trainee.averaged is None else trainee.averaged, val_loader)
        except FileListError:
            progress.write_before_failing(accelerator)
            raise
        if not math.isfinite(val_loss):
            raise TrainingError(_not_finite("validation", epoch, steps))
        # A network that still trains on small images scores the large ones of validation on another scale: its loss rises while it
        # learns. The newest is the best then, and nothing waits.
        small = epoch < training.small_epochs
        better = small or val_loss < state["best"]
        state["waited"] = 0 if better else state["waited"] + 1
        if better:
            state["best"] = math.inf if small else val_loss
        train_loss, seconds = state["loss"] / steps, progress.seconds()
        values = (epoch + 1, round(train_loss, 6), round(val_loss, 6), state["rate"], round(seconds, 1), better)
        state["log"].append(dict(zip(LOG_COLUMNS, values, strict=True)))
        progress.end_epoch()
        if better and accelerator.is_main_process:
            _written(config, lambda: put_whole(best_file(config), trainee.write, alone=True))
        progress.write(accelerator)
        say(
            f"epoch {epoch + 1}/{training.epochs}  train {train_loss:.4f}  validation {val_loss:.4f}"
            f"{' (best)' if better else ''}  {seconds:.0f} s"
        )
    if state["waited"] >= training.patience:
        say(f"ended early: no better validation loss in {training.patience} epochs")
    return best_file(config)


def _loader(config: Config, trainee: Trainee, items: EpochSet) -> DataLoader[Any]:
    training = items is trainee.train
    return DataLoader(
        _Guarded(items),
        batch_size=items.batch,
        drop_last=training,
        num_workers=config.data.workers if training else 0,
        collate_fn=_only if items.whole_batches else _batch_of,
    )


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


def _schedule(config: Config, total: int) -> Callable[[int], float]:
    """The rate's factor by the number of steps taken: rising, flat, then a cosine to the floor."""
    training = config.training

    def factor(step: int) -> float:
        risen = min(1.0, (step + 1) / training.warm) if training.warm else 1.0
        done = min(1.0, step / max(1, total))
        if done < training.flat or training.flat == 1.0:
            return risen
        cosine = 0.5 * (1.0 + math.cos(math.pi * (done - training.flat) / (1.0 - training.flat)))
        return risen * (training.floor + (1.0 - training.floor) * cosine)

    return factor


class _Progress:
    """How far a training has come, and its checkpoint: `state` is what resuming needs beside weights and optimizers.

    Of the current epoch `state` has the steps taken, the sum of their losses and the seconds they took.
    """

    def __init__(self, config: Config, trainee: Trainee, stepped: _Stepped, state: dict[str, Any]) -> None:
        self._config, self._trainee, self._stepped = config, trainee, stepped
        self.state = state
        self.random: Tensor | None = None
        """Where an epoch was interrupted: the state of torch's generator that its next step begins with."""
        self._behind_step = torch.get_rng_state()
        self._started = self._written = time.monotonic()

    def seconds(self) -> float:
        """Seconds that the current epoch took, of all attempts at it."""
        return float(self.state["seconds"]) + time.monotonic() - self._started

    def start_steps(self) -> None:
        self._started = self._written = time.monotonic()

    def end_epoch(self) -> None:
        self.state |= {"epoch": self.state["epoch"] + 1, "step": 0, "loss": 0.0, "seconds": 0.0}
        self._started = time.monotonic()

    def end_step(self, loss: float) -> None:
        self.state |= {"step": self.state["step"] + 1, "loss": self.state["loss"] + loss}
        self._behind_step = torch.get_rng_state()

    def is_due(self, accelerator: Accelerator) -> bool:
        """Whether the last checkpoint is older than wanted, by the main process's clock."""
        due = time.monotonic() - self._written >= 60.0 * self._config.training.checkpoint_minutes
        if accelerator.num_processes == 1:
            return due
        return bool(broadcast(torch.tensor(int(due), device=accelerator.device)))

    def write(self, accelerator: Accelerator) -> None:
        """Write log and checkpoint, each whole or not at all; the checkpoint last, since it counts.

        Raises:
            TrainingError: one cannot be written.
        """
        random = gather_object([self._behind_step])  # each process has its own
        now = time.monotonic()
        if accelerator.is_main_process:
            content = {
                "config": _settings(self._config),
                "module": self._trainee.module.state_dict(),
                "optimizers": [each.state_dict() for each in self._stepped.optimizers],
                "schedules": [each.state_dict() for each in self._stepped.schedules],
                "state": self.state | {"seconds": self.seconds() if self.state["step"] else 0.0},
                "random": random,
            }
            if self._trainee.averaged is not None:
                content["averaged"] = self._trainee.averaged.state_dict()
            _written(self._config, lambda: _write_log(self._config, self.state["log"]))
            path = _checkpoint_file(self._config)
            _written(self._config, lambda: put_whole(path, lambda draft: write_state(content, draft), alone=True))
        self._written = now

    def write_before_failing(self, accelerator: Accelerator) -> None:
        """Write a checkpoint, unless there are other processes: they know nothing of the failure and would be waited for."""
        if accelerator.num_processes == 1:
            self.write(accelerator)


def _written(config: Config, write: Callable[[], None]) -> None:
    try:
        write()
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"{config.out} cannot be written: {error}. The checkpoint before stands") from error


def _write_log(config: Config, log: Sequence[Mapping[str, Any]]) -> None:
    with log_file(config).open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, LOG_COLUMNS)
        writer.writeheader()
        writer.writerows(log)


def _epoch(
    accelerator: Accelerator, config: Config, trainee: Trainee, module: nn.Module, stepped: _Stepped, loader: Any, epoch: int,
    progress: _Progress,
) -> None:  # fmt: skip
    """Take the steps of an epoch that are not taken yet; `progress` counts them and sums their losses."""
    module.train()
    state, at_once = progress.state, config.training.accumulate
    steps = len(loader) // at_once
    if state["step"] >= steps:
        progress.random = None
        return
    batches = iter(accelerator.skip_first_batches(loader, state["step"] * at_once) if state["step"] else loader)
    progress.start_steps()
    title = f"{config.name} {epoch + 1}/{config.training.epochs}"
    with tqdm(total=steps, initial=state["step"], desc=title, disable=None, leave=False) as bar:
        for step in range(state["step"] + 1, steps + 1):
            stepped.clear()
            value = 0.0
            for number in range(at_once):
                batch = next(batches)
                if isinstance(batch, _Failure):
                    progress.write_before_failing(accelerator)
                    raise FileListError(batch.message)
                if progress.random is not None:  # behind the loader's own use of the generator, before the step's
                    torch.set_rng_state(progress.random)
                    progress.random = None
                with accelerator.no_sync(module) if number < at_once - 1 else nullcontext():
                    loss = module(*batch) / at_once
                    value += float(loss.detach())
                    if not math.isfinite(value):
                        raise TrainingError(_not_finite("training", epoch, step))
                    accelerator.backward(loss)
            if config.training.clip:
                accelerator.clip_grad_norm_(module.parameters(), config.training.clip)
            stepped.step()
            if trainee.after_step is not None:
                trainee.after_step()
            progress.end_step(value)
            bar.set_postfix(loss=f"{state['loss'] / step:.4f}", refresh=False)
            bar.update()
            if step < steps and progress.is_due(accelerator):
                progress.write(accelerator)


def _not_finite(which: str, epoch: int, step: int) -> str:
    return (
        f"the {which} loss is not finite in epoch {epoch + 1}, step {step}: training ends here; the last checkpoint and the best "
        "network stay as they are. Lower training.rate, set training.clip, or train in precision 'no'"
    )


@torch.no_grad()
def _validated(accelerator: Accelerator, module: nn.Module, loader: Any) -> float:
    module.eval()
    losses = []
    for batch in loader:
        if isinstance(batch, _Failure):
            raise FileListError(batch.message)
        if len(batch[0]) > 1:
            losses.append(accelerator.gather(module(*batch).detach().float().reshape(1)).mean())
    return float(torch.stack(losses).mean())


def finished(config: Config) -> bool:
    """Whether this training has nothing left to do: known from its checkpoint, before an image is read.

    Raises:
        TrainingError: as `run`, of its checkpoint; or its best network is gone.
    """
    content = _checkpoint(config)
    return content is not None and _ended(config, content["state"])


def _ended(config: Config, state: Mapping[str, Any]) -> bool:
    return bool(state["epoch"] >= config.training.epochs or state["waited"] >= config.training.patience)


def _resumed(config: Config, trainee: Trainee, stepped: _Stepped, accelerator: Accelerator) -> _Progress:
    """Load the checkpoint, if there is one."""
    state: dict[str, Any] = {"epoch": 0, "step": 0, "loss": 0.0, "seconds": 0.0, "best": MISSING, "waited": 0, "log": []}
    content = _checkpoint(config)
    if content is None:
        return _Progress(config, trainee, stepped, state)
    try:
        trainee.module.load_state_dict(content["module"])
        if trainee.averaged is not None:
            trainee.averaged.load_state_dict(content["averaged"])
        stepped.load_state_dicts(content["optimizers"], content["schedules"])
        progress = _Progress(config, trainee, stepped, state | content["state"])
        if progress.state["step"]:
            progress.random = content["random"][accelerator.process_index]
        return progress
    except Exception as error:
        raise _unreadable(config, error) from error


def _checkpoint(config: Config) -> dict[str, Any] | None:
    """What the last checkpoint holds, if there is one."""
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
    if content["state"]["epoch"] and (gone := [file for file in wanted if not file.exists()]):
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
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return None if field.default is dataclasses.MISSING else repr(field.default)


def _unreadable(config: Config, error: Exception) -> TrainingError:
    return TrainingError(f"{_checkpoint_file(config)} cannot be read: {error}. Remove it to start this stage anew")


def _settings(config: Config) -> dict[str, str]:
    """What must be equal for a training to be the same one: everything but where it is written and how it is loaded."""
    content = asdict(config)
    content.pop("out")
    content["data"].pop("workers")
    content["training"].pop("checkpoint_minutes")
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": repr(its) for name, its in value.items()}
        else:
            flat[key] = repr(value)
    return flat
