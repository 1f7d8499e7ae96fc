"""The loop: any method, on one device or many, stopped and taken up again at will (Lightning Fabric).

Everything random is drawn from (seed, epoch, index), nothing from the state of a process, so a run that was killed and
taken up at its last whole epoch ends with the weights it would have had, and several processes see the batches that
one would.
"""

from __future__ import annotations

import csv
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from mcdrl_rt.errors import SpecError, first_line
from training.dataset import EpochBatches, Item, LesionDataset
from training.files import whole
from training.launch import progress_bar
from training.methods import Method
from training.methods.base import upsample_cells
from training.norms import avoid_slow_gradients, synchronise_norms
from training.overlays import contact_sheet
from training.recipe import Recipe, lineage

SHOWN = 8  # held-out pictures on an epoch's contact sheet
JUDGED = 8  # held-out pictures that go through the network together


@dataclass
class Progressed:
    """How far a run has come; what a resumed one must know beside weights and optimiser.

    Args:
        epochs: whole epochs done.
        best: highest held-out Dice so far, NaN before the first.
        best_epoch: when that was.
    """

    epochs: int = 0
    best: float = math.nan
    best_epoch: int = 0


class Trainer:
    """Method, moving average, optimiser, schedule and progress: the state of a run.

    Args:
        fabric: launched.
        recipe: the run's choices.
        method: to be trained, in place.
        run: folder of ``last.pt``, ``log.csv``, ``samples/`` and TensorBoard's files.
        dataset: what is trained on.
        held: what the selection rule looks at; None where nothing is held out.
        workers: processes that load data, for each process that trains.
    """

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        method: Method,
        run: Path,
        dataset: LesionDataset,
        held: LesionDataset | None = None,
        workers: int = 1,
    ) -> None:
        # epochs before the causal path are not judged: what they leave of it is untrained
        self.judged_from = recipe.causal_from_epoch if recipe.intervenes else 0
        share = recipe.batch_size // recipe.accumulate
        if share % fabric.world_size:
            shape = f"batches of {recipe.batch_size} in {recipe.accumulate} parts"
            raise SpecError(f"{fabric.world_size} processes cannot share {shape}; change batch_size or accumulate")
        self.steps = len(dataset) // recipe.batch_size
        if not self.steps:
            raise SpecError(f"{len(dataset)} images do not fill one batch of {recipe.batch_size}; lower batch_size")
        self.fabric, self.recipe, self.run, self.workers = fabric, recipe, run, workers
        self.dataset, self.held, self.progressed = dataset, held, Progressed()
        # of the runs that this one's start comes from: what was seen in them is not shown again
        self.earlier = sum(earlier.epochs for earlier in lineage(method.spec.provenance)[1:])
        fabric.strategy.precision.convert_module(method)
        method.to(fabric.device, memory_format=torch.channels_last)
        self.averaged = AveragedModel(method, multi_avg_fn=self._average, use_buffers=True)
        self.averaged.eval()
        fused = recipe.precision != "16-mixed"  # there the gradients must be clipped before they are unscaled
        groups = parameter_groups(recipe, method)
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=fused)
        avoid_slow_gradients(method, fabric)
        if fabric.world_size > 1:
            method = synchronise_norms(method, fabric.device)
        self.method, self.optimizer = fabric.setup(method, optimizer)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer.optimizer, self._lr_factor)

    @property
    def result(self) -> Method:
        """The method with the averaged weights."""
        module = self.averaged.module
        assert isinstance(module, Method)
        return module

    def train(self) -> Method:
        """Train to the end, from where ``last.pt`` left off; returns the method with the weights to keep."""
        self.load()
        writer = SummaryWriter(self.run, purge_step=self.progressed.epochs + 1) if self.fabric.is_global_zero else None
        while not self.finished:
            started = time.monotonic()
            figures = self.epoch(self.progressed.epochs)
            self.progressed.epochs += 1
            if not all(bool(value.isfinite().all()) for value in self.result.parameters()):
                raise SpecError(
                    f"training went astray in epoch {self.progressed.epochs}: weights are no numbers any more; lower "
                    "the learning rates or a loss's weight, and name another --output"
                )
            figures |= self.validate()
            seconds = round(time.monotonic() - started, 1)
            self._note(writer, figures)
            self.save()
            self.fabric.print(json.dumps({"epoch": self.progressed.epochs, **figures, "seconds": seconds}), flush=True)
        if writer:
            writer.close()
        if self.recipe.patience:
            state = torch.load(self.run / "best.pt", weights_only=True, map_location=self.fabric.device)
            self.result.load_state_dict(state)
        return self.result

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the selection rule has ended the run."""
        done, patience = self.progressed.epochs, self.recipe.patience
        best = max(self.progressed.best_epoch, self.judged_from)
        return done >= self.recipe.epochs or bool(patience and done - best >= patience)

    def epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the data; returns the mean of every loss over its steps and processes."""
        self.method.train()
        recipe, fabric = self.recipe, self.fabric
        intervene = epoch >= recipe.causal_from_epoch
        batches = EpochBatches(
            len(self.dataset),
            recipe.batch_size,
            seed=recipe.seed,
            epoch=self.earlier + epoch,
            parts=recipe.accumulate,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        loader = DataLoader(self.dataset, batch_sampler=batches, num_workers=self.workers, pin_memory=_on_gpu(fabric))
        sums: dict[str, Tensor] = {}
        with progress_bar(fabric) as bar:
            task = bar.add_task(f"epoch {epoch + 1} of {recipe.epochs}", total=self.steps)
            for i, batch in enumerate(loader, 1):
                part = Item(*(t.to(fabric.device, non_blocking=True) for t in batch))
                last = i % recipe.accumulate == 0
                for name, value in self.part(part, intervene, last).items():
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
                if last:
                    self.step()
                    bar.advance(task)
        means = {name: fabric.all_reduce(total / len(batches)) for name, total in sums.items()}
        return {name: round(float(value), 6) for name, value in means.items()}  # type: ignore[arg-type]

    def part(self, batch: Item, intervene: bool, last: bool) -> dict[str, Tensor]:
        """Gradients of a part of a batch, added to those at hand; ``last`` marks the last part."""
        with self.fabric.no_backward_sync(self.method, enabled=not last):
            terms = self.method(batch, intervene)
            self.fabric.backward(torch.stack(list(terms.values())).sum() / self.recipe.accumulate)
        return {name: value.detach() for name, value in terms.items()}

    def step(self) -> None:
        """One optimiser step with the gradients at hand."""
        self.fabric.clip_gradients(self.method, self.optimizer, max_norm=1.0, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.averaged.update_parameters(self.method.module)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean Dice and selection recall of the averaged weights on the held-out part, at the input size.

        As ``training.metrics`` has it, an image without lesion has Dice 1 if nothing is marked on it, else 0, and no
        recall.
        """
        if self.held is None:
            return {}
        fabric, method = self.fabric, self.result
        sums = torch.zeros(4, device=fabric.device)  # Dice, images, recall, images with lesion
        own = range(fabric.global_rank, len(self.held), fabric.world_size)
        for first in range(0, len(own), JUDGED):
            items = [self.held[0, index] for index in own[first : first + JUDGED]]
            pixels = torch.stack([item.pixels for item in items]).to(fabric.device)
            labels = torch.stack([item.labels for item in items]).to(fabric.device)
            with fabric.autocast():
                out = method.predict(method.normalise(pixels))
            named, lesion = out.logits.argmax(dim=1), labels > 0  # (B, H, W)
            found = torch.where(lesion, named == labels, named > 0)  # as ``metrics.score_image``
            cells = upsample_cells(out.selected, method.spec.grid_stride, lesion.shape[1:])
            area = lesion.sum(dim=(1, 2))
            total = found.sum(dim=(1, 2)) + area
            dice = torch.where(total > 0, 2 * (found & lesion).sum(dim=(1, 2)) / total.clamp_min(1), 1)
            recall = (cells & lesion).sum(dim=(1, 2)) / area.clamp_min(1)
            sums += torch.stack([dice, torch.ones_like(dice), recall, (area > 0).float()]).sum(dim=1)
        sums = fabric.all_reduce(sums, reduce_op="sum")  # type: ignore[assignment]
        dice, recall = float(sums[0] / sums[1]), float(sums[2] / sums[3])
        if self.progressed.epochs > self.judged_from:
            self._judge(dice)
        return {"held_dice": round(dice, 4)} | ({} if math.isnan(recall) else {"held_recall": round(recall, 4)})

    def _judge(self, dice: float) -> None:
        """The selection rule: remember the epoch of the highest held-out Dice, and with patience its weights."""
        if not self.progressed.best >= dice:
            self.progressed.best, self.progressed.best_epoch = dice, self.progressed.epochs
            if self.recipe.patience and self.fabric.is_global_zero:
                _write(self.result.state_dict(), self.run / "best.pt")

    def save(self) -> None:
        """Write the whole state to ``last.pt``, at once or not at all."""
        if self.fabric.is_global_zero:
            state = {name: part.state_dict() for name, part in self._parts().items()}
            _write(state | {"progressed": vars(self.progressed)}, self.run / "last.pt")
        self.fabric.barrier()

    def load(self) -> None:
        """Take up the state in ``last.pt``, if there is one.

        Raises:
            SpecError: it is of another recipe, or damaged.
        """
        path = self.run / "last.pt"
        if not path.is_file():
            return
        try:
            state = torch.load(path, weights_only=True, map_location=self.fabric.device)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.progressed = Progressed(**state["progressed"])
        except Exception as error:
            problem = first_line(error)
            raise SpecError(f"cannot go on from {path} ({problem}); move it away, or name another --output") from error

    def _parts(self) -> dict[str, Any]:
        inner = self.method.module
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        parts = {"method": inner, "averaged": self.averaged, "optimizer": self.optimizer.optimizer}
        return parts | {"schedule": self.schedule} | ({"scaler": scaler} if scaler else {})

    def _note(self, writer: SummaryWriter | None, figures: dict[str, float]) -> None:
        """Log an epoch: a row of ``log.csv``, TensorBoard's curves, and what the model draws on held-out pictures."""
        if writer is None:
            return
        done = self.progressed.epochs
        row = {"epoch": done, "lr": self.schedule.get_last_lr()[-1], **figures}
        path = self.run / "log.csv"
        rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
        rows = [*(old for old in rows if int(old["epoch"]) < done), {k: str(v) for k, v in row.items()}]
        with whole(path) as partial, partial.open("w", newline="") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(name for one in rows for name in one)))
            table.writeheader()
            table.writerows(rows)
        for name, value in figures.items():
            writer.add_scalar(name, value, done)
        if self.held is not None:
            sheet = contact_sheet(self.result, self.held, SHOWN, self.run / "samples" / f"epoch-{done:03d}.jpg")
            writer.add_image("held out", sheet, done, dataformats="HWC")
        writer.flush()

    def _average(self, means: Any, values: Any, count: Any) -> None:
        """Exponential moving average, over a shorter past at first."""
        decay = min(self.recipe.ema, float((1 + count) / (10 + count)))
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, values, 1 - decay)
        else:
            for mean, value in zip(means, values, strict=True):
                mean.copy_(value)

    def _lr_factor(self, step: int) -> float:
        warm = round(self.recipe.warmup_epochs * self.steps)
        if step < warm:
            return (step + 1) / warm
        if self.recipe.schedule == "constant":
            return 1.0
        progress = (step - warm) / max(1, self.recipe.epochs * self.steps - warm)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(recipe: Recipe, method: Method) -> list[dict[str, Any]]:
    """What starts from pretrained weights at ``encoder_lr``, everything new at ``lr``."""
    pretrained = {id(p) for p in method.pretrained_parameters()}
    sides: dict[float, list[nn.Parameter]] = {recipe.encoder_lr: [], recipe.lr: []}
    for parameter in method.parameters():
        if parameter.requires_grad:
            sides[recipe.encoder_lr if id(parameter) in pretrained else recipe.lr].append(parameter)
    return [{"params": some, "lr": lr} for lr, some in sides.items() if some]


def _on_gpu(fabric: Fabric) -> bool:
    return fabric.device.type == "cuda"


def _write(state: dict[str, Any], path: Path) -> None:
    with whole(path) as partial:
        torch.save(state, partial)
